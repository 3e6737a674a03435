// Householder reflections, one after the other and in blocks (Golub and Van Loan 2013, sections 5.1 and 5.2).
#pragma once

#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "products.h"
#include "simd.h"

namespace ganfast {

// What is not above it is zero: matrices are scaled to a norm of about one before, and squares this small say nothing.
constexpr double NOTHING = 1e-290;

// H = I - tau v v^T with H x = (alpha, 0, ..., 0), for x = (first, rest) and |x|^2; v[0] = 1, and the rest of v is that of x over
// `lead`.
struct Reflector {
    double alpha, lead, tau;

    Reflector(double first, double square) {
        if (square <= NOTHING) {
            alpha = 0, lead = 1, tau = 0;
            return;
        }
        alpha = first > 0 ? -std::sqrt(square) : std::sqrt(square);
        lead = first - alpha;
        tau = -lead / alpha;
    }
};

// ---- a panel of columns

// For each row: f = row[column] / lead, row -= f w; sums = the sum of row[pivot] row. Elements before number 8 FIRST stay.
template <int VECTORS, int FIRST>
GANFAST_SIMD void reflect_rows(double* rows, int64_t count, int64_t column, double lead, const double* w, int64_t pivot,
                               double* sums) {
    Doubles ws[VECTORS], sum[VECTORS] = {};
    std::memcpy(ws, w, sizeof ws);
    for (int64_t i = 0; i < count; ++i, rows += VECTORS * 8) {
        Doubles row[VECTORS];
        std::memcpy(row, rows, sizeof row);
        const double f = rows[column] / lead;
        for (int v = FIRST; v < VECTORS; ++v) row[v] -= f * ws[v];
        std::memcpy(rows + FIRST * 8, row + FIRST, (VECTORS - FIRST) * sizeof *row);
        const double p = rows[pivot];
        for (int v = 0; v < VECTORS; ++v) sum[v] += p * row[v];
    }
    std::memcpy(sums, sum, sizeof sum);
}

// The same, with FIRST as the column allows.
template <int VECTORS, int FIRST = VECTORS - 1, typename... A>
void reflect_rows_from(double* rows, int64_t count, int64_t column, A... more) {
    if constexpr (FIRST > 0) {
        if (column < FIRST * 8) return reflect_rows_from<VECTORS, FIRST - 1>(rows, count, column, more...);
    }
    reflect_rows<VECTORS, FIRST>(rows, count, column, more...);
}

// X = (I - V T V^T) R for X (length x WIDTH), length >= 1, in place: R in the upper triangle, V's columns below it, of which the
// ones on the diagonal are not stored. T is upper triangular. One reading of the panel for each column: while a reflection is
// applied, the products of the next column with all others are summed up, those with V's columns among them, which T needs.
template <int WIDTH>
void factor_panel(double* panel, int64_t length, double* t) {
    double sums[WIDTH], w[WIDTH] = {};
    reflect_rows_from<WIDTH / 8>(panel, length, 0, 1.0, w, int64_t{0}, sums);
    std::fill(t, t + WIDTH * WIDTH, 0.0);
    for (int64_t j = 0; j < std::min<int64_t>(WIDTH, length); ++j) {
        double* top = panel + j * WIDTH;
        const Reflector h(top[j], sums[j]);
        // v^T times every column
        for (int64_t c = 0; c < WIDTH; ++c) w[c] = (sums[c] - h.alpha * top[c]) / h.lead;
        for (int64_t r = 0; r < j; ++r) {
            double sum = 0;
            for (int64_t c = r; c < j; ++c) sum += t[r * WIDTH + c] * w[c];
            t[r * WIDTH + j] = -h.tau * sum;
        }
        t[j * WIDTH + j] = h.tau;
        for (int64_t c = 0; c < WIDTH; ++c) w[c] = c > j ? h.tau * w[c] : 0;
        for (int64_t c = j + 1; c < WIDTH; ++c) top[c] -= w[c];
        top[j] = h.alpha;
        w[j] = h.lead - 1;  // leaves x / lead
        reflect_rows_from<WIDTH / 8>(top + WIDTH, length - j - 1, j, h.lead, w, std::min<int64_t>(j + 1, WIDTH - 1), sums);
    }
}

}  // namespace ganfast

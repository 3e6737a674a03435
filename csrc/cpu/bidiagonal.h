// An upper band to two diagonals of the same singular values, by chasing what every step pushes out of the band down to its end
// (Lang 1996); and the sum of their singular values.
#pragma once

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "lanes.h"
#include "reflectors.h"

namespace ganfast {

// ---- the band

// Square, with as many zero rows and columns behind as a step may reach into. Element (r, c) with -WIDTH <= c - r <= 2 WIDTH.
template <int WIDTH>
class Band {
public:
    explicit Band(int64_t size) : size(size), memory_((size + 3 * WIDTH) * (STRIDE + 1) + WIDTH) {}

    double* at(int64_t r, int64_t c) { return memory_.data() + WIDTH + r * STRIDE + c; }
    static constexpr int64_t STRIDE = 3 * WIDTH;  // between two elements of a column

    const int64_t size;

private:
    std::vector<double> memory_;
};

// The sums of the lanes of eight registers.
GANFAST_INLINE Doubles sums_of_lanes(const Doubles* x) {
    Doubles y[4], z[2];
    for (int i = 0; i < 4; ++i) {
        const Doubles a = x[i], b = x[i + 4];
        y[i] =
            __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 2; ++i) {
        const Doubles a = y[i], b = y[i + 2];
        z[i] =
            __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return __builtin_shufflevector(z[0], z[1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(z[0], z[1], 1, 9, 3, 11, 5, 13, 7, 15);
}

// Two reflections: from the right one that leaves of the WIDTH elements of `row` the first alone, and from the left one that does
// the same for the column that begins `below` rows under it. `stride` leads from an element to the one below.
template <int WIDTH>
GANFAST_SIMD void chase_step(double* row, int64_t below, int64_t stride) {
    constexpr int VECTORS = WIDTH / 8;
    double v[WIDTH];
    {
        double square = 0;
        for (int64_t i = 0; i < WIDTH; ++i) square += row[i] * row[i];
        const Reflector h(row[0], square);
        for (int64_t i = 1; i < WIDTH; ++i) v[i] = row[i] / h.lead, row[i] = 0;
        v[0] = 1;
        row[0] = h.alpha;
        Doubles vs[VECTORS];
        std::memcpy(vs, v, sizeof vs);
        double* line = row + stride;
        const int64_t met = below == 1 ? WIDTH : 2 * WIDTH;  // the last of 2 WIDTH rows is zero here
        for (int64_t r = 0; r < met; r += 8, line += 8 * stride) {
            Doubles parts[8];
            for (int i = 0; i < 8; ++i) {
                Doubles x[VECTORS], sum{};
                std::memcpy(x, line + i * stride, sizeof x);
                for (int c = 0; c < VECTORS; ++c) sum += x[c] * vs[c];
                parts[i] = sum;
            }
            const Doubles f = h.tau * sums_of_lanes(parts);
            for (int i = 0; i < 8; ++i) {
                Doubles x[VECTORS];
                std::memcpy(x, line + i * stride, sizeof x);
                for (int c = 0; c < VECTORS; ++c) x[c] -= f[i] * vs[c];
                std::memcpy(line + i * stride, x, sizeof x);
            }
        }
    }
    double *const first = row + below * stride, *line = first;
    double square = 0;
    for (int64_t r = 0; r < WIDTH; ++r, line += stride) v[r] = *line, square += v[r] * v[r];
    const Reflector h(v[0], square);
    for (int64_t r = 0; r < WIDTH; ++r) v[r] /= h.lead;
    v[0] = 1;
    Doubles w[2 * VECTORS] = {};
    line = first;
    for (int64_t r = 0; r < WIDTH; ++r, line += stride) {
        Doubles x[2 * VECTORS];
        std::memcpy(x, line, sizeof x);
        for (int c = 0; c < 2 * VECTORS; ++c) w[c] += v[r] * x[c];
    }
    line = first;
    for (int64_t r = 0; r < WIDTH; ++r, line += stride) {
        Doubles x[2 * VECTORS];
        std::memcpy(x, line, sizeof x);
        const double f = h.tau * v[r];
        for (int c = 0; c < 2 * VECTORS; ++c) x[c] -= f * w[c];
        std::memcpy(line, x, sizeof x);
        *line = 0;
    }
    *first = h.alpha;
}

// Sweep s brings row s and column s to two diagonals, in steps down the band. The next sweep may follow as soon as it meets
// nothing that this one is still to change. A thread leads a few of them at once, so that a part of the band is read into its
// cache for all; the threads follow one another in the same way.
template <int WIDTH>
void reduce_to_two_diagonals(Band<WIDTH>& band) {
    constexpr int64_t BEHIND = 3, AT_ONCE = 2;
    const int64_t sweeps = std::max<int64_t>(0, band.size - 1), groups = (sweeps + AT_ONCE - 1) / AT_ONCE;
    const std::unique_ptr<std::atomic<int64_t>[]> done(new std::atomic<int64_t>[groups + 1]);  // steps of a group's last sweep
    for (int64_t g = 0; g <= groups; ++g) done[g] = 0;
    std::atomic<int64_t> next{0};
    const int64_t useful = std::max<int64_t>(1, band.size / (4 * AT_ONCE * WIDTH));
    torch::stable::parallel_for(0, std::min<int64_t>(torch::stable::get_num_threads(), useful), 1, [&](int64_t, int64_t) {
        for (int64_t g = next++; g < groups; g = next++) {
            const int64_t first = g * AT_ONCE, last = std::min(sweeps, first + AT_ONCE) - 1;
            const auto steps_of = [&](int64_t s) { return (band.size - s - 2) / WIDTH + 1; };
            const int64_t end = steps_of(last) + BEHIND * (last - first);
            for (int64_t time = 0; time < std::max(end, steps_of(first)); ++time) {
                for (int spins = 0; g > 0 && done[g - 1].load(std::memory_order_acquire) < time + BEHIND; ++spins) {
                    if (spins > 1000) std::this_thread::yield();
                }
                for (int64_t s = first; s <= last; ++s) {
                    const int64_t step = time - BEHIND * (s - first);
                    if (step < 0 || step >= steps_of(s)) continue;
                    const int64_t column = s + 1 + step * WIDTH, row = step == 0 ? s : column - WIDTH;
                    chase_step<WIDTH>(band.at(row, column), column - row, Band<WIDTH>::STRIDE);
                }
                done[g].store(time - BEHIND * (last - first) + 1, std::memory_order_release);
            }
            done[g].store(band.size + BEHIND, std::memory_order_release);
        }
    });
}

// ---- two diagonals

// The sum over k of s^2 / (s^2 + x^2), s running through the singular values, for eight x at a time: the trace of
// B^T B (B^T B + x^2)^-1, from the pivots p of the factored B^T B + x^2 and their derivatives. `q` and `e` are the squares of the
// diagonal and of the one above it. There is no subtraction, so nothing is lost, however small a singular value.
//     t_1 = x^2, b_1 = 0;  p = q + t;  t' = x^2 + e t / p,  b' = e (b q + t^2) / p^2;  the sum of (q + b) / p
GANFAST_SIMD inline void count_above(const double* q, const double* e, int64_t size, const double* squares, double* counts) {
    constexpr int AT_ONCE = 4;  // recurrences, each of which waits for its division
    Doubles x[AT_ONCE], t[AT_ONCE], b[AT_ONCE] = {}, sum[AT_ONCE] = {};
    std::memcpy(x, squares, sizeof x);
    std::memcpy(t, squares, sizeof t);
    for (int64_t k = 0; k < size; ++k) {
        for (int i = 0; i < AT_ONCE; ++i) {
            const Doubles inverse = 1.0 / (q[k] + t[i]), share = t[i] * inverse;
            sum[i] += (q[k] + b[i]) * inverse;
            b[i] = e[k] * (b[i] * inverse * (q[k] * inverse) + share * share);
            t[i] = x[i] + e[k] * share;
        }
    }
    std::memcpy(counts, sum, sizeof sum);
}

// The sum of the singular values s of a bidiagonal matrix with these diagonals (`above` one shorter), of a norm near one: by
//     s = 2 / pi times the integral over y of exp(y) s^2 / (s^2 + exp(2 y)),
// in which the trapezoidal rule with steps of 1/4 errs by 4 exp(-4 pi^2) = 3e-17 of each s (the integrand is s / (2 cosh u) with
// u = y - ln s, whose Fourier transform is known). It is cut where what is left is less than 1e-17 of the largest.
inline double sum_of_singular_values(const std::vector<double>& diagonal, const std::vector<double>& above) {
    constexpr double STEP = 0.25, LOST = 39.2;  // exp(-39.2) < 1e-17
    constexpr int64_t GROUP = 32;
    const int64_t size = static_cast<int64_t>(diagonal.size());
    std::vector<double> q(size), e(size);
    double frobenius = 0;
    for (int64_t k = 0; k < size; ++k) {
        q[k] = diagonal[k] * diagonal[k];
        e[k] = k + 1 < size ? above[k] * above[k] : 0;
        frobenius += q[k] + e[k];
    }
    if (frobenius == 0) return 0;
    // the sum lies between the root of this and that times the root of the size
    const double middle = 0.5 * std::log(frobenius), least = middle - LOST - std::log(static_cast<double>(size));
    const int64_t nodes = static_cast<int64_t>((middle + LOST - least) / STEP) / GROUP * GROUP + GROUP;
    std::vector<double> parts(nodes);
    in_parallel(nodes / GROUP, [&](int64_t group) {
        double squares[GROUP], counts[GROUP];
        for (int64_t i = 0; i < GROUP; ++i) squares[i] = std::exp(2 * (least + STEP * (group * GROUP + i)));
        count_above(q.data(), e.data(), size, squares, counts);
        for (int64_t i = 0; i < GROUP; ++i) parts[group * GROUP + i] = std::sqrt(squares[i]) * counts[i];
    });
    double sum = 0;
    for (const double part : parts) sum += part;
    return sum * STEP * (2 / 3.14159265358979323846);
}

}  // namespace ganfast

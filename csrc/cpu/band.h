// A matrix to an upper band of the same singular values: the first stage of the reduction to two diagonals, which products of
// matrices do nearly all of the work of (Grosser and Lang 1999).
#pragma once

#include <algorithm>

#include "reflectors.h"

namespace ganfast {

constexpr int64_t BAND = 24;  // columns that are reduced at a time, and diagonals beside the main one that remain

// V as (length x BAND) with its ones and zeros, from where a panel was factored.
inline void unit_lower(double* panel) {
    for (int64_t r = 0; r < BAND; ++r) {
        panel[r * BAND + r] = 1;
        std::fill(panel + r * BAND + r + 1, panel + (r + 1) * BAND, 0.0);
    }
}

inline void transpose(const Matrix& from, const Matrix& to) {
    constexpr int64_t SIDE = 8;  // elements of a cache line
    in_parallel((from.rows + SIDE - 1) / SIDE, [&](int64_t block) {
        const int64_t first = block * SIDE, last = std::min(from.rows, first + SIDE);
        for (int64_t c = 0; c < from.columns; ++c) {
            for (int64_t r = first; r < last; ++r) to.row(c)[r] = from.row(r)[c];
        }
    });
}

// A -= left right, and product = next A for A as it is then: one reading and one writing of A. By a few strips of columns at a
// time, for which the left factors are read once.
inline void update_and_multiply(const Matrix& a, const Matrix& left, const Matrix& right, const Matrix& next,
                                const Matrix& product) {
    constexpr int64_t STRIPS = 2, ROWS = 96;
    const Tile64& tile = tile64_here();
    const int64_t span = STRIPS * tile.columns;
    in_parallel((a.columns + span - 1) / span, [&](int64_t task) {
        double minus[STRIPS][2 * BAND * MOST_TILE_COLUMNS], panel[STRIPS][ROWS * MOST_TILE_COLUMNS];
        int64_t column[STRIPS], width[STRIPS], strips = 0;
        for (int64_t c = task * span; c < std::min(a.columns, (task + 1) * span); c += tile.columns, ++strips) {
            column[strips] = c;
            width[strips] = std::min(tile.columns, a.columns - c);
            pack_columns(right.data + c, right.stride, right.rows, width[strips], -1, minus[strips]);
            for (int64_t r = 0; r < next.rows; ++r) std::fill_n(product.row(r) + c, width[strips], 0.0);
        }
        for (int64_t k = 0; k < a.rows; k += ROWS) {
            const int64_t deep = std::min(ROWS, a.rows - k);
            for (int64_t r = k; right.rows > 0 && r < k + deep; r += tile.rows) {
                for (int64_t s = 0; s < strips; ++s) {
                    add_tile(left.row(r), left.stride, right.rows, minus[s], a.row(r) + column[s], a.stride,
                             std::min(tile.rows, k + deep - r), width[s]);
                }
            }
            for (int64_t s = 0; s < strips; ++s) pack_columns(a.row(k) + column[s], a.stride, deep, width[s], 1, panel[s]);
            for (int64_t r = 0; r < next.rows; r += tile.rows) {
                for (int64_t s = 0; s < strips; ++s) {
                    add_tile(next.row(r) + k, next.stride, deep, panel[s], product.row(r) + column[s], product.stride,
                             std::min(tile.rows, next.rows - r), width[s]);
                }
            }
        }
    });
}

// Reduces `a` (rows >= columns, both multiples of BAND) from both sides. Calls put(row, column, R, transposed) with every block
// (BAND x BAND) of the band: upper triangles on the diagonal, and lower ones, given transposed, to their right.
//
// For each panel, with A its columns and everything to the right of it, of which the first BAND rows are not reduced further:
//     left:  A <- (I - V T V^T)^T A = A - V Z          Z = T^T (V^T A), of which V and T come from the panel
//     right: A <- A (I - U T' U^T)  = A - Y U^T        Y = (A U) T', of which U and T' come from the first BAND rows
// Both at once are A - V Z - Y U^T with Y = (A U - V (Z U)) T'. That waits for the next V, to be done in one reading with V^T A.
template <typename F>
void reduce_to_band(const Matrix& a, const F& put) {
    const Doubles64 panel_memory = doubles(a.rows * BAND), u_memory = doubles(a.columns * BAND);
    const Doubles64 vt_memory = doubles(BAND * (a.rows + 8)), product_memory = doubles(BAND * a.columns);
    const Doubles64 vy_memory = doubles(a.rows * 2 * BAND), zu_memory = doubles(2 * BAND * a.columns);
    const Doubles64 au_memory = doubles(a.rows * BAND);
    double t[BAND * BAND], tt[BAND * BAND], zu_product[BAND * BAND];
    const Matrix t_matrix{t, BAND, BAND, BAND}, tt_matrix{tt, BAND, BAND, BAND}, corner{zu_product, BAND, BAND, BAND};
    Matrix vy{vy_memory.get(), a.rows, 0, 0}, zu{zu_memory.get(), 0, a.columns, 0};  // what waits: A - vy zu
    for (int64_t j = 0; j < a.columns; j += BAND) {
        const Matrix rest = a.from(j, j), panel{panel_memory.get(), rest.rows, BAND, BAND};
        for (int64_t r = 0; r < rest.rows; ++r) std::copy_n(rest.row(r), BAND, panel.row(r));
        add_product_by_rows(vy, zu.part(0, 0, zu.rows, BAND), -1, panel);
        factor_panel<BAND>(panel.data, panel.rows, t);
        put(j, j, panel.data, false);
        const int64_t width = rest.columns - BAND, height = rest.rows - BAND;
        if (width == 0) return;
        unit_lower(panel.data);
        const Matrix vt{vt_memory.get(), BAND, rest.rows, rest.rows + 8}, product{product_memory.get(), BAND, width, width};
        transpose(panel, vt);
        update_and_multiply(rest.from(0, BAND), vy, zu.from(0, BAND), vt, product);

        zu = {zu_memory.get(), 2 * BAND, width, width};
        const Matrix z = zu.part(0, 0, BAND, width);
        transpose(t_matrix, tt_matrix);
        std::fill_n(z.data, BAND * width, 0.0);
        add_product_by_columns(tt_matrix, product, z);

        const Matrix top = rest.part(0, BAND, BAND, width), u{u_memory.get(), width, BAND, BAND};
        add_product_by_rows(panel.part(0, 0, BAND, BAND), z, -1, top);
        transpose(top, u);
        factor_panel<BAND>(u.data, width, t);
        put(j, j + BAND, u.data, true);
        unit_lower(u.data);
        transpose(u, zu.part(BAND, 0, BAND, width));

        const Matrix v = panel.from(BAND, 0), au{au_memory.get(), height, BAND, BAND};
        std::fill_n(au.data, height * BAND, 0.0);
        add_product_by_rows(rest.from(BAND, BAND), u, 1, au);
        std::fill_n(corner.data, BAND * BAND, 0.0);
        add_product_by_rows(z, u, 1, corner);
        add_product_by_rows(v, corner, -1, au);
        vy = {vy_memory.get(), height, 2 * BAND, 2 * BAND};
        const Matrix y = vy.from(0, BAND);
        for (int64_t r = 0; r < height; ++r) {
            std::copy_n(v.row(r), BAND, vy.row(r));
            std::fill_n(y.row(r), BAND, 0.0);
        }
        add_product_by_rows(au, t_matrix, 1, y);
    }
}

}  // namespace ganfast

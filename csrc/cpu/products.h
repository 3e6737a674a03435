// Products of matrices in float64, row-major, for what the Frechet distance computes: a tile of the result is kept in registers
// while one factor's rows are read where they lie, and the other's columns from packed panels. One tile for each instruction set,
// chosen when it is first needed. Every element is summed in the same order, whatever the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "simd.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define GANFAST_X86 1
#endif

namespace ganfast {

// out[r][c] += sum over k < depth of rows[r][k * stride] panel[k][c], for a tile's rows and columns
using AddProduct = void (*)(const double* const* rows, int64_t stride, int64_t depth, const double* panel, double* out,
                            int64_t out_stride);

struct Tile64 {
    int64_t rows, columns;
    AddProduct add;
};

constexpr int64_t MOST_TILE_ROWS = 8, MOST_TILE_COLUMNS = 24;

namespace tile64 {

template <int ROWS, int WIDTH>
inline __attribute__((always_inline)) void add_product(const double* const* rows, int64_t stride, int64_t depth,
                                                       const double* panel, double* out, int64_t out_stride) {
    typedef double Doubles __attribute__((vector_size(WIDTH * 8)));
    constexpr int VECTORS = 3;
    Doubles sum[ROWS][VECTORS] = {};
    const double* row[ROWS];
    for (int r = 0; r < ROWS; ++r) row[r] = rows[r];
    for (int r = 0; r < ROWS; ++r) {  // what is added to lies apart, row by row
        for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(out + r * out_stride + v * WIDTH, 1);
    }
    for (int64_t k = 0, at = 0; k < depth; ++k, at += stride, panel += VECTORS * WIDTH) {
        Doubles columns[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; ++v) std::memcpy(&columns[v], panel + v * WIDTH, sizeof columns[v]);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const double a = row[r][at];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += a * columns[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; ++v) {
            double* at = out + r * out_stride + v * WIDTH;
            Doubles before;
            std::memcpy(&before, at, sizeof before);
            before += sum[r][v];
            std::memcpy(at, &before, sizeof before);
        }
    }
}

#define GANFAST_TILE64(name, target, rows, width)                                                                        \
    target inline void name(const double* const* lines, int64_t stride, int64_t depth, const double* panel, double* out, \
                            int64_t out_stride) {                                                                        \
        add_product<rows, width>(lines, stride, depth, panel, out, out_stride);                                          \
    }

GANFAST_TILE64(anywhere, , 2, 2)
#ifdef GANFAST_X86
GANFAST_TILE64(avx2, __attribute__((target("avx2,fma"))), 4, 4)
GANFAST_TILE64(avx512, __attribute__((target("avx512f"))), 8, 8)
#endif
#undef GANFAST_TILE64

}  // namespace tile64

// That of this processor. GANFAST_TILE=baseline|avx2|avx512 asks for no more than that, as for the tiles of convolutions.
inline const Tile64& tile64_here() {
    static const Tile64 found = [] {
#ifdef GANFAST_X86
        const char* asked = std::getenv("GANFAST_TILE");
        const auto refused = [&](const char* more) { return asked && std::strcmp(asked, more) == 0; };
        const bool baseline = refused("baseline"), no_avx512 = baseline || refused("avx2");
        if (!no_avx512 && __builtin_cpu_supports("avx512f")) return Tile64{8, 24, tile64::avx512};
        if (!baseline && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Tile64{4, 12, tile64::avx2};
#endif
        return Tile64{2, 6, tile64::anywhere};
    }();
    return found;
}

// ---- memory, threads

using Doubles64 = std::unique_ptr<double[]>;  // uninitialised

inline Doubles64 doubles(int64_t count) { return Doubles64(new double[std::max<int64_t>(1, count)]); }

// body(task) for all tasks, which the threads take one by one: cores are not always equally fast
template <typename F>
void in_parallel(int64_t tasks, const F& body) {
    const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
    if (threads <= 1) {
        for (int64_t task = 0; task < tasks; ++task) body(task);
        return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
        for (int64_t task = next++; task < tasks; task = next++) body(task);
    });
}

// ---- matrices

// Row-major; `stride` elements from row to row.
struct Matrix {
    double* data;
    int64_t rows, columns, stride;

    double* row(int64_t r) const { return data + r * stride; }
    Matrix part(int64_t r, int64_t c, int64_t height, int64_t width) const { return {row(r) + c, height, width, stride}; }
    Matrix from(int64_t r, int64_t c) const { return part(r, c, rows - r, columns - c); }
};

// The largest magnitude; NaN or infinite where one is.
GANFAST_SIMD inline double largest(const double* x, int64_t count) {
    double most = 0, spoiled = 0;
#pragma omp simd reduction(max : most) reduction(+ : spoiled)
    for (int64_t i = 0; i < count; ++i) {
        most = std::max(most, std::abs(x[i]));
        spoiled += x[i] - x[i];  // zero, or NaN
    }
    return most + spoiled;
}

// panel[k][c] = factor from[k][c], zero beyond `width`
template <int64_t COLUMNS>
GANFAST_SIMD void pack(const double* from, int64_t stride, int64_t depth, int64_t width, double factor, double* panel) {
    if (width == COLUMNS) {
        for (int64_t k = 0; k < depth; ++k) {
#pragma omp simd
            for (int64_t c = 0; c < COLUMNS; ++c) panel[k * COLUMNS + c] = factor * from[k * stride + c];
        }
        return;
    }
    for (int64_t k = 0; k < depth; ++k) {
        for (int64_t c = 0; c < COLUMNS; ++c) panel[k * COLUMNS + c] = c < width ? factor * from[k * stride + c] : 0;
    }
}

// A panel of at most a tile's columns.
inline void pack_columns(const double* from, int64_t stride, int64_t depth, int64_t width, double factor, double* panel) {
    switch (tile64_here().columns) {
        case 24:
            return pack<24>(from, stride, depth, width, factor, panel);
        case 12:
            return pack<12>(from, stride, depth, width, factor, panel);
        default:
            return pack<6>(from, stride, depth, width, factor, panel);
    }
}

// out (height x width) += the product of rows and a panel, for at most a tile's rows and columns. In a row of the left factor,
// elements are `stride` apart.
inline void add_tile(const double* left, int64_t left_stride, int64_t depth, const double* panel, double* out, int64_t out_stride,
                     int64_t height, int64_t width, int64_t stride = 1) {
    const Tile64& tile = tile64_here();
    const double* rows[MOST_TILE_ROWS];
    for (int64_t r = 0; r < tile.rows; ++r) rows[r] = left + std::min(r, height - 1) * left_stride;
    if (height == tile.rows && width == tile.columns) return tile.add(rows, stride, depth, panel, out, out_stride);
    double whole[MOST_TILE_ROWS * MOST_TILE_COLUMNS] = {};
    tile.add(rows, stride, depth, panel, whole, tile.columns);
    for (int64_t r = 0; r < height; ++r) {
        for (int64_t c = 0; c < width; ++c) out[r * out_stride + c] += whole[r * tile.columns + c];
    }
}

constexpr int64_t DEPTH = 128;  // terms of a sum whose panel stays in the first-level cache: 24 KB

// out += factor left right, cut into blocks of rows: for a right factor of few columns, or of few rows
inline void add_product_by_rows(const Matrix& left, const Matrix& right, double factor, const Matrix& out) {
    const Tile64& tile = tile64_here();
    const int64_t strips = (right.columns + tile.columns - 1) / tile.columns, depth = right.rows;
    const Doubles64 panels = doubles(strips * depth * tile.columns);
    in_parallel(strips, [&](int64_t strip) {
        const int64_t c = strip * tile.columns;
        pack_columns(right.data + c, right.stride, depth, std::min(tile.columns, right.columns - c), factor,
                     panels.get() + strip * depth * tile.columns);
    });
    const int64_t height = 8 * tile.rows, blocks = (out.rows + height - 1) / height;
    in_parallel(blocks, [&](int64_t block) {
        const int64_t end = std::min(out.rows, (block + 1) * height);
        for (int64_t k = 0; k < depth; k += DEPTH) {
            const int64_t deep = std::min(DEPTH, depth - k);
            for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t c = strip * tile.columns;
                const double* panel = panels.get() + (strip * depth + k) * tile.columns;
                for (int64_t r = block * height; r < end; r += tile.rows) {
                    add_tile(left.row(r) + k, left.stride, deep, panel, out.row(r) + c, out.stride, std::min(tile.rows, end - r),
                             std::min(tile.columns, out.columns - c));
                }
            }
        }
    });
}

// out += left right, cut into strips of columns: for a left factor of few rows, and a deep sum
inline void add_product_by_columns(const Matrix& left, const Matrix& right, const Matrix& out) {
    const Tile64& tile = tile64_here();
    in_parallel((right.columns + tile.columns - 1) / tile.columns, [&](int64_t strip) {
        const int64_t c = strip * tile.columns, width = std::min(tile.columns, right.columns - c);
        double panel[DEPTH * MOST_TILE_COLUMNS];
        for (int64_t k = 0; k < right.rows; k += DEPTH) {
            const int64_t deep = std::min(DEPTH, right.rows - k);
            pack_columns(right.row(k) + c, right.stride, deep, width, 1, panel);
            for (int64_t r = 0; r < left.rows; r += tile.rows) {
                add_tile(left.row(r) + k, left.stride, deep, panel, out.row(r) + c, out.stride,
                         std::min(tile.rows, left.rows - r), width);
            }
        }
    });
}

// The upper triangle of out (and more, within a tile of the diagonal) += X^T Y, which is symmetric, for X and Y (depth x columns)
// as panels one after the other.
inline void add_gram(const double* x, const double* y, int64_t depth, const Matrix& out) {
    const Tile64& tile = tile64_here();
    const int64_t strips = (out.columns + tile.columns - 1) / tile.columns;
    const auto strip_of = [&](int64_t strip) {
        const int64_t c = strip * tile.columns, width = std::min(tile.columns, out.columns - c);
        const double* panel = y + c * depth;
        for (int64_t r = 0; r < c + width; r += tile.rows) {
            const double* left = x + r / tile.columns * tile.columns * depth + r % tile.columns;
            add_tile(left, 1, depth, panel, out.row(r) + c, out.stride, std::min(tile.rows, out.rows - r), width, tile.columns);
        }
    };
    in_parallel((strips + 1) / 2, [&](int64_t pair) {  // a long one and a short one
        strip_of(strips - 1 - pair);
        if (pair != strips - 1 - pair) strip_of(pair);
    });
}

}  // namespace ganfast

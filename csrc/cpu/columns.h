// The loops of batch norm: blocks of memory in rows, whose columns have a mean, a scale and a bias each. Compiled once for each
// instruction set, as those of simd.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../common/activation.h"
#include "lanes.h"
#include "simd.h"

namespace ganfast {

// Rows of `width` neighbours, each `stride` after the one before it.
struct Block {
    int64_t offset, rows, stride, width;
};

constexpr int64_t COLUMNS = 512;  // of a block, at most: their means, scales and sums stay in the first-level cache
constexpr int64_t TERMS = 16;     // rows that are summed in the type of the statistics

// Two sums for each column over the rows of blocks: over a few rows in T, and those in double.
template <typename T>
struct ColumnSums {
    double first[COLUMNS] = {}, second[COLUMNS] = {};

    // add_rows(block, first, second) adds the terms of all rows of a block
    template <typename F>
    void take(const Block& block, const F& add_rows) {
        for (int64_t r = 0; r < block.rows; r += TERMS) {
            T firsts[COLUMNS], seconds[COLUMNS];
            std::fill_n(firsts, block.width, T(0));
            std::fill_n(seconds, block.width, T(0));
            const int64_t rows = std::min(TERMS, block.rows - r);
            add_rows(Block{block.offset + r * block.stride, rows, block.stride, block.width}, firsts, seconds);
            add(firsts, first, block.width);
            add(seconds, second, block.width);
        }
    }
};

constexpr int64_t TOGETHER = 4;  // rows that share what is loaded and saved for their columns

// body(r, rows) for rows of a block together
template <typename F>
GANFAST_INLINE void some_rows(const Block& block, const F& body) {
    int64_t r = 0;
    for (; r + TOGETHER <= block.rows; r += TOGETHER) body(r, TOGETHER);
    for (; r < block.rows; ++r) body(r, 1);
}

// Asks for what lies `ahead` of a number in a row, once for each line of the caches.
template <typename S>
GANFAST_INLINE void fetch(S* row, int64_t j, int64_t ahead) {
    constexpr int64_t LINE = 64 / sizeof(S);
    // by address: what the last rows ask for lies beyond what is pointed to
    const uintptr_t at = reinterpret_cast<uintptr_t>(row) + (j + ahead) * sizeof(S);
    if (j % LINE == 0) __builtin_prefetch(reinterpret_cast<const void*>(at), !std::is_const_v<S>);
}

// body(at) for one column's values in some rows, each while those that come next are on their way into the cache: rows side by
// side are more streams than a processor foresees
template <typename F, typename... S>
GANFAST_INLINE void along_rows(const Block& block, int64_t r, int64_t rows, int64_t j, const F& body, S*... read_or_written) {
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = block.offset + (r + i) * block.stride;
        (fetch(read_or_written + row, j, TOGETHER * block.stride), ...);
        body(row + j);
    }
}

// sums[j] += sum over the rows of x
template <typename How, typename S, typename T>
GANFAST_INLINE void sum_columns_loop(const S* x, const Block& block, T* sums) {
    some_rows(block, [&](int64_t r, int64_t rows) __attribute__((always_inline)) {
        in_lanes<T>(block.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            typename Lanes<T>::Type sum;
            load(sums + j, n, sum);
            along_rows(
                block, r, rows, j,
                [&](int64_t at) __attribute__((always_inline)) {
                    typename Lanes<T>::Type value;
                    How::load(x + at, n, value);
                    sum += value;
                },
                x);
            save(sum, n, sums + j);
        });
    });
}
GANFAST_VERSIONS(sum_columns)

// sums[j] += sum over the rows of x - centre[j], squares[j] += that of the squares
template <typename How, typename S, typename T>
GANFAST_INLINE void sum_deviations_loop(const S* x, const Block& block, const T* centre, T* sums, T* squares) {
    some_rows(block, [&](int64_t r, int64_t rows) __attribute__((always_inline)) {
        in_lanes<T>(block.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            typename Lanes<T>::Type centres, sum, square;
            load(centre + j, n, centres);
            load(sums + j, n, sum);
            load(squares + j, n, square);
            along_rows(
                block, r, rows, j,
                [&](int64_t at) __attribute__((always_inline)) {
                    typename Lanes<T>::Type value;
                    How::load(x + at, n, value);
                    const auto d = value - centres;
                    sum += d;
                    square += d * d;
                },
                x);
            save(sum, n, sums + j);
            save(square, n, squares + j);
        });
    });
}
GANFAST_VERSIONS(sum_deviations)

// What a column's values are normalised and scaled with: z = (x - mean) scale + bias.
template <typename T>
struct Affine {
    const T *mean, *scale, *bias;
};

// Scale and bias of z = (x - mean) scale + bias, the scale for every channel of every group.
template <typename T>
struct Affines {
    std::vector<T> scales, weights, biases;

    Affines(int64_t groups, int64_t channels, const T* weight, const T* bias)
        : scales(groups * channels), weights(channels, T(1)), biases(channels) {
        if (weight) std::copy_n(weight, channels, weights.begin());
        if (bias) std::copy_n(bias, channels, biases.begin());
    }

    // Of a group, from some channel on.
    Affine<T> of(int64_t group, int64_t first, const T* mean) const {
        const int64_t at = group * static_cast<int64_t>(biases.size()) + first;
        return {mean + at, scales.data() + at, biases.data() + first};
    }

    // Returns 1 / sqrt(var + eps).
    double set(int64_t i, T var, double eps) {
        const double inverse = 1 / std::sqrt(static_cast<double>(var) + eps);
        scales[i] = static_cast<T>(inverse * weights[i % weights.size()]);
        return inverse;
    }

    void set_all(const T* vars, double eps) {
        for (size_t i = 0; i < scales.size(); ++i) set(i, vars[i], eps);
    }
};

// What a column's values are normalised and scaled with, a register at a time.
template <typename T>
struct AffineLanes {
    typename Lanes<T>::Type mean, scale, bias;

    GANFAST_INLINE AffineLanes(const Affine<T>& affine, int64_t j, int64_t n) {
        load(affine.mean + j, n, mean);
        load(affine.scale + j, n, scale);
        load(affine.bias + j, n, bias);
    }
    GANFAST_INLINE explicit AffineLanes(const Affine<T>& affine, int64_t plane)
        : mean(typename Lanes<T>::Type{} + affine.mean[plane]),
          scale(typename Lanes<T>::Type{} + affine.scale[plane]),
          bias(typename Lanes<T>::Type{} + affine.bias[plane]) {}
};

template <typename T, typename V>
GANFAST_INLINE void differentiate(const LeakyReLU<T>& act, const V& z, V& derivative) {
    derivative = z > 0 ? V{} + 1 : V{} + act.slope;
}

template <typename T, typename V>
GANFAST_INLINE void differentiate(const Tanh<T>& act, const V& z, V& derivative) {
    for (int64_t lane = 0; lane < WIDTH<T>; ++lane) derivative[lane] = act.derivative(z[lane]);
}

template <typename T, typename V>
GANFAST_INLINE void activate(const LeakyReLU<T>& act, const V& z, V& y) {
    V below{};  // also of -infinity
    if (act.slope != 0) below = z * act.slope;
    y = z < 0 ? below : z;
}

template <typename T, typename V>
GANFAST_INLINE void activate(const Tanh<T>& act, const V& z, V& y) {
    for (int64_t lane = 0; lane < WIDTH<T>; ++lane) y[lane] = act(z[lane]);
}

// y = act(z)
template <typename How, typename S, typename T, typename Act>
GANFAST_INLINE void activate_lanes(const S* x, int64_t n, const AffineLanes<T>& affine, const Act& act, S* y) {
    typename Lanes<T>::Type value, activated;
    How::load(x, n, value);
    activate(act, (value - affine.mean) * affine.scale + affine.bias, activated);
    How::save(activated, n, y);
}

// dx = scale (dz - level - (x - mean) tilt)
template <typename How, typename S, typename T, typename V, typename Act>
GANFAST_INLINE void differentiate_lanes(const S* dy, const S* x, int64_t n, const AffineLanes<T>& affine, const V& level,
                                        const V& tilt, const Act& act, S* dx) {
    V value, upstream, derivative;
    How::load(x, n, value);
    How::load(dy, n, upstream);
    const V d = value - affine.mean;
    differentiate(act, d * affine.scale + affine.bias, derivative);
    How::save(affine.scale * (upstream * derivative - level - d * tilt), n, dx);
}

template <typename How, typename S, typename T, typename Act>
GANFAST_INLINE void activate_loop(const S* x, const Block& block, Affine<T> affine, Act act, S* y) {
    some_rows(block, [&](int64_t r, int64_t rows) __attribute__((always_inline)) {
        in_lanes<T>(block.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            const AffineLanes<T> lanes(affine, j, n);
            along_rows(
                block, r, rows, j,
                [&](int64_t at) __attribute__((always_inline)) { activate_lanes<How>(x + at, n, lanes, act, y + at); }, x, y);
        });
    });
}
GANFAST_VERSIONS(activate)

// sums[j] += sum over the rows of dz, products[j] += that of dz (x - mean[j])
template <typename How, typename S, typename T, typename Act>
GANFAST_INLINE void sum_gradients_loop(const S* dy, const S* x, const Block& block, Affine<T> affine, Act act, T* sums,
                                       T* products) {
    some_rows(block, [&](int64_t r, int64_t rows) __attribute__((always_inline)) {
        in_lanes<T>(block.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            const AffineLanes<T> lanes(affine, j, n);
            typename Lanes<T>::Type sum, product;
            load(sums + j, n, sum);
            load(products + j, n, product);
            along_rows(
                block, r, rows, j,
                [&](int64_t at) __attribute__((always_inline)) {
                    typename Lanes<T>::Type value, upstream, derivative;
                    How::load(x + at, n, value);
                    How::load(dy + at, n, upstream);
                    const auto d = value - lanes.mean;
                    differentiate(act, d * lanes.scale + lanes.bias, derivative);
                    const auto dz = upstream * derivative;
                    sum += dz;
                    product += dz * d;
                },
                dy, x);
            save(sum, n, sums + j);
            save(product, n, products + j);
        });
    });
}
GANFAST_VERSIONS(sum_gradients)

template <typename How, typename S, typename T, typename Act>
GANFAST_INLINE void differentiate_loop(const S* dy, const S* x, const Block& block, Affine<T> affine, const T* level,
                                       const T* tilt, Act act, S* dx) {
    some_rows(block, [&](int64_t r, int64_t rows) __attribute__((always_inline)) {
        in_lanes<T>(block.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            const AffineLanes<T> lanes(affine, j, n);
            typename Lanes<T>::Type levels, tilts;
            load(level + j, n, levels);
            load(tilt + j, n, tilts);
            along_rows(
                block, r, rows, j,
                [&](int64_t at) __attribute__((always_inline)) {
                    differentiate_lanes<How>(dy + at, x + at, n, lanes, levels, tilts, act, dx + at);
                },
                dy, x, dx);
        });
    });
}
GANFAST_VERSIONS(differentiate)

// ---- merging what was found of tiles, after Chan et al.

// The sum of deviations from a centre becomes the mean, that of their squares the one from this mean.
template <typename T>
GANFAST_SIMD void leave_centre(const T* centre, double count, double* sums, double* squares, int64_t n) {
    const double share = 1 / count;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
        const double off = sums[c] * share;
        squares[c] -= sums[c] * off;
        sums[c] = centre[c] + off;
    }
}

// mean += share (next - base)
template <typename T>
GANFAST_SIMD void merge_means(const T* next, const T* base, T share, T* mean, int64_t n) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) mean[c] += share * (next[c] - base[c]);
}

// squares += those of a tile, which were taken from a mean of its own
template <typename T>
GANFAST_SIMD void merge_squares(const T* own, const T* own_mean, T count, const T* mean, T* squares, int64_t n) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
        const T off = own_mean[c] - mean[c];
        squares[c] += own[c] + count * off * off;
    }
}

}  // namespace ganfast

// The loops of batch norm: blocks of memory in rows, whose columns have a mean, a scale and a bias each. Compiled once for each
// instruction set, as those of simd.h.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace ganfast {

// To the nearest number of S, in a form that vectorises: BFloat16's own conversion branches on NaN.
template <typename S, typename T>
inline S rounded(T value) {
    if constexpr (std::is_same_v<S, torch::headeronly::BFloat16>) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // ties to even
        return S(static_cast<uint16_t>(value == value ? nearest : 0x7fc0), S::from_bits());
    } else {
        return static_cast<S>(value);
    }
}

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
            T firsts[COLUMNS] = {}, seconds[COLUMNS] = {};
            const int64_t rows = std::min(TERMS, block.rows - r);
            add_rows(Block{block.offset + r * block.stride, rows, block.stride, block.width}, firsts, seconds);
            add(firsts, first, block.width);
            add(seconds, second, block.width);
        }
    }
};

// sums[j] += sum over the rows of x
template <typename S, typename T>
GANFAST_SIMD void sum_columns(const S* x, const Block& block, T* sums) {
    const int64_t width = block.width;
    const S* row = x + block.offset;
    for (int64_t r = 0; r < block.rows; ++r, row += block.stride) {
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) sums[j] += static_cast<T>(row[j]);
    }
}

// sums[j] += sum over the rows of x - centre[j], squares[j] += that of the squares
template <typename S, typename T>
GANFAST_SIMD void sum_deviations(const S* x, const Block& block, const T* centre, T* sums, T* squares) {
    const int64_t width = block.width;
    const S* row = x + block.offset;
    for (int64_t r = 0; r < block.rows; ++r, row += block.stride) {
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            const T d = static_cast<T>(row[j]) - centre[j];
            sums[j] += d;
            squares[j] += d * d;
        }
    }
}

// What a column's values are normalised and scaled with: z = (x - mean) scale + bias.
template <typename T>
struct Affine {
    const T *mean, *scale, *bias;
};

// y = act(z)
template <typename S, typename T, typename Act>
GANFAST_SIMD void activate(const S* x, const Block& block, Affine<T> affine, Act act, S* y) {
    const T *mean = affine.mean, *scale = affine.scale, *bias = affine.bias;
    const int64_t width = block.width;
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t at = block.offset + r * block.stride;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            y[at + j] = rounded<S>(act((static_cast<T>(x[at + j]) - mean[j]) * scale[j] + bias[j]));
        }
    }
}

// sums[j] += sum over the rows of dz, products[j] += that of dz (x - mean[j])
template <typename S, typename T, typename Act>
GANFAST_SIMD void sum_gradients(const S* dy, const S* x, const Block& block, Affine<T> affine, Act act, T* sums, T* products) {
    const T *mean = affine.mean, *scale = affine.scale, *bias = affine.bias;
    const int64_t width = block.width;
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t at = block.offset + r * block.stride;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            const T d = static_cast<T>(x[at + j]) - mean[j];
            const T dz = static_cast<T>(dy[at + j]) * act.derivative(d * scale[j] + bias[j]);
            sums[j] += dz;
            products[j] += dz * d;
        }
    }
}

// dx = scale (dz - level[j] - (x - mean) tilt[j])
template <typename S, typename T, typename Act>
GANFAST_SIMD void differentiate(const S* dy, const S* x, const Block& block, Affine<T> affine, const T* level, const T* tilt,
                                Act act, S* dx) {
    const T *mean = affine.mean, *scale = affine.scale, *bias = affine.bias;
    const int64_t width = block.width;
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t at = block.offset + r * block.stride;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            const T d = static_cast<T>(x[at + j]) - mean[j];
            const T dz = static_cast<T>(dy[at + j]) * act.derivative(d * scale[j] + bias[j]);
            dx[at + j] = rounded<S>(scale[j] * (dz - level[j] - d * tilt[j]));
        }
    }
}

}  // namespace ganfast

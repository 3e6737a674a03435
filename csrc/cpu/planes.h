// The loops of batch norm for planes: neighbours of one channel, one plane after the other. As those of columns.h, but that sums
// run in lanes of their own order, so that every instruction set adds up alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "columns.h"

namespace ganfast {

constexpr int64_t LANES = 64;

template <typename T>
inline T sum_of(T* lanes) {
    for (int64_t half = LANES / 2; half; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

// Two sums over i from 0 to length, which term(i, first, second) adds to: over stretches in T, and those in double.
template <typename T, typename F>
inline __attribute__((always_inline)) void sum_plane(int64_t length, double& first, double& second, const F& term) {
    for (int64_t i = 0; i < length;) {
        const int64_t end = std::min(length, i + TERMS * LANES);
        T firsts[LANES] = {}, seconds[LANES] = {};
        for (; i + LANES <= end; i += LANES) {
#pragma omp simd
            for (int64_t lane = 0; lane < LANES; ++lane) term(i + lane, firsts[lane], seconds[lane]);
        }
        for (int64_t lane = 0; i < end; ++i, ++lane) term(i, firsts[lane], seconds[lane]);
        first += sum_of(firsts);
        second += sum_of(seconds);
    }
}

// The mean of every plane, and the sum of squared deviations from it.
template <typename T, typename S>
GANFAST_SIMD void measure_planes(const S* x, int64_t planes, int64_t length, double* means, double* squares) {
    for (int64_t p = 0; p < planes; ++p, x += length) {
        T rough = 0;
        for (int64_t i = 0; i < 4; ++i) rough += static_cast<T>(x[i * (length / 4)]) / 4;
        const T centre = static_cast<T>(static_cast<S>(rough));
        double sum = 0, square = 0;
        sum_plane<T>(length, sum, square, [=](int64_t i, T& first, T& second) {
            const T d = static_cast<T>(x[i]) - centre;
            first += d;
            second += d * d;
        });
        const double off = sum / length;
        means[p] = centre + off;
        squares[p] = square - sum * off;
    }
}

// y = act((x - mean) scale + bias), with numbers for each plane
template <typename S, typename T, typename Act>
GANFAST_SIMD void activate_planes(const S* x, int64_t planes, int64_t length, Affine<T> affine, Act act, S* y) {
    for (int64_t p = 0; p < planes; ++p, x += length, y += length) {
        const AffineLanes<T> lanes(affine, p);
        in_lanes<T>(length, [&](int64_t i, int64_t n)
                                __attribute__((always_inline)) { activate_lanes<Anywhere>(x + i, n, lanes, act, y + i); });
    }
}

// sum dz, and sum dz (x - mean), of every plane
template <typename S, typename T, typename Act>
GANFAST_SIMD void sum_gradients_of_planes(const S* dy, const S* x, int64_t planes, int64_t length, Affine<T> affine, Act act,
                                          double* sums, double* products) {
    for (int64_t p = 0; p < planes; ++p, dy += length, x += length) {
        const T mean = affine.mean[p], scale = affine.scale[p], bias = affine.bias[p];
        sums[p] = products[p] = 0;
        sum_plane<T>(length, sums[p], products[p], [=](int64_t i, T& first, T& second) {
            const T d = static_cast<T>(x[i]) - mean;
            const T dz = static_cast<T>(dy[i]) * act.derivative(d * scale + bias);
            first += dz;
            second += dz * d;
        });
    }
}

// dx = scale (dz - level - (x - mean) tilt), with numbers for each plane
template <typename S, typename T, typename Act>
GANFAST_SIMD void differentiate_planes(const S* dy, const S* x, int64_t planes, int64_t length, Affine<T> affine, const T* levels,
                                       const T* tilts, Act act, S* dx) {
    for (int64_t p = 0; p < planes; ++p, dy += length, x += length, dx += length) {
        const AffineLanes<T> lanes(affine, p);
        const typename Lanes<T>::Type level = typename Lanes<T>::Type{} + levels[p], tilt = typename Lanes<T>::Type{} + tilts[p];
        in_lanes<T>(length, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            differentiate_lanes<Anywhere>(dy + i, x + i, n, lanes, level, tilt, act, dx + i);
        });
    }
}

}  // namespace ganfast

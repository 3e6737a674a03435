// Loops that are compiled once for each instruction set of x86-64 (AVX-512, AVX2, baseline) and chosen when the library loads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/slope.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define GANFAST_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GANFAST_SIMD
#endif

namespace ganfast {

// sum of a[i] b[i], in the accumulator A; in lanes of its own order, so that every instruction set adds up alike
template <typename A, typename S, typename T>
GANFAST_SIMD A dot(const S* a, const T* b, int64_t n) {
    constexpr int64_t LANES = 256 / sizeof(A);  // four AVX-512 registers: as many additions in flight
    A lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] += static_cast<A>(a[i + lane]) * static_cast<A>(b[i + lane]);
    }
    for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += static_cast<A>(a[i]) * static_cast<A>(b[i]);
    for (int64_t half = LANES / 2; half; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

// out[j] += sum over r of x[r] w[r * stride + j], four rows at a time, so that `out` is read and written a quarter as often
template <typename T>
GANFAST_SIMD void add_rows(const T* w, int64_t stride, const T* x, int64_t rows, T* out, int64_t width) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4, w += 4 * stride) {
        const T *w0 = w, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
        const T x0 = x[r], x1 = x[r + 1], x2 = x[r + 2], x3 = x[r + 3];
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) out[j] += (x0 * w0[j] + x1 * w1[j]) + (x2 * w2[j] + x3 * w3[j]);
    }
    for (; r < rows; ++r, w += stride) {
        const T xr = x[r];
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) out[j] += xr * w[j];
    }
}

// out += a
template <typename O, typename T>
GANFAST_SIMD void add(const T* a, O* out, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += static_cast<O>(a[i]);
}

// out = a * factor
template <typename O, typename S, typename T>
GANFAST_SIMD void scale(const S* a, T factor, O* out, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<O>(static_cast<T>(a[i]) * factor);
}

// out = a * factor - b * c
template <typename T, typename G>
GANFAST_SIMD void scale_and_subtract(const G* a, T factor, const T* b, T c, T* out, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(a[i]) * factor - b[i] * c;
}

// out = fake + alpha (real - fake)
template <typename O, typename R, typename F, typename T>
GANFAST_SIMD void mix(const R* real, const F* fake, T alpha, O* out, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<O>(mixed(static_cast<T>(real[i]), static_cast<T>(fake[i]), alpha));
}

// out = real, out[stack] = fake, out[2 stack] = fake + alpha (real - fake), in one reading
template <typename O, typename R, typename F, typename T>
GANFAST_SIMD void mix_and_copy(const R* real, const F* fake, T alpha, O* out, int64_t stack, int64_t n) {
    O *second = out + stack, *third = second + stack;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const T r = static_cast<T>(real[i]), f = static_cast<T>(fake[i]);
        out[i] = static_cast<O>(r);
        second[i] = static_cast<O>(f);
        third[i] = static_cast<O>(mixed(r, f, alpha));
    }
}

}  // namespace ganfast

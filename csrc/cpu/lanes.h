// As many numbers at a time as a register of 64 bytes holds in the type that is computed in, from and to memory in a type of its
// own. For functions that are compiled once for each instruction set (simd.h): all of this is inlined there.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

#define GANFAST_INLINE inline __attribute__((always_inline))

namespace ganfast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <typename T>
struct Lanes {
    using Type = Floats;
};

template <>
struct Lanes<double> {
    using Type = Doubles;
};

template <typename T>
constexpr int64_t WIDTH = 64 / sizeof(T);

// body(j, n) for stretches of n numbers from j on, n that of a register as often as possible, which the compiler then knows
template <typename T, typename F>
GANFAST_INLINE void in_lanes(int64_t length, const F& body) {
    int64_t j = 0;
    for (; j + WIDTH<T> <= length; j += WIDTH<T>) body(j, WIDTH<T>);
    if (j < length) body(j, length - j);
}

template <typename T>
GANFAST_INLINE void copy(const void* from, T& to) {
    std::memcpy(&to, from, sizeof to);
}

// The first n lanes; the others are zero.
template <typename S, typename V>
GANFAST_INLINE void load(const S* from, int64_t n, V& to) {
    using T = std::decay_t<decltype(to[0])>;
    if constexpr (std::is_same_v<S, T>) {
        if (n == WIDTH<T>) return copy(from, to);
    }
    to = V{};
    for (int64_t lane = 0; lane < n; ++lane) to[lane] = static_cast<T>(from[lane]);
}

GANFAST_INLINE void load(const BFloat16* from, int64_t n, Floats& to) {
    Halves halves{};
    if (n == WIDTH<float>) {
        copy(from, halves);
    } else {
        std::memcpy(&halves, from, n * sizeof *from);
    }
    const Words words = __builtin_convertvector(halves, Words) << 16;
    copy(&words, to);
}

template <typename V, typename S>
GANFAST_INLINE void save(const V& from, int64_t n, S* to) {
    using T = std::decay_t<decltype(from[0])>;
    if constexpr (std::is_same_v<S, T>) {
        if (n == WIDTH<T>) {
            std::memcpy(to, &from, sizeof from);
            return;
        }
    }
    for (int64_t lane = 0; lane < n; ++lane) to[lane] = static_cast<S>(from[lane]);
}

// As bfloat16, rounded to the nearest, ties to even.
GANFAST_INLINE Words rounded(const Floats& from) {
    Words bits;
    copy(&from, bits);
    const Words nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return from == from ? nearest : Words{} + 0x7fc0;
}

GANFAST_INLINE void save(const Floats& from, int64_t n, BFloat16* to) {
    const Halves halves = __builtin_convertvector(rounded(from), Halves);
    if (n == WIDTH<float>) {
        std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
    } else {
        std::memcpy(static_cast<void*>(to), &halves, n * sizeof *to);
    }
}

// ---- the processor's own conversions of bfloat16

#if defined(__GNUC__) && defined(__x86_64__)
// For functions of processors that have them, with a body that is given Native.
#define GANFAST_NATIVE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))

struct Native {
    template <typename S, typename V>
    static GANFAST_INLINE void load(const S* from, int64_t n, V& to) {
        if constexpr (std::is_same_v<S, BFloat16>) {
            if (n == WIDTH<float>) {
                // in assembly, because what is inlined may not name what its caller alone is compiled for
                asm("vpmovzxwd %1, %0\n\tvpslld $16, %0, %0" : "=&v"(to) : "m"(*reinterpret_cast<const Halves*>(from)));
                return;
            }
        }
        ganfast::load(from, n, to);
    }
    template <typename V, typename S>
    static GANFAST_INLINE void save(const V& from, int64_t n, S* to) {
        if constexpr (std::is_same_v<S, BFloat16>) {
            Halves halves;
            asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(from));
            if (n == WIDTH<float>) {
                std::memcpy(static_cast<void*>(to), &halves, sizeof halves);
            } else {
                std::memcpy(static_cast<void*>(to), &halves, n * sizeof *to);
            }
        } else {
            ganfast::save(from, n, to);
        }
    }
    static GANFAST_INLINE Words rounded(const Floats& from) {
        Halves halves;
        asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(from));
        return __builtin_convertvector(halves, Words);
    }
};
#endif

struct Anywhere {
    template <typename S, typename V>
    static GANFAST_INLINE void load(const S* from, int64_t n, V& to) {
        ganfast::load(from, n, to);
    }
    template <typename V, typename S>
    static GANFAST_INLINE void save(const V& from, int64_t n, S* to) {
        ganfast::save(from, n, to);
    }
    static GANFAST_INLINE Words rounded(const Floats& from) { return ganfast::rounded(from); }
};

// name(first, ...) for a pointer to S first of all, by loops that are written once: name_loop<How>(first, ...).
#if defined(__GNUC__) && defined(__x86_64__)
#define GANFAST_VERSIONS(name)                                               \
    template <typename... A>                                                 \
    GANFAST_SIMD void name##_anywhere(A... arguments) {                      \
        name##_loop<Anywhere>(arguments...);                                 \
    }                                                                        \
    template <typename... A>                                                 \
    GANFAST_NATIVE void name##_native(A... arguments) {                      \
        name##_loop<Native>(arguments...);                                   \
    }                                                                        \
    template <typename S, typename... A>                                     \
    void name(const S* first, A... arguments) {                              \
        if constexpr (std::is_same_v<S, BFloat16>) {                         \
            static const bool native = __builtin_cpu_supports("avx512bf16"); \
            if (native) return name##_native(first, arguments...);           \
        }                                                                    \
        name##_anywhere(first, arguments...);                                \
    }
#else
#define GANFAST_VERSIONS(name)               \
    template <typename... A>                 \
    GANFAST_SIMD void name(A... arguments) { \
        name##_loop<Anywhere>(arguments...); \
    }
#endif

}  // namespace ganfast

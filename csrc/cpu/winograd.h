// Winograd's algorithms along one axis, and the transforms of channels that they ask for (winograd.cpp).
//
// Neighbouring outputs y of a kernel g of 2 or 3 taps over inputs s are
//
//     y = write(weigh(g) read(s)), element by element,
//
// which are Toom and Cook's products of polynomials, turned round: F(2, 2) by their values at 0, 1 and infinity takes 3 products
// instead of 4, F(2, 3) at 0, 1, -1 and infinity 4 instead of 6; F(4, 2) by five values takes 5 instead of 8, F(4, 3) by six 6
// instead of 12. Gradients by the kernel are weigh_back(write_back(dy) read(s)).
#pragma once

#include <algorithm>

#include "columns.h"
#include "panels.h"

namespace ganfast {

// ---- along one axis

struct TwoOfTwo {
    static constexpr int TAPS = 2, READS = 3, PRODUCTS = 3, WRITES = 2;

    template <typename T>
    static GANFAST_INLINE void read(const T* s, T* v) {
        v[0] = s[0] - s[1];
        v[1] = s[1];
        v[2] = s[2] - s[1];
    }
    template <typename T>
    static GANFAST_INLINE void weigh(const T* g, T* u) {
        u[0] = g[0];
        u[1] = g[0] + g[1];
        u[2] = g[1];
    }
    template <typename T>
    static GANFAST_INLINE void write(const T* m, T* y) {
        y[0] = m[0] + m[1];
        y[1] = m[1] + m[2];
    }
    template <typename T>
    static GANFAST_INLINE void weigh_back(const T* u, T* g) {
        g[0] = u[0] + u[1];
        g[1] = u[1] + u[2];
    }
    template <typename T>
    static GANFAST_INLINE void write_back(const T* y, T* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[1];
    }
};

struct TwoOfThree {
    static constexpr int TAPS = 3, READS = 4, PRODUCTS = 4, WRITES = 2;

    template <typename T>
    static GANFAST_INLINE void read(const T* s, T* v) {
        v[0] = s[0] - s[2];
        v[1] = s[1] + s[2];
        v[2] = s[2] - s[1];
        v[3] = s[1] - s[3];
    }
    template <typename T>
    static GANFAST_INLINE void weigh(const T* g, T* u) {
        const T outer = (g[0] + g[2]) / 2, middle = g[1] / 2;
        u[0] = g[0];
        u[1] = outer + middle;
        u[2] = outer - middle;
        u[3] = g[2];
    }
    template <typename T>
    static GANFAST_INLINE void write(const T* m, T* y) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
    template <typename T>
    static GANFAST_INLINE void weigh_back(const T* u, T* g) {
        const T outer = (u[1] + u[2]) / 2;
        g[0] = u[0] + outer;
        g[1] = (u[1] - u[2]) / 2;
        g[2] = outer + u[3];
    }
    template <typename T>
    static GANFAST_INLINE void write_back(const T* y, T* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[0] - y[1];
        m[3] = -y[1];
    }
};

// By the values at 0, -+NEAR, -+FAR and, for three taps, infinity. The points are those, among small fractions that binary
// numbers hold, that multiply the rounding of what is read and weighed least: by 2.8 and 4.8 along both axes, where two outputs
// at a time take 2 and 1.7. (The familiar 0, 1, -1, 2 and infinity take 6.4.)
template <int K>
struct FourOf {
    static constexpr int TAPS = K, READS = K + 3, PRODUCTS = K + 3, WRITES = 4;
    static constexpr float NEAR = K == 2 ? 0.75f : 0.625f, FAR = K == 2 ? 2.5f : 1.5f, NEAR2 = NEAR * NEAR, FAR2 = FAR * FAR;
    static constexpr float AT_ZERO = 1 / (NEAR2 * FAR2), AT_NEAR = 1 / (2 * NEAR2 * (NEAR2 - FAR2)),
                           AT_FAR = 1 / (2 * FAR2 * (FAR2 - NEAR2));

    template <typename T>
    static GANFAST_INLINE void read(const T* s, T* v) {
        const T near_even = s[4] - FAR2 * s[2], near_odd = NEAR * (s[3] - FAR2 * s[1]);
        const T far_even = s[4] - NEAR2 * s[2], far_odd = FAR * (s[3] - NEAR2 * s[1]);
        v[0] = near_even + NEAR2 * (FAR2 * s[0] - s[2]);
        v[1] = near_even + near_odd;
        v[2] = near_even - near_odd;
        v[3] = far_even + far_odd;
        v[4] = far_even - far_odd;
        if constexpr (K == 3) v[5] = s[5] - FAR2 * s[3] - NEAR2 * (s[3] - FAR2 * s[1]);
    }
    template <typename T>
    static GANFAST_INLINE void weigh(const T* g, T* u) {
        T near_even = g[0], far_even = g[0];
        if constexpr (K == 3) {
            near_even += NEAR2 * g[2];
            far_even += FAR2 * g[2];
            u[5] = g[2];
        }
        const T near_odd = NEAR * g[1], far_odd = FAR * g[1];
        u[0] = g[0] * AT_ZERO;
        u[1] = (near_even + near_odd) * AT_NEAR;
        u[2] = (near_even - near_odd) * AT_NEAR;
        u[3] = (far_even + far_odd) * AT_FAR;
        u[4] = (far_even - far_odd) * AT_FAR;
    }
    template <typename T>
    static GANFAST_INLINE void write(const T* m, T* y) {
        const T near_even = m[1] + m[2], near_odd = NEAR * (m[1] - m[2]);
        const T far_even = m[3] + m[4], far_odd = FAR * (m[3] - m[4]);
        y[0] = m[0] + near_even + far_even;
        y[1] = near_odd + far_odd;
        y[2] = NEAR2 * near_even + FAR2 * far_even;
        y[3] = NEAR2 * near_odd + FAR2 * far_odd;
        if constexpr (K == 3) y[3] += m[5];
    }
    template <typename T>
    static GANFAST_INLINE void weigh_back(const T* u, T* g) {
        const T near_even = AT_NEAR * (u[1] + u[2]), far_even = AT_FAR * (u[3] + u[4]);
        g[0] = AT_ZERO * u[0] + near_even + far_even;
        g[1] = AT_NEAR * NEAR * (u[1] - u[2]) + AT_FAR * FAR * (u[3] - u[4]);
        if constexpr (K == 3) g[2] = NEAR2 * near_even + FAR2 * far_even + u[5];
    }
    template <typename T>
    static GANFAST_INLINE void write_back(const T* y, T* m) {
        const T near_even = y[0] + NEAR2 * y[2], near_odd = NEAR * (y[1] + NEAR2 * y[3]);
        const T far_even = y[0] + FAR2 * y[2], far_odd = FAR * (y[1] + FAR2 * y[3]);
        m[0] = y[0];
        m[1] = near_even + near_odd;
        m[2] = near_even - near_odd;
        m[3] = far_even + far_odd;
        m[4] = far_even - far_odd;
        if constexpr (K == 3) m[5] = y[3];
    }
};

// ---- transforms of channels

// Runs of memory, `apart` from one another.
template <typename T>
struct Spread {
    T* first;
    int64_t apart;

    GANFAST_INLINE T* operator[](int64_t i) const { return first + i * apart; }
};

// Runs that begin `offset` after the places of a list.
template <typename T>
struct Places {
    T* const* list;
    int64_t offset;

    GANFAST_INLINE T* operator[](int64_t i) const { return list[i] + offset; }
};

// A step along one axis, from IN numbers to OUT.
#define GANFAST_STEP(Name, method, FROM, TO)                                             \
    template <typename F>                                                                \
    struct Name {                                                                        \
        static constexpr int IN = F::FROM, OUT = F::TO;                                  \
        static GANFAST_INLINE void step(const Floats* a, Floats* b) { F::method(a, b); } \
    };

GANFAST_STEP(Read, read, READS, PRODUCTS)
GANFAST_STEP(Weigh, weigh, TAPS, PRODUCTS)
GANFAST_STEP(Write, write, PRODUCTS, WRITES)
GANFAST_STEP(WeighBack, weigh_back, PRODUCTS, TAPS)
GANFAST_STEP(WriteBack, write_back, WRITES, PRODUCTS)
#undef GANFAST_STEP

// out = n channels from c on of IN x IN runs, after a step along both axes
template <typename How, typename Step, typename In>
GANFAST_INLINE void along_both(const In& in, int64_t c, int64_t n, Floats (&out)[Step::OUT][Step::OUT]) {
    Floats lines[Step::IN][Step::OUT];
#pragma GCC unroll 8
    for (int i = 0; i < Step::IN; ++i) {
        Floats line[Step::IN];
#pragma GCC unroll 8
        for (int j = 0; j < Step::IN; ++j) How::load(in[i * Step::IN + j] + c, n, line[j]);
        Step::step(line, lines[i]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < Step::OUT; ++j) {
        Floats line[Step::IN], done[Step::OUT];
#pragma GCC unroll 8
        for (int i = 0; i < Step::IN; ++i) line[i] = lines[i][j];
        Step::step(line, done);
#pragma GCC unroll 8
        for (int i = 0; i < Step::OUT; ++i) out[i][j] = done[i];
    }
}

// apply(type, Step(), in, finish, out, channels): out[j] = what `finish` makes of a step along both axes of the runs in[i]. There
// is a version of its own for the type that `type` points to.
template <typename How, typename T, typename Step, typename In, typename Out>
GANFAST_INLINE void apply_loop(const T*, Step, In in, Finish finish, Out out, int64_t channels) {
    in_lanes<float>(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        Floats made[Step::OUT][Step::OUT], shift;
        along_both<How, Step>(in, c, n, made);
        finish.shifts(c, n, shift);
#pragma GCC unroll 36
        for (int i = 0; i < Step::OUT * Step::OUT; ++i) {
            Floats& z = made[i / Step::OUT][i % Step::OUT];
            z += shift;
            finish.bend(z);
            How::save(z, n, out[i] + c);
        }
    });
}
GANFAST_VERSIONS(apply)

// apply_to_words(in[0], Step(), in, out, channels, stretch, apart): words of such results, one of each of PER_WORD<S> inputs with
// IN x IN runs each. Every `stretch` of channels lies `apart` bytes after the one before it, and is written with what follows it
// in a register.
template <typename How, typename S, typename Step>
GANFAST_INLINE void apply_to_words_loop(const S*, Step, const S* const* in, Spread<char> out, int64_t channels, int64_t stretch,
                                        int64_t apart) {
    constexpr int N = PER_WORD<S>;
    const auto some = [&](int64_t c, int64_t n, int64_t at) __attribute__((always_inline)) {
        Floats made[N][Step::OUT][Step::OUT];
        for (int k = 0; k < N; ++k) along_both<How, Step>(in + k * Step::IN * Step::IN, c, n, made[k]);
#pragma GCC unroll 36
        for (int i = 0; i < Step::OUT * Step::OUT; ++i) {
            const Floats &first = made[0][i / Step::OUT][i % Step::OUT], &last = made[N - 1][i / Step::OUT][i % Step::OUT];
            Words words;
            if constexpr (N == 1) {
                copy(&first, words);
            } else {
                words = How::rounded(first) | How::rounded(last) << 16;
            }
            std::memcpy(out[i] + at, &words, n * WORD);
        }
    };
    int64_t c = 0, at = 0;
    for (; c + WIDTH<float> <= channels; c += stretch, at += apart) some(c, WIDTH<float>, at);
    for (; c < channels; c += stretch, at += apart) some(c, std::min(channels - c, WIDTH<float>), at);
}
GANFAST_VERSIONS(apply_to_words)

// So that runs are in a near cache when they are read: runs that lie apart are not foreseen by the processor.
template <typename S>
GANFAST_INLINE void prefetch(const S* const* runs, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t at = 0; at < std::min<int64_t>(bytes, 128); at += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(runs[i]) + at);
    }
}

}  // namespace ganfast

// A thread block as a sequence of phases, so that the body of a kernel runs on a GPU and, emulated, on a CPU.
//
// Within a phase no thread may read what another one writes: the end of the phase is the barrier. Under nvcc a phase is one call
// and __syncthreads; elsewhere it is a loop over the thread numbers, in an order that GANFAST_EMULATED_ORDER=reversed turns
// around. A body whose results depend on that order has a race. What an emulated thread finds in shared memory before it is
// written is NaN.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#if defined(__CUDACC__)
#define GANFAST_DEVICE __device__
#define GANFAST_SHARED(T, name, count) __shared__ T name[count]
#define GANFAST_PRAGMA(text) _Pragma(#text)
#define GANFAST_UNROLL(times) GANFAST_PRAGMA(unroll times)
#else
#define GANFAST_DEVICE
#define GANFAST_SHARED(T, name, count) \
    T name[count];                     \
    std::memset(name, 0xff, sizeof name)
#define GANFAST_UNROLL(times)
#endif

namespace ganfast {

#if !defined(__CUDACC__)
inline bool reversed_order() {
    const char* order = std::getenv("GANFAST_EMULATED_ORDER");
    return order != nullptr && std::string_view(order) == "reversed";
}
#endif

// body(thread) for every thread of a block
template <int THREADS, typename F>
GANFAST_DEVICE inline void phase(const F& body) {
#if defined(__CUDACC__)
    body(static_cast<int>(threadIdx.x));
    __syncthreads();
#else
    const bool reversed = reversed_order();
    for (int i = 0; i < THREADS; ++i) body(reversed ? THREADS - 1 - i : i);
#endif
}

// What each thread keeps from one phase to the next: registers under nvcc.
template <typename T, int THREADS>
struct PerThread {
#if defined(__CUDACC__)
    T value{};
    GANFAST_DEVICE T& operator[](int) { return value; }
#else
    T value[THREADS] = {};
    T& operator[](int thread) { return value[thread]; }
#endif
};

// Sums over the threads, in a fixed order: sums[k * THREADS + t] for all t, which end in sums[k * THREADS], for k < K. With more
// lanes, a power of two, those over the threads of each lane t % lanes, which end in sums[k * THREADS + lane].
template <int THREADS, int K, typename T>
GANFAST_DEVICE inline void sum_over_threads(T* sums, int lanes = 1) {
    static_assert((THREADS & (THREADS - 1)) == 0, "halving needs a power of two");
    for (int half = THREADS / 2; half >= lanes; half /= 2) {
        phase<THREADS>([&](int thread) {
            if (thread >= half) return;
            for (int k = 0; k < K; ++k) sums[k * THREADS + thread] += sums[k * THREADS + thread + half];
        });
    }
}

// sum over i of term(i), in double, given to every thread; `scratch` has room for one number a thread
template <int THREADS, typename F>
GANFAST_DEVICE inline double sum_over_elements(int64_t length, double* scratch, const F& term) {
    phase<THREADS>([&](int thread) {
        double sum = 0;
        for (int64_t i = thread; i < length; i += THREADS) sum += term(i);
        scratch[thread] = sum;
    });
    sum_over_threads<THREADS, 1>(scratch);
    return scratch[0];
}

}  // namespace ganfast

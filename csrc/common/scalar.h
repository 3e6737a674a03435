// Single numbers, as the kernels of the CPU and of CUDA know them. No torch here.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define GANFAST_HOST_DEVICE __host__ __device__
#else
#define GANFAST_HOST_DEVICE
#endif

namespace ganfast {

// The type that numbers of type S are computed in.
template <typename S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

// The type that R and F promote to.
template <typename R, typename F>
using Promoted = std::conditional_t<std::is_same_v<R, F>, R,
                                    std::conditional_t<std::is_same_v<R, double> || std::is_same_v<F, double>, double, float>>;

GANFAST_HOST_DEVICE inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GANFAST_HOST_DEVICE inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
GANFAST_HOST_DEVICE inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace ganfast

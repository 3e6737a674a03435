// Neighbouring elements that one instruction loads or stores.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/block.h"

namespace ganfast {

template <typename S, int WIDTH>
struct alignas(sizeof(S) * WIDTH) Pack {
    S element[WIDTH];
};

#if defined(__CUDACC__)

// nvcc may take a struct to pieces; a vector of its own, in an intrinsic, it does not.
template <typename Pack>
using Vector = std::conditional_t<
    sizeof(Pack) == 16, uint4,
    std::conditional_t<sizeof(Pack) == 8, uint2, std::conditional_t<sizeof(Pack) == 4, unsigned, unsigned short>>>;

// From memory that nothing writes during the launch.
template <int WIDTH, typename S>
__device__ inline Pack<S, WIDTH> load(const S* from) {
    Pack<S, WIDTH> pack;
    const Vector<decltype(pack)> vector = __ldg(reinterpret_cast<const Vector<decltype(pack)>*>(from));
    std::memcpy(&pack, &vector, sizeof(pack));
    return pack;
}

template <int WIDTH, typename S>
__device__ inline void store(S* to, const Pack<S, WIDTH>& pack) {
    Vector<Pack<S, WIDTH>> vector;
    std::memcpy(&vector, &pack, sizeof(pack));
    __stwb(reinterpret_cast<Vector<Pack<S, WIDTH>>*>(to), vector);
}

#else

template <int WIDTH, typename S>
Pack<S, WIDTH> load(const S* from) {
    return *reinterpret_cast<const Pack<S, WIDTH>*>(from);
}

template <int WIDTH, typename S>
void store(S* to, const Pack<S, WIDTH>& pack) {
    *reinterpret_cast<Pack<S, WIDTH>*>(to) = pack;
}

#endif

template <int WIDTH, typename S>
GANFAST_DEVICE inline bool aligned(const S* address) {
    return reinterpret_cast<uintptr_t>(address) % sizeof(Pack<S, WIDTH>) == 0;
}

template <int WIDTH>
using Width = std::integral_constant<int, WIDTH>;

// body(Width, first) for the packs that are this thread's of `length` elements; one by one where not all are `in_packs`, and at
// the end.
template <int THREADS, int WIDTH, typename F>
GANFAST_DEVICE inline void for_each_pack(int thread, int64_t length, bool in_packs, const F& body) {
    const int64_t packs = in_packs ? length / WIDTH : 0;
    GANFAST_UNROLL(4)
    for (int64_t i = thread; i < packs; i += THREADS) body(Width<WIDTH>(), i * WIDTH);
    for (int64_t i = packs * WIDTH + thread; i < length; i += THREADS) body(Width<1>(), i);
}

}  // namespace ganfast

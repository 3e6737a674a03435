// The kernel of Adam on CUDA, without a launch; the maths is on the page ganfast/ops/adam.py.
//
// One launch serves up to 56 parameters, whose addresses travel in the kernel's arguments, and what changes from step to step is
// read from the device: a captured graph holds all that a replay needs. Elements are taken in the order of memory.
#pragma once

#include <cstdint>

#include "../common/adam.h"
#include "../common/block.h"
#include "packs.cuh"

namespace ganfast {

// `first_block` is where a parameter's blocks begin; `average` may be null.
template <typename T>
struct Moved {
    int64_t first_block, length;
    const float* step;
    const T* grad;
    T *param, *exp_avg, *exp_avg_sq, *average;
};

// p, m and v one step on, and e towards p; e alone where found_inf is given and not zero.
//
// Moves 7 |p| bytes, and 2 |p| for the averages. A block has 4096 elements of one parameter.
template <typename T>
struct Adam {
    static constexpr int CAPACITY = 56;
    struct Arguments {
        int count;
        AdamSettings settings;
        const double *lr, *pull;
        const float* found_inf;  // may be null
        Moved<T> moved[CAPACITY];
    };
    static constexpr int BLOCK = 256;
    static constexpr int64_t SPAN = 16 * BLOCK;
    static constexpr int WIDTH = 16 / sizeof(T);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(AdamStep<T>, shared, 1);
        int owner = 0;
        while (owner + 1 < arguments.count && arguments.moved[owner + 1].first_block <= block) ++owner;
        const Moved<T>& moved = arguments.moved[owner];
        phase<BLOCK>([&](int thread) {
            // powers in float64 are worth one thread's time and not that of all
            if (thread == 0) shared[0] = AdamStep<T>::of(arguments.settings, *arguments.lr, *moved.step);
        });
        const AdamStep<T> step = shared[0];
        const bool skipped = arguments.found_inf != nullptr && *arguments.found_inf != 0;
        const T pull = static_cast<T>(*arguments.pull);
        const int64_t begin = (block - moved.first_block) * SPAN;
        const T* grad = moved.grad + begin;
        T *param = moved.param + begin, *exp_avg = moved.exp_avg + begin, *exp_avg_sq = moved.exp_avg_sq + begin;
        T* average = moved.average ? moved.average + begin : nullptr;
        const bool in_packs = aligned<WIDTH>(grad) && aligned<WIDTH>(param) && aligned<WIDTH>(exp_avg) &&
                              aligned<WIDTH>(exp_avg_sq) && aligned<WIDTH>(average);
        phase<BLOCK>([&](int thread) {
            for_each_pack<BLOCK, WIDTH>(thread, at_most(SPAN, moved.length - begin), in_packs, [&](auto width, int64_t at) {
                constexpr int COUNT = decltype(width)::value;
                auto p = current<COUNT>(param + at);
                if (!skipped) {
                    const auto g = load<COUNT>(grad + at);
                    auto m = current<COUNT>(exp_avg + at), v = current<COUNT>(exp_avg_sq + at);
                    for (int i = 0; i < COUNT; ++i) step.move(g.element[i], p.element[i], m.element[i], v.element[i]);
                    store<COUNT>(param + at, p);
                    store<COUNT>(exp_avg + at, m);
                    store<COUNT>(exp_avg_sq + at, v);
                }
                if (average) {
                    auto e = current<COUNT>(average + at);
                    for (int i = 0; i < COUNT; ++i) e.element[i] = mixed(p.element[i], e.element[i], pull);
                    store<COUNT>(average + at, e);
                }
            });
        });
    }

private:
    // From memory that this thread writes later in the launch, which `load` is not for.
    template <int COUNT>
    GANFAST_DEVICE static Pack<T, COUNT> current(const T* from) {
#if defined(__CUDACC__)
        Pack<T, COUNT> pack;
        const auto vector = *reinterpret_cast<const Vector<decltype(pack)>*>(from);
        std::memcpy(&pack, &vector, sizeof(pack));
        return pack;
#else
        return load<COUNT>(from);
#endif
    }
};

}  // namespace ganfast

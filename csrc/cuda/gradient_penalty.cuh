// The kernels of gradient penalty on CUDA, without a launch; the maths is on the page ganfast/ops/gradient_penalty.py.
//
// Batches lie in memory sample by sample, `length` elements each. R, F and S are the types of elements, T = Wide<R> the one that
// real and fake are mixed in. Sums run in double and in a fixed order: no atomics, the same bits in every run.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/block.h"
#include "../common/scalar.h"
#include "../common/slope.h"
#include "packs.cuh"

namespace ganfast {

// out = fake + alpha (real - fake); or out = [real; fake; that] where stacked.
//
// Moves |real| and |fake|, and |out| bytes. A block reads 4096 elements of one sample from both, or what is left of it.
template <typename R, typename F>
struct Interpolation {
    using T = Wide<R>;
    using O = Promoted<R, F>;
    struct Arguments {
        const R* real;
        const F* fake;
        const T* alpha;
        O* out;
        int64_t samples, length;
        bool stacked;
    };
    static constexpr int BLOCK = 256;
    static constexpr int64_t SPAN = 16 * BLOCK;
    static constexpr int WIDTH = 16 / sizeof(O);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        if (arguments.stacked) {
            run_as(std::true_type(), arguments, block);
        } else {
            run_as(std::false_type(), arguments, block);
        }
    }

    template <typename Stacked>
    GANFAST_DEVICE static void run_as(Stacked, const Arguments& arguments, int64_t block) {
        const int64_t length = arguments.length, spans = ceil_div(length, SPAN), sample = block / spans;
        const int64_t begin = block % spans * SPAN, first = sample * length + begin, batch = arguments.samples * length;
        const R* __restrict__ real = arguments.real + first;
        const F* __restrict__ fake = arguments.fake + first;
        const T alpha = arguments.alpha[sample];
        O* __restrict__ out = arguments.out + first;
        const bool in_packs = aligned<WIDTH>(real) && aligned<WIDTH>(fake) && aligned<WIDTH>(out) && aligned<WIDTH>(out + batch);
        phase<BLOCK>([&](int thread) {
            for_each_pack<BLOCK, WIDTH>(thread, at_most(SPAN, length - begin), in_packs, [&](auto width, int64_t at) {
                constexpr int COUNT = decltype(width)::value;
                const auto reals = load<COUNT>(real + at);
                const auto fakes = load<COUNT>(fake + at);
                Pack<O, COUNT> same_real, same_fake, mixture;
                for (int i = 0; i < COUNT; ++i) {
                    const T r = static_cast<T>(reals.element[i]), f = static_cast<T>(fakes.element[i]);
                    same_real.element[i] = static_cast<O>(r);
                    same_fake.element[i] = static_cast<O>(f);
                    mixture.element[i] = static_cast<O>(mixed(r, f, alpha));
                }
                if constexpr (Stacked::value) {
                    store<COUNT>(out + at, same_real);
                    store<COUNT>(out + batch + at, same_fake);
                    store<COUNT>(out + 2 * batch + at, mixture);
                } else {
                    store<COUNT>(out + at, mixture);
                }
            });
        });
    }
};

// v = factor g and costs, for one sample.
//
// Moves |g| and |v| bytes. A block has one sample, which it reads twice: for its length, and out of a cache to scale it.
template <typename S>
struct SlopePenalty {
    using T = Wide<S>;
    struct Arguments {
        const S* g;
        S* v;
        double* costs;
        int64_t length;
        Charge charge;
    };
    static constexpr int BLOCK = 512;
    static constexpr int WIDTH = 16 / sizeof(S);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t sample) {
        GANFAST_SHARED(double, sums, BLOCK);
        const int64_t length = arguments.length;
        const S* __restrict__ g = arguments.g + sample * length;
        S* __restrict__ v = arguments.v + sample * length;
        const bool in_packs = aligned<WIDTH>(g) && aligned<WIDTH>(v);
        phase<BLOCK>([&](int thread) {
            double sum = 0;
            for_each_pack<BLOCK, WIDTH>(thread, length, in_packs, [&](auto width, int64_t at) {
                constexpr int COUNT = decltype(width)::value;
                const auto pack = load<COUNT>(g + at);
                for (int i = 0; i < COUNT; ++i) {
                    const double element = static_cast<T>(pack.element[i]);
                    sum += element * element;
                }
            });
            sums[thread] = sum;
        });
        sum_over_threads<BLOCK, 1>(sums);
        const Slope slope = arguments.charge.of(sums[0]);
        const bool fits = slope.fits<T>();
        const T factor = static_cast<T>(slope.factor);
        phase<BLOCK>([&](int thread) {
            for_each_pack<BLOCK, WIDTH>(thread, length, in_packs, [&](auto width, int64_t at) {
                constexpr int COUNT = decltype(width)::value;
                auto pack = load<COUNT>(g + at);
                for (int i = 0; i < COUNT; ++i) {
                    const T element = static_cast<T>(pack.element[i]);
                    pack.element[i] = static_cast<S>(fits ? element * factor : static_cast<T>(element * slope.factor));
                }
                store<COUNT>(v + at, pack);
            });
            if (thread == 0) arguments.costs[sample] = slope.cost;
        });
    }
};

// penalty = scale * the sum of costs.
//
// Moves the costs. One block reads them all.
template <typename T>
struct CostSum {
    struct Arguments {
        const double* costs;
        int64_t count;
        double scale;
        T* penalty;
    };
    static constexpr int BLOCK = 512;

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t) {
        GANFAST_SHARED(double, sums, BLOCK);
        const double sum = sum_over_elements<BLOCK>(arguments.count, sums, [&](int64_t i) { return arguments.costs[i]; });
        phase<BLOCK>([&](int thread) {
            if (thread == 0) *arguments.penalty = static_cast<T>(sum * arguments.scale);
        });
    }
};

}  // namespace ganfast

// Adam on the CPU; the maths is on the page ganfast/ops/adam.py.
//
// Elements are taken in the order of memory, whatever axis comes first in it. Tasks are of fixed size, of one parameter each.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/adam.h"
#include "../common/parameters.h"
#include "parallel.h"
#include "simd.h"

namespace ganfast {
namespace {

// A task's part of one parameter, and the step that is made of it.
template <typename T>
struct Run {
    AdamStep<T> step;
    const T* grad;
    T *param, *exp_avg, *exp_avg_sq, *average;
    int64_t length;
};

template <typename T>
GANFAST_SIMD void move(const Run<T> run) {
#pragma omp simd
    for (int64_t i = 0; i < run.length; ++i) run.step.move(run.grad[i], run.param[i], run.exp_avg[i], run.exp_avg_sq[i]);
}

template <typename T>
GANFAST_SIMD void follow(const Run<T> run, T pull) {
#pragma omp simd
    for (int64_t i = 0; i < run.length; ++i) run.average[i] = mixed(run.param[i], run.average[i], pull);
}

void adam_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, const Tensors& steps,
           const Tensors& averages, const Tensor& lr, const Tensor& pull, double beta1, double beta2, double eps,
           const std::optional<Tensor>& found_inf) {
    const Parameters all(params, grads, exp_avgs, exp_avg_sqs, steps, averages, lr, pull, found_inf);
    const bool skipped = found_inf && *data_of<float>(*found_inf) != 0;
    with_type(all.type(), [&](auto s) {
        using T = decltype(s);
        if constexpr (std::is_same_v<T, Wide<T>>) {
            const T weight = static_cast<T>(*data_of<double>(pull));
            std::vector<Run<T>> runs;
            int64_t elements = 0;
            for (size_t i = 0; i < all.params.size(); ++i) {
                const int64_t length = all.params[i].numel();
                const auto step = AdamStep<T>::of({beta1, beta2, eps}, *data_of<double>(lr), *data_of<float>(all.steps[i]));
                for (int64_t begin = 0; begin < length; begin += TASK) {
                    const auto at = [&](const Tensor& tensor) { return mutable_data_of<T>(tensor) + begin; };
                    runs.push_back({step, data_of<T>(all.grads[i]) + begin, at(all.params[i]), at(all.exp_avgs[i]),
                                    at(all.exp_avg_sqs[i]), all.averages.empty() ? nullptr : at(all.averages[i]),
                                    std::min(TASK, length - begin)});
                }
                elements += length;
            }
            const auto run = [&](int64_t task) {
                // two loops over what is in a cache by then: with and without averages, parameters are the same bits
                if (!skipped) move(runs[task]);
                if (runs[task].average) follow(runs[task], weight);
            };
            run_chains({{{static_cast<int64_t>(runs.size()), run}}}, elements);
        } else {
            STD_TORCH_CHECK(false, "expected parameters in float32 or float64");
        }
    });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("adam_", TORCH_BOX(&ganfast::adam_)); }

// Adam on CUDA: parameters gathered into groups, and the launches; what a block does stands in adam.cuh.
//
// One launch for up to 56 parameters. No tensor is read back by the host, which never waits.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/parameters.h"
#include "adam.cuh"
#include "launch.h"

namespace ganfast {
namespace {

void adam_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs, const Tensors& steps,
           const Tensors& averages, const Tensor& lr, const Tensor& pull, double beta1, double beta2, double eps,
           const std::optional<Tensor>& found_inf) {
    const Parameters all(params, grads, exp_avgs, exp_avg_sqs, steps, averages, lr, pull, found_inf);
    if (all.params.empty()) return;
    const Stream stream(all.params[0]);
    with_type(all.params[0].scalar_type(), [&](auto s) {
        using T = decltype(s);
        if constexpr (std::is_same_v<T, Wide<T>>) {
            using Kernel = Adam<T>;
            for (size_t first = 0; first < all.params.size(); first += Kernel::CAPACITY) {
                typename Kernel::Arguments group{};
                group.count = static_cast<int>(at_most(Kernel::CAPACITY, all.params.size() - first));
                group.settings = {beta1, beta2, eps};
                group.lr = data_of<double>(lr);
                group.pull = data_of<double>(pull);
                group.found_inf = found_inf ? data_of<float>(*found_inf) : nullptr;
                int64_t blocks = 0;
                for (int i = 0; i < group.count; ++i) {
                    const size_t at = first + i;
                    const int64_t length = all.params[at].numel();
                    group.moved[i] = {blocks,
                                      length,
                                      data_of<float>(all.steps[at]),
                                      data_of<T>(all.grads[at]),
                                      mutable_data_of<T>(all.params[at]),
                                      mutable_data_of<T>(all.exp_avgs[at]),
                                      mutable_data_of<T>(all.exp_avg_sqs[at]),
                                      all.averages.empty() ? nullptr : mutable_data_of<T>(all.averages[at])};
                    blocks += ceil_div(length, Kernel::SPAN);
                }
                stream.launch<Kernel>(group, blocks);
            }
        } else {
            STD_TORCH_CHECK(false, "expected parameters in float32 or float64");
        }
    });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, GANFAST_KEY, library) { library.impl("adam_", TORCH_BOX(&ganfast::adam_)); }

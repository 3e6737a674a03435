// Gradient penalty on CUDA: the launches; what a block does stands in gradient_penalty.cuh.
//
// One launch for interpolate, two for slope_penalty. No tensor is read back by the host, which never waits.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/batches.h"
#include "gradient_penalty.cuh"
#include "launch.h"

namespace ganfast {
namespace {

Tensor interpolate(const Tensor& real, const Tensor& fake, const Tensor& alpha, bool stacked) {
    const ScalarType type = type_of_mixture(real, fake, alpha);
    const Stream stream(real);
    const Stacked form(real);
    const Result result(stacked ? empty_strided(form.sizes, form.strides, type, real) : empty_as(real, type));
    const Ends ends(real, fake, alpha, result.written, stacked);
    const int64_t samples = real.size(0), length = real.numel() / at_least(1, samples);
    with_types(ends.real.scalar_type(), ends.fake.scalar_type(), [&](auto r, auto f) {
        using R = decltype(r);
        using F = decltype(f);
        using Kernel = Interpolation<R, F>;
        const typename Kernel::Arguments arguments{data_of<R>(ends.real),
                                                   data_of<F>(ends.fake),
                                                   data_of<typename Kernel::T>(ends.alpha),
                                                   mutable_data_of<typename Kernel::O>(result.written),
                                                   samples,
                                                   length,
                                                   stacked};
        stream.launch<Kernel>(arguments, samples * ceil_div(length, Kernel::SPAN));
    });
    return result.finished();
}

std::tuple<Tensor, Tensor> slope_penalty(const Tensor& g, double target, double weight, bool one_sided) {
    expect_gradients(g);
    const Stream stream(g);
    const Result v(empty_as(g, g.scalar_type()));
    const Tensor laid_out = as_laid_out(g, v.written);
    const int64_t samples = g.size(0);
    const Tensor costs = torch::stable::new_empty(g, {&samples, 1}, ScalarType::Double);
    const Tensor penalty = torch::stable::new_empty(g, {}, beside(ScalarType::Float, g.scalar_type()));
    with_type(g.scalar_type(), [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        const Charge charge{target, 2 * weight / samples, one_sided};
        stream.launch<SlopePenalty<S>>(
            {data_of<S>(laid_out), mutable_data_of<S>(v.written), mutable_data_of<double>(costs), g.numel() / samples, charge},
            samples);
        stream.launch<CostSum<T>>({data_of<double>(costs), samples, weight / samples, mutable_data_of<T>(penalty)}, 1);
    });
    return {penalty, v.finished()};
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, GANFAST_KEY, library) {
    library.impl("interpolate", TORCH_BOX(&ganfast::interpolate));
    library.impl("slope_penalty", TORCH_BOX(&ganfast::slope_penalty));
}

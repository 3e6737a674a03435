// Lists of parameters and of what belongs to each, as the op adam_ takes them, on the CPU and on CUDA.
#pragma once

#include <optional>

#include "tensors.h"

namespace ganfast {

struct Parameters {
    Tensors params, grads, exp_avgs, exp_avg_sqs, steps, averages;

    // Checked, and gradients laid out as their parameters. The others are written, and must be already.
    Parameters(const Tensors& given_params, const Tensors& given_grads, const Tensors& given_exp_avgs,
               const Tensors& given_exp_avg_sqs, const Tensors& given_steps, const Tensors& given_averages, const Tensor& lr,
               const Tensor& pull, const std::optional<Tensor>& found_inf)
        : params(given_params),
          exp_avgs(given_exp_avgs),
          exp_avg_sqs(given_exp_avg_sqs),
          steps(given_steps),
          averages(given_averages) {
        const size_t count = params.size();
        STD_TORCH_CHECK(given_grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count &&
                            steps.size() == count && (averages.empty() || averages.size() == count),
                        "expected lists of one length, ", count, ", and averages or none");
        expect_scalar(lr, ScalarType::Double, "lr");
        expect_scalar(pull, ScalarType::Double, "pull");
        if (found_inf) expect_scalar(*found_inf, ScalarType::Float, "found_inf");
        for (size_t i = 0; i < count; ++i) {
            const Tensor& param = params[i];
            STD_TORCH_CHECK(param.scalar_type() == params[0].scalar_type(), "expected parameters of one dtype");
            expect_scalar(steps[i], ScalarType::Float, "steps");
            expect_like(param, given_grads[i], false);
            expect_like(param, exp_avgs[i], true);
            expect_like(param, exp_avg_sqs[i], true);
            if (!averages.empty()) expect_like(param, averages[i], true);
            expect_on_device_of(param, {given_grads[i], exp_avgs[i], exp_avg_sqs[i], steps[i], lr, pull});
            grads.push_back(as_laid_out(given_grads[i], param));
        }
    }

    ScalarType type() const { return params.empty() ? ScalarType::Float : params[0].scalar_type(); }

private:
    static void expect_scalar(const Tensor& tensor, ScalarType type, const char* name) {
        STD_TORCH_CHECK(tensor.numel() == 1 && tensor.scalar_type() == type, "expected ", name, " as scalars in ",
                        type == ScalarType::Double ? "float64" : "float32");
    }

    static void expect_like(const Tensor& param, const Tensor& other, bool laid_out) {
        const auto sizes = param.sizes(), others = other.sizes();
        STD_TORCH_CHECK(other.scalar_type() == param.scalar_type() && sizes.size() == others.size() &&
                            std::equal(sizes.begin(), sizes.end(), others.begin()),
                        "expected all of a parameter's tensors in its shape and dtype");
        bool fits = true;
        for (int64_t axis = 0; laid_out && axis < param.dim(); ++axis) {
            fits = fits && (param.size(axis) == 1 || param.stride(axis) == other.stride(axis));
        }
        STD_TORCH_CHECK(fits || param.numel() == 0, "expected moments and averages with their parameter's strides");
    }
};

}  // namespace ganfast

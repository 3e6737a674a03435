// The arguments of batch norm as the kernels of the CPU and of CUDA take them; the maths is on the page
// ganfast/ops/batch_norm.py.
#pragma once

#include <optional>

#include "batches.h"
#include "running.h"
#include "tensors.h"

namespace ganfast {

using Parameter = std::optional<Tensor>;  // weight or bias

inline void expect_volume(const Tensor& x, const Parameter& weight, const Parameter& bias, int64_t groups) {
    STD_TORCH_CHECK(x.dim() >= 2 && x.numel() > 0, "expected x (N, C, ...) with at least one value, got ", shape_of(x));
    STD_TORCH_CHECK(groups >= 1 && x.size(0) % groups == 0, "expected groups that divide the batch of ", x.size(0), ", got ",
                    groups);
    STD_TORCH_CHECK(weight.has_value() == bias.has_value(), "expected weight and bias, or neither");
    for (const Parameter* parameter : {&weight, &bias}) {
        if (!parameter->has_value()) continue;
        const Tensor& given = **parameter;
        STD_TORCH_CHECK(given.dim() == 1 && given.size(0) == x.size(1), "expected ", parameter == &weight ? "weight" : "bias",
                        " (", x.size(1), ",), got ", shape_of(given));
        expect_on_device_of(x, {given});
    }
    with_type(x.scalar_type(), [](auto) {});
}

inline void expect_statistics(const Tensor& x, const Tensor& mean, const Tensor& var) {
    for (const Tensor& statistic : {mean, var}) {
        STD_TORCH_CHECK(statistic.dim() == 2 && statistic.size(0) == mean.size(0) && statistic.size(1) == x.size(1) &&
                            statistic.scalar_type() == beside(ScalarType::Float, x.scalar_type()),
                        "expected mean and var (groups, ", x.size(1), "), as the forward pass gave them, got ",
                        shape_of(statistic));
    }
    expect_on_device_of(x, {mean, var});
}

// What the running statistics are kept in: mean and var (channels), and how many groups they have followed.
struct Tracked {
    Tensor mean, var;
    Parameter counted;
    double momentum;

    template <typename T>
    Running<T> running(int64_t values) const {
        const double m = static_cast<double>(values);
        return {mutable_data_of<T>(mean), mutable_data_of<T>(var), static_cast<T>(momentum), static_cast<T>(1 - momentum),
                static_cast<T>(m / (m - 1))};
    }
    int64_t* count() const { return counted ? mutable_data_of<int64_t>(*counted) : nullptr; }
};

inline void expect_tracked(const Tensor& x, int64_t groups, const Tracked& tracked) {
    STD_TORCH_CHECK(x.numel() / (x.size(1) * groups) > 1, "expected more than one value a channel, got ", shape_of(x));
    for (const Tensor& statistic : {tracked.mean, tracked.var}) {
        STD_TORCH_CHECK(statistic.dim() == 1 && statistic.size(0) == x.size(1) && statistic.is_contiguous() &&
                            statistic.scalar_type() == beside(ScalarType::Float, x.scalar_type()),
                        "expected running statistics (", x.size(1), ",) in the type of the batch's, got ", shape_of(statistic));
        expect_on_device_of(x, {statistic});
    }
    if (!tracked.counted) return;
    STD_TORCH_CHECK(tracked.counted->numel() == 1 && tracked.counted->scalar_type() == ScalarType::Long,
                    "expected a count in int64, got ", shape_of(*tracked.counted));
    expect_on_device_of(x, {*tracked.counted});
}

inline void expect_gradient(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& var) {
    const auto given = grad.sizes(), expected = x.sizes();
    STD_TORCH_CHECK(std::equal(given.begin(), given.end(), expected.begin(), expected.end()), "expected a gradient of x's shape ",
                    shape_of(x), ", got ", shape_of(grad));
    with_type(grad.scalar_type(), [](auto) {});
    expect_statistics(x, mean, var);
    expect_on_device_of(x, {grad});
}

// A parameter in the type that is computed in; nothing where there is none.
inline Parameter widened(const Parameter& parameter, ScalarType type) {
    return parameter ? Parameter(as_contiguous(converted(*parameter, type))) : std::nullopt;
}

template <typename T>
const T* data_of(const Parameter& parameter) {
    return parameter ? data_of<T>(*parameter) : nullptr;
}

// Whether the kernels walk through a tensor as it lies: [n, channels, positions] or [n, positions, channels], without gaps.
inline bool is_volume(const Tensor& tensor) { return tensor.is_contiguous() || is_channels_last(tensor); }

// The sizes of x, and which of its two layouts it has.
struct Volume {
    int64_t groups, samples, channels, positions;  // samples of one group
    bool channels_last;

    Volume(const Tensor& x, int64_t groups)
        : groups(groups),
          samples(x.size(0) / groups),
          channels(x.size(1)),
          positions(x.numel() / x.size(0) / x.size(1)),
          channels_last(positions == 1 || !x.is_contiguous()) {}

    int64_t values() const { return samples * positions; }    // of a channel in a group
    int64_t elements() const { return values() * channels; }  // of a group
};

}  // namespace ganfast

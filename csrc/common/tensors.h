// LibTorch's stable tensors, and weights among them, as the kernels of the CPU and of CUDA take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "scalar.h"
#include "weight_view.h"

namespace ganfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Extents = torch::headeronly::IntHeaderOnlyArrayRef;  // sizes, or strides
using Tensors = std::vector<Tensor>;

template <typename T>
const T* data_of(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Tensor converted(const Tensor& tensor, ScalarType type) {
    return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// Itself where it is contiguous, without the dispatcher.
inline Tensor as_contiguous(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// Elements [n, spatial ..., channels] in memory, none between them.
inline bool is_channels_last(const Tensor& tensor) {
    int64_t expected = 1;
    const auto next = [&](int64_t axis) {
        const bool fits = tensor.size(axis) == 1 || tensor.stride(axis) == expected;
        expected *= tensor.size(axis);
        return fits;
    };
    if (tensor.dim() < 3 || tensor.numel() == 0 || !next(1)) return false;
    for (int64_t axis = tensor.dim() - 1; axis >= 2; --axis) {
        if (!next(axis)) return false;
    }
    return next(0);
}

// Uninitialised, on the device of `near`, by the shim's own call: past the dispatcher.
inline Tensor empty_strided(Extents sizes, Extents strides, ScalarType type, const Tensor& near) {
    int32_t device_type, device_index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(near.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(near.get(), &device_index));
    const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype, device_type, device_index, &made));
    return Tensor(made);
}

// Uninitialised, with the strides that PyTorch's empty_like gives, which are what the shape functions promise.
inline Tensor empty_as(const Tensor& tensor, ScalarType type) {
    if (tensor.is_contiguous() || is_channels_last(tensor)) {
        return empty_strided(tensor.sizes(), tensor.strides(), type, tensor);
    }
    const StableIValue none = torch::stable::detail::from(std::nullopt);
    std::array<StableIValue, 6> stack{torch::stable::detail::from(tensor),
                                      torch::stable::detail::from(std::optional<ScalarType>(type)),
                                      none,
                                      none,
                                      none,
                                      none};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
}

// `tensor` with the strides of `model`.
inline Tensor as_laid_out(const Tensor& tensor, const Tensor& model) {
    bool same = true;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
        same = same && (tensor.size(axis) == 1 || tensor.stride(axis) == model.stride(axis));
    }
    if (same) return tensor;
    Tensor copied = empty_as(model, tensor.scalar_type());
    return torch::stable::copy_(copied, tensor);
}

inline void expect_on_device_of(const Tensor& tensor, const Tensors& others) {
    for (const Tensor& other : others) {
        STD_TORCH_CHECK(other.get_device_index() == tensor.get_device_index(), "expected all tensors on one device");
    }
}

// ---- types

template <typename T>
constexpr ScalarType TYPE = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// The type in which a tensor is read or written beside others that are computed with in `wide`: its own, unless one of the two is
// float64 and the other is not.
inline ScalarType beside(ScalarType type, ScalarType wide) {
    return (type == ScalarType::Double) == (wide == ScalarType::Double) ? type : wide;
}

// body(S()) for the type S of a tensor's elements
template <typename F>
void with_type(ScalarType type, const F& body) {
    if (type == ScalarType::Float) return body(float());
    if (type == ScalarType::Double) return body(double());
    if (type == ScalarType::BFloat16) return body(torch::headeronly::BFloat16());
    STD_TORCH_CHECK(type == ScalarType::Half, "expected tensors in float32, float64, bfloat16 or float16");
    body(torch::headeronly::Half());
}

// The same for a type beside T, of which the other ones are not compiled.
template <typename T, typename F>
void with_type_beside(ScalarType type, const F& body) {
    with_type(type, [&](auto s) {
        constexpr bool FIT = std::is_same_v<Wide<decltype(s)>, T>;  // named: g++ 12 takes it for false within the condition
        if constexpr (FIT) body(s);
    });
}

// body(S(), O()) for two types beside the same one, and so both float64 or neither
template <typename F>
void with_types(ScalarType type, ScalarType other, const F& body) {
    with_type(type, [&](auto s) { with_type_beside<Wide<decltype(s)>>(other, [&](auto o) { body(s, o); }); });
}

// ---- weights

inline WeightView view_of(const Tensor& weight, int64_t dim) {
    const int64_t rows = weight.size(dim);
    int64_t before = 1, after = 1;
    for (int64_t axis = 0; axis < dim; ++axis) before *= weight.size(axis);
    for (int64_t axis = dim + 1; axis < weight.dim(); ++axis) after *= weight.size(axis);
    if (weight.is_contiguous()) {
        if (after == 1) return {1, before, rows, rows, true};
        return {before, rows, after, after, false};
    }
    if (dim == 0) return {1, rows, after, weight.size(1), false};
    return {1, before * after, rows, rows, true};  // channels last, rows along dim 1
}

// The weight in this type and in a layout that a view describes; itself where that is so already.
inline Tensor viewable(const Tensor& weight, int64_t dim, ScalarType type) {
    const Tensor widened = converted(weight, type);
    return is_channels_last(widened) && dim <= 1 ? widened : as_contiguous(widened);
}

// Where in u and in v the vectors of a weight begin.
struct Place {
    int64_t u, v;
};

// One for each weight. The lists must fit, and u and v be as long as all rows and all columns.
inline std::vector<Place> places_of(const Tensors& weights, const Tensor& u, const Tensor& v, const std::vector<int64_t>& dims) {
    STD_TORCH_CHECK(dims.size() == weights.size(), "expected one dim for each of ", weights.size(), " weights, got ",
                    dims.size());
    std::vector<Place> places;
    Place next{0, 0};
    for (size_t i = 0; i < weights.size(); ++i) {
        const Tensor& weight = weights[i];
        STD_TORCH_CHECK(0 <= dims[i] && dims[i] < weight.dim(), "expected a dim from 0 to ", weight.dim() - 1, ", got ", dims[i]);
        STD_TORCH_CHECK(weight.scalar_type() == weights[0].scalar_type(), "expected weights of one dtype");
        places.push_back(next);
        int64_t columns = 1;
        for (int64_t axis = 0; axis < weight.dim(); ++axis) columns *= axis == dims[i] ? 1 : weight.size(axis);
        next.u += weight.size(dims[i]);
        next.v += columns;
    }
    STD_TORCH_CHECK(u.dim() == 1 && u.numel() == next.u && v.dim() == 1 && v.numel() == next.v, "expected u and v of ", next.u,
                    " and ", next.v, " elements, as many as the weights have rows and columns, got ", u.numel(), " and ",
                    v.numel());
    return places;
}

// The type of u, v, sigma and the sums.
inline ScalarType wide_type(const Tensor& u, const Tensor& v) {
    const ScalarType type = u.scalar_type();
    STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && v.scalar_type() == type,
                    "expected u and v both in float32 or both in float64");
    return type;
}

// The one type of the gradients, one for each weight.
inline ScalarType type_of_grads(const Tensors& grads, const Tensors& weights) {
    STD_TORCH_CHECK(grads.size() == weights.size(), "expected a gradient for each of ", weights.size(), " weights, got ",
                    grads.size());
    for (size_t i = 0; i < grads.size(); ++i) {
        STD_TORCH_CHECK(grads[i].scalar_type() == grads[0].scalar_type(), "expected gradients of one dtype");
        const auto given = grads[i].sizes(), expected = weights[i].sizes();
        STD_TORCH_CHECK(std::equal(given.begin(), given.end(), expected.begin(), expected.end()),
                        "expected gradients of the weights' shapes");
    }
    return grads[0].scalar_type();
}

}  // namespace ganfast

// Batches (N, ...) as kernels that go sample by sample take them, on the CPU and on CUDA.
#pragma once

#include <string>
#include <vector>

#include "tensors.h"

namespace ganfast {

// Whether dimension 0 of a tensor without gaps is the outermost in memory: then every sample is one run of elements.
inline bool lies_by_sample(const Tensor& dense) {
    return dense.numel() == 0 || dense.size(0) == 1 || dense.stride(0) == dense.numel() / dense.size(0);
}

// A result with the strides that were promised, and where the kernels write it: there, or where that does not lie as they walk,
// which is by sample if nothing else is said, in a contiguous tensor that is copied in the end.
class Result {
public:
    const Tensor promised, written;

    explicit Result(const Tensor& promised) : Result(promised, lies_by_sample(promised)) {}

    Result(const Tensor& promised, bool fits)
        : promised(promised), written(fits ? promised : torch::stable::new_empty(promised, promised.sizes())) {}

    Tensor finished() const {
        if (written.get() == promised.get()) return promised;
        Tensor copied = promised;
        return torch::stable::copy_(copied, written);
    }
};

inline std::string shape_of(const Tensor& tensor) {
    std::string shape;
    for (const int64_t size : tensor.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    return "(" + shape + (tensor.dim() == 1 ? ",)" : ")");
}

// ---- interpolate

// The type of the result. The arguments must fit.
inline ScalarType type_of_mixture(const Tensor& real, const Tensor& fake, const Tensor& alpha) {
    const auto sizes = real.sizes(), others = fake.sizes();
    const bool one_shape = std::equal(sizes.begin(), sizes.end(), others.begin(), others.end());
    STD_TORCH_CHECK(real.dim() > 0 && one_shape && alpha.dim() == 1 && alpha.size(0) == real.size(0),
                    "expected real and fake of one shape (N, ...) and alpha (N,), got ", shape_of(real), ", ", shape_of(fake),
                    ", ", shape_of(alpha));
    expect_on_device_of(real, {fake, alpha});
    const ScalarType a = real.scalar_type(), b = fake.scalar_type();
    for (const ScalarType type : {a, b}) with_type(type, [](auto) {});
    const bool wide = a == ScalarType::Double || b == ScalarType::Double;
    return a == b ? a : wide ? ScalarType::Double : ScalarType::Float;
}

// The sizes and strides of three batches in one: channels last where a batch is that and not contiguous, otherwise contiguous.
struct Stacked {
    std::vector<int64_t> sizes, strides;

    explicit Stacked(const Tensor& batch) : sizes(batch.sizes().begin(), batch.sizes().end()), strides(sizes.size()) {
        sizes[0] *= 3;
        std::vector<size_t> outermost_first(sizes.size());
        for (size_t axis = 0; axis < sizes.size(); ++axis) outermost_first[axis] = axis;
        if (sizes.size() == 4 && is_channels_last(batch) && !batch.is_contiguous()) outermost_first = {0, 2, 3, 1};
        int64_t stride = 1;
        for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(1, sizes[outermost_first[i]])) {
            strides[outermost_first[i]] = stride;
        }
    }
};

// What interpolate reads: real and fake with the strides of a batch of what it writes, each in its own type where that mixes in
// the type of the result, and alpha in the type that it mixes in.
struct Ends {
    Tensor real, fake, alpha;

    Ends(const Tensor& given_real, const Tensor& given_fake, const Tensor& given_alpha, Tensor written, bool stacked) {
        const ScalarType type = written.scalar_type();
        const Tensor batch = stacked ? torch::stable::narrow(written, 0, 0, given_real.size(0)) : written;
        real = as_laid_out(converted(given_real, beside(given_real.scalar_type(), type)), batch);
        fake = as_laid_out(converted(given_fake, beside(given_fake.scalar_type(), type)), batch);
        alpha = as_contiguous(converted(given_alpha, beside(ScalarType::Float, type)));
    }
};

// ---- slope_penalty

inline void expect_gradients(const Tensor& g) {
    STD_TORCH_CHECK(g.dim() > 0 && g.size(0) > 0, "expected gradients (N, ...) with N >= 1, got ", shape_of(g));
    with_type(g.scalar_type(), [](auto) {});
}

}  // namespace ganfast

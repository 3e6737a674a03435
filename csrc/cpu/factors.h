// The tensors that convolutions take and give: four dimensions, channels last.
#pragma once

#include <array>

#include "../common/volume.h"
#include "panels.h"

namespace ganfast {

// channels last, as sizes in (N, C, H, W)
inline Tensor empty_channels_last(const std::array<int64_t, 4>& sizes, ScalarType type, const Tensor& near) {
    const std::array<int64_t, 4> strides{sizes[1] * sizes[2] * sizes[3], 1, sizes[3] * sizes[1], sizes[1]};
    return pooled_strided({sizes.data(), 4}, {strides.data(), 4}, type, near);
}

// Four dimensions, channels last; itself where it lies so.
inline Tensor channels_last(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 4 && tensor.numel() > 0, "expected ", name,
                    " in four dimensions with at least one element, got ", shape_of(tensor));
    if (is_channels_last(tensor)) return tensor;
    Tensor copied =
        empty_channels_last({tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)}, tensor.scalar_type(), tensor);
    return torch::stable::copy_(copied, tensor);
}

template <typename F>
inline void with_float_or_bfloat16(ScalarType type, const F& body) {
    if (type == ScalarType::Float) return body(float());
    STD_TORCH_CHECK(type == ScalarType::BFloat16, "expected tensors in float32 or bfloat16");
    body(BFloat16());
}

inline void expect_dtypes(const Tensor& one, const Tensor& other) {
    STD_TORCH_CHECK(one.scalar_type() == other.scalar_type(), "expected both factors in one dtype");
}

inline void expect_weight_dtype(const Tensor& map, const Tensor& weight) {
    if (weight.scalar_type() != ScalarType::Float) expect_dtypes(map, weight);
}

inline void expect_steps(int64_t stride, int64_t padding) {
    STD_TORCH_CHECK(stride >= 1 && padding >= 0, "expected a stride >= 1 and a padding >= 0, got ", stride, " and ", padding);
}

inline void expect_match(int64_t channels, int64_t others, const Tensor& one, const Tensor& other) {
    STD_TORCH_CHECK(channels == others, "expected factors that fit, got ", shape_of(one), " and ", shape_of(other));
}

inline Parameter bias_for(const Parameter& bias, int64_t channels) {
    STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == channels), "expected bias (", channels, ",), got ",
                    bias ? shape_of(*bias) : "");
    return widened(bias, ScalarType::Float);
}

// The pixels of small along an axis, of which big has `extent`.
inline int64_t extent_of_small(int64_t extent, int64_t kernel, int64_t stride, int64_t padding) {
    STD_TORCH_CHECK(extent + 2 * padding >= kernel, "expected a kernel no larger than the padded map, got ", kernel, " and ",
                    extent + 2 * padding);
    return (extent + 2 * padding - kernel) / stride + 1;
}

// The geometry of two maps and a kernel, of which small's must be what the kernel makes of big.
inline Geometry between(const Tensor& small, int64_t b, int64_t height, int64_t width, int64_t kernel_height,
                        int64_t kernel_width, int64_t stride, int64_t padding) {
    const int64_t h = extent_of_small(height, kernel_height, stride, padding);
    const int64_t w = extent_of_small(width, kernel_width, stride, padding);
    STD_TORCH_CHECK(small.size(2) == h && small.size(3) == w, "expected a small map of ", h, " x ", w, " pixels, got ",
                    shape_of(small));
    return {small.size(0), small.size(1), h, w, b, height, width, kernel_height, kernel_width, stride, padding};
}

inline Geometry from_small(const Tensor& small, const Tensor& weight, int64_t height, int64_t width, int64_t stride,
                           int64_t padding) {
    expect_match(small.size(1), weight.size(0), small, weight);
    return between(small, weight.size(1), height, width, weight.size(2), weight.size(3), stride, padding);
}

inline Geometry from_big(const Tensor& big, const Tensor& weight, int64_t stride, int64_t padding) {
    expect_match(big.size(1), weight.size(1), big, weight);
    const int64_t h = extent_of_small(big.size(2), weight.size(2), stride, padding);
    const int64_t w = extent_of_small(big.size(3), weight.size(3), stride, padding);
    return {big.size(0),    weight.size(0), h,      w,      big.size(1), big.size(2), big.size(3),
            weight.size(2), weight.size(3), stride, padding};
}

// ---- the three ops, whose work is run(factor, factor, [finish,] geometry, result)

template <typename F>
Tensor make_small(const Tensor& given_big, const Tensor& given_weight, const Parameter& given_bias, int64_t stride,
                  int64_t padding, double slope, const F& run) {
    const Tensor big = channels_last(given_big, "x"), weight = channels_last(given_weight, "weight");
    expect_weight_dtype(big, weight);
    expect_steps(stride, padding);
    const Geometry g = from_big(big, weight, stride, padding);
    const Parameter bias = bias_for(given_bias, g.a);
    const Tensor small = empty_channels_last({g.samples, g.a, g.h, g.w}, big.scalar_type(), big);
    with_float_or_bfloat16(big.scalar_type(), [&](auto s) {
        using S = decltype(s);
        run(data_of<S>(big), Weight<S>(weight), Finish{data_of<float>(bias), static_cast<float>(slope)}, g,
            mutable_data_of<S>(small));
    });
    return small;
}

template <typename F>
Tensor make_big(const Tensor& given_small, const Tensor& given_weight, const Parameter& given_bias, int64_t stride,
                int64_t padding, int64_t height, int64_t width, double slope, const F& run) {
    const Tensor small = channels_last(given_small, "x"), weight = channels_last(given_weight, "weight");
    expect_weight_dtype(small, weight);
    expect_steps(stride, padding);
    STD_TORCH_CHECK(height >= 1 && width >= 1, "expected a result with at least one pixel, got ", height, " x ", width);
    const Geometry g = from_small(small, weight, height, width, stride, padding);
    const Parameter bias = bias_for(given_bias, g.b);
    const Tensor big = empty_channels_last({g.samples, g.b, height, width}, small.scalar_type(), small);
    with_float_or_bfloat16(small.scalar_type(), [&](auto s) {
        using S = decltype(s);
        run(data_of<S>(small), Weight<S>(weight), Finish{data_of<float>(bias), static_cast<float>(slope)}, g,
            mutable_data_of<S>(big));
    });
    return big;
}

// By what the pixels of small are normalised and activated when they are read: statistics (1, channels), gamma and beta
// (channels) or neither, and the slope of LeakyReLU.
struct Norm {
    Tensor mean, var;
    Parameter gamma, beta;
    double eps, slope;

    void expect(const Tensor& small) const {
        expect_volume(small, gamma, beta, 1);
        expect_statistics(small, mean, var);
        STD_TORCH_CHECK(mean.size(0) == 1, "expected the statistics of one group, got ", mean.size(0));
    }

    // body(small's pixels)
    template <typename S, typename F>
    void visit(const Tensor& small, const F& body) const {
        const Tensor means = as_contiguous(mean), vars = as_contiguous(var);
        const Parameter weights = widened(gamma, ScalarType::Float), biases = widened(beta, ScalarType::Float);
        Affines<float> affines(1, small.size(1), data_of<float>(weights), data_of<float>(biases));
        affines.set_all(data_of<float>(vars), eps);
        body(Pixels<S>(data_of<S>(small), small.size(1), data_of<float>(means), affines, static_cast<float>(slope)));
    }
};

template <typename F>
Tensor make_weight(const Tensor& given_small, const Tensor& given_big, int64_t height, int64_t width, int64_t stride,
                   int64_t padding, std::optional<ScalarType> dtype, const F& run, const Norm* norm = nullptr) {
    const Tensor small = channels_last(given_small, "small"), big = channels_last(given_big, "big");
    expect_dtypes(small, big);
    expect_steps(stride, padding);
    expect_match(small.size(0), big.size(0), small, big);
    if (norm) norm->expect(small);
    const Geometry g = between(small, big.size(1), big.size(2), big.size(3), height, width, stride, padding);
    const Tensor weight = empty_channels_last({g.a, g.b, height, width}, dtype.value_or(small.scalar_type()), small);
    expect_weight_dtype(small, weight);
    with_float_or_bfloat16(small.scalar_type(), [&](auto s) {
        using S = decltype(s);
        const auto by = [&](const Pixels<S>& pixels) {
            if (weight.scalar_type() == small.scalar_type()) return run(pixels, data_of<S>(big), g, mutable_data_of<S>(weight));
            run(pixels, data_of<S>(big), g, mutable_data_of<float>(weight));
        };
        norm ? norm->visit<S>(small, by) : by(Pixels<S>(data_of<S>(small), g.a));
    });
    return weight;
}

template <typename Run>
Tensor convolution_weight_gradient(const Tensor& small, const Tensor& big, int64_t height, int64_t width, int64_t stride,
                                   int64_t padding, std::optional<ScalarType> dtype) {
    return make_weight(small, big, height, width, stride, padding, dtype, Run());
}

// The same of x, which is normalised and activated as it is read: a transposed convolution reads each pixel once, and no padding.
template <typename Run>
Tensor conv_norm_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& var,
                                 const Parameter& gamma, const Parameter& beta, double eps, double slope, bool transposed,
                                 int64_t height, int64_t width, int64_t stride, int64_t padding,
                                 std::optional<ScalarType> dtype) {
    STD_TORCH_CHECK(transposed, "expected a transposed convolution");
    const Norm norm{mean, var, gamma, beta, eps, slope};
    return make_weight(x, grad, height, width, stride, padding, dtype, Run(), &norm);
}

}  // namespace ganfast

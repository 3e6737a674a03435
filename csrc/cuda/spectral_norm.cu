// Spectral norm on CUDA: weights gathered into groups, and the launches; what a block does stands in spectral_norm.cuh.
//
// For a group of up to 24 weights: four launches an iteration, one for the division, two for its gradient.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/tensors.h"
#include "launch.h"
#include "spectral_norm.cuh"

namespace ganfast {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The type in which a weight is read: its own, unless u, v and sigma are in float64 and it is not, or the reverse.
ScalarType stored_type(const Tensors& weights, ScalarType wide) {
    const ScalarType type = weights[0].scalar_type();
    for (const Tensor& weight : weights) STD_TORCH_CHECK(weight.scalar_type() == type, "expected weights of one dtype");
    return (wide == ScalarType::Double) == (type == ScalarType::Double) ? type : wide;
}

// body(S()) for the type S of weights, normalised weights or gradients
template <typename F>
void with_type(ScalarType type, const F& body) {
    if (type == ScalarType::Float) return body(float());
    if (type == ScalarType::Double) return body(double());
    if (type == ScalarType::BFloat16) return body(BFloat16());
    STD_TORCH_CHECK(type == ScalarType::Half, "expected weights in float32, float64, bfloat16 or float16");
    body(Half());
}

// body(S(), O()) where both are float64 or neither is
template <typename F>
void with_types(ScalarType type, ScalarType other, const F& body) {
    with_type(type, [&](auto s) {
        with_type(other, [&](auto o) {
            using S = decltype(s);
            using O = decltype(o);
            constexpr bool FIT = std::is_same_v<Wide<S>, Wide<O>>;
            STD_TORCH_CHECK(FIT, "expected float64 on both sides of the division by sigma, or on neither");
            if constexpr (FIT) body(s, o);
        });
    });
}

// u, v or the sigmas, where the kernels can read them.
Tensor vector_of(const Tensor& tensor, ScalarType wide, const Tensor& weight) {
    STD_TORCH_CHECK(tensor.scalar_type() == wide && tensor.get_device_index() == weight.get_device_index(),
                    "expected u, v and sigma in one dtype, float32 or float64, and on the weights' device");
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor converted(const Tensor& tensor, ScalarType type) {
    return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// The group's tiles numbered from 0, those of weight i tiles(its view) many; returns how many there are.
template <typename Record, typename F>
int64_t number_tiles(Group<Record>& group, const F& tiles) {
    int64_t count = 0;
    for (int i = 0; i < group.count; ++i) {
        group.weights[i].first_tile = count;
        count += tiles(group.weights[i].view);
    }
    return count;
}

// add(i) makes the record of weight i, use(group) takes each full group and the last one.
template <typename Record, typename Add, typename Use>
void for_each_group(int64_t count, const Add& add, const Use& use) {
    for (int64_t begin = 0; begin < count; begin += Group<Record>::CAPACITY) {
        Group<Record> group{};
        group.count = static_cast<int>(at_most(Group<Record>::CAPACITY, count - begin));
        for (int i = 0; i < group.count; ++i) group.weights[i] = add(begin + i);
        use(group, begin);
    }
}

// ---- the power iteration

// Room for the sums of every weight, u's or v's, from one allocation.
template <typename T>
Tensor place_sums(Group<Iterated>& group, const Tensor& model) {
    int64_t size = 0;
    const auto each = [](const WeightView& view) {
        return at_least(along_y(view).across * view.rows, along_x(view).down * view.y_length());
    };
    for (int i = 0; i < group.count; ++i) size += each(group.weights[i].view);
    const Tensor sums = torch::stable::new_empty(model, {&size, 1});
    T* next = mutable_data_of<T>(sums);
    for (int i = 0; i < group.count; ++i) {
        group.weights[i].sums = next;
        next += each(group.weights[i].view);
    }
    return sums;
}

template <typename S>
void multiply(Group<Iterated>& group, bool of_u, const Stream& stream) {
    group.of_u = of_u;
    const int64_t tiles = number_tiles(
        group, [&](const WeightView& view) { return (view.transposed == of_u ? along_x(view) : along_y(view)).count(); });
    stream.launch<Product<S>>(group, tiles);
}

template <typename S>
void iterate(Group<Iterated>& group, int64_t n_iterations, const Stream& stream) {
    if (n_iterations == 0) {
        multiply<S>(group, true, stream);
        stream.launch<Projection<Wide<S>>>(group, group.count);
    }
    for (int64_t step = 0; step < 2 * n_iterations; ++step) {
        const bool of_u = step % 2 == 0;
        multiply<S>(group, of_u, stream);
        stream.launch<Direction<Wide<S>>>(group, group.count);
        for (int i = 0; i < group.count; ++i) {
            Iterated& weight = group.weights[i];
            (of_u ? weight.u : weight.v) = of_u ? weight.new_u : weight.new_v;
        }
    }
}

std::tuple<Tensors, Tensors, Tensor> power_iteration(const Tensors& weights, const Tensors& us, const Tensors& vs,
                                                     const std::vector<int64_t>& dims, int64_t n_iterations, double eps) {
    STD_TORCH_CHECK(!weights.empty(), "expected at least one weight");
    STD_TORCH_CHECK(n_iterations >= 0, "expected n_iterations >= 0, got ", n_iterations);
    expect_one_for_each(weights, us, vs, dims);
    const int64_t count = weights.size();
    const Stream stream(weights[0]);
    Tensors new_us = like(us), new_vs = like(vs), kept;  // the launches read addresses alone
    Tensor sigmas = torch::stable::new_empty(us[0], {&count, 1});
    const ScalarType wide = wide_type(sigmas, weights.size()), type = stored_type(weights, wide);
    const auto address = [&](const Tensor& tensor) {
        kept.push_back(tensor);
        return tensor.const_data_ptr();
    };
    const auto add = [&](int64_t i) {
        const Tensor weight = viewable(weights[i], dims[i], type);
        Iterated record{};
        record.view = view_of(weight, dims[i]);
        record.weight = address(weight);
        record.u = address(vector_of(us[i], wide, weight));
        record.v = address(vector_of(vs[i], wide, weight));
        record.new_u = new_us[i].mutable_data_ptr();
        record.new_v = new_vs[i].mutable_data_ptr();
        return record;
    };
    with_type(type, [&](auto s) {
        using T = Wide<decltype(s)>;
        for_each_group<Iterated>(count, add, [&](Group<Iterated>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<T>(sigmas) + begin;
            const Tensor sums = place_sums<T>(group, us[0]);
            iterate<decltype(s)>(group, n_iterations, stream);
        });
    });
    return {new_us, new_vs, sigmas};
}

// ---- the division, and its gradient

int64_t spans(const WeightView& view) { return ceil_div(view.elements(), span(view.elements())); }

Tensors spectral_normalise(const Tensors& weights, const Tensors&, const Tensors&, const Tensor& sigmas,
                           const std::vector<int64_t>&, double eps, std::optional<ScalarType> dtype) {
    if (weights.empty()) return {};
    const ScalarType wide = wide_type(sigmas, weights.size()), type = stored_type(weights, wide);
    const ScalarType out = dtype.value_or(weights[0].scalar_type());
    const Stream stream(weights[0]);
    const Tensor divisors = vector_of(sigmas, wide, weights[0]);
    Tensors sources, outputs;
    const auto add = [&](int64_t i) {
        outputs.push_back(empty_as(weights[i], out));
        sources.push_back(as_laid_out(converted(weights[i], type), outputs.back()));
        Divided record{};
        record.view = {1, 1, weights[i].numel(), weights[i].numel(), false};
        record.weight = sources.back().const_data_ptr();
        record.out = outputs.back().mutable_data_ptr();
        return record;
    };
    with_types(type, out, [&](auto s, auto o) {
        using S = decltype(s);
        for_each_group<Divided>(weights.size(), add, [&](Group<Divided>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<Wide<S>>(divisors) + begin;
            stream.launch<Division<S, decltype(o)>>(group, number_tiles(group, spans));
        });
    });
    return outputs;
}

Tensors spectral_normalise_backward(const Tensors& grads, const Tensors& weights, const Tensors& us, const Tensors& vs,
                                    const Tensor& sigmas, const std::vector<int64_t>& dims, double eps) {
    if (weights.empty()) return {};
    expect_one_for_each(weights, grads, us, vs, dims);
    const ScalarType wide = wide_type(sigmas, weights.size()), type = stored_type(weights, wide);
    const Stream stream(weights[0]);
    const Tensor divisors = vector_of(sigmas, wide, weights[0]);
    Tensors kept, outputs;
    const auto address = [&](const Tensor& tensor) {
        kept.push_back(tensor);
        return tensor.const_data_ptr();
    };
    const auto add = [&](int64_t i) {
        STD_TORCH_CHECK(grads[i].scalar_type() == grads[0].scalar_type(), "expected gradients of one dtype");
        const Tensor weight = viewable(weights[i], dims[i], type);
        outputs.push_back(empty_as(weight, type));
        Divided record{};
        record.view = view_of(weight, dims[i]);
        record.weight = address(weight);
        record.grad = address(as_laid_out(grads[i], weight));
        record.u = address(vector_of(us[i], wide, weight));
        record.v = address(vector_of(vs[i], wide, weight));
        record.out = outputs.back().mutable_data_ptr();
        return record;
    };
    with_types(type, grads[0].scalar_type(), [&](auto s, auto o) {
        using S = decltype(s);
        for_each_group<Divided>(weights.size(), add, [&](Group<Divided>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<Wide<S>>(divisors) + begin;
            const int64_t tiles = number_tiles(group, spans);
            const Tensor parts = torch::stable::new_empty(weights[0], {&tiles, 1}, ScalarType::Double);
            for (int i = 0; i < group.count; ++i) {
                group.weights[i].parts = mutable_data_of<double>(parts) + group.weights[i].first_tile;
            }
            stream.launch<InnerProduct<S, decltype(o)>>(group, tiles);
            const auto rectangles = [](const WeightView& view) { return along_y(view).count(); };
            stream.launch<WeightGradient<S, decltype(o)>>(group, number_tiles(group, rectangles));
        });
    });
    for (size_t i = 0; i < weights.size(); ++i) {
        outputs[i] = as_laid_out(converted(outputs[i], weights[i].scalar_type()), weights[i]);
    }
    return outputs;
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, GANFAST_KEY, library) {
    library.impl("power_iteration", TORCH_BOX(&ganfast::power_iteration));
    library.impl("spectral_normalise", TORCH_BOX(&ganfast::spectral_normalise));
    library.impl("spectral_normalise_backward", TORCH_BOX(&ganfast::spectral_normalise_backward));
}

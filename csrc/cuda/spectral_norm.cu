// Spectral norm on CUDA: weights gathered into groups, and the launches; what a block does stands in spectral_norm.cuh.
//
// For a group of up to 24 weights: four launches an iteration, one for the division, two for its gradient.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "launch.h"
#include "spectral_norm.cuh"

namespace ganfast {
namespace {

// The weights and their vectors where the kernels can read them.
struct Matrices {
    ScalarType wide, type;  // of u, v and sigma; of the weights
    int64_t count;
    std::vector<Place> places;
    Tensor u, v;
    Tensors weights;  // the launches read addresses alone
    std::vector<WeightView> views;

    Matrices(const Tensors& given, const Tensor& old_u, const Tensor& old_v, const std::vector<int64_t>& dims)
        : wide(wide_type(old_u, old_v)),
          type(given.empty() ? wide : beside(given[0].scalar_type(), wide)),
          count(given.size()),
          places(places_of(given, old_u, old_v, dims)),
          u(as_contiguous(old_u)),
          v(as_contiguous(old_v)) {
        expect_on_device_of(u, {v});
        expect_on_device_of(u, given);
        for (int64_t i = 0; i < count; ++i) {
            weights.push_back(viewable(given[i], dims[i], type));
            views.push_back(view_of(weights[i], dims[i]));
        }
    }
};

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

// New u, new v and the sigmas.
std::tuple<Tensor, Tensor, Tensor> iterate_all(const Matrices& matrices, int64_t n_iterations, double eps, const Stream& stream) {
    STD_TORCH_CHECK(n_iterations >= 0, "expected n_iterations >= 0, got ", n_iterations);
    const Tensor new_u = empty_as(matrices.u, matrices.wide), new_v = empty_as(matrices.v, matrices.wide);
    const Tensor sigmas = torch::stable::new_empty(matrices.u, {&matrices.count, 1});
    with_type(matrices.type, [&](auto s) {
        using T = Wide<decltype(s)>;
        const auto add = [&](int64_t i) {
            const Place place = matrices.places[i];
            Iterated record{};
            record.view = matrices.views[i];
            record.weight = matrices.weights[i].const_data_ptr();
            record.u = data_of<T>(matrices.u) + place.u;
            record.v = data_of<T>(matrices.v) + place.v;
            record.new_u = mutable_data_of<T>(new_u) + place.u;
            record.new_v = mutable_data_of<T>(new_v) + place.v;
            return record;
        };
        for_each_group<Iterated>(matrices.count, add, [&](Group<Iterated>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<T>(sigmas) + begin;
            const Tensor sums = place_sums<T>(group, matrices.u);
            iterate<decltype(s)>(group, n_iterations, stream);
        });
    });
    return {new_u, new_v, sigmas};
}

std::tuple<Tensor, Tensor, Tensor> power_iteration(const Tensors& weights, const Tensor& u, const Tensor& v,
                                                   const std::vector<int64_t>& dims, int64_t n_iterations, double eps) {
    return iterate_all(Matrices(weights, u, v, dims), n_iterations, eps, Stream(u));
}

// ---- the division, and its gradient

int64_t spans(const WeightView& view) { return ceil_div(view.elements(), span(view.elements())); }

// Every weight over its sigma, as the weights given are laid out.
Tensors divide(const Tensors& weights, const Matrices& matrices, const Tensor& sigmas, double eps, ScalarType type,
               const Stream& stream) {
    const ScalarType out = beside(type, matrices.wide);
    Tensors sources, outputs;
    const auto add = [&](int64_t i) {
        outputs.push_back(empty_as(weights[i], out));
        sources.push_back(as_laid_out(converted(weights[i], matrices.type), outputs.back()));
        Divided record{};
        record.view = {1, 1, weights[i].numel(), weights[i].numel(), false};
        record.weight = sources.back().const_data_ptr();
        record.out = outputs.back().mutable_data_ptr();
        return record;
    };
    with_types(matrices.type, out, [&](auto s, auto o) {
        using S = decltype(s);
        for_each_group<Divided>(matrices.count, add, [&](Group<Divided>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<Wide<S>>(sigmas) + begin;
            stream.launch<Division<S, decltype(o)>>(group, number_tiles(group, spans));
        });
    });
    for (Tensor& output : outputs) output = converted(output, type);
    return outputs;
}

std::tuple<Tensors, Tensor, Tensor, Tensor> spectral_norm(const Tensors& weights, const Tensor& u, const Tensor& v,
                                                          const std::vector<int64_t>& dims, int64_t n_iterations, double eps,
                                                          std::optional<ScalarType> dtype) {
    const Matrices matrices(weights, u, v, dims);
    const Stream stream(u);
    const auto [new_u, new_v, sigmas] = iterate_all(matrices, n_iterations, eps, stream);
    const ScalarType type = dtype.value_or(weights.empty() ? matrices.wide : weights[0].scalar_type());
    return {divide(weights, matrices, sigmas, eps, type, stream), new_u, new_v, sigmas};
}

Tensors spectral_norm_backward(const Tensors& grads, const Tensors& weights, const Tensor& u, const Tensor& v,
                               const Tensor& sigmas, const std::vector<int64_t>& dims, double eps) {
    if (weights.empty()) return {};
    const Matrices matrices(weights, u, v, dims);
    const ScalarType other = beside(type_of_grads(grads, weights), matrices.wide);
    STD_TORCH_CHECK(sigmas.scalar_type() == matrices.wide && sigmas.numel() == matrices.count, "expected ", matrices.count,
                    " sigmas of u's dtype");
    expect_on_device_of(u, {sigmas});
    expect_on_device_of(u, grads);
    const Stream stream(u);
    const Tensor divisors = as_contiguous(sigmas);
    Tensors laid_out, outputs;
    with_types(matrices.type, other, [&](auto s, auto o) {
        using S = decltype(s);
        using T = Wide<S>;
        const auto add = [&](int64_t i) {
            const Tensor& weight = matrices.weights[i];
            laid_out.push_back(as_laid_out(converted(grads[i], other), weight));
            outputs.push_back(empty_as(weight, matrices.type));
            Divided record{};
            record.view = matrices.views[i];
            record.weight = weight.const_data_ptr();
            record.grad = laid_out.back().const_data_ptr();
            record.u = data_of<T>(matrices.u) + matrices.places[i].u;
            record.v = data_of<T>(matrices.v) + matrices.places[i].v;
            record.out = outputs.back().mutable_data_ptr();
            return record;
        };
        for_each_group<Divided>(matrices.count, add, [&](Group<Divided>& group, int64_t begin) {
            group.eps = eps;
            group.sigmas = mutable_data_of<T>(divisors) + begin;
            const int64_t tiles = number_tiles(group, spans);
            const Tensor parts = torch::stable::new_empty(divisors, {&tiles, 1}, ScalarType::Double);
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
    library.impl("spectral_norm", TORCH_BOX(&ganfast::spectral_norm));
    library.impl("spectral_norm_backward", TORCH_BOX(&ganfast::spectral_norm_backward));
}

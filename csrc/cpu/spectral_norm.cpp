// Spectral norm on the CPU; the maths is on the page ganfast/ops/spectral_norm.py.
//
// Every pass over the weights is cut into tasks of fixed size, over all weights of the call, which the threads take in turn: one
// large weight and many small ones both keep every core busy. What a task computes does not depend on the number of threads, so
// results are the same bits with one core and with many. Sums run in the weights' type over short stretches, and those in double.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/tensors.h"
#include "../common/weight_view.h"
#include "parallel.h"
#include "pool.h"
#include "simd.h"

namespace ganfast {
namespace {

constexpr int64_t TASK = 1 << 14;     // elements a task reads: 64 KB of float32
constexpr int64_t WIDTH = 1 << 9;     // columns whose sums a task keeps in the first-level cache
constexpr int64_t STRETCH = 1 << 12;  // terms that are summed in the weights' type

// Units begin to end of a weight: elements, rows, or columns.
struct Task {
    size_t weight;
    int64_t begin, end;
    bool rows;
};

void cut(std::vector<Task>& tasks, size_t weight, int64_t extent, int64_t elements_each, int64_t least, bool rows) {
    const int64_t step = std::max(least, TASK / std::max<int64_t>(1, elements_each));
    for (int64_t begin = 0; begin < extent; begin += step) tasks.push_back({weight, begin, std::min(begin + step, extent), rows});
}

template <typename T>
constexpr ScalarType TYPE = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

// ---- the two products with one weight

// x[r] = sum over j of W[.][r][.] y[j], for rows begin to end
template <typename T>
void rows_product(const T* w, const WeightView& view, const T* y, T* x, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
        double sum = 0;
        for (int64_t b = 0; b < view.batch; ++b) {
            const T* row = w + (b * view.rows + r) * view.columns;
            for (int64_t j = 0; j < view.columns; j += STRETCH) {
                sum += dot<T>(row + j, y + b * view.columns + j, std::min(STRETCH, view.columns - j));
            }
        }
        x[r] = static_cast<T>(sum);
    }
}

// y[j] = sum over r of x[r] W[.][r][.], for columns begin to end of all batches
template <typename T>
void columns_product(const T* w, const WeightView& view, const T* x, T* y, int64_t begin, int64_t end) {
    T part[WIDTH];
    double whole[WIDTH];
    for (int64_t width; begin < end; begin += width) {
        const int64_t b = begin / view.columns, j = begin % view.columns;
        width = std::min({WIDTH, end - begin, view.columns - j});
        std::fill(whole, whole + width, 0.0);
        for (int64_t r = 0; r < view.rows; r += STRETCH) {
            std::fill(part, part + width, T(0));
            const T* from = w + (b * view.rows + r) * view.columns + j;
            add_rows(from, view.columns, x + r, std::min(STRETCH, view.rows - r), part, width);
            for (int64_t i = 0; i < width; ++i) whole[i] += part[i];
        }
        for (int64_t i = 0; i < width; ++i) y[begin + i] = static_cast<T>(whole[i]);
    }
}

// ---- the power iteration

template <typename T>
struct Matrix {
    Tensor weight;  // keeps what `data` points to
    const T* data;
    WeightView view;
    std::vector<T> x, y, old;  // y in the order of memory

    Matrix(const Tensor& given, const Tensor& u, const Tensor& v, int64_t dim, ScalarType wide)
        : weight(viewable(given, dim, wide)), data(data_of<T>(weight)), view(view_of(weight, dim)) {
        const Tensor &rows = view.transposed ? v : u, &columns = view.transposed ? u : v;
        STD_TORCH_CHECK(rows.numel() == view.rows && columns.numel() == view.y_length() && u.numel() == given.size(dim),
                        "expected u and v as long as the weight's rows (", given.size(dim), ") and columns, got ", u.numel(),
                        " and ", v.numel());
        STD_TORCH_CHECK(u.scalar_type() == TYPE<T> && v.scalar_type() == TYPE<T>,
                        "expected u and v all in float32, or all in float64");
        x.assign(data_of<T>(rows), data_of<T>(rows) + rows.numel());
        y.resize(columns.numel());
        for (int64_t j = 0; j < view.y_length(); ++j) y[j] = data_of<T>(columns)[view.logical(j)];
    }

    void write(const Tensor& u, const Tensor& v) const {
        const Tensor &rows = view.transposed ? v : u, &columns = view.transposed ? u : v;
        std::copy(x.begin(), x.end(), mutable_data_of<T>(rows));
        for (int64_t j = 0; j < view.y_length(); ++j) mutable_data_of<T>(columns)[view.logical(j)] = y[j];
    }

    std::vector<T>& vector(bool u) { return view.transposed == u ? y : x; }
};

// Every u <- W v, or every v <- W^T u.
template <typename T>
void multiply(std::vector<Matrix<T>>& matrices, bool u) {
    std::vector<Task> tasks;
    int64_t elements = 0;
    for (size_t i = 0; i < matrices.size(); ++i) {
        const WeightView& view = matrices[i].view;
        elements += view.elements();
        matrices[i].old = matrices[i].vector(u);
        if (view.transposed != u) {
            cut(tasks, i, view.rows, view.y_length(), 1, true);
        } else {
            cut(tasks, i, view.y_length(), view.rows, 32, false);
        }
    }
    for_each_task(tasks.size(), elements, [&](int64_t number) {
        const Task& task = tasks[number];
        Matrix<T>& m = matrices[task.weight];
        if (task.rows) {
            rows_product(m.data, m.view, m.y.data(), m.x.data(), task.begin, task.end);
        } else {
            columns_product(m.data, m.view, m.x.data(), m.y.data(), task.begin, task.end);
        }
    });
}

// vector / |vector|, or what was there before where |vector| is at most eps; NaN is not at most eps. Returns |vector|.
template <typename T>
double to_direction(std::vector<T>& vector, const std::vector<T>& before, double eps) {
    const T norm = static_cast<T>(std::sqrt(dot<double>(vector.data(), vector.data(), vector.size())));
    if (norm <= eps) {
        vector = before;
    } else {
        for (T& element : vector) element /= norm;
    }
    return norm;
}

template <typename T>
std::vector<double> iterate(std::vector<Matrix<T>>& matrices, int64_t n_iterations, double eps) {
    std::vector<double> sigmas(matrices.size());
    for (int64_t iteration = 0; iteration < n_iterations; ++iteration) {
        for (const bool u : {true, false}) {
            multiply(matrices, u);
            for (size_t i = 0; i < matrices.size(); ++i) sigmas[i] = to_direction(matrices[i].vector(u), matrices[i].old, eps);
        }
    }
    if (n_iterations == 0) {  // u^T W v
        multiply(matrices, true);
        for (size_t i = 0; i < matrices.size(); ++i) {
            std::vector<T>& product = matrices[i].vector(true);
            sigmas[i] = dot<double>(product.data(), matrices[i].old.data(), product.size());
            product = matrices[i].old;
        }
    }
    return sigmas;
}

template <typename T>
void power_iteration_in(ScalarType wide, const Tensors& weights, const Tensors& us, const Tensors& vs,
                        const std::vector<int64_t>& dims, int64_t n_iterations, double eps, const Tensors& new_us,
                        const Tensors& new_vs, const Tensor& sigmas) {
    std::vector<Matrix<T>> matrices;
    matrices.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
        matrices.emplace_back(weights[i], as_contiguous(us[i]), as_contiguous(vs[i]), dims[i], wide);
    }
    const std::vector<double> found = iterate(matrices, n_iterations, eps);
    for (size_t i = 0; i < weights.size(); ++i) {
        matrices[i].write(new_us[i], new_vs[i]);
        mutable_data_of<T>(sigmas)[i] = static_cast<T>(found[i]);
    }
}

std::tuple<Tensors, Tensors, Tensor> power_iteration(const Tensors& weights, const Tensors& us, const Tensors& vs,
                                                     const std::vector<int64_t>& dims, int64_t n_iterations, double eps) {
    STD_TORCH_CHECK(!weights.empty(), "expected at least one weight");
    STD_TORCH_CHECK(n_iterations >= 0, "expected n_iterations >= 0, got ", n_iterations);
    expect_one_for_each(weights, us, vs, dims);
    const ScalarType wide = us[0].scalar_type();
    const int64_t count = weights.size();
    Tensors new_us = like(us), new_vs = like(vs);
    Tensor sigmas = torch::stable::new_empty(us[0], {&count, 1});
    if (wide == ScalarType::Double) {
        power_iteration_in<double>(wide, weights, us, vs, dims, n_iterations, eps, new_us, new_vs, sigmas);
    } else {
        power_iteration_in<float>(wide, weights, us, vs, dims, n_iterations, eps, new_us, new_vs, sigmas);
    }
    return {new_us, new_vs, sigmas};
}

// ---- the division, and its gradient

std::vector<Task> elements_of(const Tensors& weights) {
    std::vector<Task> tasks;
    for (size_t i = 0; i < weights.size(); ++i) cut(tasks, i, weights[i].numel(), 1, 1, false);
    return tasks;
}

// Runs `body(pointers to O)` for the type O of the normalised weights or of the gradients by them.
template <typename T, typename F>
void with_type(ScalarType type, const F& body) {
    if (type == TYPE<T>) {
        body(T());
    } else if (std::is_same_v<T, float> && type == ScalarType::BFloat16) {
        body(torch::headeronly::BFloat16());
    } else {
        STD_TORCH_CHECK((std::is_same_v<T, float> && type == ScalarType::Half),
                        "expected normalised weights in float32, bfloat16, "
                        "float16, or in float64 where the weights are");
        body(torch::headeronly::Half());
    }
}

template <typename T>
T scale_of(const Tensor& sigmas, size_t i, double eps) {
    const T sigma = data_of<T>(sigmas)[i];
    return std::abs(sigma) <= eps ? T(1) : sigma;
}

template <typename T>
void normalise_into(const Tensors& weights, const Tensor& sigmas, double eps, const Tensors& outputs) {
    const std::vector<Task> tasks = elements_of(weights);
    with_type<T>(outputs[0].scalar_type(), [&](auto type) {
        for_each_task(tasks.size(), tasks.size() * TASK, [&](int64_t number) {
            const auto [i, begin, end, _] = tasks[number];
            scale(data_of<T>(weights[i]) + begin, 1 / scale_of<T>(sigmas, i, eps),
                  mutable_data_of<decltype(type)>(outputs[i]) + begin, end - begin);
        });
    });
}

Tensors spectral_normalise(const Tensors& weights, const Tensors&, const Tensors&, const Tensor& sigmas,
                           const std::vector<int64_t>&, double eps, std::optional<ScalarType> dtype) {
    if (weights.empty()) return {};
    const ScalarType wide = wide_type(sigmas, weights.size()), out = dtype.value_or(weights[0].scalar_type());
    Tensors sources, outputs;
    for (const Tensor& weight : weights) {
        outputs.push_back(pooled_as(weight, out));
        sources.push_back(as_laid_out(weight.scalar_type() == wide ? weight : torch::stable::to(weight, wide), outputs.back()));
    }
    const auto normalise = wide == ScalarType::Double ? normalise_into<double> : normalise_into<float>;
    normalise(sources, as_contiguous(sigmas), eps, outputs);
    return outputs;
}

// out = g * factor - (x y^T) * c, for elements begin to end of a weight in the order of memory
template <typename T, typename G>
void subtract_outer(const G* g, const WeightView& view, const T* x, const T* y, T factor, T c, T* out, int64_t begin,
                    int64_t end) {
    while (begin < end) {
        const int64_t row = begin / view.columns, j = begin % view.columns, r = row % view.rows, b = row / view.rows;
        const int64_t width = std::min(end - begin, view.columns - j);
        scale_and_subtract(g + begin, factor, y + b * view.columns + j, c * x[r], out + begin, width);
        begin += width;
    }
}

template <typename T>
void gradients_into(const Tensors& grads, const std::vector<Matrix<T>>& matrices, const Tensor& sigmas, double eps,
                    const Tensors& outputs) {
    Tensors weights;
    for (const Matrix<T>& matrix : matrices) weights.push_back(matrix.weight);
    const std::vector<Task> tasks = elements_of(weights);
    with_type<T>(grads[0].scalar_type(), [&](auto type) {
        using G = decltype(type);
        std::vector<double> parts(tasks.size()), inner(weights.size());
        for_each_task(tasks.size(), tasks.size() * TASK, [&](int64_t number) {
            const auto [i, begin, end, _] = tasks[number];
            for (int64_t at = begin; at < end; at += STRETCH) {
                parts[number] += dot<T>(data_of<G>(grads[i]) + at, matrices[i].data + at, std::min(STRETCH, end - at));
            }
        });
        for (size_t number = 0; number < tasks.size(); ++number) inner[tasks[number].weight] += parts[number];
        for_each_task(tasks.size(), tasks.size() * TASK, [&](int64_t number) {
            const auto [i, begin, end, _] = tasks[number];
            const Matrix<T>& m = matrices[i];
            const double sigma = data_of<T>(sigmas)[i];
            const T c = std::abs(sigma) <= eps ? T(0) : static_cast<T>(inner[i] / (sigma * sigma));
            subtract_outer(data_of<G>(grads[i]), m.view, m.x.data(), m.y.data(), 1 / scale_of<T>(sigmas, i, eps), c,
                           mutable_data_of<T>(outputs[i]), begin, end);
        });
    });
}

template <typename T>
Tensors gradients_in(ScalarType wide, const Tensors& grads, const Tensors& weights, const Tensors& us, const Tensors& vs,
                     const Tensor& sigmas, const std::vector<int64_t>& dims, double eps) {
    std::vector<Matrix<T>> matrices;
    Tensors laid_out, outputs;
    matrices.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
        matrices.emplace_back(weights[i], as_contiguous(us[i]), as_contiguous(vs[i]), dims[i], wide);
        STD_TORCH_CHECK(grads[i].scalar_type() == grads[0].scalar_type(), "expected gradients of one dtype");
        laid_out.push_back(as_laid_out(grads[i], matrices[i].weight));
        outputs.push_back(pooled_as(matrices[i].weight, wide));
    }
    gradients_into(laid_out, matrices, sigmas, eps, outputs);
    for (size_t i = 0; i < weights.size(); ++i) {
        if (weights[i].scalar_type() != wide) outputs[i] = torch::stable::to(outputs[i], weights[i].scalar_type());
        outputs[i] = as_laid_out(outputs[i], weights[i]);
    }
    return outputs;
}

Tensors spectral_normalise_backward(const Tensors& grads, const Tensors& weights, const Tensors& us, const Tensors& vs,
                                    const Tensor& sigmas, const std::vector<int64_t>& dims, double eps) {
    if (weights.empty()) return {};
    expect_one_for_each(weights, grads, us, vs, dims);
    const ScalarType wide = wide_type(sigmas, weights.size());
    const auto gradients = wide == ScalarType::Double ? gradients_in<double> : gradients_in<float>;
    return gradients(wide, grads, weights, us, vs, as_contiguous(sigmas), dims, eps);
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("power_iteration", TORCH_BOX(&ganfast::power_iteration));
    library.impl("spectral_normalise", TORCH_BOX(&ganfast::spectral_normalise));
    library.impl("spectral_normalise_backward", TORCH_BOX(&ganfast::spectral_normalise_backward));
}

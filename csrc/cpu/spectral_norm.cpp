// Spectral norm on the CPU; the maths is on the page ganfast/ops/spectral_norm.py.
//
// Every step is cut into tasks of fixed size, over all weights of the call, which the threads take in turn: one large weight and
// many small ones both keep every core busy. What a task computes does not depend on the number of threads, so results are the
// same bits with one core and with many. Sums run in the weights' type over short stretches, and those in double.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/tensors.h"
#include "../common/weight_view.h"
#include "parallel.h"
#include "pool.h"
#include "simd.h"

namespace ganfast {
namespace {

constexpr int64_t WIDTH = 1 << 9;      // columns whose sums a task keeps in the first-level cache
constexpr int64_t STRETCH = 1 << 12;   // terms that are summed in the weights' type
constexpr int64_t LONG_ROW = 1 << 14;  // elements of a row that a second reading no longer finds in a near cache

// body(T()) for the type T of u, v, sigma and the sums
template <typename F>
auto with_wide(const Tensor& u, const Tensor& v, const F& body) {
    return wide_type(u, v) == ScalarType::Double ? body(double()) : body(float());
}

// ---- the products with one weight

// the row's product with y, one batch after the other
template <typename T>
T row_product(const T* w, const WeightView& view, int64_t r, const T* y) {
    double sum = 0;
    for (int64_t b = 0; b < view.batch; ++b) {
        const T* row = w + (b * view.rows + r) * view.columns;
        for (int64_t j = 0; j < view.columns; j += STRETCH) {
            sum += dot<T>(row + j, y + b * view.columns + j, std::min(STRETCH, view.columns - j));
        }
    }
    return static_cast<T>(sum);
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

// ---- the power iteration, and the division

// A weight and its vectors, as they lie in memory.
template <typename T>
struct Matrix {
    Tensor weight;  // keeps what `data` points to
    const T* data;
    WeightView view;
    std::vector<T> x, y;

    Matrix(const Tensor& given, int64_t dim, const T* u, const T* v)
        : weight(viewable(given, dim, TYPE<T>)), data(data_of<T>(weight)), view(view_of(weight, dim)), y(view.y_length()) {
        const T *rows = view.transposed ? v : u, *columns = view.transposed ? u : v;
        x.assign(rows, rows + view.rows);
        for (int64_t j = 0; j < view.y_length(); ++j) y[j] = columns[view.logical(j)];
    }

    void write(T* u, T* v) const {
        T *rows = view.transposed ? v : u, *columns = view.transposed ? u : v;
        std::copy(x.begin(), x.end(), rows);
        for (int64_t j = 0; j < view.y_length(); ++j) columns[view.logical(j)] = y[j];
    }
};

// The steps of one weight's iterations; its vectors and sigma stand here when they are done.
template <typename T>
class Iteration {
public:
    Matrix<T> matrix;
    double sigma = 0;

    Iteration(Matrix<T> given, double eps)
        : matrix(std::move(given)),
          eps_(eps),
          at_once_(!matrix.view.transposed && matrix.view.batch == 1 && matrix.view.columns <= LONG_ROW),
          rows_(matrix.view.rows, matrix.view.y_length(), at_once_ ? 32 : 1),
          columns_(matrix.view.y_length(), matrix.view.rows, 32),
          x_(matrix.x.size()),
          y_(matrix.y.size()) {}

    Chain steps(int64_t n_iterations) {
        if (n_iterations == 0) return {along_rows([this] { sigma = dot<double>(x_.data(), matrix.x.data(), x_.size()); })};
        Chain chain;
        if (at_once_) parts_.resize(rows_.tasks() * y_.size());
        for (int64_t i = 0; i < n_iterations; ++i) {
            if (at_once_) {
                chain.push_back({rows_.tasks(), [this](int64_t task) { sweep(task); }, [this] { end_sweep(); }});
            } else {
                const Step rows = along_rows([this] { sigma = to_direction(x_, matrix.x); });
                const Step columns = along_columns([this] { sigma = to_direction(y_, matrix.y); });
                chain.push_back(matrix.view.transposed ? columns : rows);
                chain.push_back(matrix.view.transposed ? rows : columns);
            }
        }
        return chain;
    }

    // out = W / sigma, in the order of W's memory
    template <typename O>
    Step division(O* out) {
        const Cut cut(matrix.view.elements(), 1, 1);
        return {cut.tasks(), [this, cut, out](int64_t task) {
                    const T divisor = std::abs(sigma) <= eps_ ? T(1) : static_cast<T>(sigma);
                    scale(matrix.data + cut.begin(task), 1 / divisor, out + cut.begin(task), cut.end(task) - cut.begin(task));
                }};
    }

private:
    double eps_;
    bool at_once_;
    Cut rows_, columns_;
    std::vector<T> x_, y_, parts_;  // the sums

    Step along_rows(std::function<void()> finish) {
        return {rows_.tasks(), [this](int64_t task) { multiply_rows(rows_.begin(task), rows_.end(task)); }, std::move(finish)};
    }

    Step along_columns(std::function<void()> finish) {
        return {columns_.tasks(), [this](int64_t task) { multiply_columns(columns_.begin(task), columns_.end(task)); },
                std::move(finish)};
    }

    void multiply_rows(int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) x_[r] = row_product(matrix.data, matrix.view, r, matrix.y.data());
    }

    void multiply_columns(int64_t begin, int64_t end) {
        columns_product(matrix.data, matrix.view, matrix.x.data(), y_.data(), begin, end);
    }

    // sums / |sums|, or what was there before where |sums| is at most eps; NaN is not at most eps. Returns |sums|.
    double to_direction(const std::vector<T>& sums, std::vector<T>& direction) const {
        const T length = static_cast<T>(std::sqrt(dot<double>(sums.data(), sums.data(), sums.size())));
        if (!(length <= eps_)) {
            for (size_t i = 0; i < sums.size(); ++i) direction[i] = sums[i] / length;
        }
        return length;
    }

    // Both products in one reading of W: four rows' shares of W y, and while they are near, theirs of W^T (W y). What |W y|
    // would divide by is a factor of the whole second product, and only its direction is wanted.
    void sweep(int64_t task) {
        const int64_t columns = matrix.view.columns;
        T* part = parts_.data() + task * columns;
        std::fill(part, part + columns, T(0));
        for (int64_t r = rows_.begin(task); r < rows_.end(task); r += 4) {
            const int64_t rows = std::min<int64_t>(4, rows_.end(task) - r);
            multiply_rows(r, r + rows);
            add_rows(matrix.data + r * columns, columns, x_.data() + r, rows, part, columns);
        }
    }

    void end_sweep() {
        const double before = to_direction(x_, matrix.x);
        if (before > std::max(eps_, 1e-15)) {
            std::vector<double> sums(y_.size());
            for (size_t at = 0; at < parts_.size(); at += y_.size()) add(parts_.data() + at, sums.data(), y_.size());
            for (size_t j = 0; j < y_.size(); ++j) y_[j] = static_cast<T>(sums[j] / before);
            sigma = to_direction(y_, matrix.y);
            if (std::isfinite(sigma)) return;
        }
        // W y has no direction, or its square no place in T: the product with the direction instead
        multiply_columns(0, columns_.extent);
        sigma = to_direction(y_, matrix.y);
    }
};

// New u, new v and the sigmas; then(i, iteration) gives the steps that follow those of weight i.
template <typename T, typename F>
std::tuple<Tensor, Tensor, Tensor> iterate(const Tensors& weights, const Tensor& u, const Tensor& v,
                                           const std::vector<int64_t>& dims, int64_t n_iterations, double eps, const F& then) {
    STD_TORCH_CHECK(n_iterations >= 0, "expected n_iterations >= 0, got ", n_iterations);
    const std::vector<Place> places = places_of(weights, u, v, dims);
    const int64_t count = static_cast<int64_t>(weights.size());
    const Tensor new_u = empty_as(u, TYPE<T>), new_v = empty_as(v, TYPE<T>), sigmas = torch::stable::new_empty(u, {&count, 1});
    const Tensor old_u = as_contiguous(u), old_v = as_contiguous(v);
    std::vector<Iteration<T>> iterations;
    iterations.reserve(weights.size());  // the steps hold addresses
    std::vector<Chain> chains;
    int64_t elements = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        iterations.emplace_back(Matrix<T>(weights[i], dims[i], data_of<T>(old_u) + places[i].u, data_of<T>(old_v) + places[i].v),
                                eps);
        chains.push_back(iterations.back().steps(n_iterations));
        then(i, iterations.back(), chains.back());
        elements += iterations.back().matrix.view.elements();
    }
    run_chains(chains, elements);
    for (size_t i = 0; i < weights.size(); ++i) {
        iterations[i].matrix.write(mutable_data_of<T>(new_u) + places[i].u, mutable_data_of<T>(new_v) + places[i].v);
        mutable_data_of<T>(sigmas)[i] = static_cast<T>(iterations[i].sigma);
    }
    return {new_u, new_v, sigmas};
}

std::tuple<Tensor, Tensor, Tensor> power_iteration(const Tensors& weights, const Tensor& u, const Tensor& v,
                                                   const std::vector<int64_t>& dims, int64_t n_iterations, double eps) {
    return with_wide(u, v, [&](auto wide) {
        return iterate<decltype(wide)>(weights, u, v, dims, n_iterations, eps, [](size_t, auto&, Chain&) {});
    });
}

std::tuple<Tensors, Tensor, Tensor, Tensor> spectral_norm(const Tensors& weights, const Tensor& u, const Tensor& v,
                                                          const std::vector<int64_t>& dims, int64_t n_iterations, double eps,
                                                          std::optional<ScalarType> dtype) {
    return with_wide(u, v, [&](auto wide) {
        using T = decltype(wide);
        Tensors normalised;
        const ScalarType out = dtype.value_or(weights.empty() ? TYPE<T> : weights[0].scalar_type());
        const auto divide = [&](size_t i, Iteration<T>& iteration, Chain& chain) {
            normalised.push_back(pooled_as(iteration.matrix.weight, beside(out, TYPE<T>)));
            with_type_beside<T>(normalised[i].scalar_type(), [&](auto type) {
                chain.push_back(iteration.division(mutable_data_of<decltype(type)>(normalised[i])));
            });
        };
        const auto [new_u, new_v, sigmas] = iterate<T>(weights, u, v, dims, n_iterations, eps, divide);
        for (size_t i = 0; i < weights.size(); ++i) normalised[i] = as_laid_out(converted(normalised[i], out), weights[i]);
        return std::tuple(normalised, new_u, new_v, sigmas);
    });
}

// ---- the gradient

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

// The steps of one weight's gradient.
template <typename T, typename G>
class Gradient {
public:
    Gradient(Matrix<T> matrix, const G* grad, T sigma, double eps, T* out)
        : matrix_(std::move(matrix)),
          grad_(grad),
          sigma_(sigma),
          scaled_(!(std::abs(sigma) <= eps)),
          out_(out),
          cut_(matrix_.view.elements(), 1, 1),
          parts_(cut_.tasks()) {}

    Chain steps() {
        return {{cut_.tasks(), [this](int64_t task) { multiply(task); }, [this] { end_product(); }},
                {cut_.tasks(), [this](int64_t task) { subtract(task); }}};
    }

private:
    Matrix<T> matrix_;
    const G* grad_;
    double sigma_;
    bool scaled_;
    T* out_;
    Cut cut_;
    std::vector<double> parts_;  // of <G, W>
    T c_ = 0;                    // <G, W> / sigma^2

    void multiply(int64_t task) {
        double sum = 0;
        for (int64_t at = cut_.begin(task); at < cut_.end(task); at += STRETCH) {
            sum += dot<T>(grad_ + at, matrix_.data + at, std::min(STRETCH, cut_.end(task) - at));
        }
        parts_[task] = sum;
    }

    void end_product() {
        const double product = std::accumulate(parts_.begin(), parts_.end(), 0.0);
        if (scaled_) c_ = static_cast<T>(product / (sigma_ * sigma_));
    }

    void subtract(int64_t task) {
        const T factor = scaled_ ? 1 / static_cast<T>(sigma_) : T(1);
        subtract_outer(grad_, matrix_.view, matrix_.x.data(), matrix_.y.data(), factor, c_, out_, cut_.begin(task),
                       cut_.end(task));
    }
};

Tensors spectral_norm_backward(const Tensors& grads, const Tensors& weights, const Tensor& u, const Tensor& v,
                               const Tensor& sigmas, const std::vector<int64_t>& dims, double eps) {
    if (weights.empty()) return {};
    return with_wide(u, v, [&](auto wide) {
        using T = decltype(wide);
        const std::vector<Place> places = places_of(weights, u, v, dims);
        const ScalarType type = beside(type_of_grads(grads, weights), TYPE<T>);
        STD_TORCH_CHECK(sigmas.scalar_type() == TYPE<T> && sigmas.numel() == static_cast<int64_t>(weights.size()), "expected ",
                        weights.size(), " sigmas of u's dtype");
        const Tensor old_u = as_contiguous(u), old_v = as_contiguous(v), divisors = as_contiguous(sigmas);
        Tensors laid_out, outputs;
        with_type_beside<T>(type, [&](auto other) {
            using G = decltype(other);
            std::vector<Gradient<T, G>> gradients;
            gradients.reserve(grads.size());  // the steps hold addresses
            std::vector<Chain> chains;
            int64_t elements = 0;
            for (size_t i = 0; i < weights.size(); ++i) {
                Matrix<T> matrix(weights[i], dims[i], data_of<T>(old_u) + places[i].u, data_of<T>(old_v) + places[i].v);
                laid_out.push_back(as_laid_out(converted(grads[i], type), matrix.weight));
                outputs.push_back(pooled_as(matrix.weight, TYPE<T>));
                elements += matrix.view.elements();
                gradients.emplace_back(std::move(matrix), data_of<G>(laid_out[i]), data_of<T>(divisors)[i], eps,
                                       mutable_data_of<T>(outputs[i]));
                chains.push_back(gradients.back().steps());
            }
            run_chains(chains, elements);
        });
        for (size_t i = 0; i < weights.size(); ++i) {
            outputs[i] = as_laid_out(converted(outputs[i], weights[i].scalar_type()), weights[i]);
        }
        return outputs;
    });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("power_iteration", TORCH_BOX(&ganfast::power_iteration));
    library.impl("spectral_norm", TORCH_BOX(&ganfast::spectral_norm));
    library.impl("spectral_norm_backward", TORCH_BOX(&ganfast::spectral_norm_backward));
}

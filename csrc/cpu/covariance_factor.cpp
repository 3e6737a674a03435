// A covariance's factor on the CPU: Cholesky with complete pivoting; the maths is on the page ganfast/ops/covariance_factor.py.
//
// The next pivot is the largest entry of the diagonal that is left, but for features of which only rounding is left: those
// become no pivots. Columns of the factor are made SPAN at a time, each from the
// matrix as it was before the span and from the span's columns before it; then the rest of the matrix is brought up to date at
// once, which is a product of matrices and nearly all of the work: n^3 / 3 flops for full rank.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "../common/tensors.h"
#include "products.h"

namespace ganfast {
namespace {

constexpr int64_t SPAN = 48;

class Factorisation {
public:
    // Of `a`, whose upper triangle is used up. Writes the factor's columns to the columns of `factor`, which holds zeros.
    Factorisation(const Matrix& a, const Matrix& factor)
        : a_(a), factor_(factor), order_(a.rows), left_(a.rows), deviation_(a.rows), span_(doubles(SPAN * a.rows)) {
        std::iota(order_.begin(), order_.end(), 0);
        for (int64_t i = 0; i < a.rows; ++i) left_[i] = *a.part(i, i, 1, 1).data;
        const double most = *std::max_element(left_.begin(), left_.end());
        for (int64_t i = 0; i < a.rows; ++i) {
            deviation_[i] = std::sqrt(left_[i] > 0 ? left_[i] : std::max(0.0, most));
            drop_rounding(i);
        }
        while (rank_ < a.rows && add_span()) {
        }
    }

    int64_t rank() const { return rank_; }

    // The largest magnitude of what is not in the factor, as a share of the two features' standard deviations.
    double rest() const {
        double most = 0;
        std::vector<double> share(a_.rows);
        for (int64_t i = rank_; i < a_.rows; ++i) share[i] = unit_of(i);
        for (int64_t r = rank_; r < a_.rows; ++r) {
            for (int64_t c = r; c < a_.columns; ++c) most = std::max(most, std::abs(a_.row(r)[c]) * share[r] * share[c]);
        }
        return most;
    }

private:
    // False where nothing but rounding is left.
    bool add_span() {
        const int64_t begin = rank_, end = std::min(begin + SPAN, a_.rows);
        bool more = true;
        while (rank_ < end && (more = find_pivot(begin))) {
            if (add_column(begin)) ++rank_;
        }
        write_span(begin);
        subtract_span(begin);
        return more;
    }

    double unit_of(int64_t i) const { return deviation_[i] > 0 ? 1 / deviation_[i] : 1; }

    void drop_rounding(int64_t i) {
        if (!(left_[i] > std::numeric_limits<double>::epsilon() * a_.rows * deviation_[i] * deviation_[i])) left_[i] = 0;
    }

    bool find_pivot(int64_t begin) {
        const int64_t pivot = std::max_element(left_.begin() + rank_, left_.end()) - left_.begin();
        if (!(left_[pivot] > 0)) return false;
        exchange(begin, rank_, pivot);
        return true;
    }

    // False where the pivot turns out to be rounding, and is dropped.
    bool add_column(int64_t begin) {
        const int64_t size = a_.rows, j = rank_;
        double* column = span_row(j - begin);
        double weights[SPAN];
        for (int64_t k = begin; k < j; ++k) weights[k - begin] = -span_row(k - begin)[j];
        std::copy(a_.row(j) + j, a_.row(j) + size, column + j);
        add_rows(span_.get() + j, size, weights, j - begin, column + j, size - j);
        // in a positive matrix no entry exceeds the root of the product of its two diagonal ones: where one does, by more than
        // the pivot's own share of its feature's variance, the pivot is rounding, or part of a negative eigenvalue
        constexpr double TOLERANCE = 1 + 1e-6;
        const double root = std::sqrt(left_[j]), limit = TOLERANCE * root, share = root / deviation_[j];
        for (int64_t i = j + 1; i < size; ++i) {
            const double entry = std::abs(column[i]);
            if (!(entry <= limit * share * deviation_[i] || entry <= limit * std::sqrt(left_[i]))) {
                left_[j] = 0;
                return false;
            }
        }
        column[j] = root;
        for (int64_t i = j + 1; i < size; ++i) {
            column[i] /= root;
            left_[i] -= column[i] * column[i];
            drop_rounding(i);
        }
        return true;
    }

    // Puts the pivot's row and column in the place of number j.
    void exchange(int64_t begin, int64_t j, int64_t pivot) {
        if (pivot == j) return;
        for (int64_t i = j + 1; i < pivot; ++i) std::swap(a_.row(j)[i], a_.row(i)[pivot]);
        std::swap_ranges(a_.row(j) + pivot + 1, a_.row(j) + a_.rows, a_.row(pivot) + pivot + 1);
        std::swap(a_.row(j)[j], a_.row(pivot)[pivot]);
        std::swap(left_[j], left_[pivot]);
        std::swap(deviation_[j], deviation_[pivot]);
        std::swap(order_[j], order_[pivot]);
        for (int64_t k = begin; k < j; ++k) std::swap(span_row(k - begin)[j], span_row(k - begin)[pivot]);
    }

    void write_span(int64_t begin) const {
        constexpr int64_t SIDE = 64;
        in_parallel((a_.rows - begin + SIDE - 1) / SIDE, [&](int64_t block) {
            const int64_t first = begin + block * SIDE, last = std::min(a_.rows, first + SIDE);
            for (int64_t i = first; i < last; ++i) {
                double* row = factor_.row(order_[i]);
                for (int64_t k = begin; k < std::min(rank_, i + 1); ++k) row[k] = span_row(k - begin)[i];
            }
        });
    }

    void subtract_span(int64_t begin) {
        const int64_t size = a_.rows - rank_, depth = rank_ - begin, columns = tile64_here().columns;
        if (size == 0 || depth == 0) return;
        const int64_t strips = (size + columns - 1) / columns;
        const Doubles64 panels = doubles(strips * columns * depth), minus = doubles(strips * columns * depth);
        in_parallel(strips, [&](int64_t strip) {
            const int64_t c = strip * columns, width = std::min(columns, size - c);
            pack_columns(span_.get() + rank_ + c, a_.rows, depth, width, 1, panels.get() + c * depth);
            pack_columns(span_.get() + rank_ + c, a_.rows, depth, width, -1, minus.get() + c * depth);
        });
        add_gram(panels.get(), minus.get(), depth, a_.from(rank_, rank_));
    }

    double* span_row(int64_t k) const { return span_.get() + k * a_.rows; }

    const Matrix a_, factor_;
    std::vector<int64_t> order_;     // where each row and column was before all exchanges
    std::vector<double> left_;       // the diagonal of what is left, zero where a feature becomes no pivot
    std::vector<double> deviation_;  // the root of each feature's variance, of the largest one for those that are not positive
    const Doubles64 span_;           // columns of the factor that the matrix does not know of yet, as rows
    int64_t rank_ = 0;
};

// The upper triangle of x's symmetric part to `a`. Returns the largest difference of an entry and its mirror image, as a share of
// the two features' standard deviations; NaN where an entry is NaN or infinite.
double symmetrise(const double* x, const Matrix& a) {
    constexpr int64_t SIDE = 8;  // lines of columns that are read at a time
    const int64_t size = a.rows, blocks = (size + SIDE - 1) / SIDE;
    std::vector<double> most(blocks), share(size);
    double largest = 0;
    for (int64_t i = 0; i < size; ++i) largest = std::max(largest, x[i * size + i]);
    for (int64_t i = 0; i < size; ++i) {
        const double own = x[i * size + i] > 0 ? x[i * size + i] : largest;
        share[i] = own > 0 ? 1 / std::sqrt(own) : 1;
    }
    in_parallel(blocks, [&](int64_t block) {
        double apart = 0, spoiled = 0;
        const int64_t first = block * SIDE, last = std::min(size, first + SIDE);
        for (int64_t begin = first; begin < size; begin += SIDE) {
            for (int64_t r = first; r < last; ++r) {
                for (int64_t c = std::max(r, begin); c < std::min(size, begin + SIDE); ++c) {
                    const double one = x[r * size + c], mirrored = x[c * size + r];
                    a.row(r)[c] = one / 2 + mirrored / 2;
                    apart = std::max(apart, std::abs(one - mirrored) * share[r] * share[c]);
                    spoiled += (one - one) + (mirrored - mirrored);  // zero, or NaN
                }
            }
        }
        most[block] = apart + spoiled;
    });
    double all = 0;
    for (const double one : most) all = one > all || std::isnan(one) ? one : all;
    return all;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> covariance_factor(Tensor covariance) {
    const int64_t size = covariance.dim() == 2 ? covariance.size(0) : -1;
    STD_TORCH_CHECK(size >= 0 && covariance.size(1) == size && covariance.scalar_type() == ScalarType::Double,
                    "expected a covariance (n, n) in float64");
    const auto scalar = [&](ScalarType type) { return empty_strided({}, {}, type, covariance); };
    const std::array<int64_t, 2> sizes{size, size}, strides{std::max<int64_t>(1, size), 1};
    const Tensor factor = empty_strided(sizes, strides, ScalarType::Double, covariance), values = as_contiguous(covariance);
    const Tensor rank = scalar(ScalarType::Long), rest = scalar(ScalarType::Double), asymmetry = scalar(ScalarType::Double);
    const Matrix f{mutable_data_of<double>(factor), size, size, size};
    const int64_t stride = size + 8;
    const Doubles64 memory = doubles(size * stride);
    const Matrix a{memory.get(), size, size, stride};
    const double apart = symmetrise(data_of<double>(values), a);
    double& told = *mutable_data_of<double>(asymmetry) = apart;
    if (size == 0 || std::isnan(apart)) {
        told = std::numeric_limits<double>::quiet_NaN();
        std::fill_n(f.data, size * size, told);
        *mutable_data_of<int64_t>(rank) = size;
        *mutable_data_of<double>(rest) = told;
    } else {
        std::fill_n(f.data, size * size, 0.0);
        const Factorisation done(a, f);
        *mutable_data_of<int64_t>(rank) = done.rank();
        *mutable_data_of<double>(rest) = done.rest();
    }
    return {factor, rank, rest, asymmetry};
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("covariance_factor", TORCH_BOX(&ganfast::covariance_factor)); }

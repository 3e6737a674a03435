// The sum of a matrix's singular values on the CPU; the maths is on the page ganfast/ops/nuclear_norm.py.
//
// Reflections from both sides bring the matrix to a band, and the band to two diagonals, both of which move each singular value
// by a few roundings of the largest. A band first: the direct way to two diagonals spends half of its work on products of a
// matrix and a vector, which wait for memory. Of the two diagonals only the sum is asked for, which is a smooth function of B^T
// B, and so an integral of traces of inverses: no iteration, no convergence. Flops: 8/3 n^3 for (n, n), nearly all in products of
// matrices.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "../common/tensors.h"
#include "band.h"
#include "bidiagonal.h"

namespace ganfast {
namespace {

int64_t in_bands(int64_t size) { return (size + BAND - 1) / BAND * BAND; }

double nuclear_norm_of(const double* x, int64_t rows, int64_t columns) {
    const double most = largest(x, rows * columns);
    if (!(most <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::quiet_NaN();
    if (most == 0) return 0;
    // a power of two near the norm, so that no square leaves the range and nothing is rounded
    int exponent;
    std::frexp(most, &exponent);
    const double up = std::ldexp(1.0, -(exponent / 2)), further = std::ldexp(1.0, -(exponent - exponent / 2));
    const int64_t width = in_bands(std::min(rows, columns)), height = std::max(in_bands(std::max(rows, columns)), width);
    const int64_t stride = width + 8;  // not a power of two, or a column's elements would all go to a few sets of each cache
    const Doubles64 memory = doubles(height * stride);
    const Matrix a{memory.get(), height, width, stride};
    std::fill_n(a.data, height * stride, 0.0);
    const bool turned = rows < columns;
    constexpr int64_t SIDE = 64;
    in_parallel((rows + SIDE - 1) / SIDE, [&](int64_t block) {
        const int64_t first = block * SIDE, last = std::min(rows, first + SIDE);
        if (turned) {
            for (int64_t c = 0; c < columns; ++c) {
                for (int64_t r = first; r < last; ++r) a.row(c)[r] = x[r * columns + c] * up * further;
            }
        } else {
            for (int64_t r = first; r < last; ++r) {
                for (int64_t c = 0; c < columns; ++c) a.row(r)[c] = x[r * columns + c] * up * further;
            }
        }
    });
    Band<BAND> band(width);
    reduce_to_band(a, [&](int64_t r, int64_t c, const double* factored, bool transposed) {
        for (int64_t i = 0; i < BAND; ++i) {
            for (int64_t k = i; k < BAND; ++k) {
                *(transposed ? band.at(r + k, c + i) : band.at(r + i, c + k)) = factored[i * BAND + k];
            }
        }
    });
    reduce_to_two_diagonals(band);
    std::vector<double> diagonal(width), above(width - 1);
    for (int64_t k = 0; k < width; ++k) {
        diagonal[k] = *band.at(k, k);
        if (k + 1 < width) above[k] = *band.at(k, k + 1);
    }
    return sum_of_singular_values(diagonal, above) / up / further;
}

Tensor nuclear_norm(Tensor x) {
    STD_TORCH_CHECK(x.dim() == 2 && x.scalar_type() == ScalarType::Double, "expected x (m, n) in float64");
    const Tensor values = as_contiguous(x), result = empty_strided({}, {}, ScalarType::Double, x);
    *mutable_data_of<double>(result) = nuclear_norm_of(data_of<double>(values), x.size(0), x.size(1));
    return result;
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("nuclear_norm", TORCH_BOX(&ganfast::nuclear_norm)); }

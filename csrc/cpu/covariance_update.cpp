// Sums and products of rows on the CPU; the maths is on the page ganfast/ops/covariance_update.py.
//
// As many rows as keep the sums in registers for long enough are taken at a time: widened, shifted and laid out in panels once,
// of which every tile of the upper triangle then takes two. So the triangle is read and written once for DEEP rows.
#include <torch/csrc/stable/library.h>

#include "../common/tensors.h"
#include "products.h"

namespace ganfast {
namespace {

constexpr int64_t DEEP = 512;

// panel[k][c] = rows[k][c] - shift[c] for a tile's columns, zero beyond `width`; sums[c] += the sum over k
template <int64_t COLUMNS, typename S>
GANFAST_SIMD void pack_shifted(const S* rows, int64_t stride, int64_t depth, int64_t width, const double* shift, double* sums,
                               double* panel) {
    double middle[COLUMNS] = {}, sum[COLUMNS] = {};
    std::copy_n(shift, width, middle);
    for (int64_t k = 0; k < depth; ++k, rows += stride, panel += COLUMNS) {
        if (width == COLUMNS) {
#pragma omp simd
            for (int64_t c = 0; c < COLUMNS; ++c) panel[c] = static_cast<double>(rows[c]) - middle[c];
        } else {
            for (int64_t c = 0; c < COLUMNS; ++c) panel[c] = c < width ? static_cast<double>(rows[c]) - middle[c] : 0;
        }
#pragma omp simd
        for (int64_t c = 0; c < COLUMNS; ++c) sum[c] += panel[c];
    }
    for (int64_t c = 0; c < width; ++c) sums[c] += sum[c];
}

template <typename S>
void pack_strip(const S* rows, int64_t stride, int64_t depth, int64_t width, const double* shift, double* sums, double* panel) {
    switch (tile64_here().columns) {
        case 24:
            return pack_shifted<24>(rows, stride, depth, width, shift, sums, panel);
        case 12:
            return pack_shifted<12>(rows, stride, depth, width, shift, sums, panel);
        default:
            return pack_shifted<6>(rows, stride, depth, width, shift, sums, panel);
    }
}

template <typename S>
void update(const S* rows, int64_t count, const double* shift, double* sums, const Matrix& products) {
    const int64_t size = products.columns, columns = tile64_here().columns, strips = (size + columns - 1) / columns;
    const Doubles64 panels = doubles(strips * columns * std::min(count, DEEP));
    for (int64_t k = 0; k < count; k += DEEP) {
        const int64_t depth = std::min(DEEP, count - k);
        in_parallel(strips, [&](int64_t strip) {
            const int64_t c = strip * columns;
            pack_strip(rows + k * size + c, size, depth, std::min(columns, size - c), shift + c, sums + c,
                       panels.get() + c * depth);
        });
        add_gram(panels.get(), panels.get(), depth, products);
    }
}

void covariance_update(Tensor rows, Tensor shift, Tensor sums, Tensor products) {
    const int64_t size = shift.numel();
    STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == size && sums.dim() == 1 && sums.numel() == size && products.dim() == 2 &&
                        products.size(0) == size && products.size(1) == size,
                    "expected rows (N, D), shift (D,), sums (D,) and products (D, D)");
    for (const Tensor& tensor : {shift, sums, products}) {
        STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, "expected shift, sums and products in float64");
    }
    STD_TORCH_CHECK(sums.is_contiguous() && products.is_contiguous(), "expected sums and products that are contiguous");
    const Tensor values = as_contiguous(rows), middle = as_contiguous(shift);
    with_type(rows.scalar_type(), [&](auto s) {
        using S = decltype(s);
        update<S>(data_of<S>(values), rows.size(0), data_of<double>(middle), mutable_data_of<double>(sums),
                  {mutable_data_of<double>(products), size, size, size});
    });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("covariance_update", TORCH_BOX(&ganfast::covariance_update)); }

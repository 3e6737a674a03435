// Distances of chosen pairs of rows on the CPU; the maths is on the page ganfast/ops/pair_distances.py.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../common/tensors.h"
#include "products.h"

namespace ganfast {
namespace {

constexpr int64_t AT_ONCE = 64;  // pairs that a thread takes

// |a - b|, in lanes of its own order
template <typename S>
GANFAST_SIMD double distance(const S* a, const S* b, int64_t n) {
    constexpr int64_t LANES = 32;
    double lanes[LANES] = {};
    const auto add = [&](int64_t lane, int64_t at) {
        const double apart = static_cast<double>(a[at]) - static_cast<double>(b[at]);
        lanes[lane] += apart * apart;
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int64_t lane = 0; lane < LANES; ++lane) add(lane, i + lane);
    }
    for (int64_t lane = 0; i < n; ++i, ++lane) add(lane, i);
    for (int64_t half = LANES / 2; half; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return std::sqrt(lanes[0]);
}

bool within(const int64_t* rows, int64_t pairs, int64_t count) {
    return std::all_of(rows, rows + pairs, [&](int64_t row) { return 0 <= row && row < count; });
}

Tensor pair_distances(Tensor x, Tensor y, Tensor i, Tensor j) {
    STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1) && x.scalar_type() == y.scalar_type(),
                    "expected x (N, D) and y (M, D) of one floating type");
    STD_TORCH_CHECK(i.dim() == 1 && j.dim() == 1 && i.numel() == j.numel() && i.scalar_type() == ScalarType::Long &&
                        j.scalar_type() == ScalarType::Long,
                    "expected i and j (P,) in int64");
    const Tensor ours = as_contiguous(x), theirs = as_contiguous(y), rows = as_contiguous(i), others = as_contiguous(j);
    const int64_t pairs = i.numel(), width = x.size(1);
    const int64_t *first = data_of<int64_t>(rows), *second = data_of<int64_t>(others);
    STD_TORCH_CHECK(within(first, pairs, x.size(0)) && within(second, pairs, y.size(0)),
                    "expected i and j that are rows of x and of y: an index is out of range");
    const int64_t sizes[] = {pairs}, strides[] = {1};
    Tensor out = empty_strided({sizes, 1}, {strides, 1}, ScalarType::Double, x);
    double* found = mutable_data_of<double>(out);
    with_type(x.scalar_type(), [&](auto s) {
        using S = decltype(s);
        const S *a = data_of<S>(ours), *b = data_of<S>(theirs);
        in_parallel((pairs + AT_ONCE - 1) / AT_ONCE, [&](int64_t task) {
            for (int64_t p = task * AT_ONCE; p < std::min(pairs, (task + 1) * AT_ONCE); ++p) {
                found[p] = distance(a + first[p] * width, b + second[p] * width, width);
            }
        });
    });
    return out;
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("pair_distances", TORCH_BOX(&ganfast::pair_distances)); }

// tanh on the CPU, a register at a time; the page is ganfast/ops/tanh.py.
#include <torch/csrc/stable/library.h>

#include "lanes.h"
#include "pool.h"

namespace ganfast {
namespace {

// coefficients[0] + x (coefficients[1] + x (...))
template <int64_t N>
GANFAST_INLINE void polynomial(const float (&coefficients)[N], const Floats& x, Floats& y) {
    y = Floats{} + coefficients[N - 1];
#pragma GCC unroll 8
    for (int64_t i = N - 2; i >= 0; --i) y = y * x + coefficients[i];
}

// Coefficients are least squares in Chebyshev's points, which leave relative errors of 2e-8 and 1e-8: less than a rounding.
GANFAST_INLINE void tanh_lanes(const Floats& x, Floats& y) {
    constexpr float NEAR = 0.625f, FAR = 10;  // beyond which the result is 1
    const Floats size = x < 0 ? -x : x;

    // near zero: x (1 + x^2 p(x^2))
    constexpr float OF_SQUARE[] = {-0.33333329f, 0.13332782f, -0.0538525f, 0.02100364f, -0.00610495f};
    const Floats square = x * x;
    Floats near;
    polynomial(OF_SQUARE, square, near);
    near = x * (1 + square * near);

    // elsewhere: 1 - 2 / (e^(2 |x|) + 1), where e^t = 2^n e^r and |r| <= log(2) / 2
    constexpr float OF_REST[] = {0.5f, 0.16666577f, 0.04166646f, 0.00836318f, 0.00139336f};
    // log(2) in two parts, the first of so few bits that its product with n is exact (Cody & Waite 1980)
    constexpr float PER_LOG2 = 1.44269504f, LOG2 = 0.693359375f, LOG2_MORE = -2.12194440e-4f;
    constexpr float TO_INTEGER = 3 << 22;  // what it is added to loses its fraction
    const Floats t = 2 * (size < FAR ? size : Floats{} + FAR), shifted = t * PER_LOG2 + TO_INTEGER, n = shifted - TO_INTEGER;
    const Floats rest = t - n * LOG2 - n * LOG2_MORE;
    Floats power;
    polynomial(OF_REST, rest, power);
    power = 1 + (rest + rest * rest * power);
    Words bits, exponent;
    copy(&power, bits);
    copy(&shifted, exponent);
    bits += exponent << 23;  // the low bits of `shifted` are n, the others leave
    copy(&bits, power);
    const Floats far = 1 - 2 / (power + 1);
    y = size >= NEAR ? (x < 0 ? -far : far) : near;  // NaN is not far
}

template <typename How, typename S>
GANFAST_INLINE void tanh_loop(const S* x, int64_t count, S* y) {
    in_lanes<float>(count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        Floats value, found;
        How::load(x + i, n, value);
        tanh_lanes(value, found);
        How::save(found, n, y + i);
    });
}
GANFAST_VERSIONS(tanh)

constexpr int64_t TASK = 1 << 14;

Tensor tanh_of(const Tensor& x) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "expected x in float32 or bfloat16");
    const Tensor y = pooled_as(x, type), values = as_laid_out(x, y);
    const auto run = [&](auto s) {
        using S = decltype(s);
        const S* const from = data_of<S>(values);
        S* const to = mutable_data_of<S>(y);
        torch::stable::parallel_for(0, x.numel(), TASK,
                                    [&](int64_t begin, int64_t end) { tanh(from + begin, end - begin, to + begin); });
    };
    type == ScalarType::Float ? run(float()) : run(BFloat16());
    return y;
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) { library.impl("tanh", TORCH_BOX(&ganfast::tanh_of)); }

// Gradient penalty on the CPU; the maths is on the page ganfast/ops/gradient_penalty.py.
//
// Elements are taken in the order of memory, in which sample follows sample. Tasks are of fixed size: several small samples, or
// a part of a large one. What a task computes does not depend on the number of threads, so results are the same bits with one
// core and with many.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "../common/batches.h"
#include "../common/slope.h"
#include "parallel.h"
#include "pool.h"
#include "simd.h"

namespace ganfast {
namespace {

// ---- interpolate

template <typename R, typename F>
void interpolate_into(Promoted<R, F>* out, const Ends& ends, bool stacked) {
    const R* real = data_of<R>(ends.real);
    const F* fake = data_of<F>(ends.fake);
    const Wide<R>* alpha = data_of<Wide<R>>(ends.alpha);
    const int64_t elements = ends.real.numel(), length = elements / std::max<int64_t>(1, ends.real.size(0));
    const Cut cut(elements, 1, 1);
    const auto run = [=](int64_t task) {
        for (int64_t at = cut.begin(task), end; at < cut.end(task); at = end) {
            const int64_t sample = at / length;
            end = std::min(cut.end(task), (sample + 1) * length);
            if (stacked) {
                mix_and_copy(real + at, fake + at, alpha[sample], out + at, elements, end - at);
            } else {
                mix(real + at, fake + at, alpha[sample], out + at, end - at);
            }
        }
    };
    run_chains({{{cut.tasks(), run}}}, elements);
}

Tensor interpolate(const Tensor& real, const Tensor& fake, const Tensor& alpha, bool stacked) {
    const ScalarType type = type_of_mixture(real, fake, alpha);
    const Stacked form(real);
    const Result result(stacked ? pooled_strided(form.sizes, form.strides, type, real) : pooled_as(real, type));
    const Ends ends(real, fake, alpha, result.written, stacked);
    with_types(ends.real.scalar_type(), ends.fake.scalar_type(), [&](auto r, auto f) {
        using R = decltype(r);
        using F = decltype(f);
        interpolate_into<R, F>(mutable_data_of<Promoted<R, F>>(result.written), ends, stacked);
    });
    return result.finished();
}

// ---- slope_penalty

// The steps of all samples; their slopes stand here when they are done.
template <typename S>
class Slopes {
public:
    std::vector<Slope> found;

    Slopes(const Tensor& g, const Tensor& v, Charge charge)
        : found(g.size(0)),
          g_(data_of<S>(g)),
          v_(mutable_data_of<S>(v)),
          length_(g.numel() / g.size(0)),
          charge_(charge),
          samples_(g.size(0), length_, 1),
          elements_(length_, 1, 1),
          sums_(length_ > TASK ? g.size(0) * elements_.tasks() : 0) {}

    std::vector<Chain> chains() {
        if (length_ <= TASK) return {{{samples_.tasks(), [this](int64_t task) { take_samples(task); }}}};
        std::vector<Chain> chains;
        for (int64_t sample = 0; sample < samples_.extent; ++sample) {
            const Step measure{elements_.tasks(), [this, sample](int64_t task) { measure_part(sample, task); },
                               [this, sample] { end_measure(sample); }};
            const Step scale{elements_.tasks(),
                             [this, sample](int64_t task) { scale_part(sample, elements_.begin(task), elements_.end(task)); }};
            chains.push_back({measure, scale});
        }
        return chains;
    }

private:
    const S* g_;
    S* v_;
    int64_t length_;
    Charge charge_;
    Cut samples_, elements_;    // the batch into samples, a sample into elements
    std::vector<double> sums_;  // of squares, for each task of each sample

    void take_samples(int64_t task) {
        for (int64_t sample = samples_.begin(task); sample < samples_.end(task); ++sample) {
            found[sample] = charge_.of(sum_of_squares(sample, 0, length_));
            scale_part(sample, 0, length_);
        }
    }

    void measure_part(int64_t sample, int64_t task) {
        sums_[sample * elements_.tasks() + task] = sum_of_squares(sample, elements_.begin(task), elements_.end(task));
    }

    void end_measure(int64_t sample) {
        const auto first = sums_.begin() + sample * elements_.tasks();
        found[sample] = charge_.of(std::accumulate(first, first + elements_.tasks(), 0.0));
    }

    double sum_of_squares(int64_t sample, int64_t begin, int64_t end) const {
        const S* from = g_ + sample * length_ + begin;
        return dot<double>(from, from, end - begin);
    }

    void scale_part(int64_t sample, int64_t begin, int64_t end) {
        const int64_t at = sample * length_ + begin;
        const Slope slope = found[sample];
        if (slope.fits<Wide<S>>()) {
            scale(g_ + at, static_cast<Wide<S>>(slope.factor), v_ + at, end - begin);
        } else {
            scale(g_ + at, slope.factor, v_ + at, end - begin);
        }
    }
};

std::tuple<Tensor, Tensor> slope_penalty(const Tensor& g, double target, double weight, bool one_sided) {
    expect_gradients(g);
    const Result v(pooled_as(g, g.scalar_type()));
    const Tensor laid_out = as_laid_out(g, v.written);
    const double each = weight / g.size(0), scale = 2 * weight / g.size(0);
    const Tensor penalty = torch::stable::new_empty(g, {}, beside(ScalarType::Float, g.scalar_type()));
    with_type(g.scalar_type(), [&](auto s) {
        using S = decltype(s);
        Slopes<S> slopes(laid_out, v.written, {target, scale, one_sided});
        run_chains(slopes.chains(), g.numel());
        double sum = 0;
        for (const Slope& slope : slopes.found) sum += slope.cost;
        *mutable_data_of<Wide<S>>(penalty) = static_cast<Wide<S>>(sum * each);
    });
    return {penalty, v.finished()};
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("interpolate", TORCH_BOX(&ganfast::interpolate));
    library.impl("slope_penalty", TORCH_BOX(&ganfast::slope_penalty));
}

// Batch norm with its activation on the CPU; the maths is on the page ganfast/ops/batch_norm.py.
//
// A group's memory is cut into tiles, whose size depends on the group's alone and whose sums are merged in their order. Neither
// depends on the number of threads, so results are the same bits with one core and with many. Sums run in the type of the
// statistics within a tile, and those in double. Deviations are taken from a mean of a tile's own, so that their squares do not
// cancel where the mean is large.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "../common/activation.h"
#include "../common/volume.h"
#include "columns.h"
#include "parallel.h"
#include "planes.h"
#include "pool.h"

namespace ganfast {
namespace {

// A result as it was promised, and where the kernels write it: there, or where they do not walk through that or compute in
// another type, in a tensor that is copied in the end.
class Written {
public:
    const Tensor promised, written;

    Written(const Tensor& promised, ScalarType type)
        : promised(promised),
          written(!is_volume(promised)             ? torch::stable::new_empty(promised, promised.sizes(), type)
                  : promised.scalar_type() == type ? promised
                                                   : pooled_as(promised, type)) {}

    Tensor finished() const {
        if (written.get() == promised.get()) return promised;
        Tensor copied = promised;
        return torch::stable::copy_(copied, written);
    }
};

// ---- ways through memory

constexpr int64_t CACHED = 1 << 16;  // elements that are in a near cache still when they are read again

// Two sums for each of some channels, over their values in a tile.
struct Sums {
    double *first, *second;
};

// Channels in equal parts.
struct Parts {
    int64_t channels, step;

    int64_t count() const { return ceil_div(channels, step); }
    int64_t begin(int64_t part) const { return part * step; }
    int64_t end(int64_t part) const { return std::min(channels, (part + 1) * step); }
};

// A block of some rows, whose columns have one channel each: (column / run) % channels, from channel `first` on.
struct Tile {
    int64_t group, first, channels;
    int64_t layer;  // among the tiles of its channels
    int64_t offset, rows, stride, width;
    int64_t rest;  // columns of one more row
};

// Channels last, or contiguous with few positions: rows of all channels, each with `run` neighbours. A tile has a span of the
// channels where they are many, and `fold` rows side by side where they are few.
class InRows {
public:
    const Volume volume;

    explicit InRows(const Volume& volume)
        : volume(volume),
          run_(volume.channels_last ? 1 : volume.positions),
          row_(volume.channels * run_),
          rows_(volume.elements() / row_),
          fold_(std::max<int64_t>(1, COLUMNS / row_)),
          span_(std::min(volume.channels, std::max<int64_t>(1, COLUMNS / run_))),
          cut_(ceil_div(rows_, fold_), span_ * run_ * fold_, 1, std::clamp(volume.elements() / THREADS, SMALL, LARGE)) {}

    Parts parts() const { return {volume.channels, span_}; }  // of a group, with channels of their own
    int64_t tasks() const { return cut_.tasks(); }            // of a part
    int64_t layers() const { return cut_.tasks(); }           // of tiles over one another
    int64_t count(int64_t layer) const { return (std::min(cut_.end(layer) * fold_, rows_) - first_row(layer)) * run_; }

    // body(tile) for all tiles of a task
    template <typename F>
    void visit(int64_t group, int64_t part, int64_t task, const F& body) const {
        const int64_t first = parts().begin(part), channels = parts().end(part) - first;
        const int64_t rows = count(task) / run_, width = channels * run_ * fold_;
        const int64_t offset = group * volume.elements() + first_row(task) * row_ + first * run_;
        body(Tile{group, first, channels, task, offset, rows / fold_, row_ * fold_, width, rows % fold_ * row_});
    }

    template <typename F>
    void for_each_block(const Tile& tile, const F& body) const {
        if (tile.rows) body(Block{tile.offset, tile.rows, tile.stride, tile.width});
        if (tile.rest) body(Block{tile.offset + tile.rows * tile.stride, 1, tile.stride, tile.rest});
    }

    // columns[j] = values[the channel of j]
    template <typename T>
    void spread(const Tile& tile, const T* values, T* columns) const {
        for (int64_t i = 0; i < fold_; ++i, columns += tile.channels * run_) {
            if (run_ == 1) {
                std::copy_n(values, tile.channels, columns);
            } else {
                for (int64_t c = 0; c < tile.channels; ++c) std::fill_n(columns + c * run_, run_, values[c]);
            }
        }
    }

    // sums[c] = the sum over the columns of c
    template <typename T>
    void gather(const Tile& tile, const T* columns, double* sums) const {
        if (run_ == 1) {
            std::copy_n(columns, tile.channels, sums);
            for (int64_t i = 1; i < fold_; ++i) add(columns + i * tile.channels, sums, tile.channels);
            return;
        }
        std::fill_n(sums, tile.channels, 0.0);
        for (int64_t i = 0; i < fold_; ++i, columns += tile.channels * run_) {
            for (int64_t c = 0; c < tile.channels; ++c) {
                sums[c] = std::accumulate(columns + c * run_, columns + (c + 1) * run_, sums[c]);
            }
        }
    }

private:
    // Elements of a tile: many, for what is done once a tile, as long as so many threads have one.
    static constexpr int64_t SMALL = 1 << 16, LARGE = 1 << 18, THREADS = 32;

    int64_t run_, row_, rows_, fold_, span_;
    Cut cut_;

    int64_t first_row(int64_t layer) const { return cut_.begin(layer) * fold_; }
};

// Planes that follow one another, of the channels from `first` on.
struct Planes {
    int64_t group, first, channels;
    int64_t layer;
    int64_t offset, length;
};

// Contiguous: plane by plane, or pieces of large ones.
class InPlanes {
public:
    const Volume volume;

    explicit InPlanes(const Volume& volume)
        : volume(volume), pieces_(volume.positions, 1, 1), planes_(volume.samples * volume.channels, volume.positions, 1) {}

    Parts parts() const { return {volume.channels, volume.channels}; }
    int64_t tasks() const { return planes_.tasks() * pieces_.tasks(); }
    int64_t layers() const { return volume.samples * pieces_.tasks(); }
    int64_t count(int64_t layer) const {
        const int64_t piece = layer % pieces_.tasks();
        return pieces_.end(piece) - pieces_.begin(piece);
    }

    // body(planes) for all of a task: those of one sample, or a piece of one
    template <typename F>
    void visit(int64_t group, int64_t, int64_t task, const F& body) const {
        const int64_t piece = task % pieces_.tasks(), index = task / pieces_.tasks();
        for (int64_t at = planes_.begin(index), end; at < planes_.end(index); at = end) {
            const int64_t sample = at / volume.channels, first = at % volume.channels;
            end = std::min(planes_.end(index), at - first + volume.channels);
            const int64_t layer = sample * pieces_.tasks() + piece;
            const int64_t offset = group * volume.elements() + at * volume.positions + pieces_.begin(piece);
            body(Planes{group, first, end - at, layer, offset, count(layer)});
        }
    }

private:
    Cut pieces_, planes_;
};

// A number for each column of a tile.
template <typename T>
struct Columns {
    T at[COLUMNS];

    Columns(const InRows& way, const Tile& tile, const T* values) { way.spread(tile, values, at); }
};

// Measures a volume and changes it with what was found: job.measure(way, tile, its sums, to be written), job.finish(way, first
// channel of all groups', channels, sums), in which sums(layer) are theirs, and job.change(way, tile).
template <typename Way, typename Job>
void run_job(const Way& way, Job& job) {
    const int64_t channels = way.volume.channels, tasks = way.tasks();
    const Parts parts = way.parts();
    std::vector<double> all(2 * way.volume.groups * way.layers() * channels);
    const auto sums_of = [&](int64_t group, int64_t layer, int64_t channel) {
        double* first = all.data() + 2 * (group * way.layers() + layer) * channels + channel;
        return Sums{first, first + channels};
    };
    const auto measure = [&](int64_t group, int64_t part, int64_t task) {
        way.visit(group, part, task, [&](const auto& tile) { job.measure(way, tile, sums_of(group, tile.layer, tile.first)); });
    };
    const auto finish = [&](int64_t group, int64_t part) {
        for (int64_t c = parts.begin(part); c < parts.end(part); c += COLUMNS) {
            job.finish(way, group * channels + c, std::min(COLUMNS, parts.end(part) - c),
                       [&](int64_t layer) { return sums_of(group, layer, c); });
        }
    };
    const auto change = [&](int64_t group, int64_t part, int64_t task) {
        way.visit(group, part, task, [&](const auto& tile) { job.change(way, tile); });
    };
    const int64_t count = way.volume.groups * parts.count(), elements = parts.step * way.volume.values();
    std::vector<Chain> chains;
    if (elements <= CACHED) {
        const Cut cut(count, elements, 1);
        const auto whole = [&, cut](int64_t index) {
            for (int64_t i = cut.begin(index); i < cut.end(index); ++i) {
                const int64_t group = i / parts.count(), part = i % parts.count();
                for (int64_t task = 0; task < tasks; ++task) measure(group, part, task);
                finish(group, part);
                for (int64_t task = tasks; task-- > 0;) change(group, part, task);
            }
        };
        chains.push_back({{cut.tasks(), whole}});
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t group = i / parts.count(), part = i % parts.count();
            // the last ones first: they are in a cache still
            chains.push_back({{tasks, [&, group, part](int64_t task) { measure(group, part, task); },
                               [&, group, part] { finish(group, part); }},
                              {tasks, [&, group, part](int64_t task) { change(group, part, tasks - 1 - task); }}});
        }
    }
    run_chains(chains, count * elements);
}

// job.change(way, tile) for a whole volume.
template <typename Way, typename Job>
void run_changes(const Way& way, const Job& job) {
    const int64_t parts = way.parts().count(), tasks = way.tasks(), count = way.volume.groups * parts * tasks;
    const auto change = [&](int64_t i) {
        way.visit(i / tasks / parts, i / tasks % parts, i % tasks, [&](const auto& tile) { job.change(way, tile); });
    };
    run_chains({{{count, change}}}, way.volume.groups * way.volume.elements());
}

// body(the way that suits a volume)
template <typename F>
void by_way(const Volume& volume, const F& body) {
    if (volume.channels_last || volume.positions < 2 * LANES) {
        body(InRows(volume));
    } else {
        body(InPlanes(volume));
    }
}

// ---- forward

// y by statistics that are known.
template <typename S, typename Act>
class Normalisation {
public:
    using T = Wide<S>;

    Normalisation(const Volume& volume, const S* x, const T* weight, const T* bias, const T* mean, double eps, Act act, S* y)
        : x_(x), eps_(eps), affines_(volume.groups, volume.channels, weight, bias), act_(act), y_(y), mean_(mean) {}

    void know(const T* var) { affines_.set_all(var, eps_); }

    void change(const InPlanes&, const Planes& planes) const {
        activate_planes(x_ + planes.offset, planes.channels, planes.length, affines_.of(planes.group, planes.first, mean_), act_,
                        y_ + planes.offset);
    }

    void change(const InRows& way, const Tile& tile) const {
        const Affine<T> each = affines_.of(tile.group, tile.first, mean_);
        const Columns<T> mean(way, tile, each.mean), scale(way, tile, each.scale), bias(way, tile, each.bias);
        const Affine<T> affine{mean.at, scale.at, bias.at};
        way.for_each_block(tile, [&](const Block& block) { activate(x_, block, affine, act_, y_); });
    }

protected:
    const S* x_;
    double eps_;
    Affines<T> affines_;

private:
    Act act_;
    S* y_;
    const T* mean_;
};

template <typename S, typename Act>
class Forward : public Normalisation<S, Act> {
public:
    using T = Wide<S>;

    Forward(const Volume& volume, const S* x, const T* weight, const T* bias, double eps, Act act, S* y, T* mean, T* var)
        : Normalisation<S, Act>(volume, x, weight, bias, mean, eps, act, y), mean_(mean), var_(var) {}

    // the mean, and the sum of squared deviations from it

    void measure(const InPlanes&, const Planes& planes, Sums found) const {
        measure_planes<T>(x_ + planes.offset, planes.channels, planes.length, found.first, found.second);
    }

    void measure(const InRows& way, const Tile& tile, Sums found) const {
        T centres[COLUMNS];
        roughly_centred(way, tile, found.first, centres);
        const Columns<T> centre(way, tile, centres);
        ColumnSums<T> sums;
        way.for_each_block(tile, [&](const Block& block) {
            sums.take(block, [&](const Block& rows, T* first, T* second) { sum_deviations(x_, rows, centre.at, first, second); });
        });
        way.gather(tile, sums.first, found.first);
        way.gather(tile, sums.second, found.second);
        leave_centre(centres, static_cast<double>(way.count(tile.layer)), found.first, found.second, tile.channels);
    }

    template <typename Way, typename F>
    void finish(const Way& way, int64_t at, int64_t channels, const F& sums) {
        double mean[COLUMNS], squares[COLUMNS] = {};
        const double values = static_cast<double>(way.volume.values());
        const Sums base = sums(0);
        std::copy_n(base.first, channels, mean);
        for (int64_t layer = 1; layer < way.layers(); ++layer) {
            merge_means(sums(layer).first, base.first, way.count(layer) / values, mean, channels);
        }
        for (int64_t layer = 0; layer < way.layers(); ++layer) {
            const Sums next = sums(layer);
            merge_squares(next.second, next.first, static_cast<double>(way.count(layer)), mean, squares, channels);
        }
        for (int64_t c = 0; c < channels; ++c) {
            mean_[at + c] = static_cast<T>(mean[c]);
            var_[at + c] = static_cast<T>(squares[c] < 0 ? 0 : squares[c] / values);  // NaN is not less than 0
            affines_.set(at + c, var_[at + c], eps_);
        }
    }

private:
    using Normalisation<S, Act>::x_;
    using Normalisation<S, Act>::eps_;
    using Normalisation<S, Act>::affines_;
    T *mean_, *var_;

    // The means of a tile's first rows, rounded as x is: then the deviations of low types are exact.
    void roughly_centred(const InRows& way, const Tile& tile, double* scratch, T* centres) const {
        T sums[COLUMNS] = {};
        const int64_t rows = std::min<int64_t>(4, tile.rows), width = rows ? tile.width : tile.rest;
        sum_columns(x_, Block{tile.offset, std::max<int64_t>(1, rows), tile.stride, width}, sums);
        way.gather(tile, sums, scratch);
        const double share = static_cast<double>(tile.channels) / (std::max<int64_t>(1, rows) * width);
        for (int64_t c = 0; c < tile.channels; ++c)
            centres[c] = static_cast<T>(static_cast<S>(static_cast<T>(scratch[c] * share)));
    }
};

using Triple = std::tuple<Tensor, Tensor, Tensor>;

Triple run_forward(const Tensor& x, const Parameter& weight, const Parameter& bias, int64_t groups, double eps, double slope,
                   bool tanh, const Tracked* tracked) {
    expect_volume(x, weight, bias, groups);
    if (tracked) expect_tracked(x, groups, *tracked);
    const ScalarType type = x.scalar_type(), wide = beside(ScalarType::Float, type);
    const Written y(pooled_as(x, type), type);
    const Tensor laid_out = as_laid_out(x, y.written);
    const std::array<int64_t, 2> sizes{groups, x.size(1)};
    const Tensor mean = torch::stable::new_empty(x, {sizes.data(), 2}, wide),
                 var = torch::stable::new_empty(x, {sizes.data(), 2}, wide);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    const Volume volume(laid_out, groups);
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        with_activation<T>(slope, tanh, [&](auto act) {
            Forward<S, decltype(act)> forward(volume, data_of<S>(laid_out), data_of<T>(weights), data_of<T>(biases), eps, act,
                                              mutable_data_of<S>(y.written), mutable_data_of<T>(mean), mutable_data_of<T>(var));
            by_way(volume, [&](const auto& way) { run_job(way, forward); });
        });
        if (!tracked) return;
        const Running<T> running = tracked->running<T>(volume.values());
        const T *means = data_of<T>(mean), *vars = data_of<T>(var);
        for (int64_t i = 0; i < groups * volume.channels; ++i) running.follow(i % volume.channels, means[i], vars[i]);
        if (int64_t* count = tracked->count()) *count += groups;
    });
    return {y.finished(), mean, var};
}

Triple batch_norm_act(const Tensor& x, const Parameter& weight, const Parameter& bias, int64_t groups, double eps, double slope,
                      bool tanh) {
    return run_forward(x, weight, bias, groups, eps, slope, tanh, nullptr);
}

Triple batch_norm_act_tracked(const Tensor& x, const Parameter& weight, const Parameter& bias, int64_t groups, double eps,
                              double slope, bool tanh, const Tensor& running_mean, const Tensor& running_var,
                              const Parameter& counted, double momentum) {
    const Tracked tracked{running_mean, running_var, counted, momentum};
    return run_forward(x, weight, bias, groups, eps, slope, tanh, &tracked);
}

Tensor normalise_act(const Tensor& x, const Parameter& weight, const Parameter& bias, const Tensor& mean, const Tensor& var,
                     double eps, double slope, bool tanh) {
    expect_volume(x, weight, bias, mean.dim() == 2 ? mean.size(0) : 1);
    expect_statistics(x, mean, var);
    const ScalarType type = x.scalar_type(), wide = mean.scalar_type();
    const Written y(pooled_as(x, type), type);
    const Tensor laid_out = as_laid_out(x, y.written), means = as_contiguous(mean), vars = as_contiguous(var);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    const Volume volume(laid_out, mean.size(0));
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        with_activation<T>(slope, tanh, [&](auto act) {
            Normalisation<S, decltype(act)> normalisation(volume, data_of<S>(laid_out), data_of<T>(weights), data_of<T>(biases),
                                                          data_of<T>(means), eps, act, mutable_data_of<S>(y.written));
            normalisation.know(data_of<T>(vars));
            by_way(volume, [&](const auto& way) { run_changes(way, normalisation); });
        });
    });
    return y.finished();
}

// ---- backward

template <typename S, typename Act>
class Backward {
public:
    using T = Wide<S>;

    Backward(const Volume& volume, const S* dy, const S* x, const T* weight, const T* bias, const T* mean, const T* var,
             double eps, Act act, S* dx)
        : dy_(dy),
          x_(x),
          mean_(mean),
          act_(act),
          dx_(dx),
          affines_(volume.groups, volume.channels, weight, bias),
          inverses_(affines_.scales.size()),
          levels_(inverses_.size()),
          tilts_(inverses_.size()),
          sums_(inverses_.size()),
          products_(inverses_.size()) {
        for (size_t i = 0; i < inverses_.size(); ++i) inverses_[i] = affines_.set(i, var[i], eps);
    }

    // sum dz, and sum dz (x - mean)

    void measure(const InPlanes&, const Planes& planes, Sums found) const {
        const int64_t at = planes.offset;
        sum_gradients_of_planes(dy_ + at, x_ + at, planes.channels, planes.length, affines_.of(planes.group, planes.first, mean_),
                                act_, found.first, found.second);
    }

    void measure(const InRows& way, const Tile& tile, Sums found) const {
        const Affine<T> each = affines_.of(tile.group, tile.first, mean_);
        const Columns<T> mean(way, tile, each.mean), scale(way, tile, each.scale), bias(way, tile, each.bias);
        const Affine<T> affine{mean.at, scale.at, bias.at};
        ColumnSums<T> sums;
        way.for_each_block(tile, [&](const Block& block) {
            sums.take(block,
                      [&](const Block& rows, T* first, T* second) { sum_gradients(dy_, x_, rows, affine, act_, first, second); });
        });
        way.gather(tile, sums.first, found.first);
        way.gather(tile, sums.second, found.second);
    }

    template <typename Way, typename F>
    void finish(const Way& way, int64_t at, int64_t channels, const F& sums) {
        double *sum = sums_.data() + at, *product = products_.data() + at;
        for (int64_t layer = 0; layer < way.layers(); ++layer) {
            const Sums next = sums(layer);
            add(next.first, sum, channels);
            add(next.second, product, channels);
        }
        const double values = static_cast<double>(way.volume.values());
        for (int64_t c = 0; c < channels; ++c) {
            product[c] *= inverses_[at + c];
            levels_[at + c] = static_cast<T>(sum[c] / values);
            tilts_[at + c] = static_cast<T>(product[c] * inverses_[at + c] / values);
        }
    }

    void change(const InPlanes& way, const Planes& planes) const {
        const int64_t at = planes.offset, first = planes.group * way.volume.channels + planes.first;
        differentiate_planes(dy_ + at, x_ + at, planes.channels, planes.length, affines_.of(planes.group, planes.first, mean_),
                             levels_.data() + first, tilts_.data() + first, act_, dx_ + at);
    }

    void change(const InRows& way, const Tile& tile) const {
        const int64_t first = tile.group * way.volume.channels + tile.first;
        const Affine<T> each = affines_.of(tile.group, tile.first, mean_);
        const Columns<T> mean(way, tile, each.mean), scale(way, tile, each.scale), bias(way, tile, each.bias);
        const Columns<T> level(way, tile, levels_.data() + first), tilt(way, tile, tilts_.data() + first);
        const Affine<T> affine{mean.at, scale.at, bias.at};
        way.for_each_block(tile,
                           [&](const Block& block) { differentiate(dy_, x_, block, affine, level.at, tilt.at, act_, dx_); });
    }

    // dweight and dbias: over the groups
    void write(const Volume& volume, T* dweight, T* dbias) const {
        for (int64_t c = 0; c < volume.channels; ++c) {
            double sum = 0, product = 0;
            for (int64_t at = c; at < volume.groups * volume.channels; at += volume.channels) {
                sum += sums_[at];
                product += products_[at];
            }
            dweight[c] = static_cast<T>(product);
            dbias[c] = static_cast<T>(sum);
        }
    }

private:
    const S *dy_, *x_;
    const T* mean_;
    Act act_;
    S* dx_;
    Affines<T> affines_;
    std::vector<double> inverses_;  // 1 / sqrt(var + eps)
    std::vector<T> levels_, tilts_;
    std::vector<double> sums_, products_;  // of dz, and of dz x^
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& x, const Parameter& weight,
                                                           const Parameter& bias, const Tensor& mean, const Tensor& var,
                                                           double eps, double slope, bool tanh) {
    expect_gradient(grad, x, mean, var);
    expect_volume(x, weight, bias, mean.size(0));
    const ScalarType wide = mean.scalar_type(), type = grad.scalar_type() == x.scalar_type() ? x.scalar_type() : wide;
    const Written dx(pooled_as(x, x.scalar_type()), type);
    const Tensor values = as_laid_out(converted(x, type), dx.written), grads = as_laid_out(converted(grad, type), dx.written);
    const Tensor means = as_contiguous(mean), vars = as_contiguous(var);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    const int64_t channels = x.size(1);
    const Tensor dweight = torch::stable::new_empty(x, {&channels, 1}, wide),
                 dbias = torch::stable::new_empty(x, {&channels, 1}, wide);
    const Volume volume(values, mean.size(0));
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        with_activation<T>(slope, tanh, [&](auto act) {
            Backward<S, decltype(act)> backward(volume, data_of<S>(grads), data_of<S>(values), data_of<T>(weights),
                                                data_of<T>(biases), data_of<T>(means), data_of<T>(vars), eps, act,
                                                mutable_data_of<S>(dx.written));
            by_way(volume, [&](const auto& way) { run_job(way, backward); });
            backward.write(volume, mutable_data_of<T>(dweight), mutable_data_of<T>(dbias));
        });
    });
    return {dx.finished(), dweight, dbias};
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("batch_norm_act", TORCH_BOX(&ganfast::batch_norm_act));
    library.impl("batch_norm_act_tracked", TORCH_BOX(&ganfast::batch_norm_act_tracked));
    library.impl("normalise_act", TORCH_BOX(&ganfast::normalise_act));
    library.impl("batch_norm_act_backward", TORCH_BOX(&ganfast::batch_norm_act_backward));
}

// Batch norm with its activation on CUDA: the tiles and the launches; what a block does stands in batch_norm.cuh.
//
// Three launches forward and three backward. No tensor is read back by the host, which never waits.
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "../common/volume.h"
#include "batch_norm.cuh"
#include "launch.h"

namespace ganfast {
namespace {

constexpr int64_t ENOUGH = 256;  // tiles of a group, before a thread gets a second pack: an H200 has 132 multiprocessors

// A volume that is read and written in packs, where it lies so. As many threads stand side by side as fill the columns; but where
// a tile has a single channel and samples are many no more than a warp, and the rest of the block has other samples.
Tiles tiles_of(const Volume& volume, int pack, bool aligned) {
    Tiles tiles{};
    tiles.groups = volume.groups;
    tiles.rows = volume.channels_last ? volume.values() : volume.samples;
    tiles.channels = volume.channels;
    tiles.run = volume.channels_last ? 1 : volume.positions;
    tiles.single = !volume.channels_last;
    const int64_t span = tiles.single ? tiles.run : tiles.channels;
    tiles.pack = aligned && span % pack == 0 ? pack : 1;
    const int64_t packs = span / tiles.pack;
    tiles.across = tiles.single ? Tiles::BLOCK : Tiles::LANES;
    while (tiles.across > 1 && tiles.across / 2 >= packs) tiles.across /= 2;
    while (tiles.across > Tiles::LANES && tiles.across * tiles.rows >= 2 * Tiles::BLOCK) tiles.across /= 2;
    const int below = Tiles::BLOCK / tiles.across;
    const int64_t down = ceil_div(tiles.rows, below), side = ceil_div(packs, tiles.across);
    const int64_t most = down * side * (tiles.single ? tiles.channels : 1);
    const int deep = static_cast<int>(at_least(1, at_most(Tiles::DEEP, most / ENOUGH)));
    const bool sideways = tiles.single && side > down;
    tiles.row_step = sideways ? 0 : below;
    tiles.column_step = sideways ? tiles.across * tiles.pack : 0;
    tiles.height = below * (sideways ? 1 : deep);
    tiles.width = tiles.across * tiles.pack * (sideways ? deep : 1);
    tiles.down = static_cast<int>(ceil_div(tiles.rows, tiles.height));
    tiles.strips = static_cast<int>(tiles.single ? tiles.channels : ceil_div(tiles.channels, tiles.width));
    tiles.pieces = static_cast<int>(tiles.single ? ceil_div(tiles.run, tiles.width) : 1);
    return tiles;
}

Tensor room_for_parts(const Tiles& tiles, const Tensor& mean) {
    const int64_t size = tiles.groups * tiles.layers() * 2 * tiles.channels;
    return torch::stable::new_empty(mean, {&size, 1});
}

template <typename T>
Either<T> act_of(double slope, bool tanh) {
    return {{static_cast<T>(slope)}, tanh};
}

int64_t merging_blocks(const Tiles& tiles) { return ceil_div(tiles.channels, Merging::CHANNELS); }

using Triple = std::tuple<Tensor, Tensor, Tensor>;

Triple run_forward(const Tensor& x, const Parameter& weight, const Parameter& bias, int64_t groups, double eps, double slope,
                   bool tanh, const Tracked* tracked) {
    expect_volume(x, weight, bias, groups);
    if (tracked) expect_tracked(x, groups, *tracked);
    const Stream stream(x);
    const ScalarType type = x.scalar_type(), wide = beside(ScalarType::Float, type);
    const Tensor promised = empty_as(x, type);
    const Result y(promised, is_volume(promised));
    const Tensor laid_out = as_laid_out(x, y.written);
    const std::array<int64_t, 2> sizes{groups, x.size(1)};
    const Tensor mean = torch::stable::new_empty(x, {sizes.data(), 2}, wide), var = empty_as(mean, wide);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        constexpr int WIDTH = TileMoments<S>::WIDTH;
        const S* from = data_of<S>(laid_out);
        S* to = mutable_data_of<S>(y.written);
        const Tiles tiles = tiles_of(Volume(laid_out, groups), WIDTH, aligned<WIDTH>(from) && aligned<WIDTH>(to));
        const Tensor parts = room_for_parts(tiles, mean);
        T *means = mutable_data_of<T>(mean), *vars = mutable_data_of<T>(var);
        stream.launch<TileMoments<S>>({tiles, from, mutable_data_of<T>(parts)}, tiles.count());
        const Running<T> running = tracked ? tracked->running<T>(tiles.values()) : Running<T>{};
        stream.launch<Moments<S>>({tiles, from, data_of<T>(parts), means, vars, running, tracked ? tracked->count() : nullptr},
                                  merging_blocks(tiles));
        const Statistics<T> statistics{means, vars, data_of<T>(weights), data_of<T>(biases), eps};
        stream.launch<Activation<S>>({tiles, statistics, act_of<T>(slope, tanh), from, to}, tiles.count());
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
    const Stream stream(x);
    const ScalarType type = x.scalar_type(), wide = mean.scalar_type();
    const Tensor promised = empty_as(x, type);
    const Result y(promised, is_volume(promised));
    const Tensor laid_out = as_laid_out(x, y.written), means = as_contiguous(mean), vars = as_contiguous(var);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        constexpr int WIDTH = TileMoments<S>::WIDTH;
        const S* from = data_of<S>(laid_out);
        S* to = mutable_data_of<S>(y.written);
        const Tiles tiles = tiles_of(Volume(laid_out, mean.size(0)), WIDTH, aligned<WIDTH>(from) && aligned<WIDTH>(to));
        const Statistics<T> statistics{data_of<T>(means), data_of<T>(vars), data_of<T>(weights), data_of<T>(biases), eps};
        stream.launch<Activation<S>>({tiles, statistics, act_of<T>(slope, tanh), from, to}, tiles.count());
    });
    return y.finished();
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& x, const Parameter& weight,
                                                           const Parameter& bias, const Tensor& mean, const Tensor& var,
                                                           double eps, double slope, bool tanh) {
    expect_gradient(grad, x, mean, var);
    expect_volume(x, weight, bias, mean.size(0));
    const Stream stream(x);
    const ScalarType wide = mean.scalar_type(), type = grad.scalar_type() == x.scalar_type() ? x.scalar_type() : wide;
    const Tensor promised = empty_as(x, type);
    const Result dx(promised, is_volume(promised));
    const Tensor values = as_laid_out(converted(x, type), dx.written), grads = as_laid_out(converted(grad, type), dx.written);
    const Tensor means = as_contiguous(mean), vars = as_contiguous(var);
    const Parameter weights = widened(weight, wide), biases = widened(bias, wide);
    const int64_t channels = x.size(1);
    const Tensor dweight = torch::stable::new_empty(x, {&channels, 1}, wide), dbias = empty_as(dweight, wide);
    const Tensor levels = empty_as(means, wide), tilts = empty_as(means, wide);
    with_type(type, [&](auto s) {
        using S = decltype(s);
        using T = Wide<S>;
        constexpr int WIDTH = TileMoments<S>::WIDTH;
        const S *dy = data_of<S>(grads), *from = data_of<S>(values);
        S* to = mutable_data_of<S>(dx.written);
        const bool in_packs = aligned<WIDTH>(dy) && aligned<WIDTH>(from) && aligned<WIDTH>(to);
        const Tiles tiles = tiles_of(Volume(values, mean.size(0)), WIDTH, in_packs);
        const Tensor parts = room_for_parts(tiles, means);
        const Statistics<T> statistics{data_of<T>(means), data_of<T>(vars), data_of<T>(weights), data_of<T>(biases), eps};
        T *level = mutable_data_of<T>(levels), *tilt = mutable_data_of<T>(tilts);
        const Either<T> act = act_of<T>(slope, tanh);
        stream.launch<TileGradients<S>>({tiles, statistics, act, dy, from, mutable_data_of<T>(parts)}, tiles.count());
        stream.launch<Gradients<T>>(
            {tiles, statistics, data_of<T>(parts), level, tilt, mutable_data_of<T>(dweight), mutable_data_of<T>(dbias)},
            merging_blocks(tiles));
        stream.launch<Gradient<S>>({tiles, statistics, act, level, tilt, dy, from, to}, tiles.count());
    });
    return {converted(dx.finished(), x.scalar_type()), dweight, dbias};
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, GANFAST_KEY, library) {
    library.impl("batch_norm_act", TORCH_BOX(&ganfast::batch_norm_act));
    library.impl("batch_norm_act_tracked", TORCH_BOX(&ganfast::batch_norm_act_tracked));
    library.impl("normalise_act", TORCH_BOX(&ganfast::normalise_act));
    library.impl("batch_norm_act_backward", TORCH_BOX(&ganfast::batch_norm_act_backward));
}

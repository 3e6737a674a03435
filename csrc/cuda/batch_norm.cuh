// The kernels of batch norm on CUDA, without a launch; the maths is on the page ganfast/ops/batch_norm.py.
//
// A volume is cut into tiles, one tile a block. Both directions take three launches: two sums for each channel of each tile, the
// merging of those, and the change of the volume by what was found. Sums run in the type of the statistics within a tile, and
// those in double, in a fixed order: no atomics, the same bits in every run. A group's tiles are those that it would have alone.
//
// S is the type of x, y and their gradients, T = Wide<S> the one of statistics and parameters.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/activation.h"
#include "../common/block.h"
#include "../common/running.h"
#include "../common/scalar.h"
#include "packs.cuh"

namespace ganfast {

// ---- tiles

// A group in memory: rows of `channels` times `run` columns. Channels last has a row for each position and a run of one,
// contiguous a row for each sample and the positions of a channel as its run. A tile is a rectangle of that. In channels last it
// has one channel in each column; otherwise it has a single one, and its sums are over the columns too.
//
// The threads of a block stand `across` by BLOCK / across. A thread has up to DEEP packs of neighbours, one below the other, or
// side by side where rows are few: at distances of so many rows or columns as the steps say, one of which is zero.
struct Tiles {
    static constexpr int BLOCK = 256;
    static constexpr int DEEP = 8;    // 16 bytes each: they stay in registers
    static constexpr int LANES = 32;  // across at most, where columns have channels of their own

    int64_t groups, rows, channels, run;
    bool single;
    int pack, across, row_step, column_step;
    int height, width;
    int down, strips, pieces;  // tiles below one another, for other channels, and for other columns of a single one

    // a grid has fewer than 2^31 blocks, so 32 bits are enough for numbers of tiles
    GANFAST_HOST_DEVICE int64_t count() const { return groups * down * strips * pieces; }
    GANFAST_HOST_DEVICE int layers() const { return down * pieces; }    // tiles that share a channel
    GANFAST_HOST_DEVICE int64_t values() const { return rows * run; }   // of a channel in a group
    GANFAST_HOST_DEVICE int64_t row() const { return channels * run; }  // elements

    GANFAST_DEVICE int64_t values_of(int layer) const {  // of a channel in a tile
        const int64_t columns = single ? at_most(width, run - int64_t(layer % pieces) * width) : 1;
        return at_most(height, rows - int64_t(layer / pieces) * height) * columns;
    }

    // Where a tile's first sum of a channel stands; the second one is `channels` later.
    GANFAST_DEVICE int64_t part(int64_t group, int layer, int64_t channel) const {
        return (group * layers() + layer) * 2 * channels + channel;
    }
};

struct Tile {
    int64_t group, channel;  // the first one
    int layer;
    int64_t offset;
    int rows, columns;

    GANFAST_DEVICE Tile(const Tiles& tiles, int64_t block) {
        const int number = static_cast<int>(block), piece = number % tiles.pieces, strip = number / tiles.pieces % tiles.strips;
        const int above = number / tiles.pieces / tiles.strips;
        const int64_t row = int64_t(above % tiles.down) * tiles.height, column = int64_t(piece) * tiles.width;
        group = above / tiles.down;
        channel = tiles.single ? strip : int64_t(strip) * tiles.width;
        layer = above % tiles.down * tiles.pieces + piece;
        offset = (group * tiles.rows + row) * tiles.row() + channel * tiles.run + column;
        rows = static_cast<int>(at_most(tiles.height, tiles.rows - row));
        columns = static_cast<int>(at_most(tiles.width, tiles.single ? tiles.run - column : tiles.channels - channel));
    }
};

// What one thread has of a tile: packs of WIDTH neighbours, from this column on.
template <int WIDTH>
struct Lane {
    int lane, column, packs;
    int64_t first, step;

    GANFAST_DEVICE Lane(const Tiles& tiles, const Tile& tile, int thread) {
        const int row = thread / tiles.across;
        lane = thread % tiles.across;
        column = lane * WIDTH;
        const int rows = tile.rows - row, columns = tile.columns - column;
        packs = rows <= 0 || columns <= 0 ? 0
                : tiles.row_step          ? (rows - 1) / tiles.row_step + 1
                                          : (columns - 1) / tiles.column_step + 1;
        first = tile.offset + row * tiles.row() + column;
        step = tiles.row_step * tiles.row() + tiles.column_step;
    }

    GANFAST_DEVICE int64_t offset(int k) const { return first + k * step; }
};

// body(offset, packs) for all packs of a thread, one from each of N sources; BATCH of each are in flight at a time.
template <int BATCH, int WIDTH, int N, typename S, typename F>
GANFAST_DEVICE inline void for_each_pack_of(const Lane<WIDTH>& lane, const S* const (&from)[N], const F& body) {
    for (int first = 0; first < lane.packs; first += BATCH) {
        Pack<S, WIDTH> packs[BATCH][N];
        GANFAST_UNROLL(4)
        for (int b = 0; b < BATCH; ++b) {
            if (first + b >= lane.packs) continue;
            for (int n = 0; n < N; ++n) packs[b][n] = load<WIDTH>(from[n] + lane.offset(first + b));
        }
        GANFAST_UNROLL(4)
        for (int b = 0; b < BATCH; ++b) {
            if (first + b < lane.packs) body(lane.offset(first + b), packs[b]);
        }
    }
}

// ---- sums over a tile

// Of K terms for each column, K * WIDTH * BLOCK numbers. Every thread puts its own, they are added, and every thread takes them.
template <typename T, int WIDTH, int K>
struct ColumnSums {
    static constexpr int BLOCK = Tiles::BLOCK;
    T* sums;
    bool single;
    int across;

    GANFAST_DEVICE ColumnSums(T* sums, const Tiles& tiles) : sums(sums), single(tiles.single), across(tiles.across) {}

    GANFAST_DEVICE void put(int thread, const T (&terms)[K][WIDTH]) {
        for (int k = 0; k < K; ++k) {
            T sum = 0;
            for (int i = 0; i < WIDTH; ++i) {
                if (!single) sums[(k * WIDTH + i) * BLOCK + thread] = terms[k][i];
                sum += terms[k][i];
            }
            if (single) sums[k * BLOCK + thread] = sum;
        }
    }

    GANFAST_DEVICE void add() {
        if (single) {
            sum_over_threads<BLOCK, K>(sums);
        } else {
            sum_over_threads<BLOCK, K * WIDTH>(sums, across);
        }
    }

    GANFAST_DEVICE T take(int lane, int k, int i) const { return sums[single ? k * BLOCK : (k * WIDTH + i) * BLOCK + lane]; }
};

// body(channel, i) for every channel of a tile, by the thread whose column i it is
template <int WIDTH, typename F>
GANFAST_DEVICE inline void for_each_channel(const Tiles& tiles, const Tile& tile, int thread, const F& body) {
    if (thread >= (tiles.single ? 1 : tiles.across)) return;
    for (int i = 0; i < (tiles.single ? 1 : WIDTH); ++i) {
        const int column = thread * WIDTH + i;
        if (column < tile.columns) body(tile.channel + column, i);
    }
}

// ---- numbers of the channels of a tile

// mean, var (groups, channels), and weight and bias (channels), or neither.
template <typename T>
struct Statistics {
    const T *mean, *var, *weight, *bias;
    double eps;
};

// Numbers for every channel of a tile, in shared memory, BLOCK places each, those of neighbouring lanes side by side: mean, scale
// and bias of z = (x - mean) scale + bias, and others.
template <typename T, int WIDTH>
struct Numbers {
    static constexpr int BLOCK = Tiles::BLOCK;
    static_assert(Tiles::LANES * WIDTH <= BLOCK, "a thread for every channel");
    T* numbers;
    bool single;

    GANFAST_DEVICE Numbers(T* numbers, const Tiles& tiles) : numbers(numbers), single(tiles.single) {}

    // Each of the others (groups, channels).
    template <typename... Others>
    GANFAST_DEVICE void read(const Tiles& tiles, const Tile& tile, const Statistics<T>& from, const Others*... others) const {
        phase<BLOCK>([&](int thread) {
            if (thread >= (single ? 1 : tile.columns)) return;
            const int64_t channel = tile.channel + thread, at = tile.group * tiles.channels + channel;
            const T inverse = 1 / std::sqrt(from.var[at] + static_cast<T>(from.eps));
            const T scale = from.weight ? inverse * from.weight[channel] : inverse;
            T* to = numbers + place(thread / WIDTH, thread % WIDTH);
            for (const T number : {from.mean[at], scale, from.bias ? from.bias[channel] : T(0), others[at]...}) {
                *to = number;
                to += BLOCK;
            }
        });
    }

    GANFAST_DEVICE void take(int number, int lane, T (&to)[WIDTH]) const {
        for (int i = 0; i < WIDTH; ++i) to[i] = numbers[number * BLOCK + place(lane, i)];
    }

private:
    GANFAST_DEVICE int place(int lane, int i) const { return single ? 0 : i * Tiles::LANES + lane; }
};

// Those of one thread's columns.
template <typename T, int WIDTH>
struct Affine {
    T mean[WIDTH], scale[WIDTH], bias[WIDTH];

    GANFAST_DEVICE Affine(const Numbers<T, WIDTH>& numbers, int lane) {
        numbers.take(0, lane, mean);
        numbers.take(1, lane, scale);
        numbers.take(2, lane, bias);
    }

    template <typename S>
    GANFAST_DEVICE T deviation(const Pack<S, WIDTH>& x, int i) const {
        return static_cast<T>(x.element[i]) - mean[i];
    }
    GANFAST_DEVICE T z(T deviation, int i) const { return deviation * scale[i] + bias[i]; }
};

// ---- forward

// For each channel of a tile, how far its mean lies from the group's first value of the channel, and the sum of squared
// deviations from the tile's own mean. Neither cancels where the mean is large.
//
// Moves |x| bytes. A block reads one tile once, and the group's first row; the tile stays in registers for the squares.
template <typename S>
struct TileMoments {
    using T = Wide<S>;
    struct Arguments {
        Tiles tiles;
        const S* x;
        T* parts;
    };
    static constexpr int BLOCK = Tiles::BLOCK;
    static constexpr int WIDTH = 16 / sizeof(S);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(T, sums, WIDTH * BLOCK);
        GANFAST_SHARED(T, squares, WIDTH * BLOCK);
        if (arguments.tiles.pack == WIDTH) {
            run_in<WIDTH>(arguments, block, sums, squares);
        } else {
            run_in<1>(arguments, block, sums, squares);
        }
    }

    template <int W>
    struct Held {
        Pack<S, W> packs[Tiles::DEEP];
        T centre[W];

        GANFAST_DEVICE T deviation(int k, int i) const { return static_cast<T>(packs[k].element[i]) - centre[i]; }
    };

    template <int W>
    GANFAST_DEVICE static void run_in(const Arguments& arguments, int64_t block, T* shared_sums, T* shared_squares) {
        const Tiles& tiles = arguments.tiles;
        const Tile tile(tiles, block);
        const T count = static_cast<T>(tiles.values_of(tile.layer));
        const S* __restrict__ x = arguments.x;
        PerThread<Held<W>, BLOCK> held;
        ColumnSums<T, W, 1> sums(shared_sums, tiles), squares(shared_squares, tiles);
        phase<BLOCK>([&](int thread) {
            const Lane<W> lane(tiles, tile, thread);
            Held<W>& own = held[thread];
            GANFAST_UNROLL(8)
            for (int k = 0; k < Tiles::DEEP; ++k) {
                if (k < lane.packs) own.packs[k] = load<W>(x + lane.offset(k));
            }
            if (lane.packs) {
                const S* first = x + tile.group * tiles.rows * tiles.row() + tile.channel * tiles.run;
                if (tiles.single) {
                    GANFAST_UNROLL(8)
                    for (int i = 0; i < W; ++i) own.centre[i] = static_cast<T>(*first);
                } else {
                    const auto pack = load<W>(first + lane.column);
                    GANFAST_UNROLL(8)
                    for (int i = 0; i < W; ++i) own.centre[i] = static_cast<T>(pack.element[i]);
                }
            }
            T sum[1][W] = {};
            GANFAST_UNROLL(8)
            for (int k = 0; k < Tiles::DEEP; ++k) {
                if (k >= lane.packs) continue;
                GANFAST_UNROLL(8)
                for (int i = 0; i < W; ++i) sum[0][i] += own.deviation(k, i);
            }
            sums.put(thread, sum);
        });
        sums.add();
        phase<BLOCK>([&](int thread) {
            const Lane<W> lane(tiles, tile, thread);
            const Held<W>& own = held[thread];
            T off[W], square[1][W] = {};
            GANFAST_UNROLL(8)
            for (int i = 0; i < W; ++i) off[i] = sums.take(lane.lane, 0, i) / count;
            GANFAST_UNROLL(8)
            for (int k = 0; k < Tiles::DEEP; ++k) {
                if (k >= lane.packs) continue;
                GANFAST_UNROLL(8)
                for (int i = 0; i < W; ++i) {
                    const T d = own.deviation(k, i) - off[i];
                    square[0][i] += d * d;
                }
            }
            squares.put(thread, square);
        });
        squares.add();
        phase<BLOCK>([&](int thread) {
            for_each_channel<W>(tiles, tile, thread, [&](int64_t channel, int i) {
                T* part = arguments.parts + tiles.part(tile.group, tile.layer, channel);
                part[0] = sums.take(thread, 0, i) / count;
                part[tiles.channels] = squares.take(thread, 0, i);
            });
        });
    }
};

// The channels that one block merges, and how: `SHARERS` threads have a channel's layers in turn.
struct Merging {
    static constexpr int BLOCK = 256;
    static constexpr int CHANNELS = 8;  // 32 bytes side by side
    static constexpr int SHARERS = BLOCK / CHANNELS;

    // sums[k * BLOCK + c] = sum over the layers of what term(part, layer, thread, terms) sets terms[k] to, for channel first + c
    template <int K, typename T, typename F>
    GANFAST_DEVICE static void sum(const Tiles& tiles, int64_t group, int64_t first, const T* parts, double* sums,
                                   const F& term) {
        phase<BLOCK>([&](int thread) {
            const int64_t channel = first + thread % CHANNELS;
            double sum[K] = {};
            if (channel < tiles.channels) {
                GANFAST_UNROLL(2)
                for (int layer = thread / CHANNELS; layer < tiles.layers(); layer += SHARERS) {
                    double terms[K];
                    term(parts + tiles.part(group, layer, channel), layer, thread % CHANNELS, terms);
                    for (int k = 0; k < K; ++k) sum[k] += terms[k];
                }
            }
            for (int k = 0; k < K; ++k) sums[k * BLOCK + thread] = sum[k];
        });
        sum_over_threads<BLOCK, K>(sums, CHANNELS);
    }

    // body(channel) for the block's channels, by a thread each
    template <typename F>
    GANFAST_DEVICE static void for_each_channel(const Tiles& tiles, int64_t first, const F& body) {
        phase<BLOCK>([&](int thread) {
            if (thread < CHANNELS && first + thread < tiles.channels) body(thread, first + thread);
        });
    }
};

// mean and var of the groups' channels, of what their tiles found, and the running ones, which follow each group in turn.
//
// Moves the sums. A block reads those of 8 channels, of all groups, twice.
template <typename S>
struct Moments {
    using T = Wide<S>;
    struct Arguments {
        Tiles tiles;
        const S* x;
        const T* parts;
        T *mean, *var;
        Running<T> running;
        int64_t* counted;
    };
    static constexpr int BLOCK = Merging::BLOCK;

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(double, sums, BLOCK);
        GANFAST_SHARED(double, squares, BLOCK);
        const Tiles& tiles = arguments.tiles;
        const int64_t first = block * Merging::CHANNELS;
        for (int64_t group = 0; group < tiles.groups; ++group) merge(arguments, group, first, sums, squares);
        if (!arguments.running.mean) return;
        Merging::for_each_channel(tiles, first, [&](int, int64_t channel) {
            for (int64_t at = channel; at < tiles.groups * tiles.channels; at += tiles.channels) {
                arguments.running.follow(channel, arguments.mean[at], arguments.var[at]);
            }
            if (channel == 0 && arguments.counted) *arguments.counted += tiles.groups;
        });
    }

    GANFAST_DEVICE static void merge(const Arguments& arguments, int64_t group, int64_t first, double* sums, double* squares) {
        const Tiles& tiles = arguments.tiles;
        const double values = static_cast<double>(tiles.values());
        Merging::sum<1>(tiles, group, first, arguments.parts, sums, [&](const T* part, int layer, int, double* terms) {
            terms[0] = static_cast<double>(tiles.values_of(layer)) * part[0];
        });
        Merging::for_each_channel(tiles, first, [&](int c, int64_t) { sums[c] /= values; });
        Merging::sum<1>(tiles, group, first, arguments.parts, squares, [&](const T* part, int layer, int c, double* terms) {
            const double off = part[0] - sums[c];
            terms[0] = part[tiles.channels] + static_cast<double>(tiles.values_of(layer)) * off * off;
        });
        Merging::for_each_channel(tiles, first, [&](int c, int64_t channel) {
            const S centre = arguments.x[group * tiles.rows * tiles.row() + channel * tiles.run];
            const int64_t at = group * tiles.channels + channel;
            arguments.mean[at] = static_cast<T>(static_cast<T>(centre) + sums[c]);
            arguments.var[at] = static_cast<T>(squares[c] / values);
        });
    }
};

// y = act((x - mean) scale + bias).
//
// Moves |x| and |y| bytes. A block reads one tile, and the statistics and parameters of its channels. The last tiles come first:
// a cache may have them still.
template <typename S>
struct Activation {
    using T = Wide<S>;
    struct Arguments {
        Tiles tiles;
        Statistics<T> statistics;
        Either<T> act;
        const S* x;
        S* y;
    };
    static constexpr int BLOCK = Tiles::BLOCK;
    static constexpr int WIDTH = 16 / sizeof(S);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(T, numbers, 3 * BLOCK);
        if (arguments.tiles.pack == WIDTH) {
            run_in<WIDTH>(arguments, block, numbers);
        } else {
            run_in<1>(arguments, block, numbers);
        }
    }

    template <int W>
    GANFAST_DEVICE static void run_in(const Arguments& arguments, int64_t block, T* shared) {
        const Tiles& tiles = arguments.tiles;
        const Tile tile(tiles, tiles.count() - 1 - block);
        const Either<T> act = arguments.act;
        const Numbers<T, W> numbers(shared, tiles);
        numbers.read(tiles, tile, arguments.statistics);
        phase<BLOCK>([&](int thread) {
            const Lane<W> lane(tiles, tile, thread);
            const Affine<T, W> affine(numbers, lane.lane);
            for_each_pack_of<4>(lane, {arguments.x}, [&](int64_t at, const Pack<S, W>(&from)[1]) {
                Pack<S, W> y;
                GANFAST_UNROLL(8)
                for (int i = 0; i < W; ++i) y.element[i] = static_cast<S>(act(affine.z(affine.deviation(from[0], i), i)));
                store<W>(arguments.y + at, y);
            });
        });
    }
};

// ---- backward

// sum dz and sum dz (x - mean), for each channel of a tile.
//
// Moves |dy| and |x| bytes. A block reads one tile of both, and the statistics and parameters of its channels.
template <typename S>
struct TileGradients {
    using T = Wide<S>;
    struct Arguments {
        Tiles tiles;
        Statistics<T> statistics;
        Either<T> act;
        const S *dy, *x;
        T* parts;
    };
    static constexpr int BLOCK = Tiles::BLOCK;
    static constexpr int WIDTH = 16 / sizeof(S);
    static constexpr int BATCH = WIDTH > 4 ? 1 : 2;  // the sums and numbers of 8 columns leave registers for no more

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(T, numbers, 3 * BLOCK);
        GANFAST_SHARED(T, sums, 2 * WIDTH * BLOCK);
        if (arguments.tiles.pack == WIDTH) {
            run_in<WIDTH>(arguments, block, numbers, sums);
        } else {
            run_in<1>(arguments, block, numbers, sums);
        }
    }

    template <int W>
    GANFAST_DEVICE static void run_in(const Arguments& arguments, int64_t block, T* shared, T* shared_sums) {
        const Tiles& tiles = arguments.tiles;
        const Tile tile(tiles, block);
        const Either<T> act = arguments.act;
        const Numbers<T, W> numbers(shared, tiles);
        ColumnSums<T, W, 2> sums(shared_sums, tiles);
        numbers.read(tiles, tile, arguments.statistics);
        phase<BLOCK>([&](int thread) {
            const Lane<W> lane(tiles, tile, thread);
            const Affine<T, W> affine(numbers, lane.lane);
            T sum[2][W] = {};
            for_each_pack_of<BATCH>(lane, {arguments.dy, arguments.x}, [&](int64_t, const Pack<S, W>(&from)[2]) {
                GANFAST_UNROLL(8)
                for (int i = 0; i < W; ++i) {
                    const T d = affine.deviation(from[1], i);
                    const T dz = static_cast<T>(from[0].element[i]) * act.derivative(affine.z(d, i));
                    sum[0][i] += dz;
                    sum[1][i] += dz * d;
                }
            });
            sums.put(thread, sum);
        });
        sums.add();
        phase<BLOCK>([&](int thread) {
            for_each_channel<W>(tiles, tile, thread, [&](int64_t channel, int i) {
                T* part = arguments.parts + tiles.part(tile.group, tile.layer, channel);
                part[0] = sums.take(thread, 0, i);
                part[tiles.channels] = sums.take(thread, 1, i);
            });
        });
    }
};

// level = sum dz / m and tilt = sum(dz x^) / (m sqrt(var + eps)) of a group's channels, and dbias and dweight.
//
// Moves the sums. A block reads those of 8 channels, of all groups.
template <typename T>
struct Gradients {
    struct Arguments {
        Tiles tiles;
        Statistics<T> statistics;
        const T* parts;
        T *levels, *tilts, *dweight, *dbias;
    };
    static constexpr int BLOCK = Merging::BLOCK;

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(double, sums, 2 * BLOCK);
        const Tiles& tiles = arguments.tiles;
        const int64_t first = block * Merging::CHANNELS;
        const double values = static_cast<double>(tiles.values());
        PerThread<double, BLOCK> dweight, dbias;
        for (int64_t group = 0; group < tiles.groups; ++group) {
            Merging::sum<2>(tiles, group, first, arguments.parts, sums, [&](const T* part, int, int, double* terms) {
                terms[0] = part[0];
                terms[1] = part[tiles.channels];
            });
            Merging::for_each_channel(tiles, first, [&](int c, int64_t channel) {
                const int64_t at = group * tiles.channels + channel;
                const double inverse = 1 / std::sqrt(arguments.statistics.var[at] + arguments.statistics.eps);
                const double product = sums[BLOCK + c] * inverse;
                arguments.levels[at] = static_cast<T>(sums[c] / values);
                arguments.tilts[at] = static_cast<T>(product * inverse / values);
                dbias[c] += sums[c];
                dweight[c] += product;
            });
        }
        Merging::for_each_channel(tiles, first, [&](int c, int64_t channel) {
            arguments.dweight[channel] = static_cast<T>(dweight[c]);
            arguments.dbias[channel] = static_cast<T>(dbias[c]);
        });
    }
};

// dx = scale (dz - level - (x - mean) tilt).
//
// Moves |dy|, |x| and |dx| bytes. A block reads one tile of dy and x, and the statistics, parameters, levels and tilts of its
// channels. The last tiles come first: a cache may have them still.
template <typename S>
struct Gradient {
    using T = Wide<S>;
    struct Arguments {
        Tiles tiles;
        Statistics<T> statistics;
        Either<T> act;
        const T *levels, *tilts;
        const S *dy, *x;
        S* dx;
    };
    static constexpr int BLOCK = Tiles::BLOCK;
    static constexpr int WIDTH = 16 / sizeof(S);

    GANFAST_DEVICE static void run(const Arguments& arguments, int64_t block) {
        GANFAST_SHARED(T, numbers, 5 * BLOCK);
        if (arguments.tiles.pack == WIDTH) {
            run_in<WIDTH>(arguments, block, numbers);
        } else {
            run_in<1>(arguments, block, numbers);
        }
    }

    template <int W>
    GANFAST_DEVICE static void run_in(const Arguments& arguments, int64_t block, T* shared) {
        const Tiles& tiles = arguments.tiles;
        const Tile tile(tiles, tiles.count() - 1 - block);
        const Either<T> act = arguments.act;
        const Numbers<T, W> numbers(shared, tiles);
        numbers.read(tiles, tile, arguments.statistics, arguments.levels, arguments.tilts);
        phase<BLOCK>([&](int thread) {
            const Lane<W> lane(tiles, tile, thread);
            const Affine<T, W> affine(numbers, lane.lane);
            T level[W], tilt[W];
            numbers.take(3, lane.lane, level);
            numbers.take(4, lane.lane, tilt);
            for_each_pack_of<2>(lane, {arguments.dy, arguments.x}, [&](int64_t at, const Pack<S, W>(&from)[2]) {
                Pack<S, W> dx;
                GANFAST_UNROLL(8)
                for (int i = 0; i < W; ++i) {
                    const T d = affine.deviation(from[1], i);
                    const T dz = static_cast<T>(from[0].element[i]) * act.derivative(affine.z(d, i));
                    dx.element[i] = static_cast<S>(affine.scale[i] * (dz - level[i] - d * tilt[i]));
                }
                store<W>(arguments.dx + at, dx);
            });
        });
    }
};

}  // namespace ganfast

// The kernels of spectral norm on CUDA, without a launch; the maths is on the page ganfast/ops/spectral_norm.py.
//
// One launch serves up to 24 weights, whose addresses travel in the kernel's arguments: no pointer table is copied to the device,
// and a captured graph holds all that a replay needs. Every weight is cut into tiles, one tile a block. Tiles that share a result
// write partial sums, which the next launch adds up in their order: no atomics, the same bits in every run.
//
// S is the type a weight is stored in, T = Wide<S> the one that u, v, sigma and the sums have.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/block.h"
#include "../common/scalar.h"
#include "../common/weight_view.h"

namespace ganfast {

// ---- tiles

constexpr int THREADS = 256;
constexpr int ROWS = 8;                 // rows that a thread sums at once: as many loads in flight
constexpr int64_t SPLITS = 64;          // parts of one sum, at most: a single block adds them up
constexpr int64_t SPAN = 16 * THREADS;  // elements of a tile, at least, where shape does not matter
constexpr int64_t SPANS = 1024;         // such tiles of one weight, at most, and so parts of <G, W>

// A weight as `down` by `across` tiles of `rows` by `width`, numbered row by row.
struct Tiling {
    int64_t rows, width, down, across;
    GANFAST_HOST_DEVICE int64_t count() const { return down * across; }
};

// `length` in equal pieces of at most `most`, or of more where that would be more pieces than SPLITS.
GANFAST_HOST_DEVICE inline int64_t piece(int64_t length, int64_t most) {
    const int64_t pieces = at_least(1, at_most(SPLITS, ceil_div(length, most)));
    return at_least(1, ceil_div(length, pieces));
}

// Few rows and much of y: for sums along y.
GANFAST_HOST_DEVICE inline Tiling along_y(const WeightView& view) {
    const int64_t width = piece(view.y_length(), 4 * THREADS);
    return {ROWS, width, ceil_div(view.rows, ROWS), ceil_div(view.y_length(), width)};
}

// One position of y for each thread and many rows: for sums along x.
GANFAST_HOST_DEVICE inline Tiling along_x(const WeightView& view) {
    const int64_t rows = piece(view.rows, 4 * ROWS);
    return {rows, THREADS, ceil_div(view.rows, rows), ceil_div(view.y_length(), THREADS)};
}

// Elements of one tile where only their number matters.
GANFAST_HOST_DEVICE inline int64_t span(int64_t elements) { return at_least(SPAN, ceil_div(elements, SPANS)); }

// The rows and the positions of y that are in tile `number`.
struct Rectangle {
    int64_t row, row_end, begin, end;
    GANFAST_DEVICE Rectangle(const WeightView& view, const Tiling& tiling, int64_t number)
        : row(number / tiling.across * tiling.rows),
          row_end(at_most(row + tiling.rows, view.rows)),
          begin(number % tiling.across * tiling.width),
          end(at_most(begin + tiling.width, view.y_length())) {}
};

// The elements, in the order of memory, that are in tile `number`.
struct Span {
    int64_t begin, end;
    GANFAST_DEVICE Span(const WeightView& view, int64_t number)
        : begin(number * span(view.elements())), end(at_most(begin + span(view.elements()), view.elements())) {}
};

// ---- the weights of one launch

struct Iterated {
    int64_t first_tile;
    const void* weight;
    const void *u, *v;    // before, in the order of W
    void *new_u, *new_v;  // may be u and v
    void* sums;           // [part][element], of what is to be u or v, in the order of memory
    WeightView view;
};

struct Divided {
    int64_t first_tile;
    const void *weight, *grad, *u, *v;
    void* out;
    double* parts;  // of <G, W>, one for each span of elements
    WeightView view;
};

// `weights[i]` owns the tiles from its first one to the next weight's.
template <typename Record>
struct Group {
    static constexpr int CAPACITY = 24;
    int count;
    double eps;
    void* sigmas;
    bool of_u;  // u <- W v; otherwise v <- W^T u
    Record weights[CAPACITY];

    GANFAST_DEVICE const Record& owner(int64_t tile) const {
        int i = 0;
        while (i + 1 < count && weights[i + 1].first_tile <= tile) ++i;
        return weights[i];
    }
    GANFAST_DEVICE int64_t index(const Record& record) const { return &record - weights; }
};

// ---- the power iteration

// The product that is to be u or v, as its parts, in the order of memory.
template <typename T>
struct Sums {
    const T* parts;
    int64_t length, splits;
    bool is_y;
    WeightView view;

    GANFAST_DEVICE Sums(const Iterated& weight, bool of_u)
        : parts(static_cast<const T*>(weight.sums)), is_y(weight.view.transposed == of_u), view(weight.view) {
        length = is_y ? view.y_length() : view.rows;
        splits = is_y ? along_x(view).down : along_y(view).across;
    }

    GANFAST_DEVICE T operator[](int64_t i) const {
        T sum = 0;
        GANFAST_UNROLL(8)
        for (int64_t s = 0; s < splits; ++s) sum += parts[s * length + i];
        return sum;
    }

    // Where the vector has element i.
    GANFAST_DEVICE int64_t position(int64_t i) const { return is_y ? view.logical(i) : i; }
};

// sums = W v, or W^T u, in parts.
//
// Moves |W| bytes. A block reads one tile of one weight, and what of u or v belongs to it. For a sum along y that is 8 rows: a
// thread takes every 256th position, keeps the element of y and adds to 8 sums, which the block then reduces. For a sum along x a
// thread has one position of y and goes down the rows, x in shared memory. Neighbouring threads read neighbouring elements.
template <typename S>
struct Product {
    using T = Wide<S>;
    using Arguments = Group<Iterated>;
    static constexpr int BLOCK = THREADS;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        const Iterated& weight = group.owner(block);
        const S* w = static_cast<const S*>(weight.weight);
        const T* factor = static_cast<const T*>(group.of_u ? weight.v : weight.u);
        T* sums = static_cast<T*>(weight.sums);
        if (weight.view.transposed == group.of_u) {
            sum_along_x(w, weight.view, block - weight.first_tile, factor, sums);
        } else {
            sum_along_y(w, weight.view, block - weight.first_tile, factor, sums);
        }
    }

    GANFAST_DEVICE static void sum_along_y(const S* __restrict__ w, const WeightView& view, int64_t tile, const T* __restrict__ y,
                                           T* __restrict__ x) {
        GANFAST_SHARED(T, sums, ROWS * BLOCK);
        const Tiling tiling = along_y(view);
        const Rectangle part(view, tiling, tile);
        phase<BLOCK>([&](int thread) {
            T sum[ROWS] = {};
            for (int64_t j = part.begin + thread; j < part.end; j += BLOCK) {
                const T factor = y[view.logical(j)];
                const S* column = w + view.offset(j) + part.row * view.columns;
                GANFAST_UNROLL(8)
                for (int r = 0; r < ROWS; ++r) {
                    if (part.row + r < part.row_end) sum[r] += static_cast<T>(column[r * view.columns]) * factor;
                }
            }
            GANFAST_UNROLL(8)
            for (int r = 0; r < ROWS; ++r) sums[r * BLOCK + thread] = sum[r];
        });
        sum_over_threads<BLOCK, ROWS>(sums);
        phase<BLOCK>([&](int thread) {
            const int64_t r = part.row + thread;
            if (r < part.row_end) x[tile % tiling.across * view.rows + r] = sums[thread * BLOCK];
        });
    }

    GANFAST_DEVICE static void sum_along_x(const S* __restrict__ w, const WeightView& view, int64_t tile, const T* __restrict__ x,
                                           T* __restrict__ y) {
        GANFAST_SHARED(T, factors, BLOCK);
        PerThread<T, BLOCK> sum;
        const Tiling tiling = along_x(view);
        const Rectangle part(view, tiling, tile);
        for (int64_t row = part.row; row < part.row_end; row += BLOCK) {
            const int64_t rows = at_most(BLOCK, part.row_end - row);
            phase<BLOCK>([&](int thread) {
                if (thread < rows) factors[thread] = x[row + thread];
            });
            phase<BLOCK>([&](int thread) {
                const int64_t j = part.begin + thread;
                if (j >= part.end) return;
                const S* column = w + view.offset(j) + row * view.columns;
                GANFAST_UNROLL(8)
                for (int r = 0; r < rows; ++r) sum[thread] += static_cast<T>(column[r * view.columns]) * factors[r];
            });
        }
        phase<BLOCK>([&](int thread) {
            const int64_t j = part.begin + thread;
            if (j < part.end) y[tile / tiling.across * view.y_length() + j] = sum[thread];
        });
    }
};

// u = sums / |sums|, or v so, and sigma = |sums|; a vector whose sums have length eps or less stays as it was.
//
// Moves the vectors, in parts and whole. A block has one weight's, whose sums it reads twice.
template <typename T>
struct Direction {
    using Arguments = Group<Iterated>;
    static constexpr int BLOCK = 512;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        GANFAST_SHARED(double, squares, BLOCK);
        const Iterated& weight = group.weights[block];
        const Sums<T> sums(weight, group.of_u);
        const T norm = static_cast<T>(std::sqrt(sum_over_elements<BLOCK>(sums.length, squares, [&](int64_t i) {
            const double element = sums[i];
            return element * element;
        })));
        const T* before = static_cast<const T*>(group.of_u ? weight.u : weight.v);
        T* after = static_cast<T*>(group.of_u ? weight.new_u : weight.new_v);
        phase<BLOCK>([&](int thread) {
            for (int64_t i = thread; i < sums.length; i += BLOCK) {
                const int64_t at = sums.position(i);
                after[at] = norm <= group.eps ? before[at] : sums[i] / norm;
            }
            if (thread == 0) static_cast<T*>(group.sigmas)[block] = norm;
        });
    }
};

// sigma = <u, sums> for the sums W v; u and v as they were.
//
// Moves the vectors, and the sums in parts. A block has one weight's.
template <typename T>
struct Projection {
    using Arguments = Group<Iterated>;
    static constexpr int BLOCK = 512;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        GANFAST_SHARED(double, products, BLOCK);
        const Iterated& weight = group.weights[block];
        const Sums<T> sums(weight, true);
        const T *u = static_cast<const T*>(weight.u), *v = static_cast<const T*>(weight.v);
        const double sigma = sum_over_elements<BLOCK>(
            sums.length, products, [&](int64_t i) { return static_cast<double>(sums[i]) * u[sums.position(i)]; });
        const int64_t v_length = sums.is_y ? weight.view.rows : weight.view.y_length();
        phase<BLOCK>([&](int thread) {
            for (int64_t i = thread; i < sums.length; i += BLOCK) static_cast<T*>(weight.new_u)[i] = u[i];
            for (int64_t i = thread; i < v_length; i += BLOCK) static_cast<T*>(weight.new_v)[i] = v[i];
            if (thread == 0) static_cast<T*>(group.sigmas)[block] = static_cast<T>(sigma);
        });
    }
};

// ---- the division, and its gradient

template <typename T>
GANFAST_DEVICE inline T scale_of(T sigma, double eps) {
    return std::abs(sigma) <= eps ? T(1) : sigma;
}

// out = W / sigma, in the type O, or W itself where |sigma| is at most eps.
//
// Moves |W| and |out| bytes. A block reads one span of one weight, and its sigma.
template <typename S, typename O>
struct Division {
    using T = Wide<S>;
    using Arguments = Group<Divided>;
    static constexpr int BLOCK = THREADS;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        const Divided& weight = group.owner(block);
        const Span part(weight.view, block - weight.first_tile);
        const T scale = scale_of(static_cast<const T*>(group.sigmas)[group.index(weight)], group.eps);
        const S* __restrict__ w = static_cast<const S*>(weight.weight);
        O* __restrict__ out = static_cast<O*>(weight.out);
        phase<BLOCK>([&](int thread) {
            GANFAST_UNROLL(8)
            for (int64_t e = part.begin + thread; e < part.end; e += BLOCK) out[e] = static_cast<O>(static_cast<T>(w[e]) / scale);
        });
    }
};

// parts = <G, W>, one sum for each span; G is of the type O.
//
// Moves |W| and |G| bytes. A block reads one span of both.
template <typename S, typename O>
struct InnerProduct {
    using T = Wide<S>;
    using Arguments = Group<Divided>;
    static constexpr int BLOCK = THREADS;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        GANFAST_SHARED(double, sums, BLOCK);
        const Divided& weight = group.owner(block);
        const Span part(weight.view, block - weight.first_tile);
        const S* __restrict__ w = static_cast<const S*>(weight.weight);
        const O* __restrict__ g = static_cast<const O*>(weight.grad);
        phase<BLOCK>([&](int thread) {
            T sum = 0;
            GANFAST_UNROLL(8)
            for (int64_t e = part.begin + thread; e < part.end; e += BLOCK) sum += static_cast<T>(w[e]) * static_cast<T>(g[e]);
            sums[thread] = sum;
        });
        sum_over_threads<BLOCK, 1>(sums);
        phase<BLOCK>([&](int thread) {
            if (thread == 0) weight.parts[block - weight.first_tile] = sums[0];
        });
    }
};

// out = G / sigma - (<G, W> / sigma^2) u v^T, or G where |sigma| is at most eps; G is of the type O.
//
// Moves |G| and |W| bytes. A block reads the parts of <G, W>, at most 1024, and one tile of G, of u and of v: 8 rows, of which
// a thread takes every 256th position of y and keeps that element.
template <typename S, typename O>
struct WeightGradient {
    using T = Wide<S>;
    using Arguments = Group<Divided>;
    static constexpr int BLOCK = THREADS;

    GANFAST_DEVICE static void run(const Arguments& group, int64_t block) {
        GANFAST_SHARED(double, sums, BLOCK);
        const Divided& weight = group.owner(block);
        const WeightView view = weight.view;
        const Rectangle part(view, along_y(view), block - weight.first_tile);
        const int64_t parts = ceil_div(view.elements(), span(view.elements()));
        const double inner = sum_over_elements<BLOCK>(parts, sums, [&](int64_t i) { return weight.parts[i]; });
        const T sigma = static_cast<const T*>(group.sigmas)[group.index(weight)], inverse = 1 / scale_of(sigma, group.eps);
        const double square = static_cast<double>(sigma) * sigma;
        const T c = std::abs(sigma) <= group.eps ? T(0) : static_cast<T>(inner / square);
        const O* __restrict__ g = static_cast<const O*>(weight.grad);
        const T* __restrict__ x = static_cast<const T*>(view.transposed ? weight.v : weight.u);
        const T* __restrict__ y = static_cast<const T*>(view.transposed ? weight.u : weight.v);
        S* __restrict__ out = static_cast<S*>(weight.out);
        phase<BLOCK>([&](int thread) {
            for (int64_t j = part.begin + thread; j < part.end; j += BLOCK) {
                const T factor = c * y[view.logical(j)];
                const int64_t first = view.offset(j);
                GANFAST_UNROLL(8)
                for (int r = 0; r < ROWS; ++r) {
                    if (part.row + r >= part.row_end) continue;
                    const int64_t at = first + (part.row + r) * view.columns;
                    out[at] = static_cast<S>(static_cast<T>(g[at]) * inverse - factor * x[part.row + r]);
                }
            }
        });
    }
};

}  // namespace ganfast

// Convolutions of big maps with few channels, images most of all, whose pixels are too short to be rows of a product: the taps of
// a kernel's row take the place of channels, the products of all taps are added where they belong, or pixels lie in planes.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "panels.h"

namespace ganfast {

constexpr int64_t FEW = 16;

// A copy of big with its padding, so that the pixels that a row of the kernel reads are neighbours in memory.
template <typename S>
class Padded {
public:
    const int64_t height, width;

    Padded(const S* big, const Geometry& g)
        : height(g.stride * (g.h - 1) + g.height),
          width(g.stride * (g.w - 1) + g.width),
          memory_(g.samples * height * width * g.b * sizeof(S)) {
        // a kernel that steps far may reach less than the padding
        const int64_t line = width * g.b, left = g.padding * g.b;
        const int64_t inside = std::max<int64_t>(0, std::min(g.W, width - g.padding)) * g.b;
        for_each_task(g.samples, [&](int64_t n) {
            S* out = data() + n * height * line;
            std::memset(static_cast<void*>(out), 0, height * line * sizeof(S));
            for (int64_t y = 0; y < std::min(g.H, height - g.padding); ++y) {
                std::memcpy(static_cast<void*>(out + (y + g.padding) * line + left), big + (n * g.H + y) * g.W * g.b,
                            inside * sizeof(S));
            }
        });
    }

    S* data() const { return reinterpret_cast<S*>(memory_.bytes()); }

private:
    Scratch memory_;
};

// The same convolution with the taps of a kernel's row as channels: big is padded, its pixels overlap.
inline Geometry merged(const Geometry& g, int64_t height, int64_t width) {
    return {g.samples, g.a, g.h, g.w, g.b * g.width, height, width, g.height, 1, g.stride, 0};
}

// ---- big

// to[j apart + c] += from[j stride + c] for j < count and c < length, every `turns`-th j after the other: two that follow one
// another do not overlap then, so that nothing waits for what was just written. From there up to a multiple of 4 what is in
// `from` is left out: it is the product of zeros with what may be no number.
GANFAST_SIMD inline void fold(const float* from, int64_t stride, int64_t count, int64_t length, int64_t turns, int64_t apart,
                              float* to) {
    typedef float Four __attribute__((vector_size(16)));
    typedef int32_t Mask __attribute__((vector_size(16)));
    const int64_t last = (length - 1) / 4 * 4;
    Mask kept;
    for (int64_t c = 0; c < 4; ++c) kept[c] = last + c < length ? -1 : 0;
    for (int64_t turn = 0; turn < turns; ++turn) {
        for (int64_t j = turn; j < count; j += turns) {
            for (int64_t c = 0; c <= last; c += 4) {
                Four sum, more;
                std::memcpy(&sum, to + j * apart + c, sizeof sum);
                std::memcpy(&more, from + j * stride + c, sizeof more);
                if (c == last) more = kept ? more : Four{};
                sum += more;
                std::memcpy(to + j * apart + c, &sum, sizeof sum);
            }
        }
    }
}

// big of few channels: the products of every pixel of small with all of the weight, which are added where they belong.
template <typename S>
void fold_to_big(const S* small, const Weight<S>& weight, const Finish& finish, const Geometry& g, S* big) {
    const Tile& tile = tile_for(PER_WORD<S> == 2, g.h * g.w);
    // the columns of a row of the kernel, which are neighbours, with zeros up to a multiple of 4
    const int64_t run = ceil_div(g.width * g.b, 4) * 4, columns = g.height * run, pixels = g.h * g.w, words = words_of<S>(g.a);
    const Panels panels{1, words, tile.columns, ceil_div(columns, tile.columns)};
    const Scratch packed(panels.bytes());
    weight.visit([&](const auto* numbers) {
        using W = std::decay_t<decltype(*numbers)>;
        std::vector<W> spread(g.a * columns);
        for (int64_t row = 0; row < g.a * g.height; ++row) {
            std::copy_n(numbers + row * g.width * g.b, g.width * g.b, spread.data() + row * run);
        }
        for_each_task(panels.count, [&](int64_t panel) {
            const int64_t first = panel * tile.columns;
            const S* const type = nullptr;
            pack_columns(type, static_cast<const W*>(spread.data() + first), columns, words,
                         std::min(tile.columns, columns - first), tile.columns, packed.bytes() + panel * panels.bytes_each());
        });
    });
    std::vector<float> bias;
    for (int64_t i = 0; finish.bias && i < g.W * g.b; ++i) bias.push_back(finish.bias[i % g.b]);
    const Finish of_line{finish.bias ? bias.data() : nullptr, finish.slope};

    for_each_task(g.samples, [&](int64_t n) {
        const int64_t stride = panels.count * tile.columns, left = g.padding * g.b;
        const int64_t line = std::max(g.stride * (g.w - 1) * g.b + run, left + g.W * g.b);  // with its padding
        const Scratch memory((ceil_div(pixels, tile.rows) * tile.rows * stride + g.H * line) * sizeof(float));
        float *const products = memory.floats(), *const sums = products + ceil_div(pixels, tile.rows) * tile.rows * stride;
        std::fill_n(sums, g.H * line, 0.0f);
        alignas(64) float of_tile[MOST_ROWS * MOST_COLUMNS];
        for (int64_t first = 0; first < pixels; first += tile.rows) {
            const char* lines[MOST_ROWS];
            for (int64_t r = 0; r < tile.rows; ++r) {
                lines[r] = reinterpret_cast<const char*>(small + (n * pixels + std::min(first + r, pixels - 1)) * g.a);
            }
            const char* const next = lines[0] + tile.rows * words * WORD;  // on its way into a near cache meanwhile
            for (int64_t at = 0; at < tile.rows * words * WORD; at += 64) __builtin_prefetch(next + at);
            for (int64_t panel = 0; panel < panels.count; ++panel) {
                tile.multiply(lines, 0, 1, words, WORD, packed.bytes() + panel * panels.bytes_each(), of_tile, 0);
                for (int64_t r = 0; r < tile.rows; ++r) {
                    std::copy_n(of_tile + r * tile.columns, tile.columns, products + (first + r) * stride + panel * tile.columns);
                }
            }
        }
        for (int64_t i = 0; i < g.h; ++i) {
            for (int64_t ky = 0; ky < g.height; ++ky) {
                const int64_t y = g.stride * i - g.padding + ky;
                if (y < 0 || y >= g.H) continue;
                fold(products + i * g.w * stride + ky * run, stride, g.w, g.width * g.b, ceil_div(g.width, g.stride),
                     g.stride * g.b, sums + y * line);
            }
        }
        for (int64_t y = 0; y < g.H; ++y) {
            S* const to = big + (n * g.H + y) * g.W * g.b;
            store(sums + y * line + left, 1, g.W * g.b, g.W * g.b, of_line, &to);
        }
    });
}

// ---- the weight's gradient

constexpr int64_t BLOCK = 256;  // pixels of small that are summed over before the next ones: their panel stays in a near cache
constexpr int64_t SPLITS = 16;  // parts of all pixels, at most, that are summed apart where there are few panels

// The pixels of big, of few channels, as a plane for each channel and phase: [sample][channel][y % stride][x % stride][y][x],
// with zeros for padding. What a tap and a channel meet at a row of small is a run of memory then.
template <typename S>
class Planes {
public:
    Planes(const S* big, const Geometry& g)
        : g_(g),
          height_(g.h + (g.height - 1) / g.stride),
          width_(g.w + (g.width - 1) / g.stride),
          each_(g.b * g.stride * g.stride * height_ * width_),
          memory_(g.samples * each_ * sizeof(S)) {
        for_each_task(g.samples, [&](int64_t n) {
            S* const planes = reinterpret_cast<S*>(memory_.bytes()) + n * each_;
            std::memset(static_cast<void*>(planes), 0, each_ * sizeof(S));
            for (int64_t y = 0; y < std::min(g.H, g.stride * height_ - g.padding); ++y) {
                for (int64_t x = 0; x < std::min(g.stride, g.W); ++x) {  // and every `stride`-th pixel after it
                    const int64_t count = std::min(ceil_div(g.W - x, g.stride), width_ - (x + g.padding) / g.stride);
                    const S* const from = big + ((n * g.H + y) * g.W + x) * g.b;
                    for (int64_t c = 0; c < g.b; ++c) {
                        S* const to = planes + offset(c, y + g.padding, x + g.padding);
                        for (int64_t i = 0; i < count; ++i) to[i] = from[i * g.stride * g.b + c];
                    }
                }
            }
        });
    }

    // Where in a sample's planes a channel of a padded pixel lies.
    int64_t offset(int64_t c, int64_t y, int64_t x) const {
        const int64_t plane = (c * g_.stride + y % g_.stride) * g_.stride + x % g_.stride;
        return (plane * height_ + y / g_.stride) * width_ + x / g_.stride;
    }

    const char* bytes() const { return memory_.bytes(); }
    int64_t bytes_each() const { return each_ * sizeof(S); }

private:
    const Geometry g_;
    const int64_t height_, width_, each_;
    Scratch memory_;
};

// The same where big has few channels: the weight's columns are the rows of the product then, and small's channels its columns.
template <typename S, typename G>
void few_to_weight(const Pixels<S>& small, const S* big, const Geometry& g, G* weight) {
    constexpr int64_t N = PER_WORD<S>;
    const int64_t columns = g.columns();
    const Tile& tile = tile_for(N == 2, columns);
    const Planes<S> planes(big, g);
    const int64_t heights = ceil_div(columns, tile.rows), panels = ceil_div(g.a, tile.columns);
    const int64_t words = g.w / N, sums_each = heights * tile.rows * tile.columns;

    const int64_t most = std::max<int64_t>(1, BLOCK / words), blocks = ceil_div(g.h, most);  // rows of small at a time
    std::vector<const char*> lines;  // by tile of columns and row of small
    for (int64_t height = 0; height < heights; ++height) {
        for (int64_t i = 0; i < g.h * tile.rows; ++i) {
            const int64_t column = std::min(height * tile.rows + i % tile.rows, columns - 1), tap = column / g.b;
            const int64_t at = planes.offset(column % g.b, tap / g.width + i / tile.rows * g.stride, tap % g.width);
            lines.push_back(planes.bytes() + at * static_cast<int64_t>(sizeof(S)));
        }
    }

    const int64_t splits = std::min(SPLITS, g.samples * blocks);
    const Scratch partial(splits * panels * sums_each * sizeof(float));
    for_each_task(splits, [&](int64_t split) {
        float* const sums = partial.floats() + split * panels * sums_each;
        std::fill_n(sums, panels * sums_each, 0.0f);
        const Scratch packed(most * words * tile.columns * WORD);
        const Scratch memory(small.lie_otherwise() ? most * g.w * g.a * sizeof(S) : 0);
        for (int64_t i = split * g.samples * blocks / splits; i < (split + 1) * g.samples * blocks / splits; ++i) {
            const int64_t n = i / blocks, row = i % blocks * most, rows = std::min(most, g.h - row);
            const S* const lying = small.data() + (n * g.h + row) * g.w * g.a;
            const S* const pixels = small.run(lying, rows * g.w, reinterpret_cast<S*>(memory.bytes()));
            for (int64_t panel = 0; panel < panels; ++panel) {
                const int64_t first = panel * tile.columns, width = std::min(tile.columns, g.a - first);
                pack_columns(static_cast<const S*>(nullptr), pixels + first, g.a, rows * words, width, tile.columns,
                             packed.bytes());
                for (int64_t height = 0; height < heights; ++height) {
                    // a part of the next pixels, on its way into a near cache meanwhile
                    const int64_t bytes = rows * g.w * g.a * sizeof(S), part = panel * heights + height, parts = panels * heights;
                    const char* const next = reinterpret_cast<const char*>(lying) + bytes;
                    for (int64_t at = part * bytes / parts; at < (part + 1) * bytes / parts; at += 64)
                        __builtin_prefetch(next + at);
                    alignas(64) float product[MOST_ROWS * MOST_COLUMNS];
                    tile.multiply(lines.data() + (height * g.h + row) * tile.rows, n * planes.bytes_each(), rows, words, WORD,
                                  packed.bytes(), product, 0);
                    add(product, sums + panel * sums_each + height * tile.rows * tile.columns, tile.rows * tile.columns);
                }
            }
        }
    });
    for (int64_t split = 1; split < splits; ++split) {
        add(partial.floats() + split * panels * sums_each, partial.floats(), panels * sums_each);
    }
    for (int64_t a = 0; a < g.a; ++a) {
        const float* const sums = partial.floats() + a / tile.columns * sums_each + a % tile.columns;
        for (int64_t c = 0; c < columns; ++c) weight[a * columns + c] = static_cast<G>(sums[c * tile.columns]);
    }
}

}  // namespace ganfast

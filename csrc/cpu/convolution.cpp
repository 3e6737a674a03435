// Convolutions of two dimensions on the CPU, as products of rows with panels of columns; the maths is on the page
// ganfast/ops/convolution.py.
//
// Maps lie channels last, so the channels of a pixel are a run of memory, and a convolution is a matrix product whose rows need
// not be gathered: a tile (tile.h) is told where each of its rows begins, for each tap of the kernel. Pixels outside of the map
// are a run of zeros. Weights are packed into panels of columns first. Every number of a result is one sum in a fixed order,
// whatever the number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "factors.h"
#include "few_channels.h"

namespace ganfast {
namespace {

// Pixels in memory: the words of one are neighbours.
struct Map {
    const char* data;
    int64_t height, width;
    int64_t pixel;  // bytes
};

// Along one axis, of a map that is read and one that is written: outputs first + out_step q for q < count read inputs
// at[t] + in_step q by the taps[t]. Outputs that read by the same taps are a phase.
struct Phase {
    int64_t first, count;
    std::vector<int64_t> taps, at;
};

struct Axis {
    int64_t out_step, in_step;
    std::vector<Phase> phases;

    static Axis gathering(int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
        Phase phase{0, out, {}, {}};
        for (int64_t t = 0; t < kernel; ++t) {
            phase.taps.push_back(t);
            phase.at.push_back(t - padding);
        }
        return {1, stride, {phase}};
    }

    static Axis scattering(int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
        Axis axis{stride, 1, {}};
        for (int64_t first = 0; first < std::min(stride, out); ++first) {
            Phase phase{first, ceil_div(out - first, stride), {}, {}};
            for (int64_t t = (first + padding) % stride; t < kernel; t += stride) {
                phase.taps.push_back(t);
                phase.at.push_back((first + padding - t) / stride);  // without remainder
            }
            axis.phases.push_back(phase);
        }
        return axis;
    }
};

// Taps of a kernel, row by row.
std::vector<int64_t> taps_of(const Phase& rows, const Phase& columns, int64_t width) {
    std::vector<int64_t> taps;
    for (const int64_t y : rows.taps) {
        for (const int64_t x : columns.taps) taps.push_back(y * width + x);
    }
    return taps;
}

// ---- rows times panels

// A pixel (n, y, x) of samples of height times width pixels, and the ones after it in turn.
struct Pixel {
    int64_t height, width;
    int64_t n, y, x;

    Pixel(int64_t number, int64_t height, int64_t width)
        : height(height), width(width), n(number / (height * width)), y(number / width % height), x(number % width) {}

    void advance() {
        if (++x < width) return;
        x = 0;
        if (++y < height) return;
        y = 0;
        ++n;
    }
};

constexpr int64_t SUMMED = 2048;  // words in one sum, whose rounding grows with them; longer sums are made of several
constexpr int64_t CHUNK = 256;    // rows that go through all panels together: what they read stays in the second-level cache

// out = the products of in's rows with the panels that pack(taps, panels, panel, memory) makes, for every phase of the two axes.
template <typename S, typename Pack>
void multiply(const Map& in, int64_t samples, int64_t channels, const Axis& rows, const Axis& columns, int64_t kernel_width,
              const Pack& pack, const Finish& finish, S* out, int64_t out_height, int64_t out_width, int64_t out_channels) {
    const Tile& tile = tile_for(PER_WORD<S> == 2, samples * rows.phases[0].count * columns.phases[0].count);
    struct Part {
        const Phase *y, *x;
        std::vector<int64_t> taps;
        Panels panels;
        char* packed;
        int64_t rows, chunks;
    };
    std::vector<Part> parts;
    int64_t bytes = 0, most_chunks = 1;
    const int64_t step = CHUNK / tile.rows * tile.rows, words = words_of<S>(channels);
    for (const Phase& y : rows.phases) {
        for (const Phase& x : columns.phases) {
            std::vector<int64_t> taps = taps_of(y, x, kernel_width);
            const Panels panels{static_cast<int64_t>(taps.size()), words, tile.columns, ceil_div(out_channels, tile.columns)};
            const int64_t outputs = samples * y.count * x.count;
            parts.push_back({&y, &x, std::move(taps), panels, nullptr, outputs, ceil_div(outputs, step)});
            bytes += panels.bytes();
            most_chunks = std::max(most_chunks, parts.back().chunks);
        }
    }
    const int64_t panels = ceil_div(out_channels, tile.columns), kinds = static_cast<int64_t>(parts.size());
    const Scratch packed(bytes), zeros(words * WORD);
    std::memset(zeros.bytes(), 0, words * WORD);
    char* next = packed.bytes();
    for (Part& part : parts) {
        part.packed = next;
        next += part.panels.bytes();
    }
    for_each_task(kinds * panels, [&](int64_t task) {
        const Part& part = parts[task / panels];
        const int64_t panel = task % panels;
        pack(part.taps, part.panels, panel, part.packed + panel * part.panels.bytes_each());
    });

    // groups of panels, where there are too few rows to keep all threads busy
    const int64_t groups = std::clamp<int64_t>(ceil_div(4 * torch::stable::get_num_threads(), kinds * most_chunks), 1, panels);
    for_each_task(kinds * most_chunks * groups, [&](int64_t task) {
        const Part& part = parts[task / (most_chunks * groups)];
        const int64_t chunk = task / groups % most_chunks, group = task % groups;
        const int64_t first = chunk * step, end = std::min(part.rows, first + step);
        if (first >= end) return;
        const int64_t taps = part.panels.taps, tiles = ceil_div(end - first, tile.rows);
        std::vector<const char*> lines(tiles * taps * tile.rows, zeros.bytes());
        std::vector<S*> written(end - first);
        Pixel at(first, part.y->count, part.x->count);
        for (int64_t row = first, place = 0; row < end; ++row, at.advance()) {
            const int64_t y = part.y->first + rows.out_step * at.y, x = part.x->first + columns.out_step * at.x;
            written[row - first] = out + ((at.n * out_height + y) * out_width + x) * out_channels;
            const char** line = lines.data() + place;
            for (const int64_t from_y : part.y->at) {
                const int64_t in_y = from_y + rows.in_step * at.y;
                const char* const in_row = in.data + (at.n * in.height + in_y) * in.width * in.pixel;
                for (const int64_t from_x : part.x->at) {
                    const int64_t in_x = from_x + columns.in_step * at.x;
                    const bool inside = in_y >= 0 && in_y < in.height && in_x >= 0 && in_x < in.width;
                    if (inside) *line = in_row + in_x * in.pixel;
                    line += tile.rows;
                }
            }
            if (++place % tile.rows == 0) place += (taps - 1) * tile.rows;  // to the next tile
        }
        const int64_t taps_each = std::max<int64_t>(1, SUMMED / words), words_each = std::min(words, SUMMED);
        alignas(64) float sums[MOST_ROWS * MOST_COLUMNS], more[MOST_ROWS * MOST_COLUMNS];
        for (int64_t panel = group * panels / groups; panel < (group + 1) * panels / groups; ++panel) {
            const int64_t column = panel * tile.columns, width = std::min(tile.columns, out_channels - column);
            const char* const of_panel = part.packed + panel * part.panels.bytes_each();
            for (int64_t i = 0; i < tiles; ++i) {
                const char* const* const of_tile = lines.data() + i * taps * tile.rows;
                for (int64_t tap = 0; tap == 0 || tap < taps; tap += taps_each) {  // pixels without a tap have sums of nothing
                    for (int64_t word = 0; word < words; word += words_each) {
                        const bool first_part = tap + word == 0;
                        const char* const of_part = of_panel + (tap * words + word) * tile.columns * WORD;
                        tile.multiply(of_tile + tap * tile.rows, word * WORD, std::min(taps_each, taps - tap),
                                      std::min(words_each, words - word), WORD, of_part, first_part ? sums : more, 0);
                        if (!first_part) add(more, sums, tile.rows * tile.columns);
                    }
                }
                const int64_t valid = std::min(tile.rows, end - first - i * tile.rows);
                S* out_rows[MOST_ROWS];
                for (int64_t r = 0; r < valid; ++r) out_rows[r] = written[i * tile.rows + r] + column;
                store(sums, valid, tile.columns, width, finish.from(column), out_rows);
            }
        }
    });
}

// ---- the three products

template <typename S>
void to_small(const S* big, const Weight<S>& weight, const Finish& finish, const Geometry& given, S* small) {
    const Geometry whole = given.simplified();
    const auto run = [&](const Map& map, const Geometry& g) {
        multiply<S>(
            map, g.samples, g.b, Axis::gathering(g.h, g.height, g.stride, g.padding),
            Axis::gathering(g.w, g.width, g.stride, g.padding), g.width,
            [&](const std::vector<int64_t>& taps, const Panels& panels, int64_t panel, char* packed) {
                pack_for_small(weight, g, taps, panels, panel, packed);
            },
            finish, small, g.h, g.w, g.a);
    };
    if ((whole.b <= FEW || whole.b % 2) && whole.width > 1) {
        const Padded<S> padded(big, whole);
        const Map map{reinterpret_cast<const char*>(padded.data()), padded.height, padded.width,
                      whole.b * static_cast<int64_t>(sizeof(S))};
        return run(map, merged(whole, padded.height, padded.width));
    }
    run({reinterpret_cast<const char*>(big), whole.H, whole.W, whole.b * static_cast<int64_t>(sizeof(S))}, whole);
}

template <typename S>
void to_big(const S* small, const Weight<S>& weight, Finish finish, const Geometry& given, S* big) {
    const Geometry g = given.simplified();
    std::vector<float> spread;  // of a simplified geometry, where every tap is a channel
    if (finish.bias && g.b != given.b) {
        for (int64_t c = 0; c < g.b; ++c) spread.push_back(finish.bias[c % given.b]);
        finish.bias = spread.data();
    }
    if (g.b <= FEW) return fold_to_big(small, weight, finish, g, big);
    multiply<S>(
        {reinterpret_cast<const char*>(small), g.h, g.w, g.a * static_cast<int64_t>(sizeof(S))}, g.samples, g.a,
        Axis::scattering(g.H, g.height, g.stride, g.padding), Axis::scattering(g.W, g.width, g.stride, g.padding), g.width,
        [&](const std::vector<int64_t>& taps, const Panels& panels, int64_t panel, char* packed) {
            pack_for_big(weight, g, taps, panels, panel, packed);
        },
        finish, big, g.H, g.W, g.b);
}

constexpr int64_t NEAR = 1 << 17;  // sums that a group of panels adds to in turn: half of a second-level cache

// panel[k][c] = the words of big that columns from `column` on of the weight meet at small's pixels from word `first` on
template <typename S>
void pack_pixels(const Map& map, const Geometry& g, const S* nothing, int64_t first, int64_t words, int64_t column,
                 int64_t columns, char* panel) {
    const int64_t width = std::min(columns, g.columns() - column);
    for (int64_t c = 0; c < width;) {  // a run of columns of one tap
        const int64_t tap = (column + c) / g.b, channel = (column + c) % g.b, run = std::min(width - c, g.b - channel);
        const int64_t from_y = tap / g.width - g.padding, from_x = tap % g.width - g.padding;
        Pixel at(first * PER_WORD<S>, g.h, g.w);
        const auto next = [&] {
            const int64_t y = g.stride * at.y + from_y, x = g.stride * at.x + from_x;
            const bool inside = at.n < g.samples && y >= 0 && y < map.height && x >= 0 && x < map.width;
            const char* pixel = map.data + ((at.n * map.height + y) * map.width + x) * map.pixel;
            at.advance();
            return inside ? reinterpret_cast<const S*>(pixel) + channel : nothing;
        };
        for (int64_t k = 0; k < words; ++k) {
            const S* one = next();
            interleave(one, PER_WORD<S> == 2 ? next() : one, run, panel + (k * columns + c) * WORD);
        }
        c += run;
    }
    for (int64_t k = 0; k < words && width < columns; ++k) {
        std::memset(panel + (k * columns + width) * WORD, 0, (columns - width) * WORD);
    }
}

// weight[a][column] = sum over pixels of small[pixel][a] big[the pixel of the column's tap][the column's channel]
template <typename S, typename G>
void to_weight(const S* small, const Map& map, const Geometry& g, G* weight) {
    const Tile& tile = tile_for(PER_WORD<S> == 2, g.a);
    const int64_t pixels = g.samples * g.h * g.w, columns = g.columns();
    const int64_t words = ceil_div(pixels, PER_WORD<S>), block = BLOCK / PER_WORD<S>;
    const int64_t heights = ceil_div(g.a, tile.rows), panels = ceil_div(columns, tile.columns);

    const int64_t widest = std::max(g.b, g.a) * static_cast<int64_t>(sizeof(S));
    const Scratch zeros(widest);
    std::memset(zeros.bytes(), 0, widest);
    const S* const nothing = reinterpret_cast<const S*>(zeros.bytes());

    // Words of small: one of float32 is a number of a pixel, and those of two pixels are packed as [block][tile of
    // channels][word][channel].
    constexpr bool PACKED = PER_WORD<S> > 1;
    const Scratch packed(PACKED ? heights * words * tile.rows * WORD : 0);
    for_each_task(PACKED ? ceil_div(words, block) : 0, [&](int64_t b) {
        const int64_t first = b * block, end = std::min(words, first + block);
        for (int64_t k = first; k < end; ++k) {
            const S* one = small + k * PER_WORD<S> * g.a;
            const S* other = k * PER_WORD<S> + 1 < pixels ? one + g.a : nothing;
            for (int64_t height = 0; height < heights; ++height) {
                const int64_t a = height * tile.rows, rows = std::min(tile.rows, g.a - a);
                char* to = packed.bytes() + ((first * heights + height * (end - first)) + k - first) * tile.rows * WORD;
                interleave(one + a, other == nothing ? nothing : other + a, rows, to);
                std::memset(to + rows * WORD, 0, (tile.rows - rows) * WORD);
            }
        }
    });
    const auto word_of = [&](int64_t first, int64_t length, int64_t height, int64_t r) {
        const int64_t a = std::min(height * tile.rows + r, g.a - 1);  // beyond the last channel nobody reads the sums
        return PACKED ? packed.bytes() + ((first * heights + height * length) * tile.rows + r) * WORD
                      : reinterpret_cast<const char*>(small + first * g.a + a);
    };

    // A group of panels goes through the pixels together, so that what their taps share of big is read from a near cache.
    const int64_t splits = std::clamp<int64_t>(std::min(SPLITS / panels, words / block), 1, SPLITS),
                  blocks = ceil_div(words, block);
    const int64_t sums_each = heights * tile.rows * tile.columns, near = std::max<int64_t>(1, NEAR / sums_each);
    const int64_t groups = std::min<int64_t>(panels, std::max<int64_t>(torch::stable::get_num_threads(), panels / near));
    const Scratch partial(splits * panels * sums_each * sizeof(float));
    for_each_task(groups * splits, [&](int64_t task) {
        const int64_t group = task % groups, split = task / groups;
        const int64_t begin = group * panels / groups, end = (group + 1) * panels / groups;
        float* const sums = partial.floats() + split * panels * sums_each;
        std::fill(sums + begin * sums_each, sums + end * sums_each, 0.0f);
        std::vector<char> of_block(block * tile.columns * WORD);
        for (int64_t b = split * blocks / splits; b < (split + 1) * blocks / splits; ++b) {
            const int64_t first = b * block, length = std::min(words - first, block);
            for (int64_t panel = begin; panel < end; ++panel) {
                pack_pixels(map, g, nothing, first, length, panel * tile.columns, tile.columns, of_block.data());
                for (int64_t height = 0; height < heights; ++height) {
                    const char* lines[MOST_ROWS];
                    for (int64_t r = 0; r < tile.rows; ++r) lines[r] = word_of(first, length, height, r);
                    alignas(64) float product[MOST_ROWS * MOST_COLUMNS];
                    tile.multiply(lines, 0, 1, length, PACKED ? tile.rows * WORD : g.a * WORD, of_block.data(), product,
                                  PACKED ? length * tile.rows * WORD : 0);
                    add(product, sums + panel * sums_each + height * tile.rows * tile.columns, tile.rows * tile.columns);
                }
            }
        }
    });
    for_each_task(panels, [&](int64_t panel) {
        const int64_t column = panel * tile.columns, width = std::min(tile.columns, columns - column);
        float* const sums = partial.floats() + panel * sums_each;
        for (int64_t split = 1; split < splits; ++split) add(sums + split * panels * sums_each, sums, sums_each);
        std::vector<G*> rows(g.a);
        for (int64_t a = 0; a < g.a; ++a) rows[a] = weight + a * columns + column;
        store(sums, g.a, tile.columns, width, AS_THEY_ARE, rows.data());
    });
}

template <typename S, typename G>
void to_weight(const Pixels<S>& small, const S* big, const Geometry& given, G* weight) {
    const Geometry g = given.simplified();
    if (g.b <= FEW && g.width > 1 && g.w % PER_WORD<S> == 0) return few_to_weight(small, big, g, weight);
    const int64_t length = g.h * g.w * g.a, pixel = g.b * static_cast<int64_t>(sizeof(S));
    const Scratch memory(small.lie_otherwise() ? g.samples * length * sizeof(S) : 0);
    S* const own = reinterpret_cast<S*>(memory.bytes());
    for_each_task(small.lie_otherwise() ? g.samples : 0,
                  [&](int64_t n) { small.run(small.data() + n * length, g.h * g.w, own + n * length); });
    to_weight(small.lie_otherwise() ? own : small.data(), {reinterpret_cast<const char*>(big), g.H, g.W, pixel}, g, weight);
}

struct ToWeight {
    template <typename... A>
    void operator()(const A&... arguments) const {
        to_weight(arguments...);
    }
};

// ---- ops

Tensor convolve(const Tensor& big, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding, double slope) {
    return make_small(big, weight, bias, stride, padding, slope, [](const auto&... arguments) { to_small(arguments...); });
}

Tensor transposed_convolve(const Tensor& small, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding,
                           int64_t height, int64_t width, double slope) {
    return make_big(small, weight, bias, stride, padding, height, width, slope,
                    [](const auto&... arguments) { to_big(arguments...); });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("tiled_convolve", TORCH_BOX(&ganfast::convolve));
    library.impl("tiled_transposed_convolve", TORCH_BOX(&ganfast::transposed_convolve));
    library.impl("tiled_convolution_weight_gradient", TORCH_BOX(&ganfast::convolution_weight_gradient<ganfast::ToWeight>));
    library.impl("tiled_conv_norm_weight_gradient", TORCH_BOX(&ganfast::conv_norm_weight_gradient<ganfast::ToWeight>));
}

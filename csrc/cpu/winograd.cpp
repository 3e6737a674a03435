// Convolutions by fewer multiplications (Winograd 1980; Lavin & Gray 2016), on the CPU, by the algorithms of winograd.h along
// both axes.
//
// A kernel of 4 x 4 with stride 2 is made of kernels of 2 x 2: a transposed one has one for each of the four phases of its
// outputs, and the other one adds those of the four phases of its inputs. A kernel of 3 x 3 with stride 1 is one of 3 x 3. Tiles
// of 2 x 2 outputs take 9 products instead of 16, and 16 instead of 36; tiles of 4 x 4 take 25 instead of 64, and 36 instead of
// 144.
//
// What is read and weighed is rounded to the factors' dtype before it is multiplied; sums are float32. Tiles of 4 x 4 multiply
// that rounding by more, so in bfloat16 they are for the gradients of weights of 4 x 4 alone.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "factors.h"
#include "winograd.h"

namespace ganfast {
namespace {

// How an axis is cut into tiles of WRITES outputs of each phase, made of lanes: inputs in_step (WRITES tile + i) + first by these
// taps, to outputs out_step (WRITES tile + i) + to.
struct Lane {
    int64_t first, to;
    std::array<int64_t, 3> taps;
};

struct Scheme {
    int64_t in_step, out_step;
    std::vector<Lane> lanes;
    bool added;  // the lanes' outputs are the same ones

    int64_t outputs() const { return added ? 1 : static_cast<int64_t>(lanes.size()); }  // phases of them
    int64_t terms() const { return added ? static_cast<int64_t>(lanes.size()) : 1; }    // lanes of a phase
};

const Scheme BIG_BY_FOUR{1, 2, {{-1, 0, {3, 1, 0}}, {0, 1, {2, 0, 0}}}, false};
const Scheme SMALL_BY_FOUR{2, 1, {{-1, 0, {0, 2, 0}}, {0, 0, {1, 3, 0}}}, true};
const Scheme SMALL_BY_THREE{1, 1, {{-1, 0, {0, 1, 2}}}, true};
const Scheme BIG_BY_THREE{1, 1, {{-1, 0, {2, 1, 0}}}, true};

// ---- all of it

template <typename S>
class Zeros {
public:
    explicit Zeros(int64_t count) : memory_(count * sizeof(S)) { std::memset(memory_.bytes(), 0, count * sizeof(S)); }

    const S* data() const { return reinterpret_cast<const S*>(memory_.bytes()); }

private:
    Scratch memory_;
};

// At least so many bytes apart, rows that are read together do not evict each other from the nearest cache, as they would if they
// lay a multiple of 4 KB apart: an odd number of lines.
inline int64_t staggered(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

// Bytes of transformed inputs that stay in the second-level cache: beside the panels, and where that spares sums of some terms
// which the others are added to.
constexpr int64_t CACHED = 3 << 17, CACHED_TERMS = 3 << 18;

struct Map {
    int64_t height, width, channels;

    int64_t offset(int64_t n, int64_t y, int64_t x) const { return ((n * height + y) * width + x) * channels; }
};

// The tiles that a scheme cuts two maps into.
template <typename F>
class Tiles {
public:
    const Scheme& scheme;
    const Map from, to;
    const int64_t lanes, rows, columns, count;

    struct Place {
        int64_t n, y, x;
    };

    Tiles(const Scheme& scheme, const Map& from, const Map& to, int64_t samples)
        : scheme(scheme),
          from(from),
          to(to),
          lanes(static_cast<int64_t>(scheme.lanes.size())),
          rows(to.height / (F::WRITES * scheme.out_step)),
          columns(to.width / (F::WRITES * scheme.out_step)),
          count(samples * rows * columns) {
        for (int64_t j = 0; j < R; ++j) read_[j] = scheme.in_step * from.offset(0, j / F::READS, j % F::READS);
        for (int64_t j = 0; j < W; ++j) written_[j] = scheme.out_step * to.offset(0, j / F::WRITES, j % F::WRITES);
    }

    Place place(int64_t tile) const { return {tile / (rows * columns), tile / columns % rows, tile % columns}; }

    // lines[j] = where the pixels lie that a pair of lanes reads, or `nothing`; on their way into a near cache
    template <typename S>
    void reads(int64_t tile, int64_t pair, const S* in, const S* nothing, const S** lines) const {
        constexpr int64_t LAST = F::READS - 1;
        const Place at = place(tile);
        const int64_t step = scheme.in_step, y = step * F::WRITES * at.y + scheme.lanes[pair / lanes].first,
                      x = step * F::WRITES * at.x + scheme.lanes[pair % lanes].first;
        const S* const corner = in + from.offset(at.n, y, x);
        if (y >= 0 && x >= 0 && y + step * LAST < from.height && x + step * LAST < from.width) {
            for (int64_t j = 0; j < R; ++j) lines[j] = corner + read_[j];
            return;
        }
        for (int64_t j = 0; j < R; ++j) {
            const int64_t row = y + step * (j / F::READS), column = x + step * (j % F::READS);
            const bool inside = row >= 0 && row < from.height && column >= 0 && column < from.width;
            lines[j] = inside ? corner + read_[j] : nothing;
        }
    }

    // lines[j] = where its outputs lie
    template <typename S>
    void writes(int64_t tile, int64_t pair, S* out, S** lines) const {
        const Place at = place(tile);
        const int64_t step = scheme.out_step * F::WRITES;
        S* const corner =
            out + to.offset(at.n, step * at.y + scheme.lanes[pair / lanes].to, step * at.x + scheme.lanes[pair % lanes].to);
        for (int64_t j = 0; j < W; ++j) lines[j] = corner + written_[j];
    }

private:
    static constexpr int64_t R = F::READS * F::READS, W = F::WRITES * F::WRITES;
    std::array<int64_t, R> read_;
    std::array<int64_t, W> written_;
};

// out = in by the weight, from the big map to the small one or back
template <typename F, typename S>
void convolve_by(const S* in, const Map& from, const Weight<S>& weight, const Geometry& g, const Finish& finish, S* out,
                 const Map& to, const Scheme& scheme, bool to_small) {
    constexpr int64_t P = F::PRODUCTS * F::PRODUCTS, T = F::TAPS, R = F::READS * F::READS, W = F::WRITES * F::WRITES;
    const int64_t lanes = static_cast<int64_t>(scheme.lanes.size());
    const int64_t terms = scheme.terms() * scheme.terms(), phases = scheme.outputs() * scheme.outputs();
    const Tiles<F> tiles(scheme, from, to, g.samples);
    const Tile& tile = tile_for(PER_WORD<S> == 2, tiles.count, phases, torch::stable::get_num_threads());
    const int64_t words = words_of<S>(from.channels);
    const Panels panels{terms, words, tile.columns, ceil_div(to.channels, tile.columns)};
    const int64_t term_bytes = words * tile.columns * WORD;
    const Scratch packed(phases * P * panels.bytes());
    const auto packed_for = [&](int64_t phase, int64_t panel, int64_t product, int64_t term) {
        return packed.bytes() + ((phase * panels.count + panel) * P + product) * panels.bytes_each() + term * term_bytes;
    };
    for_each_task(phases * panels.count, [&](int64_t task) {
        const int64_t phase = task / panels.count, panel = task % panels.count;
        const Panels unweighed{T * T, words, tile.columns, panels.count};
        const Scratch memory(unweighed.bytes_each());
        const int64_t length = term_bytes / static_cast<int64_t>(sizeof(S)), apart = terms * length;
        for (int64_t term = 0; term < terms; ++term) {
            const int64_t pair = phase * terms + term;
            const Lane &y = scheme.lanes[pair / lanes], &x = scheme.lanes[pair % lanes];
            std::vector<int64_t> numbers;
            for (int64_t i = 0; i < T * T; ++i) numbers.push_back(y.taps[i / T] * g.width + x.taps[i % T]);
            (to_small ? pack_for_small<S> : pack_for_big<S>)(weight, g, numbers, unweighed, panel, memory.bytes());
            const Spread<const S> taps{reinterpret_cast<const S*>(memory.bytes()), length};
            const Spread<S> products{reinterpret_cast<S*>(packed_for(phase, panel, 0, term)), apart};
            apply(in, Weigh<F>(), taps, AS_THEY_ARE, products, length);  // element by element, however they lie
        }
    });

    // As many terms at a time, and as many rows of tiles, as the cache holds.
    const int64_t term_bytes_each = P * from.channels * sizeof(S);
    const int64_t fitting = std::clamp<int64_t>(CACHED_TERMS / MOST_ROWS / term_bytes_each, 1, terms);
    const int64_t together = ceil_div(terms, ceil_div(terms, fitting));  // in equal parts
    const int64_t bytes_each = staggered(together * term_bytes_each), apart = bytes_each / sizeof(S);
    const int64_t rows = ceil_div(tiles.count, tile.rows), most = std::clamp<int64_t>(CACHED / bytes_each / tile.rows, 1, 4);
    const int64_t blocks = ceil_div(rows, most), sums_each = P * MOST_ROWS * MOST_COLUMNS;
    const Zeros<S> zeros(from.channels);
    for_each_task(blocks * phases, [&](int64_t task) {
        const int64_t phase = task % phases, block = task / phases, first = block * rows / blocks * tile.rows;
        const int64_t count = std::min((block + 1) * rows / blocks * tile.rows, tiles.count) - first;
        std::vector<S*> written(count * W);
        for (int64_t i = 0; i < count; ++i) tiles.writes(first + i, phase * terms, out, written.data() + i * W);
        const Scratch memory(count * bytes_each);  // [tile][term][product][channel]
        S* const transformed = reinterpret_cast<S*>(memory.bytes());
        const Scratch all_sums((together < terms ? panels.count * ceil_div(count, tile.rows) : 1) * sums_each * sizeof(float));
        for (int64_t begin_term = 0; begin_term < terms; begin_term += together) {
            const int64_t some = std::min(together, terms - begin_term);
            const S* pixels[2][R];
            const auto look = [&](int64_t i) {
                tiles.reads(first + i / some, phase * terms + begin_term + i % some, in, zeros.data(), pixels[i % 2]);
                prefetch(pixels[i % 2], R, from.channels * sizeof(S));
            };
            look(0);
            for (int64_t i = 0; i < count * some; ++i) {
                if (i + 1 < count * some) look(i + 1);
                const Spread<S> products{transformed + i / some * apart + i % some * P * from.channels, from.channels};
                apply(in, Read<F>(), static_cast<const S* const*>(pixels[i % 2]), AS_THEY_ARE, products, from.channels);
            }
            std::vector<const char*> lines;  // of all tiles of rows, term by term
            for (int64_t begin = 0; begin < count; begin += tile.rows) {
                for (int64_t i = 0; i < some * tile.rows; ++i) {
                    const int64_t row = std::min(begin + i % tile.rows, count - 1);
                    lines.push_back(memory.bytes() + row * bytes_each + i / tile.rows * term_bytes_each);
                }
            }
            float* sums = all_sums.floats();
            for (int64_t panel = 0; panel < panels.count; ++panel) {
                const int64_t column = panel * tile.columns, width = std::min(tile.columns, to.channels - column);
                for (int64_t begin = 0; begin < count; begin += tile.rows) {
                    for (int64_t product = 0; product < P; ++product) {
                        // where a pixel of every row is written in the end, on its way into a near cache meanwhile
                        for (int64_t i = begin; i < std::min(begin + tile.rows, count) && product < W; ++i) {
                            S* const pixel = written[i * W + product] + column;
                            for (int64_t c = 0; c < width; c += 64 / sizeof(S)) __builtin_prefetch(pixel + c, 1);
                        }
                        alignas(64) float found[MOST_ROWS * MOST_COLUMNS];
                        float* const to = sums + product * MOST_ROWS * MOST_COLUMNS;
                        tile.multiply(lines.data() + begin * some, product * words * WORD, some, words, WORD,
                                      packed_for(phase, panel, product, begin_term), begin_term ? found : to, 0);
                        if (begin_term) add(found, to, tile.rows * tile.columns);
                    }
                    for (int64_t r = 0; r < std::min(tile.rows, count - begin) && begin_term + some == terms; ++r) {
                        const Spread<const float> of_row{sums + r * tile.columns, MOST_ROWS * MOST_COLUMNS};
                        const Places<S> places{written.data() + (begin + r) * W, column};
                        apply(in, Write<F>(), of_row, finish.from(column), places, width);
                    }
                    if (together < terms) sums += sums_each;
                }
            }
        }
    });
}

constexpr int64_t SPANNED = 1 << 23;  // bytes of small, turned back, that stay in the last-level cache
constexpr int64_t BLOCK = 128;        // words of tiles that are summed over before the next ones
constexpr int64_t TURNED = 8;         // words of small that are turned back in a task
constexpr int64_t LINE = 64;          // bytes

// weight = small, turned back to products, times big, read, summed over tiles and weighed back
template <typename F, typename S, typename G>
void weight_by(const Pixels<S>& small, const S* big, const Geometry& g, G* weight, const Scheme& scheme) {
    constexpr int64_t P = F::PRODUCTS * F::PRODUCTS, T = F::TAPS, R = F::READS * F::READS, W = F::WRITES * F::WRITES;
    constexpr int64_t N = PER_WORD<S>;
    const Tile& tile = tile_for(N == 2, g.a);
    const Tiles<F> tiles(scheme, {g.H, g.W, g.b}, {g.h, g.w, g.a}, g.samples);
    const int64_t words = ceil_div(tiles.count, N), heights = ceil_div(g.a, tile.rows);
    const Zeros<S> zeros(std::max(g.a, g.b));

    // small as [product][lines of channels][word], a line of the cache each, with whole rows of tiles; of a span of words at a
    // time, so that it stays in the last cache
    const int64_t rows_each = LINE / WORD / tile.rows, lines = ceil_div(heights, rows_each);
    const int64_t span = std::min(words, ceil_div(SPANNED / (P * lines * LINE), BLOCK) * BLOCK + BLOCK);
    const int64_t line_bytes = staggered(span * LINE), product_bytes = staggered(lines * line_bytes);
    const Scratch packed(P * product_bytes);
    const auto turn = [&](int64_t word, S* memory) {
        const S* pixels[N * W];
        std::fill_n(pixels, N * W, zeros.data());
        for (int64_t i = 0; i < N && word * N + i < tiles.count; ++i) {
            const S** const of_tile = pixels + i * W;
            tiles.writes(word * N + i, 0, small.data(), of_tile);
            for (int64_t j = 0; j < W; j += F::WRITES, memory += F::WRITES * g.a) {  // neighbours
                const S* const row = small.run(of_tile[j], F::WRITES, memory);
                for (int64_t k = 0; k < F::WRITES; ++k) of_tile[j + k] = row + k * g.a;
            }
        }
        const Spread<char> products{packed.bytes() + word % span * LINE, product_bytes};
        apply_to_words(pixels[0], WriteBack<F>(), pixels, products, g.a, rows_each * tile.rows, line_bytes);
    };

    // A slice is a pair of lanes and a panel of big's channels.
    const int64_t cuts = ceil_div(g.b, tile.columns), slices = tiles.lanes * tiles.lanes * cuts;
    const int64_t sums_each = heights * tile.rows * tile.columns, slice_sums = P * sums_each;
    const int64_t panel_bytes = staggered(BLOCK * tile.columns * WORD);
    const auto pack = [&](int64_t slice, int64_t first, int64_t length, char* panels) {
        const int64_t column = slice % cuts * tile.columns, width = std::min(tile.columns, g.b - column);
        const S* pixels[2][N * R];
        const auto look = [&](int64_t k) {
            const S** const found = pixels[k % 2];
            std::fill_n(found, N * R, zeros.data());
            for (int64_t i = 0; i < N; ++i) {
                const int64_t number = (first + k) * N + i;
                if (number < tiles.count) tiles.reads(number, slice / cuts, big + column, zeros.data(), found + i * R);
            }
            prefetch(found, N * R, width * sizeof(S));
        };
        look(0);
        for (int64_t k = 0; k < length; ++k) {
            if (k + 1 < length) look(k + 1);
            const Spread<char> products{panels + k * tile.columns * WORD, panel_bytes};
            apply_to_words(pixels[k % 2][0], Read<F>(), static_cast<const S* const*>(pixels[k % 2]), products, width,
                           WIDTH<float>, WIDTH<float> * WORD);
        }
    };
    const auto multiply = [&](int64_t first, int64_t length, const char* panels, float* sums) {
        for (int64_t product = 0; product < P; ++product) {
            for (int64_t height = 0; height < heights; ++height, sums += tile.rows * tile.columns) {
                const char* rows[MOST_ROWS];
                for (int64_t r = 0; r < tile.rows; ++r) {
                    rows[r] = packed.bytes() + product * product_bytes + height / rows_each * line_bytes + first % span * LINE +
                              (height % rows_each * tile.rows + r) * WORD;
                }
                alignas(64) float found[MOST_ROWS * MOST_COLUMNS];
                tile.multiply(rows, 0, 1, length, LINE, panels + product * panel_bytes, first ? found : sums, line_bytes);
                if (first) add(found, sums, tile.rows * tile.columns);
            }
        }
    };
    const auto finish = [&](int64_t slice, const float* sums) {
        const int64_t pair = slice / cuts, column = slice % cuts * tile.columns, width = std::min(tile.columns, g.b - column);
        const Lane &y = scheme.lanes[pair / tiles.lanes], &x = scheme.lanes[pair % tiles.lanes];
        constexpr int64_t SOON = 4;  // rows, on their way into a near cache: as many streams as products are not foreseen
        for (int64_t a = 0; a < g.a; ++a) {
            G* taps[T * T];
            for (int64_t j = 0; j < T * T; ++j) {
                taps[j] = weight + a * g.columns() + (y.taps[j / T] * g.width + x.taps[j % T]) * g.b + column;
                for (int64_t c = 0; c < width; c += 64 / sizeof(G)) __builtin_prefetch(taps[j] + SOON * g.columns() + c, 1);
            }
            const Spread<const float> products{sums + a * tile.columns, sums_each};
            for (int64_t i = 0; i < P; ++i) {
                for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(products[i] + SOON * tile.columns + c);
            }
            apply(big, WeighBack<F>(), products, AS_THEY_ARE, static_cast<G* const*>(taps), width);
        }
    };
    const Scratch lasting(span < words ? slices * slice_sums * sizeof(float) : 0);
    for (int64_t start = 0; start < words; start += span) {
        const int64_t stop = std::min(words, start + span);
        for_each_task(ceil_div(stop - start, TURNED), [&](int64_t task) {
            const int64_t first = start + task * TURNED;
            const Scratch memory(small.lie_otherwise() ? N * W * g.a * sizeof(S) : 0);
            for (int64_t word = first; word < std::min(stop, first + TURNED); ++word) {
                turn(word, reinterpret_cast<S*>(memory.bytes()));
            }
        });
        for_each_task(slices, [&](int64_t slice) {
            const Scratch own(span < words ? 0 : slice_sums * sizeof(float)), panels(P * panel_bytes);
            float* const sums = span < words ? lasting.floats() + slice * slice_sums : own.floats();
            if (g.b % tile.columns) std::memset(panels.bytes(), 0, P * panel_bytes);  // columns that nobody writes, or reads
            for (int64_t first = start; first < stop; first += BLOCK) {
                const int64_t length = std::min(BLOCK, stop - first);
                pack(slice, first, length, panels.bytes());
                multiply(first, length, panels.bytes(), sums);
            }
            if (stop == words) finish(slice, sums);
        });
    }
}

// ---- ops

// Whether the maps can be cut into tiles.
void expect_tiles(const Geometry& g) {
    const bool four = g.height == 4 && g.width == 4 && g.stride == 2 && g.H == 2 * g.h && g.W == 2 * g.w;
    const bool three = g.height == 3 && g.width == 3 && g.stride == 1;
    STD_TORCH_CHECK((four || three) && g.padding == 1 && g.h % 2 == 0 && g.w % 2 == 0,
                    "expected a kernel of 4 x 4, stride 2 or of 3 x 3, stride 1, with padding 1, and an even number of pixels");
}

// From how many tiles of 4 x 4 on they are faster than four times as many of 2 x 2. They save products of tiles, but a weight has
// more products to be turned into, which takes as long for few tiles as for many. A gradient is turned back from sums alone. By
// measurement, with 2 x 2 and 3 x 3 taps and 64 to 512 channels, where the true bounds lie apart.
constexpr int64_t WORTHWHILE = 100, WORTHWHILE_GRADIENT = 48;  // of a gradient as many words

bool has_large_tiles(const Geometry& g, int64_t least) {
    return g.h % 4 == 0 && g.w % 4 == 0 && g.samples * (g.h / 4) * (g.w / 4) >= least;
}

// run(the algorithm, its scheme)
template <typename R>
void by_kernel(const Geometry& g, bool large, const Scheme& four, const Scheme& three, const R& run) {
    expect_tiles(g);
    if (g.height == 4) {
        large ? run(FourOf<2>(), four) : run(TwoOfTwo(), four);
    } else {
        large ? run(FourOf<3>(), three) : run(TwoOfThree(), three);
    }
}

Tensor convolve(const Tensor& big, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding, double slope) {
    const auto run = [](auto* in, const auto& factor, const Finish& finish, const Geometry& g, auto* out) {
        const bool large = std::is_same_v<decltype(out), float*> && has_large_tiles(g, WORTHWHILE);
        by_kernel(g, large, SMALL_BY_FOUR, SMALL_BY_THREE, [&](auto algorithm, const Scheme& scheme) {
            convolve_by<decltype(algorithm)>(in, {g.H, g.W, g.b}, factor, g, finish, out, {g.h, g.w, g.a}, scheme, true);
        });
    };
    return make_small(big, weight, bias, stride, padding, slope, run);
}

Tensor transposed_convolve(const Tensor& small, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding,
                           int64_t height, int64_t width, double slope) {
    const auto run = [](auto* in, const auto& factor, const Finish& finish, const Geometry& g, auto* out) {
        const bool large = std::is_same_v<decltype(out), float*> && has_large_tiles(g, WORTHWHILE);
        by_kernel(g, large, BIG_BY_FOUR, BIG_BY_THREE, [&](auto algorithm, const Scheme& scheme) {
            convolve_by<decltype(algorithm)>(in, {g.h, g.w, g.a}, factor, g, finish, out, {g.H, g.W, g.b}, scheme, false);
        });
    };
    return make_big(small, weight, bias, stride, padding, height, width, slope, run);
}

template <typename S, typename G>
void to_weight(const Pixels<S>& small, const S* big, const Geometry& g, G* weight) {
    constexpr bool rounded = !std::is_same_v<S, float>;
    const bool large = has_large_tiles(g, WORTHWHILE_GRADIENT * PER_WORD<S>) && !(rounded && g.height == 3);
    by_kernel(g, large, SMALL_BY_FOUR, SMALL_BY_THREE,
              [&](auto algorithm, const Scheme& scheme) { weight_by<decltype(algorithm)>(small, big, g, weight, scheme); });
}

struct ToWeight {
    template <typename... A>
    void operator()(const A&... arguments) const {
        to_weight(arguments...);
    }
};

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("winograd_convolve", TORCH_BOX(&ganfast::convolve));
    library.impl("winograd_transposed_convolve", TORCH_BOX(&ganfast::transposed_convolve));
    library.impl("winograd_convolution_weight_gradient", TORCH_BOX(&ganfast::convolution_weight_gradient<ganfast::ToWeight>));
    library.impl("winograd_conv_norm_weight_gradient", TORCH_BOX(&ganfast::conv_norm_weight_gradient<ganfast::ToWeight>));
}

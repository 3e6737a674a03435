// Convolutions by fewer multiplications (Winograd 1980; Lavin & Gray 2016), on the CPU.
//
// Along an axis, two neighbouring outputs y of a kernel g of 2 or 3 taps over inputs s are
//
//     y = write(weigh(g) read(s)), element by element,
//
// with 3 products instead of 4 and 4 instead of 6; in two dimensions that is 9 instead of 16, and 16 instead of 36. A kernel of 4
// x 4 with stride 2 is made of kernels of 2 x 2: a transposed one has one for each of the four phases of its outputs, and the
// other one adds those of the four phases of its inputs. A kernel of 3 x 3 with stride 1 is one of 3 x 3.
//
// What is read and weighed is rounded to the factors' dtype before it is multiplied; sums are float32.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "factors.h"
#include "lanes.h"

namespace ganfast {
namespace {

// ---- the two algorithms along one axis, and what turns gradients back

struct TwoTaps {
    static constexpr int TAPS = 2, READS = 3, PRODUCTS = 3, WRITES = 2;

    template <typename T>
    static GANFAST_INLINE void read(const T* s, T* v) {
        v[0] = s[0] - s[1];
        v[1] = s[1];
        v[2] = s[2] - s[1];
    }
    template <typename T>
    static GANFAST_INLINE void weigh(const T* g, T* u) {
        u[0] = g[0];
        u[1] = g[0] + g[1];
        u[2] = g[1];
    }
    template <typename T>
    static GANFAST_INLINE void write(const T* m, T* y) {
        y[0] = m[0] + m[1];
        y[1] = m[1] + m[2];
    }
    template <typename T>
    static GANFAST_INLINE void weigh_back(const T* u, T* g) {
        g[0] = u[0] + u[1];
        g[1] = u[1] + u[2];
    }
    template <typename T>
    static GANFAST_INLINE void write_back(const T* y, T* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[1];
    }
};

struct ThreeTaps {
    static constexpr int TAPS = 3, READS = 4, PRODUCTS = 4, WRITES = 2;

    template <typename T>
    static GANFAST_INLINE void read(const T* s, T* v) {
        v[0] = s[0] - s[2];
        v[1] = s[1] + s[2];
        v[2] = s[2] - s[1];
        v[3] = s[1] - s[3];
    }
    template <typename T>
    static GANFAST_INLINE void weigh(const T* g, T* u) {
        const T outer = (g[0] + g[2]) / 2, middle = g[1] / 2;
        u[0] = g[0];
        u[1] = outer + middle;
        u[2] = outer - middle;
        u[3] = g[2];
    }
    template <typename T>
    static GANFAST_INLINE void write(const T* m, T* y) {
        y[0] = m[0] + m[1] + m[2];
        y[1] = m[1] - m[2] - m[3];
    }
    template <typename T>
    static GANFAST_INLINE void weigh_back(const T* u, T* g) {
        const T outer = (u[1] + u[2]) / 2;
        g[0] = u[0] + outer;
        g[1] = (u[1] - u[2]) / 2;
        g[2] = outer + u[3];
    }
    template <typename T>
    static GANFAST_INLINE void write_back(const T* y, T* m) {
        m[0] = y[0];
        m[1] = y[0] + y[1];
        m[2] = y[0] - y[1];
        m[3] = -y[1];
    }
};

// How an axis is cut into tiles of two outputs for each of `written` phases, each made of lanes: inputs in_base tile + first +
// in_step i by these taps, to outputs out_base tile + to + out_step i.
struct Lane {
    int64_t first, to;
    std::array<int64_t, 3> taps;
};

struct Scheme {
    int64_t in_base, in_step, out_base, out_step;
    std::vector<Lane> lanes;
    bool added;  // the lanes' outputs are the same ones

    int64_t outputs() const { return added ? 1 : static_cast<int64_t>(lanes.size()); }  // phases of them
    int64_t terms() const { return added ? static_cast<int64_t>(lanes.size()) : 1; }    // lanes of a phase
};

const Scheme BIG_BY_FOUR{2, 1, 4, 2, {{-1, 0, {3, 1, 0}}, {0, 1, {2, 0, 0}}}, false};
const Scheme SMALL_BY_FOUR{4, 2, 2, 1, {{-1, 0, {0, 2, 0}}, {0, 0, {1, 3, 0}}}, true};
const Scheme SMALL_BY_THREE{2, 1, 2, 1, {{-1, 0, {0, 1, 2}}}, true};
const Scheme BIG_BY_THREE{2, 1, 2, 1, {{-1, 0, {2, 1, 0}}}, true};

// ---- transforms of channels

// out = in after `step` along both axes
template <int IN, int OUT, typename Step>
GANFAST_INLINE void along_both(const Floats (&in)[IN][IN], const Step& step, Floats (&out)[OUT][OUT]) {
    Floats lines[IN][OUT];
#pragma GCC unroll 4
    for (int i = 0; i < IN; ++i) step(in[i], lines[i]);
#pragma GCC unroll 4
    for (int q = 0; q < OUT; ++q) {
        Floats column[IN], done[OUT];
#pragma GCC unroll 4
        for (int i = 0; i < IN; ++i) column[i] = lines[i][q];
        step(column, done);
#pragma GCC unroll 4
        for (int p = 0; p < OUT; ++p) out[p][q] = done[p];
    }
}

// The channels from c on of IN x IN runs after `step` along both axes, + bias, into OUT x OUT runs.
template <typename How, int IN, int OUT, typename S, typename O, typename Step>
GANFAST_INLINE void transform_some(const S* const* in, const Step& step, const float* bias, O* const* out, int64_t c, int64_t n) {
    Floats given[IN][IN], made[OUT][OUT], b{};
    if (bias) load(bias + c, n, b);
#pragma GCC unroll 16
    for (int i = 0; i < IN * IN; ++i) How::load(in[i] + c, n, given[i / IN][i % IN]);
    along_both(given, step, made);
#pragma GCC unroll 16
    for (int i = 0; i < OUT * OUT; ++i) How::save(made[i / OUT][i % OUT] + b, n, out[i] + c);
}

template <typename How, int IN, int OUT, typename S, typename O, typename Step>
GANFAST_INLINE void transform_all(const S* const* in, const Step& step, const float* bias, O* const* out, int64_t channels) {
    int64_t c = 0;
    for (; c + WIDTH<float> <= channels; c += WIDTH<float>) transform_some<How, IN, OUT>(in, step, bias, out, c, WIDTH<float>);
    if (c < channels) transform_some<How, IN, OUT>(in, step, bias, out, c, channels - c);
}

// name(first, F(), in, bias, out, channels), where `first` is any of the pointers, by whose type versions differ
#define GANFAST_TRANSFORM(name, IN, OUT)                                                                                   \
    template <typename How, typename T, typename F, typename S, typename O>                                                \
    GANFAST_INLINE void name##_loop(const T*, F, const S* const* in, const float* bias, O* const* out, int64_t channels) { \
        const auto step = [](const Floats* a, Floats* b) __attribute__((always_inline)) { F::name(a, b); };                \
        transform_all<How, F::IN, OUT>(in, step, bias, out, channels);                                                     \
    }                                                                                                                      \
    GANFAST_VERSIONS(name)

GANFAST_TRANSFORM(read, READS, F::PRODUCTS)
GANFAST_TRANSFORM(weigh, TAPS, F::PRODUCTS)
GANFAST_TRANSFORM(write, PRODUCTS, F::WRITES)
GANFAST_TRANSFORM(weigh_back, PRODUCTS, F::TAPS)
#undef GANFAST_TRANSFORM

// out[j] = words of the channels of N such results, one of each, with IN x IN runs of S for each of them in `in`
template <typename How, int IN, int OUT, typename S, typename Step>
GANFAST_INLINE void join_some(const S* const* in, const Step& step, char* const* out, int64_t c, int64_t n) {
    constexpr int N = PER_WORD<S>;
    Floats made[N][OUT][OUT];
    for (int k = 0; k < N; ++k) {
        Floats given[IN][IN];
#pragma GCC unroll 16
        for (int i = 0; i < IN * IN; ++i) How::load(in[k * IN * IN + i] + c, n, given[i / IN][i % IN]);
        along_both(given, step, made[k]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < OUT * OUT; ++i) {
        const Floats &first = made[0][i / OUT][i % OUT], &last = made[N - 1][i / OUT][i % OUT];
        Words words;
        if constexpr (N == 1) {
            copy(&first, words);
        } else {
            words = How::rounded(first) | How::rounded(last) << 16;
        }
        std::memcpy(out[i] + c * WORD, &words, n * WORD);
    }
}

// name(in[0], F(), in, out, channels)
#define GANFAST_JOIN(name, step_of, IN)                                                                        \
    template <typename How, typename S, typename F>                                                            \
    GANFAST_INLINE void name##_loop(const S*, F, const S* const* in, char* const* out, int64_t channels) {     \
        const auto step = [](const Floats* a, Floats* b) __attribute__((always_inline)) { F::step_of(a, b); }; \
        int64_t c = 0;                                                                                         \
        for (; c + WIDTH<float> <= channels; c += WIDTH<float>)                                                \
            join_some<How, F::IN, F::PRODUCTS>(in, step, out, c, WIDTH<float>);                                \
        if (c < channels) join_some<How, F::IN, F::PRODUCTS>(in, step, out, c, channels - c);                  \
    }                                                                                                          \
    GANFAST_VERSIONS(name)

GANFAST_JOIN(read_words, read, READS)
GANFAST_JOIN(write_back_words, write_back, WRITES)
#undef GANFAST_JOIN

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

constexpr int64_t CACHED = 3 << 17;  // bytes of transformed inputs that stay in the second-level cache beside the panels

struct Map {
    int64_t height, width, channels;

    int64_t offset(int64_t n, int64_t y, int64_t x) const { return ((n * height + y) * width + x) * channels; }
};

// The tiles that a scheme cuts two maps into.
template <int READS>
class Tiles {
public:
    const Scheme& scheme;
    const Map from, to;
    const int64_t lanes, count;

    struct Place {
        int64_t n, y, x;
    };

    Tiles(const Scheme& scheme, const Map& from, const Map& to, int64_t samples)
        : scheme(scheme),
          from(from),
          to(to),
          lanes(static_cast<int64_t>(scheme.lanes.size())),
          count(samples * (to.height / scheme.out_base) * (to.width / scheme.out_base)) {}

    Place place(int64_t tile) const {
        const int64_t rows = to.height / scheme.out_base, columns = to.width / scheme.out_base;
        return {tile / (rows * columns), tile / columns % rows, tile % columns};
    }

    // lines[j] = where the pixels lie that a pair of lanes reads, or `nothing`
    template <typename S>
    void reads(const Place& at, int64_t pair, const S* in, const S* nothing, const S** lines) const {
        const Lane &rows = scheme.lanes[pair / lanes], &columns = scheme.lanes[pair % lanes];
        const int64_t first = scheme.in_base * at.x + columns.first;
        for (int64_t i = 0; i < READS; ++i, lines += READS) {
            const int64_t y = scheme.in_base * at.y + rows.first + scheme.in_step * i;
            const bool inside = y >= 0 && y < from.height;
            const S* const row = in + from.offset(at.n, y, 0);
            for (int64_t j = 0; j < READS; ++j) {
                const int64_t x = first + scheme.in_step * j;
                lines[j] = inside && x >= 0 && x < from.width ? row + x * from.channels : nothing;
            }
        }
    }

    // lines[j] = where its outputs lie
    template <typename S>
    void writes(const Place& at, int64_t pair, S* out, S** lines) const {
        const Lane &rows = scheme.lanes[pair / lanes], &columns = scheme.lanes[pair % lanes];
        for (int64_t j = 0; j < 4; ++j) {
            const int64_t y = scheme.out_base * at.y + rows.to + scheme.out_step * (j / 2);
            const int64_t x = scheme.out_base * at.x + columns.to + scheme.out_step * (j % 2);
            lines[j] = out + to.offset(at.n, y, x);
        }
    }
};

// out = in by the weight, from the big map to the small one or back
template <typename F, typename S>
void transform(const S* in, const Map& from, const S* weight, const Geometry& g, const float* bias, S* out, const Map& to,
               const Scheme& scheme, bool to_small) {
    constexpr int64_t P = F::PRODUCTS, T = F::TAPS;
    const Tile& tile = tile_for(PER_WORD<S> == 2);
    const int64_t lanes = static_cast<int64_t>(scheme.lanes.size());
    const int64_t terms = scheme.terms() * scheme.terms(), phases = scheme.outputs() * scheme.outputs();
    const int64_t words = words_of<S>(from.channels);
    const Panels panels{terms, words, tile.columns, ceil_div(to.channels, tile.columns)};
    const Scratch packed(phases * P * P * panels.bytes());
    const auto packed_for = [&](int64_t phase, int64_t panel, int64_t product) {
        return packed.bytes() + ((phase * panels.count + panel) * P * P + product) * panels.bytes_each();
    };
    for_each_task(phases * panels.count, [&](int64_t task) {
        const int64_t phase = task / panels.count, panel = task % panels.count;
        const int64_t column = panel * tile.columns, width = std::min(tile.columns, to.channels - column);
        // the part of the weight that the panel is made of, with the products of all lanes as its taps
        Geometry part = g;
        part.height = terms;
        part.width = P * P;
        (to_small ? part.a : part.b) = width;
        const S* const first = weight + (to_small ? column * g.columns() : column);
        const Scratch memory(part.a * part.columns() * sizeof(S));
        S* const weighed = reinterpret_cast<S*>(memory.bytes());
        for (int64_t a = 0; a < part.a; ++a) {
            for (int64_t term = 0; term < terms; ++term) {
                const int64_t pair = phase * terms + term;
                const Lane &y = scheme.lanes[pair / lanes], &x = scheme.lanes[pair % lanes];
                const S* taps[T * T];
                S* products[P * P];
                for (int64_t i = 0; i < T * T; ++i) {
                    taps[i] = first + a * g.columns() + (y.taps[i / T] * g.width + x.taps[i % T]) * g.b;
                }
                for (int64_t i = 0; i < P * P; ++i) products[i] = weighed + a * part.columns() + (term * P * P + i) * part.b;
                weigh(products[0], F(), taps, nullptr, products, part.b);
            }
        }
        for (int64_t product = 0; product < P * P; ++product) {
            std::vector<int64_t> taps;
            for (int64_t term = 0; term < terms; ++term) taps.push_back(term * P * P + product);
            if (to_small) {
                pack_for_small(weighed, part, taps, panels, 0, packed_for(phase, panel, product));
            } else {
                pack_for_big(weighed, part, taps, panels, 0, packed_for(phase, panel, product));
            }
        }
    });

    const Tiles<F::READS> tiles(scheme, from, to, g.samples);
    const int64_t bytes_each = staggered(P * P * terms * from.channels * sizeof(S)), apart = bytes_each / sizeof(S);
    const int64_t rows = ceil_div(tiles.count, tile.rows), most = std::clamp<int64_t>(CACHED / bytes_each / tile.rows, 1, 4);
    const int64_t blocks = ceil_div(rows, most);
    const Zeros<S> zeros(from.channels);
    for_each_task(blocks * phases, [&](int64_t task) {
        const int64_t phase = task % phases, block = task / phases, first = block * rows / blocks * tile.rows;
        const int64_t count = std::min((block + 1) * rows / blocks * tile.rows, tiles.count) - first;
        const Scratch memory(count * bytes_each);  // [tile][term][product][channel]
        S* const transformed = reinterpret_cast<S*>(memory.bytes());
        std::vector<S*> written(count * 4);
        for (int64_t i = 0; i < count; ++i) {
            const auto at = tiles.place(first + i);
            for (int64_t term = 0; term < terms; ++term) {
                const S* pixels[F::READS * F::READS];
                S* products[P * P];
                tiles.reads(at, phase * terms + term, in, zeros.data(), pixels);
                for (int64_t j = 0; j < P * P; ++j) products[j] = transformed + i * apart + (term * P * P + j) * from.channels;
                read(products[0], F(), pixels, nullptr, products, from.channels);
            }
            tiles.writes(at, phase * terms, out, written.data() + i * 4);
        }
        alignas(64) float products[P * P][MOST_ROWS * MOST_COLUMNS];
        for (int64_t panel = 0; panel < panels.count; ++panel) {
            const int64_t column = panel * tile.columns, width = std::min(tile.columns, to.channels - column);
            for (int64_t begin = 0; begin < count; begin += tile.rows) {
                for (int64_t product = 0; product < P * P; ++product) {
                    const char* lines[4 * MOST_ROWS];
                    for (int64_t term = 0; term < terms; ++term) {
                        for (int64_t r = 0; r < tile.rows; ++r) {
                            const int64_t i = std::min(begin + r, count - 1);
                            lines[term * tile.rows + r] =
                                reinterpret_cast<const char*>(transformed + i * apart + (term * P * P + product) * from.channels);
                        }
                    }
                    tile.multiply(lines, terms, words, WORD, packed_for(phase, panel, product), products[product]);
                }
                for (int64_t r = 0; r < std::min(tile.rows, count - begin); ++r) {
                    const float* sums[P * P];
                    S* places[4];
                    for (int64_t j = 0; j < P * P; ++j) sums[j] = products[j] + r * tile.columns;
                    for (int64_t j = 0; j < 4; ++j) places[j] = written[(begin + r) * 4 + j] + column;
                    write(places[0], F(), sums, bias ? bias + column : nullptr, places, width);
                }
            }
        }
    });
}

constexpr int64_t SPANNED = 1 << 23;  // bytes of small, turned back, that stay in the last-level cache
constexpr int64_t BLOCK = 128;        // words of tiles that are summed over before the next ones
constexpr int64_t TOGETHER = 4;       // slices

// weight = small, turned back to products, times big, read, summed over tiles and weighed back
template <typename F, typename S>
void to_weight(const S* small, const S* big, const Geometry& g, S* weight, const Scheme& scheme) {
    constexpr int64_t P = F::PRODUCTS, T = F::TAPS, N = PER_WORD<S>;
    const Tile& tile = tile_for(N == 2);
    const Tiles<F::READS> tiles(scheme, {g.H, g.W, g.b}, {g.h, g.w, g.a}, g.samples);
    const int64_t words = ceil_div(tiles.count, N), heights = ceil_div(g.a, tile.rows);
    const Zeros<S> zeros(std::max(g.a, g.b));

    // small as [product][word][channel], of a span of words at a time, so that it stays in the last cache
    const int64_t row_bytes = staggered(heights * tile.rows * WORD);
    const int64_t span = std::min(words, ceil_div(SPANNED / (P * P * row_bytes), BLOCK) * BLOCK + BLOCK);
    const Scratch packed(P * P * span * row_bytes);
    const auto packed_for = [&](int64_t product, int64_t word) {
        return packed.bytes() + (product * span + word % span) * row_bytes;
    };
    const auto turn = [&](int64_t word) {
        const S* pixels[N * 4];
        char* products[P * P];
        std::fill_n(pixels, N * 4, zeros.data());
        for (int64_t i = 0; i < N; ++i) {
            if (word * N + i < tiles.count) tiles.writes(tiles.place(word * N + i), 0, small, pixels + i * 4);
        }
        for (int64_t j = 0; j < P * P; ++j) products[j] = packed_for(j, word);
        write_back_words(pixels[0], F(), pixels, products, g.a);
    };

    // A slice is a pair of lanes and a panel of big's channels. A few go through the tiles together, so that a part of small is
    // read once for all of them.
    const int64_t cuts = ceil_div(g.b, tile.columns), slices = tiles.lanes * tiles.lanes * cuts;
    const int64_t threads = torch::stable::get_num_threads(),
                  groups = std::min(slices, std::max(threads, ceil_div(slices, TOGETHER)));
    const int64_t sums_each = heights * tile.rows * tile.columns, slice_sums = P * P * sums_each;
    const int64_t panel_bytes = staggered(BLOCK * tile.columns * WORD), slice_panels = P * P * panel_bytes;
    const auto pack = [&](int64_t slice, int64_t first, int64_t length, char* panels) {
        constexpr int64_t R = F::READS * F::READS;
        const int64_t column = slice % cuts * tile.columns, width = std::min(tile.columns, g.b - column);
        for (int64_t k = 0; k < length; ++k) {
            const S* pixels[N * R];
            char* products[P * P];
            std::fill_n(pixels, N * R, zeros.data());
            for (int64_t i = 0; i < N; ++i) {
                const int64_t number = (first + k) * N + i;
                if (number < tiles.count)
                    tiles.reads(tiles.place(number), slice / cuts, big + column, zeros.data(), pixels + i * R);
            }
            for (int64_t j = 0; j < P * P; ++j) products[j] = panels + j * panel_bytes + k * tile.columns * WORD;
            read_words(pixels[0], F(), pixels, products, width);
        }
    };
    const auto multiply = [&](int64_t first, int64_t length, const char* panels, int64_t count, float* sums) {
        for (int64_t product = 0; product < P * P; ++product) {
            for (int64_t height = 0; height < heights; ++height) {
                const char* lines[MOST_ROWS];
                for (int64_t r = 0; r < tile.rows; ++r) lines[r] = packed_for(product, first) + (height * tile.rows + r) * WORD;
                for (int64_t slice = 0; slice < count; ++slice) {
                    alignas(64) float found[MOST_ROWS * MOST_COLUMNS];
                    tile.multiply(lines, 1, length, row_bytes, panels + slice * slice_panels + product * panel_bytes, found);
                    float* const to = sums + slice * slice_sums + product * sums_each + height * tile.rows * tile.columns;
                    add(found, to, tile.rows * tile.columns);
                }
            }
        }
    };
    const auto finish = [&](int64_t slice, const float* sums) {
        const int64_t pair = slice / cuts, column = slice % cuts * tile.columns, width = std::min(tile.columns, g.b - column);
        const Lane &y = scheme.lanes[pair / tiles.lanes], &x = scheme.lanes[pair % tiles.lanes];
        for (int64_t a = 0; a < g.a; ++a) {
            const float* products[P * P];
            S* taps[T * T];
            for (int64_t j = 0; j < P * P; ++j) products[j] = sums + j * sums_each + a * tile.columns;
            for (int64_t j = 0; j < T * T; ++j) {
                taps[j] = weight + a * g.columns() + (y.taps[j / T] * g.width + x.taps[j % T]) * g.b + column;
            }
            weigh_back(taps[0], F(), products, nullptr, taps, width);
        }
    };
    const Scratch lasting(span < words ? slices * slice_sums * sizeof(float) : 0);
    for (int64_t start = 0; start < words; start += span) {
        const int64_t stop = std::min(words, start + span);
        for_each_task(ceil_div(stop - start, BLOCK), [&](int64_t block) {
            const int64_t first = start + block * BLOCK;
            for (int64_t word = first; word < std::min(stop, first + BLOCK); ++word) turn(word);
        });
        for_each_task(groups, [&](int64_t group) {
            const int64_t begin = group * slices / groups, end = (group + 1) * slices / groups;
            const Scratch own(span < words ? 0 : (end - begin) * slice_sums * sizeof(float)),
                panels((end - begin) * slice_panels);
            float* const sums = span < words ? lasting.floats() + begin * slice_sums : own.floats();
            if (start == 0) std::fill_n(sums, (end - begin) * slice_sums, 0.0f);
            std::memset(panels.bytes(), 0, (end - begin) * slice_panels);
            for (int64_t first = start; first < stop; first += BLOCK) {
                const int64_t length = std::min(BLOCK, stop - first);
                for (int64_t slice = begin; slice < end; ++slice) {
                    pack(slice, first, length, panels.bytes() + (slice - begin) * slice_panels);
                }
                multiply(first, length, panels.bytes(), end - begin, sums);
            }
            for (int64_t slice = begin; slice < end && stop == words; ++slice) finish(slice, sums + (slice - begin) * slice_sums);
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

// run(TwoTaps or ThreeTaps, its scheme)
template <typename F>
void by_kernel(const Geometry& g, const Scheme& four, const Scheme& three, const F& run) {
    expect_tiles(g);
    g.height == 4 ? run(TwoTaps(), four) : run(ThreeTaps(), three);
}

Tensor convolve(const Tensor& big, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding) {
    return make_small(
        big, weight, bias, stride, padding, [](auto* in, auto* factor, const float* shift, const Geometry& g, auto* out) {
            by_kernel(g, SMALL_BY_FOUR, SMALL_BY_THREE, [&](auto taps, const Scheme& scheme) {
                transform<decltype(taps)>(in, {g.H, g.W, g.b}, factor, g, shift, out, {g.h, g.w, g.a}, scheme, true);
            });
        });
}

Tensor transposed_convolve(const Tensor& small, const Tensor& weight, const Parameter& bias, int64_t stride, int64_t padding,
                           int64_t height, int64_t width) {
    const auto run = [](auto* in, auto* factor, const float* shift, const Geometry& g, auto* out) {
        by_kernel(g, BIG_BY_FOUR, BIG_BY_THREE, [&](auto taps, const Scheme& scheme) {
            transform<decltype(taps)>(in, {g.h, g.w, g.a}, factor, g, shift, out, {g.H, g.W, g.b}, scheme, false);
        });
    };
    return make_big(small, weight, bias, stride, padding, height, width, run);
}

Tensor convolution_weight_gradient(const Tensor& small, const Tensor& big, int64_t height, int64_t width, int64_t stride,
                                   int64_t padding) {
    return make_weight(small, big, height, width, stride, padding, [](auto* one, auto* other, const Geometry& g, auto* out) {
        by_kernel(g, SMALL_BY_FOUR, SMALL_BY_THREE,
                  [&](auto taps, const Scheme& scheme) { to_weight<decltype(taps)>(one, other, g, out, scheme); });
    });
}

}  // namespace
}  // namespace ganfast

STABLE_TORCH_LIBRARY_IMPL(ganfast, CPU, library) {
    library.impl("winograd_convolve", TORCH_BOX(&ganfast::convolve));
    library.impl("winograd_transposed_convolve", TORCH_BOX(&ganfast::transposed_convolve));
    library.impl("winograd_convolution_weight_gradient", TORCH_BOX(&ganfast::convolution_weight_gradient));
}

// What convolutions multiply with: weights packed into panels of columns, for tile.h. The maths is on the page
// ganfast/ops/convolution.py.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "columns.h"
#include "pool.h"
#include "tile.h"

namespace ganfast {

// ---- memory and threads

// Memory for the time of a call, from the pool, or PyTorch's where the pool keeps nothing.
class Scratch {
public:
    explicit Scratch(int64_t bytes) {
        if (Pool::shared().keeps()) {
            data_ = static_cast<char*>(Pool::shared().take(bytes));
        } else {
            tensor_ = torch::stable::empty({&bytes, 1}, ScalarType::Byte);
            data_ = static_cast<char*>(tensor_->mutable_data_ptr());
        }
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (!tensor_) Pool::shared().give(data_);
    }

    char* bytes() const { return data_; }
    float* floats() const { return reinterpret_cast<float*>(data_); }

private:
    char* data_;
    std::optional<Tensor> tensor_;
};

// body(task) for all tasks
template <typename F>
void for_each_task(int64_t tasks, const F& body) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) body(task);
    });
}

// ---- the two maps and the weight between them

// small (N, A, h, w) and big (N, B, H, W), whose pixels [stride i - padding + t] meet small's [i] at tap t of the weight
// (A, B, height, width), which lies as [A][height][width][B].
struct Geometry {
    int64_t samples;
    int64_t a, h, w;
    int64_t b, H, W;
    int64_t height, width;  // of the kernel
    int64_t stride, padding;

    int64_t taps() const { return height * width; }
    int64_t columns() const { return taps() * b; }  // of the weight as a matrix of A rows

    // The same where the kernel covers all of big, and small is a single pixel: then all of big is one pixel too.
    Geometry simplified() const {
        if (!(h == 1 && w == 1 && padding == 0 && H == height && W == width)) return *this;
        return {samples, a, 1, 1, columns(), 1, 1, 1, 1, 1, 0};
    }
};

// ---- panels of a weight

// to = from, rounded; the type is that of `to`
template <typename How, typename S>
GANFAST_INLINE void round_run_loop(const S*, const float* from, int64_t n, S* to) {
    in_lanes<float>(n, [&](int64_t i, int64_t some) __attribute__((always_inline)) {
        Floats numbers;
        How::load(from + i, some, numbers);
        How::save(numbers, some, to + i);
    });
}
GANFAST_VERSIONS(round_run)

// The numbers of a weight, in the other factor's type or in float32: these are rounded when they are read.
template <typename S>
class Weight {
public:
    explicit Weight(const Tensor& weight)
        : wide_(weight.scalar_type() == ScalarType::Float ? data_of<float>(weight) : nullptr),
          narrow_(wide_ ? nullptr : data_of<S>(weight)) {}

    // Whether `run` needs memory.
    bool lies_otherwise() const { return !std::is_same_v<S, float> && wide_; }

    // body(the numbers)
    template <typename F>
    void visit(const F& body) const {
        wide_ ? body(wide_) : body(narrow_);
    }

    // n numbers from `at` on, where they lie or in `memory`
    const S* run(int64_t at, int64_t n, S* memory) const {
        if constexpr (std::is_same_v<S, float>) return wide_ + at;
        if (narrow_) return narrow_ + at;
        round_run(static_cast<const S*>(memory), wide_ + at, n, memory);
        return memory;
    }

private:
    const float* wide_;
    const S* narrow_;
};

// The pixels of a map whose channels lie side by side: as they are in memory, or normalised and activated as they are read, to
// the bit what normalise_act makes of them (ops/batch_norm.py).
template <typename S>
class Pixels {
public:
    Pixels(const S* data, int64_t channels) : data_(data), channels_(channels) {}
    Pixels(const S* data, int64_t channels, const float* mean, const Affines<float>& affines, float slope)
        : data_(data), channels_(channels), mean_(mean), affines_(&affines), act_{slope} {}

    const S* data() const { return data_; }

    // Whether `run` needs memory.
    bool lie_otherwise() const { return affines_; }

    // `count` neighbours from one of them on, where they lie or in `memory`
    const S* run(const S* pixel, int64_t count, S* memory) const {
        if (!affines_) return pixel;
        const Block block{0, count, channels_, channels_};
        activate(pixel, block, affines_->of(0, 0, mean_), act_, memory);
        return memory;
    }

private:
    const S* data_;
    int64_t channels_;
    const float* mean_ = nullptr;
    const Affines<float>* affines_ = nullptr;
    LeakyReLU<float> act_{1};
};

// One word of float32, or of two bfloat16 whose second may be missing.
template <typename S>
constexpr int64_t PER_WORD = WORD / sizeof(S);

// What is summed over comes in whole words.
template <typename S>
int64_t words_of(int64_t channels) {
    STD_TORCH_CHECK(channels % PER_WORD<S> == 0, "expected an even number of channels to sum over, got ", channels);
    return channels / PER_WORD<S>;
}

// Four words of four rows, turned, to rows that lie `apart` bytes from one another.
inline void turn_words(const char* const* rows, int64_t offset, char* out, int64_t apart) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    Four a, b, c, d;
    std::memcpy(&a, rows[0] + offset, sizeof a);
    std::memcpy(&b, rows[1] + offset, sizeof b);
    std::memcpy(&c, rows[2] + offset, sizeof c);
    std::memcpy(&d, rows[3] + offset, sizeof d);
    const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Four turned[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                            __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                            __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) std::memcpy(out + i * apart, &turned[i], sizeof turned[i]);
}

// panel[k][c] = the words k of row c, for `rows` of them; the other columns are zero
inline void pack_rows(const char* const* lines, int64_t rows, int64_t words, int64_t columns, char* panel) {
    constexpr int64_t NEAR = 16;  // words in a line of the cache, which is read once
    const int64_t apart = columns * WORD;
    for (int64_t first = 0; first < words; first += NEAR) {
        const int64_t end = std::min(words, first + NEAR);
        for (int64_t c = 0; c < rows;) {
            const int64_t some = c + 4 <= rows ? 4 : 1;
            int64_t k = first;
            for (; some == 4 && k + 4 <= end; k += 4) turn_words(lines + c, k * WORD, panel + k * apart + c * WORD, apart);
            for (; k < end; ++k) {
                for (int64_t i = c; i < c + some; ++i) std::memcpy(panel + k * apart + i * WORD, lines[i] + k * WORD, WORD);
            }
            c += some;
        }
        for (int64_t k = first; k < end; ++k) std::memset(panel + k * apart + rows * WORD, 0, (columns - rows) * WORD);
    }
}

// panel[k][c] = the words k of columns c, one or two rows of a weight each, rounded; those from `wanted` on are zero
template <typename How, typename S, typename W>
GANFAST_INLINE void pack_columns_loop(const S*, const W* rows, int64_t apart, int64_t words, int64_t wanted, int64_t columns,
                                      char* panel) {
    constexpr int64_t N = PER_WORD<S>, AHEAD = 8;  // words, whose rows are pages apart
    for (int64_t k = 0; k < words; ++k, rows += N * apart, panel += columns * WORD) {
        const auto some = [&](int64_t c, int64_t given, int64_t n) __attribute__((always_inline)) {
            Floats first, last;
            Words packed;
            How::load(rows + c, given, first);
            if constexpr (N == 1) {
                copy(&first, packed);
            } else {
                How::load(rows + apart + c, given, last);
                packed = How::rounded(first) | How::rounded(last) << 16;
            }
            std::memcpy(panel + c * WORD, &packed, n * WORD);
        };
        for (int64_t i = 0; i < N; ++i) {
            const W* const later = rows + (AHEAD * N + i) * apart;
            for (int64_t c = 0; c < wanted; c += 64 / static_cast<int64_t>(sizeof(W))) __builtin_prefetch(later + c);
        }
        constexpr int64_t FULL = WIDTH<float>;
        int64_t c = 0;
        for (; c + FULL <= wanted; c += FULL) some(c, FULL, FULL);
        for (; c < columns; c += FULL) some(c, std::clamp<int64_t>(wanted - c, 0, FULL), std::min(columns - c, FULL));
    }
}
GANFAST_VERSIONS(pack_columns)

// panel[c] = the word of first[c] and, where there are two numbers in one, second[c]
inline void interleave(const float* first, const float*, int64_t n, char* panel) { std::memcpy(panel, first, n * WORD); }

GANFAST_SIMD inline void interleave(const BFloat16* first, const BFloat16* second, int64_t n, char* panel) {
    const auto *low = reinterpret_cast<const uint16_t*>(first), *high = reinterpret_cast<const uint16_t*>(second);
    auto* words = reinterpret_cast<uint32_t*>(panel);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) words[c] = low[c] | static_cast<uint32_t>(high[c]) << 16;
}

// A weight for one phase of outputs: [panel][tap][word][column].
struct Panels {
    int64_t taps, words, columns, count;

    int64_t bytes_each() const { return taps * words * columns * WORD; }
    int64_t bytes() const { return count * bytes_each(); }
};

// What is summed over are B's channels, and A's are the columns.
template <typename S>
void pack_for_small(const Weight<S>& weight, const Geometry& g, const std::vector<int64_t>& taps, const Panels& panels,
                    int64_t panel, char* packed) {
    const int64_t first = panel * panels.columns, rows = std::min(panels.columns, g.a - first);
    std::vector<S> memory(weight.lies_otherwise() ? rows * g.b : 0);
    for (const int64_t tap : taps) {
        const char* lines[MOST_COLUMNS];
        for (int64_t c = 0; c < rows; ++c) {
            const S* row = weight.run((first + c) * g.columns() + tap * g.b, g.b, memory.data() + c * g.b);
            lines[c] = reinterpret_cast<const char*>(row);
        }
        pack_rows(lines, rows, panels.words, panels.columns, packed);
        packed += panels.words * panels.columns * WORD;
    }
}

// What is summed over are A's channels, and B's are the columns.
template <typename S>
void pack_for_big(const Weight<S>& weight, const Geometry& g, const std::vector<int64_t>& taps, const Panels& panels,
                  int64_t panel, char* packed) {
    const int64_t first = panel * panels.columns, columns = std::min(panels.columns, g.b - first);
    for (const int64_t tap : taps) {
        weight.visit([&](const auto* numbers) {
            const S* const type = nullptr;
            pack_columns(type, numbers + tap * g.b + first, g.columns(), panels.words, columns, panels.columns, packed);
        });
        packed += panels.words * panels.columns * WORD;
    }
}

// ---- results

// What becomes of the sums of a column: z = sum + bias where that is positive, else slope z.
struct Finish {
    const float* bias;  // or none
    float slope;

    Finish from(int64_t column) const { return {bias ? bias + column : nullptr, slope}; }

    GANFAST_INLINE void shifts(int64_t c, int64_t n, Floats& shift) const {
        shift = Floats{};
        if (bias) load(bias + c, n, shift);
    }
    GANFAST_INLINE void bend(Floats& z) const {
        if (slope == 1) return;
        Floats below{};  // also of -infinity
        if (slope != 0) below = z * slope;
        z = z < 0 ? below : z;
    }
};

constexpr Finish AS_THEY_ARE{nullptr, 1};

// out[r] = what `finish` makes of sums[r], for `rows` rows of which the first `width` columns are wanted
template <typename S>
GANFAST_SIMD void store(const float* sums, int64_t rows, int64_t columns, int64_t width, const Finish& finish, S* const* out) {
    for (int64_t r = 0; r < rows; ++r, sums += columns) {
        in_lanes<float>(width, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
            Floats sum, shift;
            load(sums + c, n, sum);
            finish.shifts(c, n, shift);
            sum += shift;
            finish.bend(sum);
            save(sum, n, out[r] + c);
        });
    }
}

}  // namespace ganfast

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

// One word of float32, or of two bfloat16 whose second may be missing.
template <typename S>
constexpr int64_t PER_WORD = WORD / sizeof(S);

// What is summed over comes in whole words.
template <typename S>
int64_t words_of(int64_t channels) {
    STD_TORCH_CHECK(channels % PER_WORD<S> == 0, "expected an even number of channels to sum over, got ", channels);
    return channels / PER_WORD<S>;
}

// panel[k][c] = the words k of row c, for `rows` of them; the other columns are zero
template <typename S>
void pack_rows(const S* const* lines, int64_t rows, int64_t words, int64_t columns, char* panel) {
    constexpr int64_t NEAR = 16;  // words in a line of the cache, which is read once
    for (int64_t first = 0; first < words; first += NEAR) {
        const int64_t end = std::min(words, first + NEAR);
        for (int64_t c = 0; c < rows; ++c) {
            for (int64_t k = first; k < end; ++k) {
                std::memcpy(panel + (k * columns + c) * WORD, lines[c] + k * PER_WORD<S>, WORD);
            }
        }
        for (int64_t k = first; k < end; ++k) std::memset(panel + (k * columns + rows) * WORD, 0, (columns - rows) * WORD);
    }
}

// panel[c] = the word of first[c] and, where there are two numbers in one, second[c]
GANFAST_INLINE void interleave(const float* first, const float*, int64_t n, char* panel) { std::memcpy(panel, first, n * WORD); }

GANFAST_INLINE void interleave(const BFloat16* first, const BFloat16* second, int64_t n, char* panel) {
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
void pack_for_small(const S* weight, const Geometry& g, const std::vector<int64_t>& taps, const Panels& panels, int64_t panel,
                    char* packed) {
    const int64_t first = panel * panels.columns, rows = std::min(panels.columns, g.a - first);
    for (const int64_t tap : taps) {
        const S* lines[MOST_COLUMNS];
        for (int64_t c = 0; c < rows; ++c) lines[c] = weight + (first + c) * g.columns() + tap * g.b;
        pack_rows(lines, rows, panels.words, panels.columns, packed);
        packed += panels.words * panels.columns * WORD;
    }
}

// What is summed over are A's channels, and B's are the columns.
template <typename S>
GANFAST_SIMD void pack_for_big(const S* weight, const Geometry& g, const std::vector<int64_t>& taps, const Panels& panels,
                               int64_t panel, char* packed) {
    const int64_t first = panel * panels.columns, columns = std::min(panels.columns, g.b - first);
    for (const int64_t tap : taps) {
        const S* row = weight + tap * g.b + first;
        for (int64_t k = 0; k < panels.words; ++k, packed += panels.columns * WORD) {
            const S *one = row + k * PER_WORD<S> * g.columns(), *other = one + g.columns();
            interleave(one, other, columns, packed);
            std::memset(packed + columns * WORD, 0, (panels.columns - columns) * WORD);
        }
    }
}

// ---- results

// out[r][c] = sums[r][c] + bias[c], for `rows` rows of which the first `width` columns are wanted
template <typename S>
GANFAST_SIMD void store(const float* sums, int64_t rows, int64_t columns, int64_t width, const float* bias, S* const* out) {
    for (int64_t r = 0; r < rows; ++r, sums += columns) {
        in_lanes<float>(width, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
            Floats sum, shift{};
            load(sums + c, n, sum);
            if (bias) load(bias + c, n, shift);
            save(sum + shift, n, out[r] + c);
        });
    }
}

}  // namespace ganfast

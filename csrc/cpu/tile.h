// The product of a few rows with a panel of columns, kept in registers: what convolutions are made of here. One for each
// instruction set, chosen when it is first needed.
//
// Numbers come in words of four bytes: one float32, or two bfloat16 that follow one another in the sum. Sums are float32.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__GNUC__) && defined(__x86_64__)
#define GANFAST_X86 1
#include <immintrin.h>
#endif

namespace ganfast {

struct Tile {
    int64_t rows, columns;
    // sums[r][c] = sum over taps t and words k < words of rows[t][r][k] panel[t][k][c]; the words of a row lie `stride` bytes
    // apart, the first one `offset` after rows[t][r]. What lies `next` bytes after those of rows[t][0] is fetched into a near
    // cache.
    void (*multiply)(const char* const* rows, int64_t offset, int64_t taps, int64_t words, int64_t stride, const char* panel,
                     float* sums, int64_t next);
};

constexpr int64_t WORD = 4;
constexpr int64_t AHEAD = 1 << 14;                    // bytes of a panel on their way into a near cache, by measurement
constexpr int64_t MOST_ROWS = 14, MOST_COLUMNS = 32;  // of any tile

namespace tile {

template <int WIDTH>
struct Vector {
    typedef float Floats __attribute__((vector_size(WIDTH * 4)));
    typedef uint32_t Bits __attribute__((vector_size(WIDTH * 4)));
};

// A word of float32.
template <int WIDTH>
struct Single {
    static constexpr int COLUMNS = WIDTH;
    using Floats = typename Vector<WIDTH>::Floats;
    struct Words {
        Floats value;
    };
    static inline __attribute__((always_inline)) void load(const char* from, Words& words) {
        std::memcpy(&words.value, from, sizeof words.value);
    }
    static inline __attribute__((always_inline)) void add(const char* word, const Words& words, Floats& sum) {
        float a;
        std::memcpy(&a, word, WORD);
        sum += a * words.value;
    }
};

// A word of two bfloat16, widened: their bits are the upper half of a float32's.
template <int WIDTH>
struct Pair {
    static constexpr int COLUMNS = WIDTH;
    using Floats = typename Vector<WIDTH>::Floats;
    struct Words {
        Floats first, second;
    };
    static inline __attribute__((always_inline)) void load(const char* from, Words& words) {
        typename Vector<WIDTH>::Bits bits, low, high;
        std::memcpy(&bits, from, sizeof bits);
        low = bits << 16;
        high = bits & 0xffff0000u;
        std::memcpy(&words.first, &low, sizeof low);
        std::memcpy(&words.second, &high, sizeof high);
    }
    static inline __attribute__((always_inline)) void add(const char* word, const Words& words, Floats& sum) {
        uint32_t bits;
        std::memcpy(&bits, word, WORD);
        const uint32_t low = bits << 16, high = bits & 0xffff0000u;
        float first, second;
        std::memcpy(&first, &low, WORD);
        std::memcpy(&second, &high, WORD);
        sum += first * words.first;
        sum += second * words.second;
    }
};

template <typename Kind, int ROWS, int VECTORS>
inline __attribute__((always_inline)) void multiply(const char* const* rows, int64_t offset, int64_t taps, int64_t words,
                                                    int64_t stride, const char* panel, float* sums, int64_t next) {
    typename Kind::Floats sum[ROWS][VECTORS];  // in registers, which wants every loop over it unrolled
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = typename Kind::Floats{};
    }
    for (int64_t t = 0; t < taps; ++t, rows += ROWS) {
        const char* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r] + offset;
        for (int64_t k = 0, at = 0; k < words; ++k, at += stride, panel += VECTORS * Kind::COLUMNS * WORD) {
            __builtin_prefetch(row[0] + at + next);
            for (int64_t line = 0; line < VECTORS * Kind::COLUMNS * WORD; line += 64) __builtin_prefetch(panel + AHEAD + line);
            typename Kind::Words columns[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) Kind::load(panel + v * Kind::COLUMNS * WORD, columns[v]);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) Kind::add(row[r] + at, columns[v], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) std::memcpy(sums + (r * VECTORS + v) * Kind::COLUMNS, &sum[r][v], sizeof sum[r][v]);
    }
}

#define GANFAST_TILE(name, target, kind, rows, vectors)                                                            \
    target inline void name(const char* const* lines, int64_t offset, int64_t taps, int64_t words, int64_t stride, \
                            const char* panel, float* sums, int64_t next) {                                        \
        multiply<kind, rows, vectors>(lines, offset, taps, words, stride, panel, sums, next);                      \
    }

GANFAST_TILE(single_anywhere, , Single<4>, 6, 2)
GANFAST_TILE(pair_anywhere, , Pair<4>, 4, 1)

#ifdef GANFAST_X86

// Words of two bfloat16, by the processor's own sum of two products. The same loops once more: what is compiled for more than the
// baseline cannot be inlined into what is not.
template <int ROWS, int VECTORS>
__attribute__((target("avx512f,avx512bf16"))) void multiply_pairs(const char* const* rows, int64_t offset, int64_t taps,
                                                                  int64_t words, int64_t stride, const char* panel, float* sums,
                                                                  int64_t next) {
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = _mm512_setzero_ps();
    }
    for (int64_t t = 0; t < taps; ++t, rows += ROWS) {
        const char* row[ROWS];
        for (int r = 0; r < ROWS; ++r) row[r] = rows[r] + offset;
        for (int64_t k = 0, at = 0; k < words; ++k, at += stride, panel += VECTORS * 16 * WORD) {
            __builtin_prefetch(row[0] + at + next);
            for (int64_t line = 0; line < VECTORS * 16 * WORD; line += 64) __builtin_prefetch(panel + AHEAD + line);
            __m512bh columns[VECTORS];
            for (int v = 0; v < VECTORS; ++v) columns[v] = (__m512bh)_mm512_loadu_ps(panel + v * 16 * WORD);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float pair;
                std::memcpy(&pair, row[r] + at, WORD);
                for (int v = 0; v < VECTORS; ++v) {
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)_mm512_set1_ps(pair), columns[v]);
                }
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(sums + (r * VECTORS + v) * 16, sum[r][v]);
    }
}

GANFAST_TILE(single_avx2, __attribute__((target("avx2,fma"))), Single<8>, 6, 2)
GANFAST_TILE(pair_avx2, __attribute__((target("avx2,fma"))), Pair<8>, 4, 2)
GANFAST_TILE(single_avx512, __attribute__((target("avx512f"))), Single<16>, 14, 2)
GANFAST_TILE(single_avx512_of_13, __attribute__((target("avx512f"))), Single<16>, 13, 2)
GANFAST_TILE(single_avx512_of_12, __attribute__((target("avx512f"))), Single<16>, 12, 2)
GANFAST_TILE(pair_avx512, __attribute__((target("avx512f"))), Pair<16>, 12, 2)

#endif
#undef GANFAST_TILE

}  // namespace tile

// What this processor has: 0 is nothing in particular, 1 AVX2, 2 AVX-512, 3 its products of bfloat16 too.
// GANFAST_TILE=baseline|avx2|avx512|avx512_bf16 asks for no more than that, which is how a processor tests the tiles of lesser
// ones.
inline int tile_level() {
    static const int level = [] {
        constexpr std::array<const char*, 4> names{"baseline", "avx2", "avx512", "avx512_bf16"};
        int found = 0;
#ifdef GANFAST_X86
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = 1;
        if (found == 1 && __builtin_cpu_supports("avx512f")) found = 2;
        if (found == 2 && __builtin_cpu_supports("avx512bf16")) found = 3;
#endif
        const char* asked = std::getenv("GANFAST_TILE");
        for (int i = 0; asked && i < found; ++i) {
            if (std::strcmp(asked, names[i]) == 0) return i;
        }
        return found;
    }();
    return level;
}

// That of this processor, for words of one float32 or of two bfloat16, of which `groups` of `rows` rows each are multiplied by so
// many threads. Tiles of fewer rows are as good where they leave fewer of them empty, or fewer threads idle in the end; which one
// it is changes no sum.
inline const Tile& tile_for(bool pairs, int64_t rows, int64_t groups = 1, int64_t threads = 1) {
#ifdef GANFAST_X86
    static const std::array<std::vector<Tile>, 4> single{
        {{{6, 8, tile::single_anywhere}},
         {{6, 16, tile::single_avx2}},
         {{14, 32, tile::single_avx512}, {13, 32, tile::single_avx512_of_13}, {12, 32, tile::single_avx512_of_12}},
         {{14, 32, tile::single_avx512}, {13, 32, tile::single_avx512_of_13}, {12, 32, tile::single_avx512_of_12}}}};
    static const std::array<std::vector<Tile>, 4> pair{
        {{{4, 4, tile::pair_anywhere}},
         {{4, 16, tile::pair_avx2}},
         {{12, 32, tile::pair_avx512}},
         {{14, 32, tile::multiply_pairs<14, 2>}, {13, 32, tile::multiply_pairs<13, 2>}, {12, 32, tile::multiply_pairs<12, 2>}}}};
#else
    static const std::array<std::vector<Tile>, 1> single{{{{6, 8, tile::single_anywhere}}}},
        pair{{{{4, 4, tile::pair_anywhere}}}};
#endif
    const auto in_turn = [&](const Tile& tile) {  // rows that a thread has
        const int64_t tiles = groups * ((rows + tile.rows - 1) / tile.rows);
        return (tiles + threads - 1) / threads * tile.rows;
    };
    const std::vector<Tile>& tiles = (pairs ? pair : single)[tile_level()];
    const Tile* best = &tiles.front();
    for (const Tile& tile : tiles) {
        if (in_turn(tile) * 50 < in_turn(*best) * 49) best = &tile;  // two of a hundred: lower tiles do a little more for a row
    }
    return *best;
}

}  // namespace ganfast

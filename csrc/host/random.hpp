// Counter-based randomness: every number is a hash of where it is used, so there is no state to save.
#pragma once

#include <cstdint>

namespace ganfast::host {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

// One step of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words.
constexpr std::uint64_t mix(std::uint64_t x) {
    x += kGolden;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

constexpr std::uint64_t key(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
    return mix(mix(mix(seed) ^ stream) ^ counter);
}

}  // namespace ganfast::host

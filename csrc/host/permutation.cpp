// The order of an epoch, computed draw by draw: an alternating Feistel network with cycle walking.
//
// A set of n rows is embedded in the 2^b words of b = bit_width(n - 1) bits. Their upper b / 2 bits and the remaining lower ones
// take turns to be XORed with a hash of each other, which is a bijection whatever the hash. A word of n or more is sent through
// again; as n > 2^(b - 1) that takes less than two passes on average, and what remains is a bijection of 0 .. n - 1.
#include <array>
#include <stdexcept>

#include "host.hpp"
#include "random.hpp"

namespace ganfast::host {

namespace {

constexpr int kRounds = 24;

int bit_width(std::uint64_t x) {
    int bits = 0;
    for (; x != 0; x >>= 1) ++bits;
    return bits;
}

class Epoch {
public:
    Epoch(std::uint64_t n, std::uint64_t seed, std::uint64_t stream, std::uint64_t epoch) : n_(n) {
        const int bits = bit_width(n - 1);
        shift_ = bits - bits / 2;
        low_mask_ = (std::uint64_t{1} << shift_) - 1;
        high_mask_ = (std::uint64_t{1} << (bits / 2)) - 1;
        const std::uint64_t base = key(seed, stream, epoch);
        for (int r = 0; r < kRounds; ++r) keys_[r] = mix(base + static_cast<std::uint64_t>(r) * kGolden);
    }

    std::uint64_t operator()(std::uint64_t x) const {
        do {
            std::uint64_t high = x >> shift_, low = x & low_mask_;
            for (int r = 0; r < kRounds; r += 2) {
                low ^= mix(high ^ keys_[r]) & low_mask_;
                high ^= mix(low ^ keys_[r + 1]) & high_mask_;
            }
            x = (high << shift_) | low;
        } while (x >= n_);
        return x;
    }

private:
    std::uint64_t n_, low_mask_, high_mask_;
    int shift_;
    std::array<std::uint64_t, kRounds> keys_{};
};

}  // namespace

Array<std::int64_t> permuted(std::uint64_t start, py::ssize_t count, std::uint64_t n, std::uint64_t seed, std::uint64_t stream) {
    if (count < 0 || n == 0) throw std::invalid_argument("permuted: count must be at least 0 and n at least 1");
    Array<std::int64_t> out(count);
    std::int64_t* rows = out.mutable_data();
    const py::gil_scoped_release unlocked;
    for (py::ssize_t k = 0; k < count;) {
        const std::uint64_t draw = start + static_cast<std::uint64_t>(k);
        const Epoch order(n, seed, stream, draw / n);
        for (std::uint64_t place = draw % n; place < n && k < count; ++place, ++k) {
            rows[k] = static_cast<std::int64_t>(order(place));
        }
    }
    return out;
}

Array<bool> flips(std::uint64_t start, py::ssize_t count, std::uint64_t seed, std::uint64_t stream) {
    if (count < 0) throw std::invalid_argument("flips: count must be at least 0");
    Array<bool> out(count);
    bool* bits = out.mutable_data();
    const py::gil_scoped_release unlocked;
    // The complemented seed keeps these hashes apart from the keys of the permutations.
    for (py::ssize_t k = 0; k < count; ++k) {
        bits[k] = (key(~seed, stream, start + static_cast<std::uint64_t>(k)) >> 63) != 0;
    }
    return out;
}

}  // namespace ganfast::host

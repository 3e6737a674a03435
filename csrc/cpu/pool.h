// Large results in memory that is kept between calls.
//
// glibc gives large blocks back to the system when they are freed, and the next tensors fault on every page anew. Here a freed
// block waits for the next tensor that fills half of it. Of those that would serve, the smallest does, and of equal ones the last
// one freed, as it is in a cache still. What is in use and what waits are together no more than was in use at once while the
// last 4096 blocks were taken, or twice as many, results and scratch alike, or GANFAST_POOL_MB (64 unless set; 0 keeps nothing):
// what waited longest goes first.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "../common/tensors.h"

namespace ganfast {

class Pool {
public:
    static Pool& shared() {
        static Pool* pool = new Pool;  // never destroyed: tensors may outlive this library's own end
        return *pool;
    }

    // Whether anything is kept; otherwise memory is PyTorch's own, which its profiler sees.
    bool keeps() const { return limit_ > 0; }

    void* take(size_t bytes) {
        const size_t size = (bytes + PAGE - 1) / PAGE * PAGE;
        Block* found = waiting(size);
        shrink();
        if (!found) found = allocated(size);
        if (!found) {
            shrink(true);
            found = allocated(size);
        }
        if (!found) {
            const std::lock_guard<std::mutex> lock(mutex_);
            used_ -= size;
        }
        STD_TORCH_CHECK(found != nullptr, "not enough memory: ", bytes, " bytes for a result");
        return reinterpret_cast<char*>(found) + HEADER;
    }

    void give(void* data) {
        Block* const block = reinterpret_cast<Block*>(static_cast<char*>(data) - HEADER);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            most_ = std::max(most_, used_);  // here, so that memory that was refused does not count
            used_ -= block->size;
            kept_ += block->size;
            waiting_.push_back(block);
        }
        shrink();
    }

private:
    static constexpr size_t HEADER = 64;  // keeps the data on a cache line of its own
    static constexpr size_t PAGE = 4096;
    static constexpr int64_t RECENT = 4096;  // blocks that were taken
    struct Block {
        size_t size;  // of what follows the header
    };

    static Block* allocated(size_t size) {
        auto* const block = static_cast<Block*>(std::aligned_alloc(HEADER, size + HEADER));
        if (block) block->size = size;
        return block;
    }

    // A block that waited, if one serves; either way as much is in use from now on.
    Block* waiting(size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (taken_++ % RECENT == 0) {
            before_ = most_;
            most_ = used_;
        }
        auto best = waiting_.end();
        for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
            const size_t other = (*at)->size;
            if (other >= size && other <= 2 * size && (best == waiting_.end() || other <= (*best)->size)) best = at;
        }
        if (best == waiting_.end()) {
            used_ += size;
            return nullptr;
        }
        Block* const found = *best;
        waiting_.erase(best);
        kept_ -= found->size;
        used_ += found->size;
        return found;
    }

    // Frees those that waited longest and are too much, or all that wait.
    void shrink(bool all = false) {
        std::vector<Block*> freed;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const size_t allowed = std::max({most_, before_, limit_});
            auto end = waiting_.begin();
            for (; end != waiting_.end() && (all || used_ + kept_ > allowed); ++end) kept_ -= (*end)->size;
            freed.assign(waiting_.begin(), end);
            waiting_.erase(waiting_.begin(), end);
        }
        for (Block* block : freed) std::free(block);
    }

    std::mutex mutex_;
    std::vector<Block*> waiting_;   // the one that waited longest first
    size_t used_ = 0, kept_ = 0;    // bytes in use and waiting
    int64_t taken_ = 0;             // how often
    size_t most_ = 0, before_ = 0;  // bytes in use at once since the last RECENT began, and in those before
    const size_t limit_ = [] {
        const char* megabytes = std::getenv("GANFAST_POOL_MB");
        return static_cast<size_t>(megabytes ? std::strtoull(megabytes, nullptr, 10) : 64) << 20;
    }();
};

// Like empty_strided, with large tensors' memory from the pool. The strides leave no gaps.
inline Tensor pooled_strided(Extents sizes, Extents strides, ScalarType type, const Tensor& near) {
    constexpr int64_t LARGE = 1 << 16;  // smaller blocks stay in glibc's heap anyway
    int64_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
    for (const int64_t size : sizes) bytes *= size;
    if (bytes < LARGE || !Pool::shared().keeps()) return empty_strided(sizes, strides, type, near);
    return torch::stable::from_blob(Pool::shared().take(bytes), sizes, strides, near.device(), type,
                                    [](void* data) { Pool::shared().give(data); });
}

// Like empty_as, the same.
inline Tensor pooled_as(const Tensor& tensor, ScalarType type) {
    if (!(tensor.is_contiguous() || is_channels_last(tensor))) return empty_as(tensor, type);
    return pooled_strided(tensor.sizes(), tensor.strides(), type, tensor);
}

}  // namespace ganfast

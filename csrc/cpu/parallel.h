// PyTorch's threads, given out task by task.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>

namespace ganfast {

// Calls task(i) for i from 0 to count - 1, on several threads where the `work` (elements read) is worth waking them.
template <typename F>
void for_each_task(int64_t count, int64_t work, const F& task) {
    constexpr int64_t ALONE = 1 << 15;  // a guess: less work than waking a thread is worth
    const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
    if (threads <= 1 || work <= ALONE) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
        for (int64_t i = next++; i < count; i = next++) task(i);
    });
}

}  // namespace ganfast

// PyTorch's threads, given out task by task.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace ganfast {

constexpr int64_t TASK = 1 << 15;  // elements a task reads: 128 KB of float32

// A range in tasks of equal size.
struct Cut {
    int64_t extent, step;

    Cut(int64_t extent, int64_t elements_each, int64_t least, int64_t task = TASK)
        : extent(extent), step(std::max(least, task / std::max<int64_t>(1, elements_each))) {}

    int64_t tasks() const { return (extent + step - 1) / step; }
    int64_t begin(int64_t task) const { return task * step; }
    int64_t end(int64_t task) const { return std::min(extent, (task + 1) * step); }
};

// Tasks that may run at once, and what follows when all of them are done.
struct Step {
    int64_t tasks;
    std::function<void(int64_t)> run;
    std::function<void()> finish = [] {};
};
using Chain = std::vector<Step>;  // steps that follow one another

// Runs all chains. They advance together, each a step behind the one before it, so that threads work on the second step of one
// weight, which is in their caches still, while the last tasks of the first step of another are under way.
//
// Tasks are taken in an order in which whatever a task waits for was taken before it, so one thread alone gets to the end too.
inline void run_chains(const std::vector<Chain>& chains, int64_t elements) {
    struct Turn {
        const Step* step = nullptr;
        const Turn* before = nullptr;
        std::atomic<int64_t> left{0};
        std::atomic<bool> done{false};
    };
    struct Job {
        Turn* turn;
        int64_t task;
    };
    size_t steps = 0, longest = 0;
    for (const Chain& chain : chains) {
        steps += chain.size();
        longest = std::max(longest, chain.size());
    }
    const std::unique_ptr<Turn[]> turns(new Turn[steps]);
    std::vector<const Turn*> last(chains.size());
    std::vector<Job> jobs;
    Turn* next_turn = turns.get();
    for (size_t time = 0; time < chains.size() + longest; ++time) {
        for (size_t i = std::min(time + 1, chains.size()); i-- > 0;) {  // the youngest first: what it follows has time to finish
            if (time - i >= chains[i].size()) continue;
            Turn* turn = next_turn++;
            turn->step = &chains[i][time - i];
            turn->before = last[i];
            turn->left = std::max<int64_t>(1, turn->step->tasks);
            last[i] = turn;
            for (int64_t task = 0; task < turn->left; ++task) jobs.push_back({turn, task});
        }
    }
    const auto perform = [](const Job& job) {
        Turn& turn = *job.turn;
        for (int spins = 0; turn.before && !turn.before->done.load(std::memory_order_acquire); ++spins) {
            if (spins > 1000) std::this_thread::yield();
        }
        if (job.task < turn.step->tasks) turn.step->run(job.task);
        if (turn.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            turn.step->finish();
            turn.done.store(true, std::memory_order_release);
        }
    };
    constexpr int64_t ALONE = 1 << 15;  // a guess: less work than waking a thread is worth
    const int64_t count = static_cast<int64_t>(jobs.size());
    const int64_t threads = elements <= ALONE ? 1 : std::min<int64_t>(count, torch::stable::get_num_threads());
    if (threads <= 1) {
        for (const Job& job : jobs) perform(job);
        return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
        for (int64_t i = next++; i < count; i = next++) perform(jobs[i]);
    });
}

}  // namespace ganfast

// The running statistics of the page ganfast/ops/batch_norm.py for one channel. No torch here: CPU and CUDA share it.
#pragma once

#include "scalar.h"

namespace ganfast {

// Running mean and var (channels), or none, how much of a group's and of themselves they become, and m / (m - 1) for m values a
// channel.
template <typename T>
struct Running {
    T *mean, *var;
    T momentum, kept, unbiasing;

    // By a channel's mean and biased variance.
    GANFAST_HOST_DEVICE void follow(int64_t channel, T of_mean, T of_var) const {
        mean[channel] = momentum * of_mean + kept * mean[channel];
        var[channel] = momentum * (of_var * unbiasing) + kept * var[channel];
    }
};

}  // namespace ganfast

// The running statistics of the page ganfast/ops/batch_norm.py for one channel. No torch here: CPU and CUDA share it.
#pragma once

#include "slope.h"

namespace ganfast {

// Running mean and var (channels), or none, how much of the way to a group's they go, and m / (m - 1) for m values a channel.
template <typename T>
struct Running {
    T *mean, *var;
    T momentum, unbiasing;

    // By a channel's mean and biased variance.
    GANFAST_HOST_DEVICE void follow(int64_t channel, T of_mean, T of_var) const {
        mean[channel] = mixed(of_mean, mean[channel], momentum);
        var[channel] = mixed(of_var * unbiasing, var[channel], momentum);
    }
};

}  // namespace ganfast

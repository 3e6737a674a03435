// The arithmetic of the page ganfast/ops/gradient_penalty.py for one number and for one sample. No torch here: CPU and CUDA share
// it.
#pragma once

#include <cmath>
#include <limits>

#include "scalar.h"

namespace ganfast {

// fake + alpha (real - fake), from the nearer end as torch.lerp does it: alpha = 0 and alpha = 1 give the ends themselves.
template <typename T>
GANFAST_HOST_DEVICE inline T mixed(T real, T fake, T alpha) {
    const bool near_fake = std::abs(alpha) < T(0.5);
    return (near_fake ? fake : real) + (near_fake ? alpha : alpha - 1) * (real - fake);
}

template <typename T>
constexpr double LARGEST = std::numeric_limits<T>::max();

// What one sample adds to P N / weight, and what its g is multiplied by to give its v.
struct Slope {
    double cost, factor;

    // Whether the factor has a place in T. The slope of a critic that has all but stopped leads out of float32, and back with g.
    template <typename T>
    GANFAST_HOST_DEVICE bool fits() const {
        return std::abs(factor) <= LARGEST<T>;
    }
};

// How slopes are charged in one call.
struct Charge {
    double target;
    double scale;  // 2 weight / N
    bool one_sided;

    GANFAST_HOST_DEVICE Slope of(double sum_of_squares) const {
        const double length = std::sqrt(sum_of_squares);
        double excess = length - target;
        if (one_sided && excess < 0) excess = 0;
        return {excess * excess, (length == 0 ? 0 : excess / length) * scale};
    }
};

}  // namespace ganfast

// The arithmetic of the page ganfast/ops/adam.py for one number. No torch here: CPU and CUDA share it.
#pragma once

#include <cmath>

#include "scalar.h"
#include "slope.h"

namespace ganfast {

struct AdamSettings {
    double beta1, beta2, eps;
};

// What one step is for all elements of a parameter.
template <typename T>
struct AdamStep {
    T towards, keep, add, size, scale, eps;

    GANFAST_HOST_DEVICE static AdamStep of(const AdamSettings& settings, double lr, double t) {
        return {static_cast<T>(1 - settings.beta1),
                static_cast<T>(settings.beta2),
                static_cast<T>(1 - settings.beta2),
                static_cast<T>(lr / (1 - std::pow(settings.beta1, t))),
                static_cast<T>(1 / std::sqrt(1 - std::pow(settings.beta2, t))),
                static_cast<T>(settings.eps)};
    }

    GANFAST_HOST_DEVICE void move(T g, T& p, T& m, T& v) const {
        m = mixed(g, m, towards);
        v = keep * v + add * g * g;
        p -= size * (m / (std::sqrt(v) * scale + eps));
    }
};

}  // namespace ganfast

// The activations of the page ganfast/ops/batch_norm.py for one number z, and their derivatives. No torch here: CPU and CUDA
// share it.
#pragma once

#include <cmath>

#include "scalar.h"

namespace ganfast {

// ReLU with slope 0, and no activation with slope 1
template <typename T>
struct LeakyReLU {
    T slope;

    // 0 of -infinity too, where slope is 0
    GANFAST_HOST_DEVICE T operator()(T z) const { return !(z < 0) ? z : slope == 0 ? T(0) : z * slope; }
    GANFAST_HOST_DEVICE T derivative(T z) const { return z > 0 ? T(1) : slope; }
};

template <typename T>
struct Tanh {
    GANFAST_HOST_DEVICE T operator()(T z) const { return std::tanh(z); }
    GANFAST_HOST_DEVICE T derivative(T z) const {
        const T y = std::tanh(z);
        return 1 - y * y;
    }
};

// One of the two, known when it is called: where they would double a kernel.
template <typename T>
struct Either {
    LeakyReLU<T> leaky;
    bool tanh;

    GANFAST_HOST_DEVICE T operator()(T z) const { return tanh ? Tanh<T>()(z) : leaky(z); }
    GANFAST_HOST_DEVICE T derivative(T z) const { return tanh ? Tanh<T>().derivative(z) : leaky.derivative(z); }
};

// body(activation)
template <typename T, typename F>
void with_activation(double slope, bool tanh, const F& body) {
    if (tanh) return body(Tanh<T>());
    body(LeakyReLU<T>{static_cast<T>(slope)});
}

}  // namespace ganfast

// A batch of training images out of a uint8 data set: gather, mirror, scale to [-1, 1] and lay out, in one pass.
//
// Reads count * H * W * C bytes and writes four times as many.
#include <array>
#include <stdexcept>
#include <string>

#include "host.hpp"

namespace ganfast::host {

namespace {

std::array<float, 256> scaled_bytes() {
    std::array<float, 256> table{};
    for (int value = 0; value < 256; ++value) table[value] = static_cast<float>(value) / 127.5F - 1.0F;
    return table;
}

}  // namespace

void gather_images(const Array<std::uint8_t>& images, const Array<std::int64_t>& indices, const Array<bool>& flipped,
                   Array<float>& out, bool channels_last) {
    if (images.ndim() != 4 || out.ndim() != 4 || indices.ndim() != 1 || flipped.ndim() != 1) {
        throw std::invalid_argument("gather_images: expected images (N, H, W, C), indices (K,), flipped (K,) and a 4-d out");
    }
    const py::ssize_t rows = images.shape(0), height = images.shape(1), width = images.shape(2), channels = images.shape(3);
    const py::ssize_t count = indices.shape(0);
    const std::array<py::ssize_t, 4> wanted = channels_last ? std::array<py::ssize_t, 4>{count, height, width, channels}
                                                            : std::array<py::ssize_t, 4>{count, channels, height, width};
    for (int axis = 0; axis < 4; ++axis) {
        if (out.shape(axis) != wanted[axis] || flipped.shape(0) != count) {
            throw std::invalid_argument("gather_images: out and flipped must hold one image and one flag per index");
        }
    }
    const std::uint8_t* source = images.data();
    const std::int64_t* index = indices.data();
    const bool* mirror = flipped.data();
    float* target = out.mutable_data();
    for (py::ssize_t k = 0; k < count; ++k) {
        if (index[k] < 0 || index[k] >= rows) {
            throw py::index_error("gather_images: an index is outside 0 .. " + std::to_string(rows - 1));
        }
    }

    static const std::array<float, 256> scaled = scaled_bytes();
    const py::ssize_t image = height * width * channels;
    const py::ssize_t step_x = channels_last ? channels : 1;
    const py::ssize_t step_y = channels_last ? width * channels : width;
    const py::ssize_t step_c = channels_last ? 1 : height * width;
    const py::gil_scoped_release unlocked;
    for (py::ssize_t k = 0; k < count; ++k) {
        const std::uint8_t* from = source + index[k] * image;
        float* to = target + k * image;
        for (py::ssize_t y = 0; y < height; ++y) {
            for (py::ssize_t x = 0; x < width; ++x) {
                const std::uint8_t* pixel = from + (y * width + (mirror[k] ? width - 1 - x : x)) * channels;
                float* place = to + y * step_y + x * step_x;
                for (py::ssize_t c = 0; c < channels; ++c) place[c * step_c] = scaled[pixel[c]];
            }
        }
    }
}

}  // namespace ganfast::host

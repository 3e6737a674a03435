// What the module ganfast._host consists of. ganfast/data/portable.py holds the same functions in numpy, equal bit for bit.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace ganfast::host {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

Array<std::int64_t> permuted(std::uint64_t start, py::ssize_t count, std::uint64_t n, std::uint64_t seed, std::uint64_t stream);

Array<bool> flips(std::uint64_t start, py::ssize_t count, std::uint64_t seed, std::uint64_t stream);

void gather_images(const Array<std::uint8_t>& images, const Array<std::int64_t>& indices, const Array<bool>& flipped,
                   Array<float>& out, bool channels_last);

py::dict build_info();

}  // namespace ganfast::host

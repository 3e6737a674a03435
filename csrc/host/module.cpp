#include "host.hpp"

PYBIND11_MODULE(_host, module) {
    namespace py = pybind11;
    using namespace ganfast::host;

    module.doc() = "Host-side pieces of ganfast that are no tensor operations.";
    module.def("permuted", &permuted, py::arg("start"), py::arg("count"), py::arg("n"), py::arg("seed"), py::arg("stream"),
               "Row numbers of draws start .. start + count - 1; every epoch of n draws is a permutation.");
    module.def("flips", &flips, py::arg("start"), py::arg("count"), py::arg("seed"), py::arg("stream"), "One fair bit per draw.");
    // noconvert: a silent copy of a memory-mapped data set would fill the memory, and one of out would lose the result.
    module.def("gather_images", &gather_images, py::arg("images").noconvert(), py::arg("indices").noconvert(),
               py::arg("flipped").noconvert(), py::arg("out").noconvert(), py::arg("channels_last"),
               "Writes images[indices] / 127.5 - 1, mirrored where flipped, into out.");
    module.def("build_info", &build_info, "Compiler, C++ standard and pybind11 version of this build.");
}

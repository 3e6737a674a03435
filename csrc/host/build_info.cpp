// What this module was built with; nothing here depends on when or where.
#include <string>

#include "host.hpp"

namespace ganfast::host {

py::dict build_info() {
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
    info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
    info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
    info["compiler"] = "unknown";
#endif
#if defined(_MSVC_LANG)
    info["cxx_standard"] = static_cast<long>(_MSVC_LANG);
#else
    info["cxx_standard"] = static_cast<long>(__cplusplus);
#endif
    info["pybind11"] = std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR);
#if defined(NDEBUG)
    info["assertions"] = false;
#else
    info["assertions"] = true;
#endif
    return info;
}

}  // namespace ganfast::host

// Kernels as types: Kernel::Arguments, Kernel::BLOCK threads, Kernel::run(arguments, block). A compiler other than nvcc gets the
// emulation: blocks in turn, on the CPU key and on tensors of the CPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "../common/block.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#define GANFAST_KEY CUDA
#else
#define GANFAST_KEY CPU
#endif

namespace ganfast {

#if defined(__CUDACC__)

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::BLOCK) kernel(const __grid_constant__ typename Kernel::Arguments arguments) {
    Kernel::run(arguments, blockIdx.x);
}

// A tensor's device made the current one, and PyTorch's stream there.
class Stream {
public:
    explicit Stream(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    template <typename Kernel>
    void launch(const typename Kernel::Arguments& arguments, int64_t blocks) const {
        static_assert(sizeof(arguments) <= 4096, "the most that every architecture takes");
        if (blocks == 0) return;
        STD_TORCH_CHECK(blocks < int64_t(1) << 31, "expected fewer than 2^31 blocks, got ", blocks);
        kernel<Kernel><<<static_cast<unsigned>(blocks), Kernel::BLOCK, 0, stream_>>>(arguments);
        const cudaError_t error = cudaGetLastError();
        STD_TORCH_CHECK(error == cudaSuccess, "a kernel of ganfast did not start: ", cudaGetErrorString(error));
    }

private:
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

#else

class Stream {
public:
    explicit Stream(const torch::stable::Tensor&) {}

    template <typename Kernel>
    void launch(const typename Kernel::Arguments& arguments, int64_t blocks) const {
        const bool reversed = reversed_order();
        for (int64_t i = 0; i < blocks; ++i) Kernel::run(arguments, reversed ? blocks - 1 - i : i);
    }
};

#endif

}  // namespace ganfast

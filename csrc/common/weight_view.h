// How the kernels see a weight: as it lies in memory, never copied into matrix shape. No torch here: CPU and CUDA share it.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace ganfast {

// Memory [batch][rows][columns]. The matrix W of the maths has the output channels as rows and everything else, in logical
// order, as columns. A plain view has x = u (rows) and y = v (batch * columns); a transposed one x = v and y = u.
//
//   linear, convolution                              batch 1,  rows out,     columns in * k
//   convolution, channels last                       the same, its columns in the order k, in
//   transposed convolution (rows along dim 1)        batch in, rows out,     columns k
//   transposed convolution, channels last            batch 1,  rows in * k,  columns out, transposed
struct WeightView {
    int64_t batch, rows, columns;
    int64_t inner;  // columns are stored as (columns / inner, inner) and counted in W as (inner, columns / inner)
    bool transposed;

    GANFAST_HOST_DEVICE int64_t y_length() const { return batch * columns; }
    GANFAST_HOST_DEVICE int64_t elements() const { return batch * rows * columns; }

    // Where in memory the element in row 0 and at position j of y lies; those of the other rows follow at distances of `columns`.
    GANFAST_HOST_DEVICE int64_t offset(int64_t j) const { return batch == 1 ? j : j / columns * (rows * columns) + j % columns; }

    // Where in y, as W counts, the memory column j belongs; j runs over batch * columns.
    GANFAST_HOST_DEVICE int64_t logical(int64_t j) const {
        return inner == columns ? j : (j % inner) * (columns / inner) + j / inner;
    }
};

}  // namespace ganfast

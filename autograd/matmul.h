// Products of matrices. All take float32, float64 or half tensors of one dtype on one device, and are differentiable as often as you like.
// Transposed and strided operands are read where they lie.
#pragma once

#include <fovea/autograd/tape.h>

namespace fovea {

// The matrix product with PyTorch's rules: the last two axes are matrices and the axes before them are broadcast. A vector on the left counts as a row, one on the
// right as a column, and that axis is dropped from the result: [k] x [k] -> [], [m,k] x [k] -> [m], [k] x [b,k,n] -> [b,n].
Tensor matmul(const Tensor& a, const Tensor& b);

Tensor dot(const Tensor& a, const Tensor& b);            // of two vectors of the same length
Tensor outer(const Tensor& a, const Tensor& b);          // of two vectors: [m] x [n] -> [m,n]

// y = x weight^T + bias:  x [..,in], weight [out,in], bias [out] (may be left out), y [..,out].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

}  // namespace fovea

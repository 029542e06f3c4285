// The kernels that the op table names, and what they share.
#pragma once
#include "op.h"

namespace eager::core {

// Generated elementwise ops: broadcasts, promotes, converts block by block.  Any number of
// outputs.  Used on its own it ignores `out`; in-place calls go through elementwise_into().
Tensors elementwise_kernel(const Op&, const Tensors& in, const Attrs&, Tensor* out);
// Generated reductions.
Tensors reduce_kernel(const Op&, const Tensors& in, const Attrs&, Tensor* out);
// Ops with a Python impl: calls foreign_kernel outside recorder and tape.
Tensors foreign_trampoline(const Op&, const Tensors& in, const Attrs&, Tensor* out);

// Writes an elementwise op's results into `out` (any strides and dtypes the result can be cast
// to).  Inputs may overlap the outputs in any way.
void elementwise_into(const Op&, const Tensors& in, const Attrs&, const Tensors& out);

// Runs a generated loop whose inputs broadcast to out[0]'s shape and are converted to `compute`,
// except those in `bool_inputs` (bit i: input i), which are made bool.  Any dtype of outputs.
void run_loops(const char* name, const Loops&, const Tensors& in, DType compute,
               uint32_t bool_inputs, const int64_t* attrs, const Tensors& out);

// The op's integer, boolean and floating attributes, as Loops take them.
class ScalarAttrs {
 public:
  ScalarAttrs(const Op&, const Attrs&);
  const int64_t* data() const { return direct_ ? direct_ : copy_.data(); }

 private:
  const int64_t* direct_ = nullptr;
  Small<int64_t, 8> copy_;
};

// dst[...] = src[...], converting; shapes are equal, src and dst do not overlap.  (copy.cpp)
void copy_into(const Tensor& src, const Tensor& dst);

// Structural kernels; attributes come in the order of the op's schema.
// views.cpp
Tensors kernel_reshape(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_permute(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_expand(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_slice(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_flip(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_split(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_detach(const Op&, const Tensors& in, const Attrs&, Tensor* out);
// Throws unless the elements start + i * step, i < size, exist in every dimension of `shape`.
void check_region(const char* op, const Dims& shape, const Dims& starts, const Dims& sizes,
                  const Dims& steps);

// pieces.cpp
Tensors kernel_cat(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_slice_scatter(const Op&, const Tensors& in, const Attrs&, Tensor* out);

// index.cpp
Tensors kernel_index_select(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_index_add(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_index_copy(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_gather(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_scatter_add(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_nonzero(const Op&, const Tensors& in, const Attrs&, Tensor* out);

// scan.cpp, arg.cpp, matmul.cpp
Tensors kernel_cumsum(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_argmax(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_argmin(const Op&, const Tensors& in, const Attrs&, Tensor* out);
Tensors kernel_matmul(const Op&, const Tensors& in, const Attrs&, Tensor* out);

}  // namespace eager::core

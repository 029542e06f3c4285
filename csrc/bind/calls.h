// The calls of single ops that the binding's methods are made of.  All go through dispatch.
#pragma once
#include "python.h"

namespace eager::bind {

TensorRef call(const Op& op, const Tensors& in, const Attrs& attrs);

TensorRef reshape(const TensorRef& x, const Dims& shape);
TensorRef permute(const TensorRef& x, const Dims& dims);
TensorRef expand(const TensorRef& x, const Dims& shape);   // x itself if it has that shape
TensorRef to_dtype(const TensorRef& x, DType dtype);       // x itself if it has that dtype
TensorRef matmul(const TensorRef& a, const TensorRef& b);  // vectors too
TensorRef sum(const TensorRef& x, const Dims& dims, bool keepdim);
TensorRef index_select(const TensorRef& x, const TensorRef& index, int64_t dim);
TensorRef nonzero(const TensorRef& x);
TensorRef full(const Dims& shape, double value, DType dtype);
TensorRef arange(int64_t count, int64_t step);  // int64, from 0
// x[...] = value, for a number: the integer one if `integer`.
void fill(const TensorRef& x, bool integer, double value, int64_t integer_value);

// target[...] = value, converted and broadcast.
void assign(const TensorRef& target, const TensorRef& value, const char* what);

// A dimension given by the user, made non-negative.  0-dim tensors have dimensions -1 and 0.
int64_t canonical_dim(const char* what, int64_t dim, size_t ndim);
// None (all), an int or a sequence; sorted and distinct.
Dims canonical_dims(const char* what, PyObject* given, size_t ndim);
// A shape with at most one -1, which becomes what `count` elements leave.
Dims resolve_shape(const char* what, Dims shape, int64_t count);

}  // namespace eager::bind

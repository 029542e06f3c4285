// Batched matrix products.
#include <algorithm>
#include <climits>
#include <cstring>
#include <string>

#include "gemm.h"
#include "kernels.h"
#include "placement.h"
#include "pool.h"

namespace eager::core {
namespace {

// One operand: a matrix per batch index.
struct Operand {
  TensorRef tensor;
  int64_t rows, cols, row_stride, col_stride;
  Dims batch_strides;  // of the broadcast batch dimensions

  Operand(const TensorRef& t, const Dims& batch) : tensor(t) {
    const size_t nd = t->ndim();
    rows = t->shape[nd - 2];
    cols = t->shape[nd - 1];
    row_stride = t->strides[nd - 2];
    col_stride = t->strides[nd - 1];
    const size_t lead = batch.size() - (nd - 2);
    batch_strides.resize(batch.size(), 0);
    for (size_t d = lead; d < batch.size(); ++d)
      if (t->shape[d - lead] != 1) batch_strides[d] = t->strides[d - lead];
  }
  bool fits_blas() const { return blas_layout(rows, cols, row_stride, col_stride); }
  bool is_shared() const {  // the same matrix for every batch index
    for (int64_t s : batch_strides)
      if (s) return false;
    return true;
  }
  // Whether all batches' rows lie evenly spaced, so that they form one tall matrix.
  bool is_tall(const Dims& batch) const {
    int64_t expected = rows * row_stride;
    for (size_t d = batch.size(); d-- > 0;) {
      if (batch[d] == 1) continue;
      if (batch_strides[d] != expected) return false;
      expected *= batch[d];
    }
    return true;
  }
  const char* at(int64_t batch_index, const Dims& batch) const {
    int64_t offset = 0;
    for (size_t d = batch.size(); d-- > 0;) {
      offset += batch_index % batch[d] * batch_strides[d];
      batch_index /= batch[d];
    }
    return tensor->data() + offset * int64_t(item_size(tensor->dtype));
  }
};

Operand prepare(const TensorRef& t, DType dtype, const Dims& batch) {
  Operand o(cast(t, dtype), batch);
  // Integer loops take any strides, but run at speed on packed rows.
  const bool packed = is_floating(dtype) ? o.fits_blas() : o.col_stride == 1;
  return packed ? o : Operand(contiguous(o.tensor), batch);
}

void check(const Op& op, const Tensor& a, const Tensor& b) {
  if (a.ndim() < 2 || b.ndim() < 2)
    fail(ErrorKind::shape, op.name, "the operands must be matrices", "at least 2 dimensions each",
         to_string(a.shape) + " @ " + to_string(b.shape));
  const int64_t inner = a.shape[a.ndim() - 1];
  if (inner != b.shape[b.ndim() - 2])
    fail(ErrorKind::shape, op.name, "the inner dimensions differ",
         "shapes (..., n, k) @ (..., k, m)", to_string(a.shape) + " @ " + to_string(b.shape),
         a.shape == b.shape ? "transpose one of the operands" : "");
  for (const Tensor* t : {&a, &b})
    for (size_t d = t->ndim() - 2; d < t->ndim(); ++d)
      if (t->shape[d] > INT_MAX)
        fail(ErrorKind::shape, op.name, "a matrix is too large for BLAS",
             "fewer than 2^31 rows and columns", to_string(t->shape));
}

}  // namespace

Tensors kernel_matmul(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  check(op, *in[0], *in[1]);
  const DType dtype = result_dtype(op, in, attrs, nullptr);
  if (dtype == DType::b8)
    fail(ErrorKind::dtype, op.name, "not defined for bool", "a number type", "bool",
         "convert with .float()");
  const size_t a_nd = in[0]->ndim(), b_nd = in[1]->ndim();
  const Dims batch =
      broadcast_shapes(op.name, Dims(in[0]->shape.begin(), in[0]->shape.begin() + (a_nd - 2)),
                       Dims(in[1]->shape.begin(), in[1]->shape.begin() + (b_nd - 2)));
  Dims shape = batch;
  shape.push_back(in[0]->shape[a_nd - 2]);
  shape.push_back(in[1]->shape[b_nd - 1]);
  if (in[0]->device == Device::meta) return {Tensor::empty(shape, dtype, Device::meta)};

  // The half types have no BLAS: they multiply in float32.
  const bool half = dtype == DType::f16 || dtype == DType::bf16;
  const DType compute = half ? DType::f32 : dtype;
  TensorRef y = half ? Tensor::empty(shape, compute) : result_memory(shape, compute);
  Operand a = prepare(in[0], compute, batch), b = prepare(in[1], compute, batch);
  int64_t count = element_count(batch);
  const size_t item = item_size(compute);
  if (y->numel && a.cols == 0) std::memset(y->data(), 0, size_t(y->numel) * item);
  if (y->numel && a.cols) {
    Gemm g{
        compute,      a.rows,           b.cols,       a.cols,       a.tensor->data(), a.row_stride,
        a.col_stride, b.tensor->data(), b.row_stride, b.col_stride, y->data(),        b.cols,
        false};
    if (count > 1 && b.is_shared() && a.is_tall(batch) && count * g.m <= INT_MAX &&
        (!is_floating(compute) || blas_layout(count * g.m, g.k, a.row_stride, a.col_stride))) {
      g.m *= count;
      count = 1;
    }
    if (count == 1) {
      gemm_parallel(g);
    } else {
      const double work = 2.0 * double(g.m) * double(g.n) * double(g.k);
      const auto product = [&](int64_t i, void (*run)(const Gemm&)) {
        Gemm one = g;
        one.a = a.at(i, batch);
        one.b = b.at(i, batch);
        one.c = y->data() + size_t(i * g.m * g.n) * item;
        run(one);
      };
      if (count < num_threads() && work > 1e7) {
        for (int64_t i = 0; i < count; ++i) product(i, gemm_parallel);
      } else {
        if (is_floating(compute)) require_blas();
        LongWork long_work(work * double(count) > 2e7);
        parallel_for(count, std::max<int64_t>(1, int64_t(5e5 / work)),
                     [&](int64_t first, int64_t last) {
                       for (int64_t i = first; i < last; ++i) product(i, gemm);
                     });
      }
    }
  }
  if (!half) return {y};
  TensorRef rounded = result_memory(shape, dtype);
  copy_into(*y, *rounded);
  return {rounded};
}

}  // namespace eager::core

// Indexing kernels.  Negative indices count from the end; all results are deterministic, because
// no two workers write to the same element and each adds in the order of the index.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "element.h"
#include "kernels.h"
#include "placement.h"
#include "pool.h"

namespace eager::core {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread

int64_t grain(int64_t elements_each) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_each));
}

size_t check_dim(const Op& op, int64_t dim, const Tensor& x) {
  if (dim < 0 || dim >= int64_t(x.ndim()))
    fail(ErrorKind::index, op.name, "dimension out of range",
         "a dimension in [0, " + std::to_string(x.ndim()) + ")", std::to_string(dim));
  return size_t(dim);
}

void check_integral(const Op& op, const Tensor& index) {
  if (!is_integral(index.dtype))
    fail(ErrorKind::dtype, op.name, "the index is not of an integer type", "int64",
         name(index.dtype), "convert the index with .long()");
}

// The index as a packed int64 tensor of values in [0, n).  It may be the caller's own memory:
// called after copies, which can let other threads in, and before it is read, where nothing does.
TensorRef wrap_indices(const Op& op, const TensorRef& index, int64_t n) {
  TensorRef packed = contiguous(cast(index, DType::i64));
  const int64_t* p = packed->as<int64_t>();
  std::atomic<bool> wraps{false};
  parallel_for(packed->numel, kGrain, [&](int64_t a, int64_t b) {
    bool outside = false;
    for (int64_t i = a; i < b; ++i) outside |= uint64_t(p[i]) >= uint64_t(n);
    if (outside) wraps.store(true, std::memory_order_relaxed);
  });
  if (!wraps) return packed;
  TensorRef wrapped = Tensor::empty(packed->shape, DType::i64);
  int64_t* q = wrapped->as<int64_t>();
  for (int64_t i = 0; i < packed->numel; ++i) {
    if (p[i] < -n || p[i] >= n)
      fail(ErrorKind::index, op.name, "index out of range",
           n ? "indices in [" + std::to_string(-n) + ", " + std::to_string(n) + ")"
             : "no index, because the dimension has size 0",
           std::to_string(p[i]));
    q[i] = p[i] < 0 ? p[i] + n : p[i];
  }
  return wrapped;
}

int64_t product(const Dims& shape, size_t from, size_t to) {
  int64_t n = 1;
  for (size_t d = from; d < to; ++d) n *= shape[d];
  return n;
}

// The result that `out` stands for, or a copy of x: what is added to or written over.
TensorRef accumulate_into(const TensorRef& x, Tensor* out) {
  if (out && out->contiguous && out->dtype == x->dtype && out == x.get()) return TensorRef(out);
  TensorRef y = result_memory(x->shape, x->dtype, x->device);
  if (x->device != Device::meta) copy_into(*x, *y);
  return y;
}

// y[i] += s[i]; bool adds as or.
template <class T>
void add_row(T* y, const T* s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, b8>) {
      y[i].value |= s[i].value;
    } else if constexpr (std::is_integral_v<T>) {
      y[i] = T(std::make_unsigned_t<T>(y[i]) + std::make_unsigned_t<T>(s[i]));
    } else {
      y[i] = store<T>(load(y[i]) + load(s[i]));
    }
  }
}

// A one-dimensional index (a 0-dim one counts as one element).
void check_vector(const Op& op, const Tensor& index) {
  check_integral(op, index);
  if (index.ndim() > 1)
    fail(ErrorKind::shape, op.name, "the index has more than one dimension", "shape (n,)",
         to_string(index.shape));
}

// How gather and scatter_add walk: rows along the last dimension of the index.
struct LineWalk {
  const Dims& shape;                  // the index's
  size_t dim;                         // the indexed dimension
  const Dims &x_strides, &s_strides;  // of the indexed tensor, of the dense one

  // Calls row(x_offset, dense_offset, index_offset) for rows [begin, end).
  template <class F>
  void rows(int64_t begin, int64_t end, F&& row) const {
    const size_t last = shape.size() - 1;
    for (int64_t r = begin; r < end; ++r) {
      int64_t x = 0, s = 0, rest = r;
      for (size_t k = last; k-- > 0;) {
        const int64_t i = rest % shape[k];
        rest /= shape[k];
        if (k != dim) x += i * x_strides[k];
        s += i * s_strides[k];
      }
      row(x, s, r * shape[last]);
    }
  }
  int64_t x_step() const { return dim == shape.size() - 1 ? 0 : x_strides[shape.size() - 1]; }
};

void check_same_ndim(const Op& op, const Tensor& x, const Tensor& index) {
  if (x.ndim() != index.ndim())
    fail(ErrorKind::shape, op.name, "the index has another number of dimensions",
         std::to_string(x.ndim()) + " dimensions, as in " + to_string(x.shape),
         to_string(index.shape));
}

// `index` may be smaller than `x` but not larger, except in dimension `dim`.
void check_inside(const Op& op, const Tensor& x, const Tensor& index, size_t dim,
                  const char* what) {
  for (size_t d = 0; d < x.ndim(); ++d)
    if (d != dim && index.shape[d] > x.shape[d])
      fail(ErrorKind::shape, op.name,
           std::string("the index is larger than ") + what + " in dimension " + std::to_string(d),
           "at most " + to_string(x.shape) +
               (dim < x.ndim() ? " outside dimension " + std::to_string(dim) : ""),
           to_string(index.shape));
}

// 0-dim operands are handled as one element.
TensorRef at_least_1d(const TensorRef& t) {
  return t->ndim() ? t : Tensor::view(*t, Dims{1}, Dims{1}, t->offset);
}

}  // namespace

Tensors kernel_index_select(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  const size_t dim = check_dim(op, AttrReader(attrs).integer(), x);
  check_vector(op, *in[1]);
  const int64_t count = in[1]->numel, n = x.shape[dim];
  Dims shape = x.shape;
  shape[dim] = count;
  TensorRef y = Tensor::empty(shape, x.dtype, x.device);
  if (x.device == Device::meta) return {y};
  const TensorRef packed = y->numel ? contiguous(in[0]) : y;
  const TensorRef index = wrap_indices(op, in[1], n);
  if (y->numel == 0) return {y};
  const int64_t* at = index->as<int64_t>();
  const int64_t inner = product(shape, dim + 1, shape.size());
  const size_t row = size_t(inner) * item_size(x.dtype);
  const char* src = packed->data();
  char* dst = y->data();
  const auto copy_rows = [&](auto bytes) {
    parallel_for(product(shape, 0, dim) * count, grain(inner), [&](int64_t a, int64_t b) {
      // A constant size lets the compiler turn the copy into one move.
      const size_t size = bytes ? size_t(bytes) : row;
      for (int64_t i = a; i < b; ++i)
        std::memcpy(dst + size_t(i) * size, src + size_t(i / count * n + at[i % count]) * size,
                    size);
    });
  };
  switch (row) {
    case 4:
      copy_rows(std::integral_constant<int, 4>{});
      break;
    case 8:
      copy_rows(std::integral_constant<int, 8>{});
      break;
    default:
      copy_rows(0);
  }
  return {y};
}

namespace {

// What index_add and index_copy do: `row(dst, src, n)` for the rows of src, in the index's order.
template <class Row>
Tensors write_rows(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out, Row&& row) {
  const Tensor& x = *in[0];
  const size_t dim = check_dim(op, AttrReader(attrs).integer(), x);
  check_vector(op, *in[1]);
  const int64_t count = in[1]->numel, n = x.shape[dim];
  Dims shape = x.shape;
  shape[dim] = count;
  if (!(in[2]->shape == shape))
    fail(ErrorKind::shape, op.name, "the source does not match the index", to_string(shape),
         to_string(in[2]->shape));
  if (x.device == Device::meta) return {Tensor::empty(x.shape, x.dtype, x.device)};
  const TensorRef src = contiguous(cast(in[2], x.dtype));
  const TensorRef y = accumulate_into(in[0], out);
  const TensorRef index = wrap_indices(op, in[1], n);
  if (src->numel == 0) return {y};
  const int64_t* at = index->as<int64_t>();
  const int64_t inner = product(shape, dim + 1, shape.size()), outer = product(shape, 0, dim);
  with_type(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dst = y->as<T>();
    const T* s = src->as<T>();
    // Workers split the columns, or the outer dimensions: each goes in the index's order.
    if (outer > 1) {
      parallel_for(outer, grain(count * inner), [&](int64_t a, int64_t b) {
        for (int64_t o = a; o < b; ++o)
          for (int64_t i = 0; i < count; ++i)
            row(dst + (o * n + at[i]) * inner, s + (o * count + i) * inner, inner);
      });
    } else {
      // At least a cache line each, so that workers do not share one.
      const int64_t columns = std::max(grain(count), int64_t(64 / sizeof(T)));
      parallel_for(inner, columns, [&](int64_t a, int64_t b) {
        for (int64_t i = 0; i < count; ++i) row(dst + at[i] * inner + a, s + i * inner + a, b - a);
      });
    }
  });
  return {y};
}

}  // namespace

Tensors kernel_index_add(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out) {
  return write_rows(op, in, attrs, out, [](auto* y, auto* s, int64_t n) { add_row(y, s, n); });
}

Tensors kernel_index_copy(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out) {
  return write_rows(op, in, attrs, out, [](auto* y, auto* s, int64_t n) { std::copy_n(s, n, y); });
}

Tensors kernel_gather(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  check_integral(op, *in[1]);
  check_same_ndim(op, *in[0], *in[1]);
  TensorRef y = Tensor::empty(in[1]->shape, in[0]->dtype, in[0]->device);
  const TensorRef x = at_least_1d(in[0]), idx = at_least_1d(in[1]);
  const size_t dim = check_dim(op, AttrReader(attrs).integer(), *x);
  check_inside(op, *x, *idx, dim, "the tensor");
  if (x->device == Device::meta) return {y};
  const TensorRef index = wrap_indices(op, idx, x->shape[dim]);
  if (y->numel == 0) return {y};
  const Dims dense = contiguous_strides(index->shape);
  const LineWalk walk{index->shape, dim, x->strides, dense};
  const int64_t line = index->shape.back(), step = walk.x_step(), stride = x->strides[dim];
  const int64_t* at = index->as<int64_t>();
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* src = x->as<T>();
    T* dst = y->as<T>();
    parallel_for(index->numel / line, grain(line), [&](int64_t a, int64_t b) {
      walk.rows(a, b, [&](int64_t xo, int64_t, int64_t io) {
        for (int64_t j = 0; j < line; ++j) dst[io + j] = src[xo + j * step + at[io + j] * stride];
      });
    });
  };
  switch (item_size(x->dtype)) {
    case 1:
      run(uint8_t{});
      break;
    case 2:
      run(uint16_t{});
      break;
    case 4:
      run(uint32_t{});
      break;
    default:
      run(uint64_t{});
  }
  return {y};
}

Tensors kernel_scatter_add(const Op& op, const Tensors& in, const Attrs& attrs, Tensor* out) {
  check_integral(op, *in[1]);
  check_same_ndim(op, *in[0], *in[1]);
  check_same_ndim(op, *in[2], *in[1]);
  if (in[0]->device == Device::meta)
    return {Tensor::empty(in[0]->shape, in[0]->dtype, Device::meta)};
  const TensorRef x = at_least_1d(in[0]), idx = at_least_1d(in[1]);
  const TensorRef src = cast(at_least_1d(in[2]), x->dtype);
  const size_t dim = check_dim(op, AttrReader(attrs).integer(), *x);
  check_inside(op, *x, *idx, dim, "the tensor");
  check_inside(op, *src, *idx, src->ndim(), "the source");
  const TensorRef result = accumulate_into(in[0], out), y = at_least_1d(result);
  const TensorRef index = wrap_indices(op, idx, x->shape[dim]);
  if (index->numel == 0) return {result};
  const LineWalk walk{index->shape, dim, y->strides, src->strides};
  const int64_t line = index->shape.back(), step = walk.x_step(), stride = y->strides[dim];
  const int64_t s_step = src->strides.back();
  const int64_t* at = index->as<int64_t>();
  // Rows with different first coordinates write to different elements, unless the first
  // dimension is the indexed one.
  const int64_t rows = index->numel / line;
  const int64_t parts = dim == 0 ? 1 : index->shape[0];
  with_type(x->dtype, [&](auto zero) {
    using T = decltype(zero);
    T* dst = y->as<T>();
    const T* s = src->as<T>();
    parallel_for(parts, grain(index->numel / parts), [&](int64_t a, int64_t b) {
      walk.rows(a * (rows / parts), b * (rows / parts), [&](int64_t yo, int64_t so, int64_t io) {
        for (int64_t j = 0; j < line; ++j)
          add_row(dst + yo + j * step + at[io + j] * stride, s + so + j * s_step, 1);
      });
    });
  });
  return {result};
}

Tensors kernel_nonzero(const Op& op, const Tensors& in, const Attrs&, Tensor*) {
  if (in[0]->device == Device::meta)
    fail(ErrorKind::device, op.name, "the result's shape depends on the data", "a cpu tensor",
         "a meta tensor");
  const TensorRef flags = contiguous(cast(in[0], DType::b8));
  const uint8_t* p = flags->as<uint8_t>();
  int64_t count = 0;
  for (int64_t i = 0; i < flags->numel; ++i) count += p[i] != 0;
  const int64_t ndim = int64_t(flags->ndim());
  TensorRef y = Tensor::empty(Dims{count, ndim}, DType::i64);
  int64_t* q = y->as<int64_t>();
  for (int64_t i = 0; i < flags->numel; ++i) {
    if (!p[i]) continue;
    int64_t rest = i;
    for (int64_t d = ndim; d-- > 0;) {
      q[d] = rest % flags->shape[size_t(d)];
      rest /= flags->shape[size_t(d)];
    }
    q += ndim;
  }
  return {y};
}

}  // namespace eager::core

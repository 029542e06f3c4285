// Methods about shape, the common reductions, and matmul.
#include "calls.h"
#include "convert.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

PyObject* reshape_method(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    return wrap(
        reshape(x, resolve_shape("reshape", ints_or_sequence(args, n, "reshape"), x->numel)));
  });
}

PyObject* view(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    Dims shape = resolve_shape("view", ints_or_sequence(args, n, "view"), x->numel);
    TensorRef y = reshape(x, shape);
    if (y->storage.get() != x->storage.get()) {
      fail(ErrorKind::shape, "view", "the elements do not lie in memory as the shape needs",
           "a tensor whose dimensions can be merged without a copy",
           "shape " + to_string(x->shape) + " with strides " + to_string(x->strides) + " to " +
               to_string(shape),
           "reshape(), which copies when it must");
    }
    return wrap(y);
  });
}

PyObject* permute_method(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    Dims dims = ints_or_sequence(args, n, "permute");
    if (dims.size() != x->ndim()) {
      fail(ErrorKind::value, "permute", "the number of dimensions differs",
           "each of the " + std::to_string(x->ndim()) + " dimensions once", to_string(dims));
    }
    for (int64_t& d : dims) d = canonical_dim("permute", d, x->ndim());
    return wrap(permute(x, dims));
  });
}

TensorRef swap_dims(const TensorRef& x, int64_t a, int64_t b) {
  Dims dims;
  for (size_t d = 0; d < x->ndim(); ++d) dims.push_back(int64_t(d));
  if (!dims.empty()) std::swap(dims[size_t(a)], dims[size_t(b)]);
  return permute(x, dims);
}

PyObject* transpose(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<2> signature{"transpose", {"dim0", "dim1"}, 2};
    Arguments<2> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    int64_t d0 = canonical_dim("transpose", to_integer(a[0], "transpose"), x->ndim());
    int64_t d1 = canonical_dim("transpose", to_integer(a[1], "transpose"), x->ndim());
    return wrap(swap_dims(x, d0, d1));
  });
}

PyObject* t_method(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    const TensorRef& x = tensor_of(self);
    if (x->ndim() > 2) {
      fail(ErrorKind::shape, "t", "the tensor has too many dimensions", "at most 2",
           "shape " + to_string(x->shape), "transpose(dim0, dim1)");
    }
    return x->ndim() < 2 ? wrap(reshape(x, x->shape)) : wrap(swap_dims(x, 0, 1));
  });
}

PyObject* unsqueeze(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"unsqueeze", {"dim"}, 1};
    Arguments<1> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    int64_t at = canonical_dim("unsqueeze", to_integer(a[0], "unsqueeze"), x->ndim() + 1);
    Dims shape(x->shape.begin(), x->shape.begin() + at);
    shape.push_back(1);
    for (size_t d = size_t(at); d < x->ndim(); ++d) shape.push_back(x->shape[d]);
    return wrap(reshape(x, shape));
  });
}

PyObject* squeeze(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"squeeze", {"dim"}, 0};
    Arguments<1> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    // Unlike in a reduction, an empty sequence names no dimension.
    bool none = a.has(0) && PySequence_Check(a[0]) && PySequence_Size(a[0]) == 0;
    Dims dims = none ? Dims{} : canonical_dims("squeeze", a[0], x->ndim());
    Dims shape;
    for (size_t d = 0, k = 0; d < x->ndim(); ++d) {
      bool named = k < dims.size() && dims[k] == int64_t(d);
      k += named;
      if (!named || x->shape[d] != 1) shape.push_back(x->shape[d]);
    }
    return wrap(reshape(x, shape));
  });
}

PyObject* expand_method(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    Dims shape = ints_or_sequence(args, n, "expand");
    const std::string given = to_string(shape);
    // -1 keeps the size of an existing dimension.
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] != -1) continue;
      const size_t lead = shape.size() - std::min(shape.size(), x->ndim());
      if (i < lead) {
        fail(ErrorKind::shape, "expand", "-1 stands for a dimension the tensor does not have",
             "-1 only for one of the last " + std::to_string(x->ndim()) + " dimensions", given);
      }
      shape[i] = x->shape[i - lead];
    }
    return wrap(call(*known.expand, {x}, Attrs().ints(shape)));
  });
}

PyObject* expand_as(PyObject* self, PyObject* other) {
  return guarded([&] {
    return wrap(call(*known.expand, {tensor_of(self)},
                     Attrs().ints(expect_tensor(other, "expand_as")->shape)));
  });
}

PyObject* size(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"size", {"dim"}, 0};
    Arguments<1> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    if (!a.has(0)) return size_object(x->shape).release();
    int64_t d = canonical_dim("size", to_integer(a[0], "size"), x->ndim());
    if (x->ndim() == 0) raise(PyExc_IndexError, "size(dim) of a 0-dim tensor");
    return PyLong_FromLongLong(x->shape[size_t(d)]);
  });
}

PyObject* stride(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"stride", {"dim"}, 0};
    Arguments<1> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    if (!a.has(0)) return tuple_of(x->strides).release();
    int64_t d = canonical_dim("stride", to_integer(a[0], "stride"), x->ndim());
    if (x->ndim() == 0) raise(PyExc_IndexError, "stride(dim) of a 0-dim tensor");
    return PyLong_FromLongLong(x->strides[size_t(d)]);
  });
}

PyObject* dim(PyObject* self, PyObject*) { return PyLong_FromSize_t(tensor_of(self)->ndim()); }
PyObject* numel(PyObject* self, PyObject*) { return PyLong_FromLongLong(tensor_of(self)->numel); }
PyObject* is_contiguous(PyObject* self, PyObject*) {
  return PyBool_FromLong(tensor_of(self)->contiguous);
}
PyObject* storage_offset(PyObject* self, PyObject*) {
  return PyLong_FromLongLong(tensor_of(self)->offset);
}
PyObject* element_size(PyObject* self, PyObject*) {
  return PyLong_FromSize_t(item_size(tensor_of(self)->dtype));
}

PyObject* matmul_method(PyObject* self, PyObject* other) {
  return guarded([&] { return wrap(matmul(tensor_of(self), operand(other, "matmul"))); });
}

// --- reductions ----------------------------------------------------------------------------------

struct Reduce {
  TensorRef x;
  Dims dims;
  bool keepdim;

  // (dim=None, keepdim=False, dtype=None)
  Reduce(const char* what, PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
    const Signature<3> signature{what, {"dim", "keepdim", "dtype"}, 0};
    Arguments<3> a(signature, args, n, names);
    x = tensor_of(self);
    dims = canonical_dims(what, a[0], x->ndim());
    keepdim = a.truth(1);
    if (a.has(2)) x = to_dtype(x, to_dtype(a[2]));
  }
};

PyObject* sum_method(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    Reduce r("sum", self, args, n, names);
    return wrap(sum(r.x, r.dims, r.keepdim));
  });
}

PyObject* mean(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    Reduce r("mean", self, args, n, names);
    if (!is_floating(r.x->dtype)) {
      fail(ErrorKind::dtype, "mean", "the mean of integers has no dtype of its own",
           "a floating dtype", name(r.x->dtype), "mean(dtype=eager.float32)");
    }
    double count = 1;
    for (int64_t d : r.dims) count *= double(r.x->shape[size_t(d)]);
    return wrap(binary(*known.div, sum(r.x, r.dims, r.keepdim), Tensor::scalar(count)));
  });
}

}  // namespace

#define EAGER_VARARGS(name, f, doc) \
  {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)), METH_FASTCALL, doc}

PyMethodDef shape_methods[] = {
    EAGER_VARARGS("reshape", reshape_method,
                  "reshape(*shape)\n\nThe elements in row-major order under another shape; one "
                  "size may be -1.  A view if possible, else a copy."),
    EAGER_VARARGS("view", view, "view(*shape)\n\nreshape that never copies; raises ShapeError."),
    EAGER_VARARGS("permute", permute_method, "permute(*dims)\n\nA view with dimensions reordered."),
    EAGER_VARARGS("expand", expand_method,
                  "expand(*shape)\n\nA view broadcast to a shape; -1 keeps a size."),
    EAGER_ONE("expand_as", expand_as, "expand_as(other)\n\nexpand to the shape of another tensor."),
    EAGER_FAST("transpose", transpose, "transpose(dim0, dim1)\n\nA view with two dims swapped."),
    EAGER_NOARGS("t", t_method, "The transpose of a matrix; vectors and 0-dim tensors as is."),
    EAGER_FAST("unsqueeze", unsqueeze, "unsqueeze(dim)\n\nA view with a dimension of size 1."),
    EAGER_FAST("squeeze", squeeze,
               "squeeze(dim=None)\n\nA view without the dimensions (all, or those given) of size "
               "1."),
    EAGER_FAST("size", size, "size(dim=None)\n\nThe shape, or one size of it."),
    EAGER_FAST("stride", stride, "stride(dim=None)\n\nThe strides in elements, or one of them."),
    EAGER_NOARGS("dim", dim, "The number of dimensions."),
    EAGER_NOARGS("ndimension", dim, "The number of dimensions."),
    EAGER_NOARGS("numel", numel, "The number of elements."),
    EAGER_NOARGS("nelement", numel, "The number of elements."),
    EAGER_NOARGS("is_contiguous", is_contiguous, "Whether elements lie row-major without gaps."),
    EAGER_NOARGS("storage_offset", storage_offset, "Elements before the first in the storage."),
    EAGER_NOARGS("element_size", element_size, "Bytes of one element."),
    EAGER_ONE("matmul", matmul_method, "matmul(other)\n\nThe matrix product, as the @ operator."),
    EAGER_FAST("sum", sum_method,
               "sum(dim=None, keepdim=False, dtype=None)\n\nThe sum over all or some dimensions; "
               "integers and bool give int64."),
    EAGER_FAST("mean", mean,
               "mean(dim=None, keepdim=False, dtype=None)\n\nThe mean over all or some dimensions "
               "of a floating tensor."),
    {nullptr}};

}  // namespace eager::bind

// Attributes of Tensor.
#include <algorithm>

#include "autograd.h"
#include "calls.h"
#include "interpreter.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

PyObject* shape(PyObject* self, void*) {
  return guarded([&] { return size_object(tensor_of(self)->shape).release(); });
}
PyObject* dtype(PyObject* self, void*) { return Py_NewRef(dtype_object(tensor_of(self)->dtype)); }
PyObject* device(PyObject* self, void*) {
  return Py_NewRef(device_object(tensor_of(self)->device));
}
PyObject* ndim(PyObject* self, void*) { return PyLong_FromSize_t(tensor_of(self)->ndim()); }
PyObject* itemsize(PyObject* self, void*) {
  return PyLong_FromSize_t(item_size(tensor_of(self)->dtype));
}
PyObject* nbytes(PyObject* self, void*) {
  const TensorRef& t = tensor_of(self);
  // May exceed 64 bits: an expanded tensor has more elements than memory.
  return guarded([&] {
    Owned count = check(PyLong_FromLongLong(t->numel));
    Owned size = check(PyLong_FromSize_t(item_size(t->dtype)));
    return PyNumber_Multiply(count.get(), size.get());
  });
}
PyObject* version(PyObject* self, void*) {
  return PyLong_FromUnsignedLong(tensor_of(self)->storage->version);
}
PyObject* is_weak(PyObject* self, void*) { return PyBool_FromLong(tensor_of(self)->weak); }
PyObject* is_view(PyObject* self, void*) { return PyBool_FromLong(tensor_of(self)->is_view); }
PyObject* is_meta(PyObject* self, void*) {
  return PyBool_FromLong(tensor_of(self)->device == Device::meta);
}
PyObject* storage_id(PyObject* self, void*) {
  return PyLong_FromVoidPtr(tensor_of(self)->storage.get());
}

PyObject* storage_epoch(PyObject* self, void*) {
  return PyLong_FromUnsignedLong(tensor_of(self)->storage->epoch);
}

PyObject* reversed_dims(PyObject* self, void*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    Dims dims;
    for (size_t d = t->ndim(); d-- > 0;) dims.push_back(int64_t(d));
    return wrap(permute(t, dims));
  });
}
PyObject* matrix_transpose(PyObject* self, void*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    const size_t n = t->ndim();
    if (n < 2) {
      fail(ErrorKind::shape, "mT", "the tensor is not a matrix or a batch of them",
           "at least 2 dimensions", "shape " + to_string(t->shape));
    }
    Dims dims;
    for (size_t d = 0; d < n; ++d) dims.push_back(int64_t(d));
    std::swap(dims[n - 2], dims[n - 1]);
    return wrap(permute(t, dims));
  });
}

PyObject* requires_grad(PyObject* self, void*) {
  return PyBool_FromLong(tensor_of(self)->requires_grad());
}
int assign_requires_grad(PyObject* self, PyObject* value, void*) {
  return guarded(
      [&] {
        int truth = value ? PyObject_IsTrue(value) : 0;
        check_status(truth);
        set_requires_grad(tensor_of(self), truth != 0);
        return 0;
      },
      -1);
}

PyObject* grad(PyObject* self, void*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    Owned value = check(wrap(t->autograd ? t->autograd->grad : TensorRef()));
    if (recorder) tell_grad(self, value.get(), false);
    return value.release();
  });
}
int assign_grad(PyObject* self, PyObject* value, void*) {
  return guarded(
      [&] {
        const TensorRef& t = tensor_of(self);
        if (!value || value == Py_None) {
          if (t->autograd) t->autograd->grad = TensorRef();
          value = Py_None;
        } else {
          const TensorRef& g = expect_tensor(value, "grad");
          if (!(g->shape == t->shape)) {
            fail(ErrorKind::shape, "grad", "the gradient's shape differs from the tensor's",
                 to_string(t->shape), to_string(g->shape));
          }
          if (g->dtype != t->dtype) {
            fail(ErrorKind::dtype, "grad", "the gradient's dtype differs from the tensor's",
                 name(t->dtype), name(g->dtype));
          }
          if (g->device != t->device) {
            fail(ErrorKind::device, "grad", "the gradient's device differs from the tensor's",
                 name(t->device), name(g->device));
          }
          if (g == t) {
            fail(ErrorKind::value, "grad", "a tensor cannot be its own gradient", "another tensor",
                 "the tensor itself");
          }
          t->meta().grad = g;
        }
        if (recorder) tell_grad(self, value, true);
        return 0;
      },
      -1);
}

PyObject* grad_fn(PyObject* self, void*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    return node_object(t->autograd ? t->autograd->node : Ref<Node>());
  });
}
PyObject* is_leaf(PyObject* self, void*) {
  const TensorRef& t = tensor_of(self);
  return PyBool_FromLong(!t->autograd || !t->autograd->node);
}
PyObject* retains_grad(PyObject* self, void*) {
  const TensorRef& t = tensor_of(self);
  return PyBool_FromLong(t->autograd && t->autograd->retains_grad);
}

// The same memory without history.
PyObject* data(PyObject* self, void*) {
  return guarded([&] {
    const TensorRef& t = tensor_of(self);
    return wrap(Tensor::view(*t, t->shape, t->strides, t->offset));
  });
}
// The tensor takes over another's memory; its place in the tape stays.
int assign_data(PyObject* self, PyObject* value, void*) {
  return guarded(
      [&] {
        const TensorRef& t = tensor_of(self);
        if (!value) raise(PyExc_AttributeError, "data cannot be deleted");
        const TensorRef& from = expect_tensor(value, "data");
        if (t->requires_grad() && !is_floating(from->dtype)) {
          fail(ErrorKind::dtype, "data", "only floating tensors have gradients", "a floating dtype",
               name(from->dtype));
        }
        retire(std::exchange(t->storage, from->storage));
        t->shape = from->shape;
        t->strides = from->strides;
        t->offset = from->offset;
        t->numel = from->numel;
        t->dtype = from->dtype;
        t->device = from->device;
        t->contiguous = from->contiguous;
        return 0;
      },
      -1);
}

}  // namespace

PyGetSetDef tensor_properties[] = {
    {"shape", shape, nullptr, "The sizes of the dimensions.", nullptr},
    {"dtype", dtype, nullptr, "The type of the elements.", nullptr},
    {"device", device, nullptr, "Where the elements are.", nullptr},
    {"ndim", ndim, nullptr, "The number of dimensions.", nullptr},
    {"itemsize", itemsize, nullptr, "Bytes of one element.", nullptr},
    {"nbytes", nbytes, nullptr, "Bytes of all elements.", nullptr},
    {"T", reversed_dims, nullptr, "A view with the dimensions reversed.", nullptr},
    {"mT", matrix_transpose, nullptr, "A view with the last two dimensions swapped.", nullptr},
    {"requires_grad", requires_grad, assign_requires_grad, "Whether gradients flow to it.",
     nullptr},
    {"grad", grad, assign_grad, "The gradient that backward has added up, or None.", nullptr},
    {"grad_fn", grad_fn, nullptr, "The tape's entry that made it; None for leaves.", nullptr},
    {"is_leaf", is_leaf, nullptr, "Whether no recorded op made it.", nullptr},
    {"retains_grad", retains_grad, nullptr, "Whether retain_grad() was called.", nullptr},
    {"data", data, assign_data, "The same memory without history.", nullptr},
    {"is_meta", is_meta, nullptr, "Whether it is on the meta device.", nullptr},
    {"_version", version, nullptr, "How often its memory was written in place.", nullptr},
    {"_is_weak", is_weak, nullptr, "Whether it stands for a Python number.", nullptr},
    {"_is_view", is_view, nullptr, "Whether a view op made it.", nullptr},
    {"_storage_id", storage_id, nullptr, "Equal for tensors that share memory.", nullptr},
    {"_storage_epoch", storage_epoch, nullptr, "When its memory was made: see next_epoch.",
     nullptr},
    {nullptr}};

}  // namespace eager::bind

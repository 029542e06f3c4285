// Methods that copy, convert or overwrite values.
#include "calls.h"
#include "convert.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

PyObject* detach(PyObject* self, PyObject*) {
  return guarded([&] { return wrap(call(*known.detach, {tensor_of(self)}, Attrs())); });
}

// Whether the one argument of a method that takes only memory_format is channels_last.
bool read_format(const char* what, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  if (n == 0 && !names) return false;
  const Signature<1> signature{what, {"memory_format"}, 0};
  Arguments<1> a(signature, args, n, names);
  return wants_channels_last(what, a[0]);
}

// `x` (N, C, H, W) with the channels of a pixel side by side in memory.
TensorRef channels_last(const char* what, const TensorRef& x) {
  if (x->ndim() != 4) {
    fail(ErrorKind::shape, what, "channels_last is defined for images", "shape (N, C, H, W)",
         "shape " + to_string(x->shape));
  }
  TensorRef pixels = permute(x, {0, 2, 3, 1});
  if (pixels->contiguous) return x;
  return permute(unary(*known.clone, pixels), {0, 3, 1, 2});
}

PyObject* clone(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    bool images = read_format("clone", args, n, names);
    TensorRef copy = unary(*known.clone, tensor_of(self));
    return wrap(images ? channels_last("clone", copy) : copy);
  });
}

PyObject* contiguous(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    if (read_format("contiguous", args, n, names)) {
      TensorRef y = channels_last("contiguous", x);
      return y.get() == x.get() ? Py_NewRef(self) : wrap(y);
    }
    return x->contiguous ? Py_NewRef(self) : wrap(unary(*known.clone, x));
  });
}

TensorRef to_device(const TensorRef& x, Device device) {
  if (x->device == device) return x;
  if (device == Device::meta) return Tensor::empty(x->shape, x->dtype, device);
  fail(ErrorKind::device, "to", "a meta tensor holds no data to move", "a tensor on cpu", "meta",
       "empty_like(x, device=\"cpu\")");
}

PyObject* convert(PyObject* self, DType dtype, Device device, bool copy, bool images = false) {
  const TensorRef& x = tensor_of(self);
  TensorRef y = to_dtype(to_device(x, device), dtype);
  if (images) y = channels_last("to", y);
  if (y.get() != x.get()) return wrap(y);
  return copy ? wrap(unary(*known.clone, x)) : Py_NewRef(self);
}

// to(dtype), to(device), to(device, dtype), to(other), with or without names; further positional
// arguments are non_blocking and copy.
PyObject* to(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<10> signature{"to",
                                         {"first", "second", "third", "fourth", "dtype", "device",
                                          "other", "copy", "non_blocking", "memory_format"},
                                         0,
                                         4};
    Arguments<10> a(signature, args, n, names);
    DType dtype = tensor_of(self)->dtype;
    Device device = tensor_of(self)->device;
    bool copy = a.truth(7);
    int flags = 0;
    for (int i = 0; i < 7; ++i) {
      if (!a.has(i)) continue;
      if (i < 4 && PyBool_Check(a[i])) {
        if (++flags == 2) copy = a.truth(i);
      } else if (is_tensor(a[i])) {
        dtype = tensor_of(a[i])->dtype;
        device = tensor_of(a[i])->device;
      } else if (looks_like_dtype(a[i])) {
        dtype = to_dtype(a[i]);
      } else {
        device = bind::to_device(a[i]);
      }
    }
    return convert(self, dtype, device, copy, wants_channels_last("to", a[9]));
  });
}

template <DType dtype>
PyObject* to_fixed(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    bool images = read_format("to", args, n, names);
    return convert(self, dtype, tensor_of(self)->device, false, images);
  });
}
PyObject* cpu(PyObject* self, PyObject*) {
  return guarded([&] { return convert(self, tensor_of(self)->dtype, Device::cpu, false); });
}

PyObject* type_as(PyObject* self, PyObject* other) {
  return guarded([&] {
    const TensorRef& o = expect_tensor(other, "type_as");
    return convert(self, o->dtype, o->device, false);
  });
}

PyObject* copy_(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<2> signature{"copy_", {"src", "non_blocking"}, 1};
    Arguments<2> a(signature, args, n, names);
    assign(tensor_of(self), operand(a[0], "copy_"), "copy_");
    return Py_NewRef(self);
  });
}

PyObject* fill_(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"fill_", {"value"}, 1};
    Arguments<1> a(signature, args, n, names);
    PyObject* value = a[0];
    const TensorRef& x = tensor_of(self);
    if (PyFloat_Check(value)) {
      fill(x, false, PyFloat_AS_DOUBLE(value), 0);
    } else if (PyLong_Check(value)) {
      fill(x, true, 0, to_integer(value, "fill_"));
    } else {
      TensorRef v = operand(value, "fill_");
      if (v->ndim() != 0) {
        fail(ErrorKind::shape, "fill_", "the value has dimensions", "a number or a 0-dim tensor",
             "shape " + to_string(v->shape), "copy_, which broadcasts");
      }
      assign(x, v, "fill_");
    }
    return Py_NewRef(self);
  });
}

PyObject* zero_(PyObject* self, PyObject*) {
  return guarded([&] {
    fill(tensor_of(self), true, 0, 0);
    return Py_NewRef(self);
  });
}

}  // namespace

PyMethodDef value_methods[] = {
    EAGER_NOARGS("detach", detach, "The same data, cut off from the tape."),
    EAGER_FAST("clone", clone,
               "clone(memory_format=preserve_format)\n\nA copy; gradients flow through it."),
    EAGER_FAST("contiguous", contiguous,
               "contiguous(memory_format=contiguous_format)\n\nThe tensor itself, or a contiguous "
               "copy."),
    EAGER_FAST("to", to,
               "to(dtype), to(device), to(device, dtype), to(other), all with copy=False\n\nThe "
               "tensor converted; itself if nothing changes and copy is false."),
    EAGER_FAST("float", to_fixed<DType::f32>, "to(float32)"),
    EAGER_FAST("double", to_fixed<DType::f64>, "to(float64)"),
    EAGER_FAST("half", to_fixed<DType::f16>, "to(float16)"),
    EAGER_FAST("bfloat16", to_fixed<DType::bf16>, "to(bfloat16)"),
    EAGER_FAST("char", to_fixed<DType::i8>, "to(int8)"),
    EAGER_FAST("short", to_fixed<DType::i16>, "to(int16)"),
    EAGER_FAST("int", to_fixed<DType::i32>, "to(int32)"),
    EAGER_FAST("long", to_fixed<DType::i64>, "to(int64)"),
    EAGER_FAST("byte", to_fixed<DType::u8>, "to(uint8)"),
    EAGER_FAST("bool", to_fixed<DType::b8>, "to(bool): whether elements are not 0"),
    EAGER_NOARGS("cpu", cpu, "to(\"cpu\")"),
    EAGER_ONE("type_as", type_as, "type_as(other)\n\nto the dtype and device of `other`."),
    EAGER_FAST("copy_", copy_,
               "copy_(src, non_blocking=False)\n\nWrites `src`, broadcast and converted."),
    EAGER_FAST("fill_", fill_, "fill_(value)\n\nWrites one number everywhere."),
    EAGER_NOARGS("zero_", zero_, "Writes 0 everywhere."),
    {nullptr}};

}  // namespace eager::bind

// Tensors from Python data: tensor, as_tensor, from_numpy, frombuffer, empty.
#include <cmath>
#include <limits>

#include "autograd.h"
#include "calls.h"
#include "convert.h"
#include "core/half.h"
#include "interchange.h"
#include "interpreter.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

constexpr size_t kMaxDims = 64;

bool is_sequence(PyObject* o) {
  return PyList_Check(o) || PyTuple_Check(o) ||
         (PySequence_Check(o) && !is_tensor(o) && !PyUnicode_Check(o) && !PyBytes_Check(o) &&
          !PyDict_Check(o));
}
bool is_array(PyObject* o) { return !is_tensor(o) && PyObject_HasAttrString(o, "__array__"); }

// Reads nested sequences: first their shape and the kind of number, then the values.
class Nested {
 public:
  explicit Nested(PyObject* data) { scan(data, 0); }

  Dims shape;
  DType dtype = DType::b8;  // b8, i64 or the default float dtype, by the widest number
  bool arrays = false;      // an element is an array: NumPy knows better

  void write(PyObject* data, Tensor& t) {
    at_ = 0;
    write(data, t, 0);
  }

 private:
  void scan(PyObject* o, size_t depth) {
    if (arrays) return;
    const bool list = PyList_Check(o) || PyTuple_Check(o);
    if (PyFloat_CheckExact(o) || PyLong_Check(o)) {
      leaf(o, depth);
    } else if (!list && is_array(o)) {
      arrays = true;
    } else if (list || is_sequence(o)) {
      if (depth == kMaxDims) {
        fail(ErrorKind::shape, "tensor", "sequences are nested too deeply",
             "at most " + std::to_string(kMaxDims) + " levels", "more");
      }
      Owned items = check(PySequence_Tuple(o));
      const int64_t n = PyTuple_GET_SIZE(items.get());
      if (!closed_ && depth == shape.size()) {
        shape.push_back(n);
      } else if (depth >= shape.size()) {
        ragged("a sequence", "a number");
      } else if (shape[depth] != n) {
        ragged("length " + std::to_string(n), "length " + std::to_string(shape[depth]));
      }
      for (int64_t i = 0; i < n; ++i) scan(PyTuple_GET_ITEM(items.get(), i), depth + 1);
      // An empty sequence ends the nesting, as a number does.
      if (n == 0) closed_ = true;
    } else {
      leaf(o, depth);
    }
  }

  void leaf(PyObject* o, size_t depth) {
    if (depth != shape.size()) ragged("a number", "a sequence");
    closed_ = true;
    widen(o);
  }

  [[noreturn]] static void ragged(const std::string& given, const std::string& expected) {
    fail(ErrorKind::shape, "tensor", "nested sequences must be of equal lengths", expected, given);
  }

  void widen(PyObject* o) {
    DType kind;
    if (PyBool_Check(o)) {
      kind = DType::b8;
    } else if (PyLong_Check(o)) {
      kind = DType::i64;
    } else if (PyFloat_Check(o)) {
      kind = default_dtype();
    } else {
      TensorRef t = operand(o, "tensor");
      if (t->numel != 1) {
        fail(ErrorKind::shape, "tensor", "a tensor inside a sequence has several elements",
             "tensors of one element", "shape " + to_string(t->shape), "eager.stack");
      }
      kind = t->dtype;
    }
    // bool < integers < floats; among floats the default comes first.
    if (dtype == DType::b8 || (is_floating(kind) && !is_floating(dtype))) {
      dtype = is_integral(kind) ? DType::i64 : kind == DType::b8 ? kind : default_dtype();
    }
  }

  void write(PyObject* o, Tensor& t, size_t depth) {
    if (depth == shape.size()) return store(o, t);
    Owned items = check(PySequence_Tuple(o));
    if (PyTuple_GET_SIZE(items.get()) != shape[depth]) {
      ragged("a sequence that changed while it was read", std::to_string(shape[depth]));
    }
    for (int64_t i = 0; i < shape[depth]; ++i)
      write(PyTuple_GET_ITEM(items.get(), i), t, depth + 1);
  }

  template <class T>
  void store_integer(PyObject* o, Tensor& t) {
    int64_t v;
    if (PyLong_Check(o)) {
      v = to_integer(o, "tensor");
    } else {
      const double x = to_floating(o, "tensor");
      if (!(x >= -0x1p63 && x < 0x1p63)) overflow(o, t.dtype);
      v = int64_t(x);
    }
    if (v < int64_t(std::numeric_limits<T>::min()) || v > int64_t(std::numeric_limits<T>::max())) {
      overflow(o, t.dtype);
    }
    t.as<T>()[at_] = T(v);
  }
  [[noreturn]] static void overflow(PyObject* o, DType dtype) {
    Owned text = check(PyObject_Str(o));
    const char* s = PyUnicode_AsUTF8(text.get());
    fail(ErrorKind::value, "tensor", "a number does not fit its dtype",
         std::string("a value of ") + name(dtype), s ? s : "");
  }

  void store(PyObject* o, Tensor& t) {
    switch (t.dtype) {
      case DType::f32:
        t.as<float>()[at_] = float(to_floating(o, "tensor"));
        break;
      case DType::f64:
        t.as<double>()[at_] = to_floating(o, "tensor");
        break;
      case DType::f16:
        t.as<f16>()[at_] = to_f16(float(to_floating(o, "tensor")));
        break;
      case DType::bf16:
        t.as<bf16>()[at_] = to_bf16(float(to_floating(o, "tensor")));
        break;
      case DType::i8:
        store_integer<int8_t>(o, t);
        break;
      case DType::i16:
        store_integer<int16_t>(o, t);
        break;
      case DType::i32:
        store_integer<int32_t>(o, t);
        break;
      case DType::i64:
        store_integer<int64_t>(o, t);
        break;
      case DType::u8:
        store_integer<uint8_t>(o, t);
        break;
      case DType::b8: {
        int truth = PyObject_IsTrue(o);
        check_status(truth);
        t.as<uint8_t>()[at_] = uint8_t(truth);
        break;
      }
    }
    ++at_;
  }

  bool closed_ = false;
  int64_t at_ = 0;
};

// An array of any kind that NumPy can read, copied.
TensorRef copy_of_array(PyObject* data, const DType* dtype) {
  Owned make = import_attribute("numpy", "array");
  Owned kwargs = check(Py_BuildValue("{s:s}", "order", "C"));
  Owned args = check(PyTuple_Pack(1, data));
  Owned array = check(PyObject_Call(make.get(), args.get(), kwargs.get()));
  Owned own = check(PyObject_GetAttrString(array.get(), "dtype"));
  Owned native = check(PyObject_GetAttrString(own.get(), "isnative"));
  if (native.get() != Py_True) {
    Owned order = check(PyObject_CallMethod(own.get(), "newbyteorder", "s", "="));
    array = check(PyObject_CallMethod(array.get(), "astype", "O", order.get()));
  }
  TensorRef t = tensor_from_array(array.get());
  return dtype ? core::cast(t, *dtype) : t;
}

// A shape given as f(2, 3) or f((2, 3)), and keyword-only options.
struct Options {
  DType dtype = default_dtype();
  Device device = Device::cpu;
  bool requires_grad = false;
};

// `data`: what the tensor was made of; None if its elements come from nowhere.  A tensor was read
// by ops, which an interpreter has seen.
PyObject* finish(TensorRef t, bool requires_grad, PyObject* data) {
  if (requires_grad) set_requires_grad(t, true);
  Owned object = check(wrap(std::move(t)));
  if (recorder && !is_tensor(data)) tell_create(object.get(), data);
  return object.release();
}

void expect_sizes(const char* what, const Dims& shape) {
  for (int64_t n : shape) {
    if (n < 0) {
      fail(ErrorKind::shape, what, "a size is negative", "sizes of 0 or more", to_string(shape));
    }
  }
  if (shape.size() > kMaxDims) {
    fail(ErrorKind::shape, what, "there are too many dimensions",
         "at most " + std::to_string(kMaxDims), std::to_string(shape.size()));
  }
}

PyObject* tensor(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<4> signature{
        "tensor", {"data", "dtype", "device", "requires_grad"}, 1, 1};
    Arguments<4> a(signature, args, n, names);
    DType dtype = a.has(1) ? to_dtype(a[1]) : DType::f32;
    TensorRef t = tensor_from_data(a[0], a.has(1) ? &dtype : nullptr);
    if (a.has(2) && to_device(a[2]) == Device::meta) {
      t = Tensor::empty(t->shape, t->dtype, Device::meta);
    }
    return finish(t, a.truth(3), a[0]);
  });
}

PyObject* as_tensor(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&]() -> PyObject* {
    static const Signature<3> signature{"as_tensor", {"data", "dtype", "device"}, 1};
    Arguments<3> a(signature, args, n, names);
    DType dtype = a.has(1) ? to_dtype(a[1]) : DType::f32;
    if (a.has(2) && to_device(a[2]) != Device::cpu) {
      fail(ErrorKind::device, "as_tensor", "data can only be shared on its own device", "cpu",
           "meta", "tensor(data, device=...)");
    }
    if (is_tensor(a[0])) {
      return wrap(a.has(1) ? to_dtype(tensor_of(a[0]), dtype) : tensor_of(a[0]));
    }
    TensorRef t;
    if (!is_number(a[0]) && to_operand(a[0], t)) {
      return finish(a.has(1) ? core::cast(t, dtype) : t, false, a[0]);
    }
    return finish(tensor_from_data(a[0], a.has(1) ? &dtype : nullptr), false, a[0]);
  });
}

PyObject* from_numpy(PyObject*, PyObject* array) {
  return guarded([&] {
    TensorRef t;
    if (is_tensor(array) || is_number(array) || !to_operand(array, t)) {
      raise(PyExc_TypeError,
            std::string("from_numpy: expected a numpy.ndarray, not ") + Py_TYPE(array)->tp_name);
    }
    return finish(t, false, array);
  });
}

PyObject* frombuffer(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<5> signature{
        "frombuffer", {"buffer", "dtype", "count", "offset", "requires_grad"}, 2, 1};
    Arguments<5> a(signature, args, n, names);
    const DType dtype = to_dtype(a[1]);
    const auto size = int64_t(item_size(dtype));
    Owned memory = check(PyMemoryView_FromObject(a[0]));
    Owned bytes = check(PyObject_CallMethod(memory.get(), "cast", "s", "B"));
    const int64_t offset = a.has(3) ? to_integer(a[3], "frombuffer") : 0;
    const int64_t total = PyMemoryView_GET_BUFFER(bytes.get())->len;
    int64_t count = a.has(2) ? to_integer(a[2], "frombuffer") : -1;
    if (offset < 0 || offset > total) {
      fail(ErrorKind::value, "frombuffer", "the offset lies outside the buffer",
           "from 0 to " + std::to_string(total) + " bytes", std::to_string(offset));
    }
    if (count < 0) {
      if ((total - offset) % size) {
        fail(ErrorKind::value, "frombuffer", "the buffer does not end with a whole element",
             "a multiple of " + std::to_string(size) + " bytes", std::to_string(total - offset));
      }
      count = (total - offset) / size;
    }
    if (count > (total - offset) / size) {
      fail(ErrorKind::value, "frombuffer", "the buffer is too short",
           std::to_string(count) + " elements of " + std::to_string(size) + " bytes",
           std::to_string(total - offset) + " bytes");
    }
    TensorRef whole = tensor_from_array(bytes.get());
    char* first = static_cast<char*>(whole->storage->data) + offset;
    if (reinterpret_cast<uintptr_t>(first) % size_t(size)) {
      fail(ErrorKind::value, "frombuffer", "the elements are not aligned",
           "an address that is a multiple of " + std::to_string(size),
           "offset " + std::to_string(offset), "bytearray(buffer[offset:])");
    }
    const bool readonly = whole->storage->readonly;
    auto drop = [](void* owner) {
      TensorRef last(static_cast<Tensor*>(owner));
      last->refs.fetch_sub(1);  // the reference that the storage held
    };
    auto storage = Storage::wrap(first, size_t(count * size), drop, whole.release());
    storage->readonly = readonly;
    return finish(Tensor::over(storage, {count}, dtype), a.truth(4), a[0]);
  });
}

// (options..., keyword only) of the calls below.
template <int N>
Options read_options(const Arguments<N>& a, int first, Options o) {
  if (a.has(first)) o.dtype = to_dtype(a[first]);
  if (a.has(first + 1)) o.device = to_device(a[first + 1]);
  o.requires_grad = a.truth(first + 2);
  return o;
}

PyObject* empty(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<4> signature{
        "empty", {"size", "dtype", "device", "requires_grad"}, 0, 0};
    Arguments<4> a(signature, args + n, 0, names);
    Options o = read_options(a, 1, {});
    Dims shape = a.has(0) ? to_ints(a[0], "empty") : ints_or_sequence(args, n, "empty");
    expect_sizes("empty", shape);
    return finish(Tensor::empty(shape, o.dtype, o.device), o.requires_grad, Py_None);
  });
}

PyObject* empty_like(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<5> signature{
        "empty_like", {"input", "dtype", "device", "requires_grad", "memory_format"}, 1, 1};
    Arguments<5> a(signature, args, n, names);
    wants_channels_last("empty_like", a[4]);
    const TensorRef& x = expect_tensor(a[0], "empty_like");
    Options o = read_options(a, 1, {x->dtype, x->device, false});
    return finish(Tensor::empty(x->shape, o.dtype, o.device), o.requires_grad, Py_None);
  });
}

// A new object of a subclass over the memory of `data`, as a leaf.
PyObject* make_subclass(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&]() -> PyObject* {
    static const Signature<3> signature{"_make_subclass", {"cls", "data", "requires_grad"}, 2};
    Arguments<3> a(signature, args, n, names);
    if (!PyType_Check(a[0]) ||
        !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(a[0]), tensor_type)) {
      raise(PyExc_TypeError, "_make_subclass: expected a subclass of Tensor");
    }
    const TensorRef& x = expect_tensor(a[1], "_make_subclass");
    TensorRef t = Tensor::view(*x, x->shape, x->strides, x->offset);
    t->is_view = false;
    if (a.truth(2)) set_requires_grad(t, true);
    return wrap_as(reinterpret_cast<PyTypeObject*>(a[0]), t);
  });
}

}  // namespace

TensorRef tensor_from_data(PyObject* data, const DType* dtype) {
  if (is_tensor(data)) {
    NoGrad no_grad;
    const TensorRef& x = tensor_of(data);
    TensorRef y = dtype ? to_dtype(x, *dtype) : x;
    return y == x ? unary(*known.clone, x) : y;
  }
  const bool plain =
      PyList_Check(data) || PyTuple_Check(data) || PyLong_Check(data) || PyFloat_CheckExact(data);
  if (!plain) {
    if (is_array(data) || PyObject_CheckBuffer(data)) return copy_of_array(data, dtype);
    if (!is_sequence(data)) operand(data, "tensor");  // a number, or TypeError
  }
  Nested nested(data);
  if (nested.arrays) return copy_of_array(data, dtype);
  const bool empty = element_count(nested.shape) == 0;
  DType chosen = dtype ? *dtype : empty ? default_dtype() : nested.dtype;
  TensorRef t = Tensor::empty(nested.shape, chosen);
  if (!empty) nested.write(data, *t);
  return t;
}

PyObject* tensor_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  return guarded([&]() -> PyObject* {
    static const char* names[] = {"data", "requires_grad", nullptr};
    PyObject* data = nullptr;
    int requires_grad = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Op:Tensor", const_cast<char**>(names), &data,
                                     &requires_grad)) {
      return nullptr;
    }
    TensorRef t = data ? tensor_from_data(data, nullptr) : Tensor::empty({0}, default_dtype());
    if (requires_grad) set_requires_grad(t, true);
    Owned object = check(wrap_as(type, std::move(t)));
    if (recorder && !(data && is_tensor(data))) {
      tell_create(object.get(), data ? data : Py_None);
    }
    return object.release();
  });
}

PyMethodDef creation_functions[] = {
    EAGER_FAST("tensor", tensor,
               "tensor(data, *, dtype=None, device=None, requires_grad=False)\n\nA new tensor "
               "from numbers, nested sequences, arrays or tensors."),
    EAGER_FAST("as_tensor", as_tensor,
               "as_tensor(data, dtype=None, device=None)\n\nThe data as a tensor, over the same "
               "memory if it can be shared."),
    EAGER_ONE("from_numpy", from_numpy,
              "from_numpy(array)\n\nA tensor over the memory of a NumPy array."),
    EAGER_FAST("frombuffer", frombuffer,
               "frombuffer(buffer, *, dtype, count=-1, offset=0, requires_grad=False)\n\nA tensor "
               "over the bytes of an object with the buffer protocol."),
    EAGER_FAST("empty", empty,
               "empty(*size, dtype=None, device=None, requires_grad=False)\n\nA tensor whose "
               "elements are whatever its memory holds."),
    EAGER_FAST("empty_like", empty_like,
               "empty_like(input, *, dtype=None, device=None, requires_grad=False)\n\nempty with "
               "the shape, dtype and device of a tensor."),
    {nullptr}};

PyMethodDef creation_methods[] = {
    {"_make_subclass", as_method(make_subclass), METH_FASTCALL | METH_KEYWORDS | METH_STATIC,
     "_make_subclass(cls, data, requires_grad=False)\n\nAn object of a subclass of Tensor over "
     "the memory of `data`."},
    {nullptr}};

}  // namespace eager::bind

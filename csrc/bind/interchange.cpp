// Reading tensors from Python, and sharing their memory: item, tolist, the buffer protocol, NumPy.
#include "interchange.h"

#include <cstring>
#include <memory>

#include "core/half.h"
#include "interpreter.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {

void expect_readable(const Tensor& t, const char* what, bool allow_grad) {
  if (t.device == Device::meta) {
    fail(ErrorKind::device, what, "a meta tensor holds no data", "a tensor on cpu", "meta");
  }
  if (!allow_grad && t.requires_grad()) {
    fail(ErrorKind::autograd, what, "the tensor requires grad, which its copy could not",
         "a tensor without history", "requires_grad=True", "x.detach()");
  }
}

PyObject* element_object(const Tensor& t, int64_t at) {
  const char* p = t.data() + at * int64_t(item_size(t.dtype));
  auto read = [p](auto value) {
    std::memcpy(&value, p, sizeof value);
    return value;
  };
  switch (t.dtype) {
    case DType::f32:
      return PyFloat_FromDouble(double(read(0.0f)));
    case DType::f64:
      return PyFloat_FromDouble(read(0.0));
    case DType::f16:
      return PyFloat_FromDouble(double(to_float(read(f16{}))));
    case DType::bf16:
      return PyFloat_FromDouble(double(to_float(read(bf16{}))));
    case DType::i8:
      return PyLong_FromLong(read(int8_t(0)));
    case DType::i16:
      return PyLong_FromLong(read(int16_t(0)));
    case DType::i32:
      return PyLong_FromLong(read(int32_t(0)));
    case DType::i64:
      return PyLong_FromLongLong(read(int64_t(0)));
    case DType::u8:
      return PyLong_FromLong(read(uint8_t(0)));
    case DType::b8:
      return PyBool_FromLong(read(uint8_t(0)));
  }
  return nullptr;
}

Owned read_item(PyObject* self, const char* what) {
  const TensorRef& t = tensor_of(self);
  expect_readable(*t, what, true);
  if (t->numel != 1) {
    fail(ErrorKind::value, what, "the tensor does not have exactly one element",
         "a tensor of one element", "shape " + to_string(t->shape),
         std::strcmp(what, "bool") == 0 ? "x.any() or x.all()" : "x.tolist()");
  }
  Owned value = check(element_object(*t, 0));
  if (recorder) tell_read(self, value.get());
  return value;
}

namespace {

PyObject* list_of(const Tensor& t, size_t dim, int64_t at) {
  if (dim == t.ndim()) return element_object(t, at);
  Owned list = check(PyList_New(t.shape[dim]));
  for (int64_t i = 0; i < t.shape[dim]; ++i) {
    PyList_SET_ITEM(list.get(), i, check(list_of(t, dim + 1, at + i * t.strides[dim])).release());
  }
  return list.release();
}

PyObject* item(PyObject* self, PyObject*) {
  return guarded([&] { return read_item(self, "item").release(); });
}

PyObject* tolist(PyObject* self, PyObject*) {
  return guarded([&] {
    const TensorRef& x = tensor_of(self);
    expect_readable(*x, "tolist", true);
    // Lists may start the garbage collector, and so code that changes x.data.
    const TensorRef t = Tensor::view(*x, x->shape, x->strides, x->offset);
    Owned list = check(list_of(*t, 0, 0));
    if (recorder) tell_read(self, list.get());
    return list.release();
  });
}

PyObject* data_ptr(PyObject* self, PyObject*) {
  const TensorRef& t = tensor_of(self);
  return PyLong_FromVoidPtr(t->storage->data ? t->data() : nullptr);
}

// --- the buffer protocol -------------------------------------------------------------------------

// What an exported buffer points at, and what keeps its memory.
struct Export {
  Ref<Storage> storage;
  Small<Py_ssize_t, 8> shape, strides;
};

// struct-module codes; bfloat16 has none.
constexpr const char* kFormats[kDTypes] = {"f", "d", "e", nullptr, "b", "h", "i", "q", "B", "?"};

}  // namespace

int tensor_getbuffer(PyObject* self, Py_buffer* view, int flags) {
  view->obj = nullptr;
  int status = guarded(
      [&] {
        const TensorRef& t = tensor_of(self);
        expect_readable(*t, "buffer");
        const char* format = kFormats[int(t->dtype)];
        if (!format) raise(PyExc_BufferError, "buffers cannot hold bfloat16");
        const bool strided = (flags & PyBUF_STRIDES) == PyBUF_STRIDES;
        // PyBUF_STRIDES is part of the flags that ask for a contiguous buffer.
        constexpr int kPacked =
            (PyBUF_C_CONTIGUOUS | PyBUF_F_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS) & ~PyBUF_STRIDES;
        if (!t->contiguous && (!strided || (flags & kPacked))) {
          raise(PyExc_BufferError, "the tensor is not contiguous");
        }
        if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && t->ndim() > 1) {
          raise(PyExc_BufferError, "the tensor is not in column-major order");
        }
        if ((flags & PyBUF_WRITABLE) && t->storage->readonly) {
          raise(PyExc_BufferError, "the tensor's memory is read-only");
        }
        const auto bytes = Py_ssize_t(item_size(t->dtype));
        Py_ssize_t length;
        if (__builtin_mul_overflow(t->numel, bytes, &length)) {
          raise(PyExc_BufferError, "the tensor has more bytes than a buffer can");
        }
        auto held = std::make_unique<Export>();
        held->storage = t->storage;
        for (size_t d = 0; d < t->ndim(); ++d) {
          held->shape.push_back(t->shape[d]);
          // Those of an empty tensor mean nothing and may be huge: unsigned, they wrap around.
          held->strides.push_back(Py_ssize_t(size_t(t->strides[d]) * size_t(bytes)));
        }
        if (recorder) tell_read(self, Py_None);
        view->buf = t->storage->data ? t->data() : nullptr;
        view->len = length;
        view->itemsize = bytes;
        view->readonly = t->storage->readonly;
        // Without shape a buffer is bytes in a row; memoryview reads the shape of any other.
        view->ndim = flags & PyBUF_ND ? int(t->ndim()) : 1;
        view->format = flags & PyBUF_FORMAT ? const_cast<char*>(format) : nullptr;
        view->shape = flags & PyBUF_ND ? held->shape.data() : nullptr;
        view->strides = strided ? held->strides.data() : nullptr;
        view->suboffsets = nullptr;
        view->internal = held.release();
        view->obj = Py_NewRef(self);
        return 0;
      },
      -1);
  // Consumers expect BufferError; the reason stays as its cause.
  if (status < 0 && !PyErr_ExceptionMatches(PyExc_BufferError)) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_Format(PyExc_BufferError, "%S", value ? value : type);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
  }
  return status;
}

void tensor_releasebuffer(PyObject*, Py_buffer* view) {
  delete static_cast<Export*>(view->internal);
}

// --- NumPy ---------------------------------------------------------------------------------------

PyObject* to_numpy(const TensorRef& t) {
  static PyObject* asarray;
  import_once(asarray, "numpy", "asarray");
  // NumPy asks an object without a buffer for its __array__, which would lead here again.
  int64_t bytes;
  if (t->ndim() > 64 || __builtin_mul_overflow(t->numel, int64_t(item_size(t->dtype)), &bytes)) {
    fail(ErrorKind::shape, "numpy", "there is no array of this shape",
         "at most 64 dimensions and 2**63 bytes", "shape " + to_string(t->shape));
  }
  TensorRef alias = Tensor::view(*t, t->shape, t->strides, t->offset);
  const bool brain = t->dtype == DType::bf16;
  if (brain) alias->dtype = DType::i16;  // the same bits
  Owned object = check(wrap(alias));
  Beneath beneath;
  Owned array = check(PyObject_CallOneArg(asarray, object.get()));
  if (!brain) return array.release();
  Owned scalar = import_attribute("ml_dtypes", "bfloat16");
  return PyObject_CallMethod(array.get(), "view", "O", scalar.get());
}

namespace {

PyObject* numpy(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&] {
    static const Signature<1> signature{"numpy", {"force"}, 0};
    Arguments<1> a(signature, args, n, names);
    const TensorRef& t = tensor_of(self);
    expect_readable(*t, "numpy", a.truth(0));
    Owned array = check(to_numpy(t));
    if (recorder) tell_read(self, array.get());
    return array.release();
  });
}

PyObject* array_method(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&]() -> PyObject* {
    static const Signature<2> signature{"__array__", {"dtype", "copy"}, 0};
    Arguments<2> a(signature, args, n, names);
    const TensorRef& t = tensor_of(self);
    expect_readable(*t, "__array__");
    Owned array = check(to_numpy(t));
    if (recorder) tell_read(self, array.get());
    if (a.has(0)) {
      Owned own = check(PyObject_GetAttrString(array.get(), "dtype"));
      Owned wanted = check(
          PyObject_CallFunctionObjArgs(import_attribute("numpy", "dtype").get(), a[0], nullptr));
      int same = PyObject_RichCompareBool(own.get(), wanted.get(), Py_EQ);
      check_status(same);
      if (!same) {
        if (a.has(1) && !a.truth(1)) {
          raise(PyExc_ValueError, "a tensor of another dtype cannot be given without a copy");
        }
        return PyObject_CallMethod(array.get(), "astype", "O", wanted.get());
      }
    }
    return a.truth(1) ? PyObject_CallMethod(array.get(), "copy", nullptr) : array.release();
  });
}

// The dtype of a buffer's elements; false if there is none.
bool buffer_dtype(const Py_buffer& view, DType* out) {
  const char* f = view.format ? view.format : "B";
  if (*f == '@' || *f == '=' || *f == '<') ++f;
  if (!*f || f[1]) return false;
  const char c = *f;
  const Py_ssize_t n = view.itemsize;
  if (c == '?')
    *out = DType::b8;
  else if (c == 'e')
    *out = DType::f16;
  else if (c == 'f')
    *out = DType::f32;
  else if (c == 'd')
    *out = DType::f64;
  else if (c == 'B')
    *out = DType::u8;
  else if (c == 'b')
    *out = DType::i8;
  else if (std::strchr("hilq", c)) {
    *out = n == 2 ? DType::i16 : n == 4 ? DType::i32 : DType::i64;
  } else
    return false;
  return true;
}

void release_buffer(void* owner) {
  Gil gil;
  auto* view = static_cast<Py_buffer*>(owner);
  PyBuffer_Release(view);
  delete view;
}

bool is_bfloat16_array(PyObject* array) {
  PyObject* dtype = PyObject_GetAttrString(array, "dtype");
  PyObject* text = dtype ? PyObject_GetAttrString(dtype, "name") : nullptr;
  bool yes =
      text && PyUnicode_Check(text) && PyUnicode_CompareWithASCIIString(text, "bfloat16") == 0;
  Py_XDECREF(text);
  Py_XDECREF(dtype);
  PyErr_Clear();
  return yes;
}

constexpr const char* kNumPyTypes =
    "float16, bfloat16, float32, float64, int8 to int64, uint8 or bool, in native byte order";

// The dtype of an array, or the type of another object, for an error.
std::string type_text(PyObject* array) {
  Owned dtype(PyObject_GetAttrString(array, "dtype"));
  PyErr_Clear();
  Owned text = dtype ? check(PyObject_Str(dtype.get())) : Owned();
  const char* s = text ? PyUnicode_AsUTF8(text.get()) : Py_TYPE(array)->tp_name;
  return s ? s : "";
}

}  // namespace

TensorRef tensor_from_array(PyObject* array) {
  auto view = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(array, view.get(), PyBUF_FULL_RO) < 0) {
    // Arrays of bfloat16, which buffers cannot describe, are read through their bits.
    PyErr_Clear();
    if (!is_bfloat16_array(array)) {
      fail(ErrorKind::dtype, "from_numpy", "there is no tensor dtype for these elements",
           kNumPyTypes, type_text(array), "array.astype(numpy.float32)");
    }
    Owned bits = check(PyObject_CallMethod(array, "view", "s", "int16"));
    TensorRef t = tensor_from_array(bits.get());
    t->dtype = DType::bf16;
    return t;
  }
  struct Releaser {
    Py_buffer* view;
    ~Releaser() {
      if (view) PyBuffer_Release(view);
    }
  } releaser{view.get()};

  DType dtype;
  if (!buffer_dtype(*view, &dtype)) {
    fail(ErrorKind::dtype, "from_numpy", "there is no tensor dtype for these elements", kNumPyTypes,
         type_text(array), "array.astype(numpy.float32)");
  }
  const int64_t size = view->itemsize;
  Dims shape, strides;
  int64_t last = 0;  // the farthest element
  bool fits = reinterpret_cast<uintptr_t>(view->buf) % size_t(size) == 0;
  for (int d = 0; d < view->ndim; ++d) {
    shape.push_back(view->shape[d]);
    strides.push_back(view->strides[d] / size);
    fits &= view->strides[d] % size == 0 && (strides.back() >= 0 || shape.back() < 2);
    last += (shape.back() - 1) * strides.back();
  }
  const int64_t count = element_count(shape);
  if (!fits && count > 0) {
    fail(ErrorKind::value, "from_numpy", "the array's memory has no layout of a tensor",
         "aligned elements with strides of 0 or more", "negative or uneven strides",
         "array.copy()");
  }
  const bool readonly = view->readonly;
  void* data = view->buf;
  auto storage =
      Storage::wrap(data, count ? size_t((last + 1) * size) : 0, release_buffer, view.get());
  releaser.view = nullptr;
  (void)view.release();
  storage->readonly = readonly;
  TensorRef t = Tensor::over(storage, shape, dtype);
  if (count && !(strides == t->strides)) {
    t = Tensor::view(*t, shape, strides, 0);
    t->is_view = false;
  }
  return t;
}

PyMethodDef interchange_methods[] = {
    EAGER_NOARGS("item", item, "The only element, as a Python number."),
    EAGER_NOARGS("tolist", tolist, "The elements as nested lists, or as a number."),
    EAGER_NOARGS("data_ptr", data_ptr, "The address of the first element."),
    EAGER_FAST("numpy", numpy,
               "numpy(force=False)\n\nA NumPy array over the same memory.  force: also for a "
               "tensor that requires grad."),
    EAGER_FAST("__array__", array_method, nullptr),
    {nullptr}};

}  // namespace eager::bind

// __dlpack__ and from_dlpack: memory shared with other array libraries.
#include "dlpack.h"

#include <memory>

#include "calls.h"
#include "convert.h"
#include "interchange.h"
#include "interpreter.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

dlpack::DataType type_of(DType t) {
  const auto bits = uint8_t(8 * item_size(t));
  if (t == DType::b8) return {dlpack::kBool, bits, 1};
  if (t == DType::u8) return {dlpack::kUInt, bits, 1};
  if (t == DType::bf16) return {dlpack::kBfloat, bits, 1};
  return {is_floating(t) ? dlpack::kFloat : dlpack::kInt, bits, 1};
}

bool dtype_of(const dlpack::DataType& given, DType* out) {
  for (int i = 0; i < kDTypes; ++i) {
    const dlpack::DataType d = type_of(DType(i));
    if (d.code == given.code && d.bits == given.bits && given.lanes == 1) {
      *out = DType(i);
      return true;
    }
  }
  return false;
}

// --- export --------------------------------------------------------------------------------------

template <class M>
struct Exported {
  M managed{};
  TensorRef tensor;
  Dims shape, strides;
};

template <class M>
M* export_tensor(TensorRef t) {
  auto* e = new Exported<M>;
  e->tensor = t;
  e->shape = t->shape;
  e->strides = t->strides;
  dlpack::Array& a = e->managed.array;
  a.data = t->storage->data ? t->data() : nullptr;
  a.device = {dlpack::kCpu, 0};
  a.ndim = int32_t(t->ndim());
  a.dtype = type_of(t->dtype);
  a.shape = e->shape.data();
  a.strides = e->strides.data();
  e->managed.context = e;
  e->managed.deleter = [](M* m) {
    Gil gil;  // the consumer may be a thread without the interpreter lock
    delete static_cast<Exported<M>*>(m->context);
  };
  return &e->managed;
}

constexpr const char* kPlain = "dltensor";
constexpr const char* kVersioned = "dltensor_versioned";

template <class M>
PyObject* new_capsule(M* m, const char* capsule_name, PyCapsule_Destructor drop) {
  PyObject* capsule = PyCapsule_New(m, capsule_name, drop);
  if (!capsule) m->deleter(m);
  return capsule;
}

// A capsule that nobody consumed still owns its tensor.
template <class M>
void drop_capsule(PyObject* capsule, const char* capsule_name) {
  if (!PyCapsule_IsValid(capsule, capsule_name)) return;
  auto* m = static_cast<M*>(PyCapsule_GetPointer(capsule, capsule_name));
  if (m->deleter) m->deleter(m);
}
void drop_plain(PyObject* c) { drop_capsule<dlpack::Managed>(c, kPlain); }
void drop_versioned(PyObject* c) { drop_capsule<dlpack::ManagedVersioned>(c, kVersioned); }

PyObject* to_dlpack(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
  return guarded([&]() -> PyObject* {
    static const Signature<4> signature{
        "__dlpack__", {"stream", "max_version", "dl_device", "copy"}, 0, 0};
    Arguments<4> a(signature, args, n, names);
    const TensorRef& x = tensor_of(self);
    expect_readable(*x, "__dlpack__");
    if (a.has(2)) {
      Dims device = to_ints(a[2], "__dlpack__");
      if (device.size() != 2 || device[0] != dlpack::kCpu) {
        raise(PyExc_BufferError, "the tensor can only be shared on the CPU");
      }
    }
    Dims version = a.has(1) ? to_ints(a[1], "__dlpack__") : Dims();
    TensorRef t = a.truth(3) ? unary(*known.clone, x) : x;
    if (recorder) tell_read(self, Py_None);
    if (version.empty() || version[0] < 1) {
      if (t->storage->readonly) {
        raise(PyExc_BufferError, "read-only memory needs a consumer of DLPack 1.0 or newer");
      }
      auto* m = export_tensor<dlpack::Managed>(t);
      return new_capsule(m, kPlain, drop_plain);
    }
    auto* m = export_tensor<dlpack::ManagedVersioned>(t);
    m->version = {1, 0};
    m->flags = (t->storage->readonly ? dlpack::kReadOnly : 0) | (t == x ? 0 : dlpack::kCopied);
    return new_capsule(m, kVersioned, drop_versioned);
  });
}

PyObject* dlpack_device(PyObject*, PyObject*) { return Py_BuildValue("(ii)", dlpack::kCpu, 0); }

// --- import --------------------------------------------------------------------------------------

template <class M>
void release_managed(void* owner) {
  Gil gil;
  auto* m = static_cast<M*>(owner);
  if (m->deleter) m->deleter(m);
}

TensorRef adopt(const dlpack::Array& a, void (*release)(void*), void* owner, bool readonly) {
  struct Guard {
    void (*release)(void*);
    void* owner;
    ~Guard() {
      if (release) release(owner);
    }
  } guard{release, owner};
  if (a.device.type != dlpack::kCpu && a.device.type != dlpack::kCudaHost) {
    fail(ErrorKind::device, "from_dlpack", "the memory is not the CPU's", "an array on the CPU",
         "DLPack device type " + std::to_string(a.device.type));
  }
  DType dtype;
  if (!dtype_of(a.dtype, &dtype)) {
    fail(ErrorKind::dtype, "from_dlpack", "there is no tensor dtype for these elements",
         "float16, bfloat16, float32, float64, int8 to int64, uint8 or bool",
         "DLPack type code " + std::to_string(a.dtype.code) + " with " +
             std::to_string(a.dtype.bits) + " bits");
  }
  const Dims shape(a.shape, a.shape + a.ndim);
  const Dims strides = a.strides ? Dims(a.strides, a.strides + a.ndim) : contiguous_strides(shape);
  const int64_t count = element_count(shape);
  int64_t last = 0;
  for (size_t d = 0; d < shape.size() && count; ++d) {
    if (strides[d] < 0) {
      fail(ErrorKind::value, "from_dlpack", "the array's memory has no layout of a tensor",
           "strides of 0 or more", to_string(strides), "a copy of the array");
    }
    last += (shape[d] - 1) * strides[d];
  }
  const size_t bytes = count ? size_t(last + 1) * item_size(dtype) : 0;
  char* const first = static_cast<char*>(a.data) + a.byte_offset;
  if (count && reinterpret_cast<uintptr_t>(first) % item_size(dtype)) {
    fail(ErrorKind::value, "from_dlpack", "the array's memory has no layout of a tensor",
         "elements at multiples of their size", "elements that are not aligned",
         "a copy of the array");
  }
  auto storage = Storage::wrap(first, bytes, release, owner);
  guard.release = nullptr;
  storage->readonly = readonly;
  TensorRef t = Tensor::over(storage, shape, dtype);
  if (count && !(strides == t->strides)) {
    t = Tensor::view(*t, shape, strides, 0);
    t->is_view = false;
  }
  return t;
}

template <class M>
TensorRef consume(PyObject* capsule, const char* from, const char* to, bool readonly) {
  auto* m = static_cast<M*>(PyCapsule_GetPointer(capsule, from));
  if (!m) throw PythonError();
  check_status(PyCapsule_SetName(capsule, to));
  return adopt(m->array, release_managed<M>, m, readonly);
}

Owned capsule_of(PyObject* source) {
  if (PyCapsule_CheckExact(source)) return Owned::copy(source);
  Owned method = check(PyObject_GetAttrString(source, "__dlpack__"));
  Owned none_given = check(PyTuple_New(0));
  Owned options = check(Py_BuildValue("{s:(ii)}", "max_version", 1, 0));
  Owned capsule(PyObject_Call(method.get(), none_given.get(), options.get()));
  if (capsule || !PyErr_ExceptionMatches(PyExc_TypeError)) return check(capsule.release());
  PyErr_Clear();  // a producer that does not know max_version
  return check(PyObject_CallNoArgs(method.get()));
}

PyObject* from_dlpack(PyObject*, PyObject* source) {
  return guarded([&] {
    if (!PyCapsule_CheckExact(source) && !PyObject_HasAttrString(source, "__dlpack__")) {
      raise(PyExc_TypeError, std::string("from_dlpack: expected an object with __dlpack__, not ") +
                                 Py_TYPE(source)->tp_name);
    }
    Owned capsule = capsule_of(source);
    TensorRef t;
    if (PyCapsule_IsValid(capsule.get(), kVersioned)) {
      auto* m =
          static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.get(), kVersioned));
      if (m->version.major != 1) {
        fail(ErrorKind::value, "from_dlpack", "unknown version of the format", "major version 1",
             std::to_string(m->version.major));
      }
      t = consume<dlpack::ManagedVersioned>(capsule.get(), kVersioned, "used_dltensor_versioned",
                                            (m->flags & dlpack::kReadOnly) != 0);
    } else {
      t = consume<dlpack::Managed>(capsule.get(), kPlain, "used_dltensor", false);
    }
    Owned object = check(wrap(t));
    if (recorder) tell_create(object.get(), source);
    return object.release();
  });
}

}  // namespace

PyMethodDef dlpack_methods[] = {EAGER_FAST("__dlpack__", to_dlpack, nullptr),
                                EAGER_NOARGS("__dlpack_device__", dlpack_device, nullptr),
                                {nullptr}};

PyMethodDef dlpack_functions[] = {
    EAGER_ONE("from_dlpack", from_dlpack,
              "from_dlpack(array)\n\nA tensor over the memory of another library's array."),
    {nullptr}};

}  // namespace eager::bind

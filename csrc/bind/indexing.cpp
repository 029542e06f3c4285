// x[key] and x[key] = value.
//
// A key is read in two steps.  The basic part (ints, slices, None, Ellipsis) is one `slice` op and,
// for None, a reshape.  Tensors and lists then index dimensions of what that gives: an integer
// tensor by index_select; a mask by the places where it is true, after its dimensions have been
// merged into one; several at once by one linear index over their dimensions, brought together.
// As in PyTorch, ints belong to the basic part also when tensors are present.
#include "calls.h"
#include "convert.h"
#include "interchange.h"
#include "tensor.h"
#include "types.h"

namespace eager::bind {
namespace {

struct Selector {
  int64_t dim;      // of the sliced tensor with Nones inserted and masked dimensions merged
  TensorRef index;  // int64
};

struct Key {
  // The slice; `drop` lists the dimensions that ints removed.
  Dims starts, sizes, steps, drop;
  bool whole = true;  // the slice takes everything
  // The shape that None and masks give the sliced tensor; the same as its own if `reshaped` is off.
  Dims shape;
  bool reshaped = false;
  Small<Selector, 2> selectors;
};

int64_t wrap_index(int64_t i, int64_t n, size_t dim) {
  if (i < -n || i >= n) {
    fail(ErrorKind::index, "index", "index out of range",
         "from " + std::to_string(-n) + " to " + std::to_string(n - 1) + " for dimension " +
             std::to_string(dim) + " of size " + std::to_string(n),
         std::to_string(i));
  }
  return i < 0 ? i + n : i;
}

// Reads one key against one tensor's shape.
class Reader {
 public:
  Reader(const TensorRef& x, PyObject* key) : shape_(x->shape) {
    if (PyTuple_Check(key)) {
      const Py_ssize_t n = PyTuple_GET_SIZE(key);
      int64_t ellipsis = -1, used = 0, before = 0;
      for (Py_ssize_t i = 0; i < n; ++i) {
        PyObject* item = PyTuple_GET_ITEM(key, i);
        if (item == Py_Ellipsis) {
          if (ellipsis >= 0) {
            fail(ErrorKind::value, "index", "an index can have only one ellipsis", "one `...`",
                 "several");
          }
          ellipsis = i;
          before = used;
        } else {
          used += dims_used(item);
        }
      }
      if (used > int64_t(shape_.size())) {
        fail(ErrorKind::index, "index", "there are too many indices",
             "at most " + std::to_string(shape_.size()) + " for shape " + to_string(shape_),
             std::to_string(used));
      }
      for (Py_ssize_t i = 0; i < n; ++i) {
        if (i == ellipsis) {
          // What the items behind it use, and before it.
          while (int64_t(dim_) + used - before < int64_t(shape_.size())) keep();
        } else {
          read(PyTuple_GET_ITEM(key, i));
        }
      }
    } else if (key != Py_Ellipsis) {
      if (dims_used(key) > int64_t(shape_.size())) {
        fail(ErrorKind::index, "index", "there are too many indices",
             "at most " + std::to_string(shape_.size()) + " dimensions for shape " +
                 to_string(shape_),
             std::to_string(dims_used(key)));
      }
      read(key);
    }
    while (dim_ < shape_.size()) keep();
  }

  Key key;

 private:
  static bool is_integer(PyObject* o) {
    if (PyLong_Check(o)) return !PyBool_Check(o);
    return !is_tensor(o) && PyIndex_Check(o) && (is_number(o) || !PySequence_Check(o));
  }

  int64_t dims_used(PyObject* item) {
    if (item == Py_None || PyBool_Check(item)) return 0;
    if (PySlice_Check(item) || is_integer(item)) return 1;
    const TensorRef t = index_tensor(item);
    return t->dtype == DType::b8 ? int64_t(t->ndim()) : 1;
  }

  void read(PyObject* item) {
    if (item == Py_None) {
      key.shape.push_back(1);
      key.reshaped = true;
    } else if (PyBool_Check(item)) {
      read_tensor(Tensor::scalar(item == Py_True));  // a mask of no dimensions
    } else if (PySlice_Check(item)) {
      read_slice(item);
    } else if (is_integer(item)) {
      take(wrap_index(to_integer(item, "index"), length(), dim_), 1, 1);
      key.drop.push_back(int64_t(dim_ - 1));
    } else {
      read_tensor(index_tensor(item));
    }
  }

  void read_slice(PyObject* item) {
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(item, &start, &stop, &step) < 0) throw PythonError();
    if (step < 1) {
      fail(ErrorKind::value, "index", "slices go forward only", "a step of at least 1",
           std::to_string(step), "flip");
    }
    const int64_t n = length();
    const Py_ssize_t size = PySlice_AdjustIndices(n, &start, &stop, step);
    // Steps beyond the end address nothing; 1 keeps strides small.
    take(size > 0 ? start : 0, size, size > 1 ? step : 1);
    key.shape.push_back(size);
  }

  void read_tensor(const TensorRef& t) {
    const int64_t at = int64_t(key.shape.size());
    if (t->dtype != DType::b8) {
      keep();
      key.selectors.push_back({at, to_dtype(t, DType::i64)});
      return;
    }
    int64_t merged = 1;
    for (size_t d = 0; d < t->ndim(); ++d) {
      if (t->shape[d] != length()) {
        fail(ErrorKind::shape, "index", "the mask's shape differs from the tensor's",
             "size " + std::to_string(length()) + " in dimension " + std::to_string(d) +
                 " of the mask",
             "mask shape " + to_string(t->shape) + ", tensor shape " + to_string(shape_));
      }
      merged *= t->shape[d];
      take(0, t->shape[d], 1);
    }
    key.shape.push_back(merged);
    if (t->ndim() != 1) key.reshaped = true;
    const TensorRef places = nonzero(reshape(t, {merged}));
    key.selectors.push_back({at, reshape(places, {places->numel})});
  }

  // An index tensor, converted once although dims_used asks first.
  TensorRef index_tensor(PyObject* item) {
    if (is_tensor(item)) return checked(tensor_of(item));
    for (auto& [object, tensor] : converted_) {
      if (object == item) return tensor;
    }
    TensorRef t;
    if (PySequence_Check(item) && !PyUnicode_Check(item) && !PyBytes_Check(item)) {
      const Py_ssize_t length = PySequence_Size(item);
      if (length < 0) throw PythonError();
      const DType i64 = DType::i64;
      t = tensor_from_data(item, length ? nullptr : &i64);
    } else {
      raise(PyExc_TypeError, std::string("index: expected ints, slices, None, `...`, tensors or "
                                         "sequences, not ") +
                                 Py_TYPE(item)->tp_name);
    }
    t = checked(t);
    converted_.push_back({item, t});
    return t;
  }
  static TensorRef checked(const TensorRef& t) {
    if (is_floating(t->dtype)) {
      fail(ErrorKind::index, "index", "a floating tensor cannot be an index",
           "an integer or bool dtype", name(t->dtype), "index.long()");
    }
    return t;
  }

  // The next dimension, as a whole.
  void keep() {
    key.shape.push_back(length());
    take(0, length(), 1);
  }
  void take(int64_t start, int64_t size, int64_t step) {
    key.whole &= size == length() && step == 1;
    key.starts.push_back(start);
    key.sizes.push_back(size);
    key.steps.push_back(step);
    ++dim_;
  }

  // Of the next dimension.  There is one unless an item's own code has changed another item.
  int64_t length() const {
    if (dim_ >= shape_.size()) {
      fail(ErrorKind::index, "index", "the index changed while it was read", "a constant index",
           "more indices than " + std::to_string(shape_.size()));
    }
    return shape_[dim_];
  }

  const Dims shape_;  // a copy: reading an item may run code that changes the tensor
  size_t dim_ = 0;
  struct Converted {
    PyObject* object;
    TensorRef tensor;
  };
  Small<Converted, 2> converted_;
};

// The basic part.
TensorRef sliced(const TensorRef& x, const Key& key) {
  TensorRef y = x;
  if (!key.whole || !key.drop.empty() || (!key.reshaped && key.selectors.empty())) {
    y = call(*known.slice, {x},
             Attrs().ints(key.starts).ints(key.sizes).ints(key.steps).ints(key.drop));
  }
  return key.reshaped ? reshape(y, key.shape) : y;
}

int64_t product(const int64_t* first, const int64_t* last) {
  int64_t n = 1;
  for (; first != last; ++first) n *= *first;
  return n;
}

// How selectors apply: permute, then merge `merged` dimensions from `dim` on into one, which
// `index` (one-dimensional) selects from; `shape` is the shape of the result.
struct Selection {
  Dims order;  // empty: as is
  Dims permuted;
  Dims arranged;
  int64_t dim;
  TensorRef index;
  Dims shape;
};

// For several indices: their sum over a table of offsets each, so that every index is wrapped and
// checked against its own dimension.
TensorRef linear_index(const Key& key, const Dims& permuted, size_t first) {
  TensorRef total;
  int64_t stride = 1;
  for (size_t k = key.selectors.size(); k-- > 0;) {
    const int64_t n = permuted[first + k];
    const TensorRef& index = key.selectors[k].index;
    TensorRef table = arange(n, stride);
    TensorRef part = index_select(table, reshape(index, {index->numel}), 0);
    part = reshape(part, index->shape);
    total = total ? binary(*known.add, total, part) : part;
    stride *= n;
  }
  return total;
}

Selection plan(const Key& key) {
  Selection s;
  const size_t count = key.selectors.size(), n = key.shape.size();
  size_t first = size_t(key.selectors[0].dim);
  bool adjacent = true;
  for (size_t k = 1; k < count; ++k) {
    adjacent &= key.selectors[k].dim == key.selectors[k - 1].dim + 1;
  }
  s.permuted = key.shape;
  if (!adjacent) {
    first = 0;
    Small<bool, 8> selected(n, false);
    for (const Selector& x : key.selectors) {
      s.order.push_back(x.dim);
      selected[size_t(x.dim)] = true;
    }
    for (size_t d = 0; d < n; ++d) {
      if (!selected[d]) s.order.push_back(int64_t(d));
    }
    for (size_t d = 0; d < n; ++d) s.permuted[d] = key.shape[size_t(s.order[d])];
  }
  const int64_t* dims = s.permuted.data();
  TensorRef index = count == 1 ? key.selectors[0].index : linear_index(key, s.permuted, first);
  s.dim = int64_t(first);
  s.arranged = Dims(dims, dims + first);
  s.shape = s.arranged;
  s.arranged.push_back(product(dims + first, dims + first + count));
  for (int64_t m : index->shape) s.shape.push_back(m);
  for (size_t d = first + count; d < n; ++d) {
    s.arranged.push_back(dims[d]);
    s.shape.push_back(dims[d]);
  }
  s.index = index->ndim() == 1 ? index : reshape(index, {index->numel});
  return s;
}

// The shape of what index_select gives, before the index's own shape is restored.
Dims selected_shape(const Selection& s) {
  Dims shape = s.arranged;
  shape[size_t(s.dim)] = s.index->numel;
  return shape;
}

TensorRef arrange(TensorRef x, const Selection& s) {
  if (!s.order.empty()) x = permute(x, s.order);
  return x->shape == s.arranged ? x : reshape(x, s.arranged);
}

TensorRef get(const TensorRef& x, PyObject* item) {
  Key key = std::move(Reader(x, item).key);
  TensorRef y = sliced(x, key);
  if (key.selectors.empty()) return y;
  Selection s = plan(key);
  y = index_select(arrange(y, s), s.index, s.dim);
  return y->shape == s.shape ? y : reshape(y, s.shape);
}

// --- assignment ----------------------------------------------------------------------------------

// `value` without leading dimensions of size 1 that its place, of the given shape, lacks.
TensorRef stripped(const TensorRef& value, const Dims& shape) {
  size_t lead = 0;
  while (value->ndim() - lead > shape.size() && value->shape[lead] == 1) ++lead;
  if (value->ndim() - lead > shape.size()) {
    fail(ErrorKind::shape, "index", "the value does not fit the place it is assigned to",
         "a value that broadcasts to " + to_string(shape), "shape " + to_string(value->shape));
  }
  return lead ? reshape(value, Dims(value->shape.begin() + lead, value->shape.end())) : value;
}

// `value` converted and broadcast to what it replaces.
TensorRef fitted(const TensorRef& value, const Dims& shape, DType dtype) {
  return expand(to_dtype(stripped(value, shape), dtype), shape);
}

void set(const TensorRef& x, PyObject* item, TensorRef value) {
  Key key = std::move(Reader(x, item).key);
  // Without tape and recorder the place is written through a view; else the tensor becomes the
  // result of slice_scatter, which has a gradient and which a tracer understands.
  const bool direct =
      !recorder && !(grad_enabled() && (x->requires_grad() || value->requires_grad()));
  if (direct) {
    check_writable("index", *x);
    // A value that is part of x must not change while it is read.
    if (!key.selectors.empty() && value->storage == x->storage) {
      value = unary(*known.clone, value);
    }
    TensorRef place = sliced(x, key);
    if (key.selectors.empty()) {
      assign(place, stripped(value, place->shape), "index");
      return;
    }
    Selection s = plan(key);
    TensorRef arranged = arrange(place, s);
    if (arranged->storage == x->storage) {
      value = reshape(fitted(value, s.shape, x->dtype), selected_shape(s));
      dispatch(*known.index_copy, {arranged, s.index, value}, Attrs().integer(s.dim),
               arranged.get());
      return;
    }
  }
  TensorRef src;
  if (key.selectors.empty()) {
    src = fitted(value, key.shape, x->dtype);
  } else {
    Selection s = plan(key);
    value = reshape(fitted(value, s.shape, x->dtype), selected_shape(s));
    src = call(*known.index_copy, {arrange(sliced(x, key), s), s.index, value},
               Attrs().integer(s.dim));
    src = reshape(src, s.permuted);
    if (!s.order.empty()) {
      Dims inverse(s.order.size(), 0);
      for (size_t d = 0; d < s.order.size(); ++d) inverse[size_t(s.order[d])] = int64_t(d);
      src = permute(src, inverse);
    }
  }
  if (!(src->shape == key.sizes)) src = reshape(src, key.sizes);
  dispatch(*known.slice_scatter, {x, src}, Attrs().ints(key.starts).ints(key.sizes).ints(key.steps),
           x.get());
}

// x[mask] = number, for a mask over all of x.
bool set_masked(const TensorRef& x, PyObject* item, const TensorRef& value) {
  if (!is_tensor(item) || value->ndim() != 0) return false;
  const TensorRef& mask = tensor_of(item);
  if (mask->dtype != DType::b8 || !(mask->shape == x->shape)) return false;
  dispatch(*known.where, {mask, to_dtype(value, x->dtype), x}, Attrs(), x.get());
  return true;
}

}  // namespace

PyObject* tensor_getitem(PyObject* self, PyObject* key) {
  return guarded([&] { return wrap(get(tensor_of(self), key)); });
}

int tensor_setitem(PyObject* self, PyObject* key, PyObject* given) {
  return guarded(
      [&] {
        if (!given) raise(PyExc_TypeError, "elements of a tensor cannot be deleted");
        const TensorRef& x = tensor_of(self);
        TensorRef value;
        if (!to_operand(given, value)) value = tensor_from_data(given, nullptr);
        if (!set_masked(x, key, value)) set(x, key, std::move(value));
        return 0;
      },
      -1);
}

}  // namespace eager::bind

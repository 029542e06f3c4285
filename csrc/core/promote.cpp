// Type promotion: PyTorch's rules.
//
// Inputs fall into three groups: tensors with dimensions, 0-dim tensors, and Python numbers.  A
// lower group changes the result only if its category (bool < integer < floating) is higher.
#include <algorithm>

#include "op.h"

namespace eager::core {
namespace {

constexpr int kNone = -1;  // a group without members

enum class Category { boolean, integer, floating };

Category category(DType t) {
  return is_floating(t)   ? Category::floating
         : t == DType::b8 ? Category::boolean
                          : Category::integer;
}

// The least dtype that both fit in, as torch.promote_types.
DType join(DType a, DType b) {
  if (a == b) return a;
  if (category(a) != category(b)) return category(a) > category(b) ? a : b;
  if (is_floating(a)) {
    if (a == DType::f64 || b == DType::f64) return DType::f64;
    return DType::f32;  // also float16 with bfloat16
  }
  // u8 and a signed type: the signed type if it is wider, else int16.
  if (a == DType::u8) return b == DType::i8 ? DType::i16 : b;
  if (b == DType::u8) return a == DType::i8 ? DType::i16 : a;
  return item_size(a) > item_size(b) ? a : b;
}

int join(int a, int b) {
  if (a == kNone) return b;
  if (b == kNone) return a;
  return int(join(DType(a), DType(b)));
}

int combine(int higher, int lower) {
  if (higher == kNone) return lower;
  if (lower == kNone || category(DType(higher)) >= category(DType(lower))) return higher;
  return join(higher, lower);
}

class Promoter {
 public:
  void add(DType t, bool weak, bool scalar) {
    if (weak && is_floating(t)) t = default_dtype();
    int& group = weak ? numbers_ : scalar ? scalars_ : tensors_;
    group = join(group, int(t));
  }
  void add(const Tensor& t) { add(t.dtype, t.weak, t.ndim() == 0); }
  DType result() const {
    const int r = combine(tensors_, combine(scalars_, numbers_));
    return r == kNone ? default_dtype() : DType(r);
  }

 private:
  int tensors_ = kNone, scalars_ = kNone, numbers_ = kNone;
};

DType promote_inputs(const Tensors& in, size_t first) {
  Promoter p;
  for (size_t i = first; i < in.size(); ++i) p.add(*in[i]);
  return p.result();
}

std::string dtypes(const Tensors& in) {
  std::string s;
  for (const TensorRef& t : in) {
    if (!s.empty()) s += ", ";
    s += t->weak ? std::string("a Python number (") + name(t->dtype) + ")" : name(t->dtype);
  }
  return s;
}

[[noreturn]] void bad(const Op& op, const Tensors& in, const char* problem, const char* expected,
                      const char* hint = "") {
  fail(ErrorKind::dtype, op.name, problem, expected, dtypes(in), hint);
}

DType dtype_attr(const Op& op, const Attrs& attrs) {
  AttrReader r(attrs);
  for (int i = 0; i < op.n_attrs; ++i) {
    if (op.attr_types[i] == AttrType::dtype) return r.dtype();
    if (op.attr_types[i] == AttrType::ints) {
      r.ints();
    } else {
      r.integer();
    }
  }
  fail(ErrorKind::internal, op.name, "the op has no dtype attribute", "an attribute `dtype`",
       std::to_string(op.n_attrs) + " others");
}

}  // namespace

DType promote(DType a, bool a_weak, bool a_scalar, DType b, bool b_weak, bool b_scalar) {
  Promoter p;
  p.add(a, a_weak, a_scalar);
  p.add(b, b_weak, b_scalar);
  return p.result();
}

bool can_cast(DType from, DType to) { return category(from) <= category(to); }

DType result_dtype(const Op& op, const Tensors& in, const Attrs& attrs, DType* compute) {
  DType c, result;
  switch (op.promotion) {
    case Promotion::attr:
      c = result = dtype_attr(op, attrs);
      break;
    case Promotion::first:
      c = result = promote_inputs({in[0]}, 0);
      break;
    case Promotion::sum:
      c = result = is_floating(in[0]->dtype) ? promote_inputs({in[0]}, 0) : DType::i64;
      break;
    case Promotion::index:
      c = promote_inputs(in, 0);
      result = DType::i64;
      break;
    case Promotion::logical:
      c = result = DType::b8;
      break;
    case Promotion::select:
      if (in[0]->dtype != DType::b8) {
        bad(op, in, "the condition must be bool", "bool for the first input",
            "compare first, for example `condition != 0`");
      }
      c = result = promote_inputs(in, 1);
      break;
    default: {
      c = result = promote_inputs(in, 0);
      if (op.promotion == Promotion::to_float && !is_floating(c)) c = result = default_dtype();
      if (op.promotion == Promotion::compare || op.promotion == Promotion::boolean) {
        result = DType::b8;
      }
      if (op.promotion == Promotion::integral && is_floating(c)) {
        bad(op, in, "floating tensors have no bitwise operations", "integer or bool tensors",
            "x.to(eager.int64)");
      }
      if (op.promotion == Promotion::numeric && c == DType::b8) {
        bad(op, in, "not defined for bool tensors", "integer or floating tensors",
            "logical_not, logical_xor, or x.to(eager.int64)");
      }
      if (op.promotion == Promotion::floating && !is_floating(c)) {
        bad(op, in, "only defined for floating tensors", "a floating dtype", "x.to(eager.float32)");
      }
    }
  }
  if (compute) *compute = c;
  return result;
}

static std::string shapes(const Dims& a, const Dims& b) {
  return to_string(a) + " and " + to_string(b);
}

Dims broadcast_shapes(const char* op, const Dims& a, const Dims& b) {
  const bool a_longer = a.size() >= b.size();
  Dims out = a_longer ? a : b;
  const Dims& shorter = a_longer ? b : a;
  const size_t lead = out.size() - shorter.size();
  for (size_t d = 0; d < shorter.size(); ++d) {
    int64_t& n = out[lead + d];
    if (shorter[d] == n || shorter[d] == 1) continue;
    if (n != 1) {
      fail(ErrorKind::shape, op, "the shapes cannot be broadcast together",
           "sizes that are equal or 1 in every dimension, counted from the last", shapes(a, b),
           "reshape, or insert dimensions of size 1 with unsqueeze");
    }
    n = shorter[d];
  }
  return out;
}

}  // namespace eager::core

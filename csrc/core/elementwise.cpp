#include "elementwise.h"

#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace eager::core {
namespace {

constexpr int64_t kFastGrain = 32768;  // elements worth a thread
constexpr int64_t kLong = 1 << 18;     // elements worth releasing the interpreter lock

// What does not change from call to call.
struct OpInfo {
  int shape_attr = -1;       // index of the ints attribute `shape`
  bool attrs_direct = true;  // the attribute slots are what a Loop takes
  // For inputs that all have dtype t: a loop that takes and gives memory as it stands.
  Loop fast[kDTypes] = {};
  DType fast_out[kDTypes] = {};
};

bool bool_outputs(Promotion p) {
  return p == Promotion::compare || p == Promotion::logical || p == Promotion::boolean;
}

OpInfo describe(const Op& op) {
  OpInfo info;
  for (int i = 0; i < op.n_attrs; ++i) {
    const bool ints = op.attr_types[i] == AttrType::ints;
    if (ints && !std::strcmp(op.attr_names[i], "shape")) info.shape_attr = i;
    if (ints || op.attr_types[i] == AttrType::dtype) info.attrs_direct = false;
  }
  if (!op.loops || op.kind != Kind::elementwise || op.n_attrs || op.indexed || op.outputs != 1) {
    return info;
  }
  const auto offer = [&](DType t, DType out) {
    info.fast[int(t)] = op.loops->at[isa()][int(compute_type(t))];
    info.fast_out[int(t)] = out;
  };
  switch (op.promotion) {
    case Promotion::promote:
    case Promotion::numeric:
    case Promotion::first:
      for (DType t : {DType::f32, DType::f64, DType::i64}) offer(t, t);
      break;
    case Promotion::to_float:
    case Promotion::floating:
      for (DType t : {DType::f32, DType::f64}) offer(t, t);
      break;
    case Promotion::integral:
      offer(DType::i64, DType::i64);
      break;
    case Promotion::compare:
    case Promotion::boolean:
      for (DType t : {DType::f32, DType::f64, DType::i64}) offer(t, DType::b8);
      break;
    case Promotion::logical:
      offer(DType::b8, DType::b8);
      break;
    default:
      break;
  }
  return info;
}

const OpInfo& info_of(const Op& op) {
  static const std::vector<OpInfo> all = [] {
    std::vector<OpInfo> infos;
    for (int i = 0; i < op_count(); ++i) infos.push_back(describe(core::op(uint16_t(i))));
    return infos;
  }();
  return all[op.id];
}

Dims shape_attr(const Op& op, const Attrs& attrs, int index) {
  AttrReader r(attrs);
  for (int i = 0; i < index; ++i) {
    if (op.attr_types[i] == AttrType::ints) {
      r.ints();
    } else {
      r.integer();
    }
  }
  return r.ints();
}

// What a number is as an operand of dtype t.
union Operand {
  float f32;
  double f64;
  int64_t i64;
};

bool is_higher(DType a, DType b) { return !can_cast(a, b); }

// Converts the Python number `from` for a computation in f32, f64 or i64.
Operand number(const Tensor& from, DType to) {
  Operand v{};
  const double f = from.dtype == DType::f64 ? *from.as<double>() : 0;
  const int64_t i = from.dtype == DType::i64  ? *from.as<int64_t>()
                    : from.dtype == DType::b8 ? *from.as<uint8_t>()
                                              : 0;
  const bool floating = from.dtype == DType::f64;
  if (to == DType::f32) v.f32 = floating ? float(f) : float(i);
  if (to == DType::f64) v.f64 = floating ? f : double(i);
  if (to == DType::i64) v.i64 = i;
  return v;
}

// Lanes of an elementwise op's inputs.
void choose_lanes(const Op& op, size_t n, DType compute, Lane* lanes) {
  const Lane usual = op.indexed                           ? Lane::i64
                     : op.promotion == Promotion::logical ? Lane::boolean
                     : compute == DType::b8               ? Lane::truth
                                                          : lane(compute_type(compute));
  for (size_t i = 0; i < n; ++i) lanes[i] = usual;
  if (op.promotion == Promotion::select) lanes[0] = Lane::boolean;
}

Loop loop_for(const char* name, const Loops& loops, DType compute) {
  const Loop loop = loops.at[isa()][int(compute_type(compute))];
  if (!loop) {
    fail(ErrorKind::dtype, name, "not defined for this dtype", "another dtype", core::name(compute),
         "x.to(eager.float32)");
  }
  return loop;
}

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.offset == b.offset && a.dtype == b.dtype && a.shape == b.shape && a.strides == b.strides;
}

// First and one past the last byte of a non-empty tensor.
void byte_range(const Tensor& t, const char** begin, const char** end) {
  int64_t low = 0, high = 0;
  for (size_t d = 0; d < t.ndim(); ++d) {
    const int64_t reach = (t.shape[d] - 1) * t.strides[d];
    (reach < 0 ? low : high) += reach;
  }
  const int64_t item = int64_t(item_size(t.dtype));
  *begin = t.data() + low * item;
  *end = t.data() + (high + 1) * item;
}

}  // namespace

ScalarAttrs::ScalarAttrs(const Op& op, const Attrs& attrs) {
  if (info_of(op).attrs_direct) {
    direct_ = attrs.slots.data();
    return;
  }
  AttrReader r(attrs);
  for (int i = 0; i < op.n_attrs; ++i) {
    switch (op.attr_types[i]) {
      case AttrType::ints:
        r.ints();
        break;
      case AttrType::dtype:
        r.dtype();
        break;
      default:
        copy_.push_back(r.integer());
    }
  }
}

bool overlaps(const Tensor& in, const Tensor& out) {
  if (!in.numel || !out.numel || in.device == Device::meta) return false;
  if (in.storage == out.storage && same_layout(in, out)) return false;
  const char *a, *a_end, *b, *b_end;
  byte_range(in, &a, &a_end);
  byte_range(out, &b, &b_end);
  return a < b_end && b < a_end;
}

Inferred infer_elementwise(const Op& op, const Tensors& in, const Attrs& attrs) {
  Inferred r{};
  r.dtype = result_dtype(op, in, attrs, &r.compute);
  r.device = Device::cpu;
  for (const TensorRef& t : in)
    if (t->device == Device::meta) r.device = Device::meta;
  const int shape = info_of(op).shape_attr;
  if (!in.empty()) r.shape = in[0]->shape;
  for (size_t i = 1; i < in.size(); ++i)
    if (!(in[i]->shape == r.shape)) r.shape = broadcast_shapes(op.name, r.shape, in[i]->shape);
  if (shape >= 0) {
    const Dims wanted = shape_attr(op, attrs, shape);
    if (!in.empty() && !(broadcast_shapes(op.name, r.shape, wanted) == wanted)) {
      fail(ErrorKind::shape, op.name, "the inputs do not broadcast to the attribute `shape`",
           to_string(wanted), to_string(r.shape));
    }
    r.shape = wanted;
  }
  return r;
}

void check_target(const Op& op, const Dims& shape, DType dtype, const Tensor& target) {
  if (!(shape == target.shape)) {
    fail(ErrorKind::shape, op.name, "the result does not fit into the tensor it is written to",
         "a result of shape " + to_string(target.shape), to_string(shape),
         "the form that is not in place");
  }
  if (!can_cast(dtype, target.dtype)) {
    fail(ErrorKind::dtype, op.name, "the result's dtype cannot be stored in place",
         std::string("a result that casts to ") + name(target.dtype), name(dtype),
         "the form that is not in place");
  }
}

Sweep elementwise_sweep(const Op& op, const Tensors& in, const int64_t* attrs, const Inferred& r,
                        const Tensors& out) {
  Lane lanes[kMaxOperands];
  const size_t n = std::min(in.size(), size_t(kMaxOperands));
  choose_lanes(op, n, r.compute, lanes);
  SweepSpec spec{loop_for(op.name, *op.loops, r.compute),
                 attrs,
                 &r.shape,
                 &in,
                 &out,
                 lanes,
                 bool_outputs(op.promotion) ? Lane::boolean : lane(compute_type(r.compute))};
  return Sweep(spec);
}

Tensors elementwise_kernel(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  if (in.size() == 1 || in.size() == 2) {
    const Tensor* second = in.size() == 2 ? in[1].get() : nullptr;
    if (TensorRef fast = fast_elementwise(op, *in[0], second, nullptr)) {
      Tensors out;
      out.push_back(std::move(fast));
      return out;
    }
  }
  const Inferred r = infer_elementwise(op, in, attrs);
  Tensors out;
  for (int k = 0; k < op.outputs; ++k) out.push_back(Tensor::empty(r.shape, r.dtype, r.device));
  if (r.device == Device::cpu && out[0]->numel) {
    const ScalarAttrs scalars(op, attrs);
    run_parallel(elementwise_sweep(op, in, scalars.data(), r, out));
  }
  return out;
}

void elementwise_into(const Op& op, const Tensors& in, const Attrs& attrs, const Tensors& out) {
  const Inferred r = infer_elementwise(op, in, attrs);
  for (const TensorRef& t : out) check_target(op, r.shape, r.dtype, *t);
  if (r.device == Device::meta || out[0]->device == Device::meta || !out[0]->numel) return;
  Tensors into = out;
  for (TensorRef& t : into)
    for (const TensorRef& x : in)
      if (overlaps(*x, *t)) t = Tensor::empty(t->shape, t->dtype);
  const ScalarAttrs scalars(op, attrs);
  run_parallel(elementwise_sweep(op, in, scalars.data(), r, into));
  for (size_t k = 0; k < out.size(); ++k)
    if (!(into[k] == out[k])) copy_into(*into[k], *out[k]);
}

void run_loops(const char* name, const Loops& loops, const Tensors& in, DType compute,
               uint32_t bool_inputs, const int64_t* attrs, const Tensors& out) {
  if (out[0]->device == Device::meta || !out[0]->numel) return;
  Lane lanes[kMaxOperands];
  for (size_t i = 0; i < in.size() && i < kMaxOperands; ++i) {
    lanes[i] = bool_inputs >> i & 1 ? Lane::boolean : lane(compute_type(compute));
  }
  SweepSpec spec{loop_for(name, loops, compute), attrs, &out[0]->shape, &in, &out, lanes,
                 lane(compute_type(compute))};
  run_parallel(Sweep(spec));
}

TensorRef fast_elementwise(const Op& op, const Tensor& a, const Tensor* b, Tensor* out) {
  const Tensor* like = &a;      // gives shape and dtype
  const Tensor* one = nullptr;  // the operand of one element, if they differ
  if (b && !(a.dtype == b->dtype && a.shape == b->shape && b->contiguous)) {
    const bool first = a.weak || a.ndim() < b->ndim();
    like = first ? b : &a;
    one = first ? &a : b;
    if (one->numel != 1 || one->ndim() > like->ndim()) return nullptr;
    if (one->weak ? is_higher(one->dtype, like->dtype) : one->dtype != like->dtype) return nullptr;
  }
  if (like->weak || !like->contiguous || a.device != Device::cpu) return nullptr;
  if ((b && b->device != Device::cpu) || (out && out->device != Device::cpu)) return nullptr;
  const OpInfo& info = info_of(op);
  const Loop loop = info.fast[int(like->dtype)];
  if (!loop || (one && one->weak && like->dtype == DType::b8)) return nullptr;
  const DType dtype = info.fast_out[int(like->dtype)];
  TensorRef result;
  if (out) {
    if (out->dtype != dtype || !out->contiguous || !(out->shape == like->shape)) return nullptr;
    if (overlaps(a, *out) || (b && overlaps(*b, *out))) return nullptr;
    result = TensorRef(out);
  } else {
    result = Tensor::empty(like->shape, dtype);
  }
  Operand value;
  const void* in[2] = {a.data(), b ? b->data() : nullptr};
  uint32_t uniform = 0;
  if (one) {
    const int index = one == b;
    uniform = 1u << index;
    if (one->weak) {
      value = number(*one, like->dtype);
      in[index] = &value;
    }
  }
  const int64_t n = like->numel;
  char* to = result->data();
  if (n <= kFastGrain) {
    void* outs[1] = {to};
    if (n) loop(in, outs, n, uniform, 0, nullptr);
    return result;
  }
  const int64_t item = int64_t(item_size(like->dtype)), out_item = int64_t(item_size(dtype));
  LongWork work(n >= kLong);
  parallel_for(n, kFastGrain, [&](int64_t begin, int64_t end) {
    const void* ins[2];
    for (int i = 0; i < (b ? 2 : 1); ++i) {
      const int64_t skip = uniform >> i & 1 ? 0 : begin * item;
      ins[i] = static_cast<const char*>(in[i]) + skip;
    }
    void* outs[1] = {to + begin * out_item};
    loop(ins, outs, end - begin, uniform, begin, nullptr);
  });
  return result;
}

}  // namespace eager::core

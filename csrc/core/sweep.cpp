#include <algorithm>
#include <string>

#include "elementwise.h"
#include "pool.h"

namespace eager::core {
namespace {

constexpr int64_t kBlock = 512;         // elements per buffer
constexpr int64_t kShortRow = 48;       // rows shorter than this are packed into blocks
constexpr int64_t kPanel = 32;          // rows and
constexpr int64_t kPanelColumns = 128;  // columns visited together when an operand is transposed
constexpr int64_t kGrain = 32768;       // elements worth a thread
constexpr int64_t kLong = 1 << 18;      // elements worth releasing the interpreter lock

struct Buffers {
  alignas(64) char bytes[kMaxOperands][kBlock * 8];
};

}  // namespace

// A position: coordinates of all dimensions but the last, and every operand's offset of that row.
struct Sweep::Cursor {
  const Sweep* s;
  Dims at;
  Small<int64_t, 12> offsets;
  int64_t row, column;

  Cursor(const Sweep& sweep, int64_t flat) : s(&sweep), at(sweep.ndim_, 0) {
    const size_t last = s->ndim_ - 1;
    row = flat / s->sizes_[last];
    column = flat % s->sizes_[last];
    int64_t rest = row;
    for (size_t d = last; d-- > 0;) {
      at[d] = rest % s->sizes_[d];
      rest /= s->sizes_[d];
    }
    offsets.resize(size_t(s->inputs_ + s->outputs_));
    for (int o = 0; o < s->inputs_ + s->outputs_; ++o) {
      int64_t offset = 0;
      for (size_t d = 0; d < last; ++d) offset += at[d] * s->stride(o, d);
      offsets[size_t(o)] = offset;
    }
  }

  void next_row() {
    ++row;
    column = 0;
    for (size_t d = s->ndim_ - 1; d-- > 0;) {
      ++at[d];
      const bool carry = at[d] == s->sizes_[d];
      for (int o = 0; o < s->inputs_ + s->outputs_; ++o) {
        offsets[size_t(o)] += s->stride(o, d) * (carry ? 1 - s->sizes_[d] : 1);
      }
      if (!carry) return;
      at[d] = 0;
    }
  }

  // The same for one operand's offset only.
  void next_row_of(int o) {
    column = 0;
    for (size_t d = s->ndim_ - 1; d-- > 0;) {
      ++at[d];
      const bool carry = at[d] == s->sizes_[d];
      offsets[size_t(o)] += s->stride(o, d) * (carry ? 1 - s->sizes_[d] : 1);
      if (!carry) return;
      at[d] = 0;
    }
  }
};

Sweep::Sweep(const SweepSpec& spec)
    : loop_(spec.loop),
      attrs_(spec.attrs),
      inputs_(int(spec.in->size())),
      outputs_(int(spec.out->size())),
      numel_(element_count(*spec.shape)) {
  if (inputs_ + outputs_ > kMaxOperands) {
    fail(ErrorKind::internal, "elementwise", "too many operands",
         std::to_string(kMaxOperands) + " at most", std::to_string(inputs_ + outputs_));
  }
  const Conversions& convert = conversions();
  bool same = true;  // every operand is one packed run, or a single element
  for (int o = 0; o < inputs_ + outputs_; ++o) {
    const bool input = o < inputs_;
    const Tensor& t = input ? *(*spec.in)[size_t(o)] : *(*spec.out)[size_t(o - inputs_)];
    const Lane lane = input ? spec.in_lanes[o] : spec.out_lane;
    Operand& p = operands_[o];
    p.data = t.data();
    p.item = int64_t(item_size(t.dtype));
    p.buffered = int64_t(lane_size(lane));
    p.direct = is_direct(t.dtype, lane);
    p.constant = input && t.numel == 1;
    p.load = convert.load[int(t.dtype)][int(lane)];
    p.store = convert.store[int(lane)][int(t.dtype)];
    if (p.constant) {
      p.load(p.data, 1, &p.value, 1);
      constants_ |= 1u << o;
    } else {
      same &= t.contiguous && t.numel == numel_;
    }
  }
  if (same) {
    flat(spec);
  } else {
    strided(spec);
  }
  const size_t last = ndim_ - 1;
  for (int o = 0; o < inputs_ + outputs_; ++o) {
    const int64_t s = stride(o, last);
    if (o < inputs_ && (operands_[o].constant || s == 0)) {
      uniform_ |= 1u << o;
      continue;
    }
    plain_ &= operands_[o].direct && s == 1;
    crossing_ |= ndim_ > 1 && s != 1 && s * operands_[o].item >= 64;
  }
  for (int o = 0; o < inputs_ + outputs_; ++o) {
    int64_t step = 1;
    bool linear = true;
    for (size_t d = ndim_; d-- > 0; step *= sizes_[d]) linear &= stride(o, d) == step;
    operands_[o].linear = linear;
  }
}

void Sweep::flat(const SweepSpec&) {
  sizes_ = {numel_};
  for (int o = 0; o < inputs_ + outputs_; ++o) strides_.push_back(operands_[o].constant ? 0 : 1);
}

void Sweep::strided(const SweepSpec& spec) {
  const Dims& shape = *spec.shape;
  const int operands = inputs_ + outputs_;
  // Strides of the dimensions that count, outermost first: [dimension][operand].
  Small<int64_t, 32> steps;
  Dims sizes;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) continue;
    const size_t row = steps.size();
    for (int o = 0; o < operands; ++o) {
      const Tensor& t = o < inputs_ ? *(*spec.in)[size_t(o)] : *(*spec.out)[size_t(o - inputs_)];
      const size_t lead = shape.size() - t.ndim();
      const bool moves = d >= lead && t.shape[d - lead] != 1;
      steps.push_back(moves ? t.strides[d - lead] : 0);
    }
    // Merge with the dimension outside it if every operand walks through both in one stride.
    bool merge = !sizes.empty();
    for (int o = 0; merge && o < operands; ++o) {
      merge = steps[row - size_t(operands) + size_t(o)] == steps[row + size_t(o)] * shape[d];
    }
    if (merge) {
      for (int o = 0; o < operands; ++o) {
        steps[row - size_t(operands) + size_t(o)] = steps[row + size_t(o)];
      }
      steps.resize(row);
      sizes.back() *= shape[d];
    } else {
      sizes.push_back(shape[d]);
    }
  }
  if (sizes.empty()) {
    sizes.push_back(1);
    steps.resize(size_t(operands), 0);
  }
  ndim_ = sizes.size();
  sizes_ = sizes;
  strides_.resize(size_t(operands) * ndim_);
  for (int o = 0; o < operands; ++o)
    for (size_t d = 0; d < ndim_; ++d)
      strides_[size_t(o) * ndim_ + d] = steps[d * size_t(operands) + size_t(o)];
}

void Sweep::run(int64_t begin, int64_t end) const {
  if (begin >= end) return;
  if (ndim_ > 1 && sizes_[ndim_ - 1] < kShortRow) {
    packed(begin, end);
  } else {
    rows(begin, end);
  }
}

// Row by row, handing whole rows to the loop where nothing has to be converted.
void Sweep::rows(int64_t begin, int64_t end) const {
  const int64_t length = sizes_[ndim_ - 1];
  Cursor at(*this, begin);
  while (begin < end) {
    // Transposed operands: visit a panel of rows column block by column block, so that the lines
    // fetched for one row still lie in the cache for the next.
    if (crossing_ && at.column == 0) {
      const int64_t left = sizes_[ndim_ - 2] - at.at[ndim_ - 2];
      const int64_t panel = std::min({kPanel, left, (end - begin) / length});
      if (panel > 1) {
        const Cursor start = at;
        for (int64_t c = 0; c < length; c += kPanelColumns) {
          at = start;
          for (int64_t r = 0; r < panel; ++r) {
            segment(at, c, std::min(kPanelColumns, length - c));
            at.next_row();
          }
        }
        begin += panel * length;
        continue;
      }
    }
    const int64_t n = std::min(length - at.column, end - begin);
    segment(at, at.column, n);
    begin += n;
    at.next_row();
  }
}

// n elements of one row.
void Sweep::segment(const Cursor& at, int64_t column, int64_t n) const {
  const size_t last = ndim_ - 1;
  const int64_t first = at.row * sizes_[last] + column;
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  int64_t single[kMaxOperands];
  for (int o = 0; o < inputs_; ++o) {
    if (!(uniform_ >> o & 1)) continue;
    const Operand& p = operands_[o];
    in[o] = p.constant ? &p.value : &single[o];
    if (!p.constant) p.load(p.data + at.offsets[size_t(o)] * p.item, 1, &single[o], 1);
  }
  const auto address = [&](int o, int64_t c) {
    return operands_[o].data + (at.offsets[size_t(o)] + c * stride(o, last)) * operands_[o].item;
  };
  if (plain_) {
    for (int o = 0; o < inputs_; ++o)
      if (!(uniform_ >> o & 1)) in[o] = address(o, column);
    for (int k = 0; k < outputs_; ++k) out[k] = address(inputs_ + k, column);
    loop_(in, out, n, uniform_, first, attrs_);
    return;
  }
  Buffers buffers;
  for (int64_t b = 0; b < n; b += kBlock) {
    const int64_t m = std::min(kBlock, n - b);
    for (int o = 0; o < inputs_; ++o) {
      if (uniform_ >> o & 1) continue;
      const Operand& p = operands_[o];
      char* from = address(o, column + b);
      if (p.direct && stride(o, last) == 1) {
        in[o] = from;
      } else {
        p.load(from, stride(o, last), buffers.bytes[o], m);
        in[o] = buffers.bytes[o];
      }
    }
    for (int k = inputs_; k < inputs_ + outputs_; ++k) {
      const bool straight = operands_[k].direct && stride(k, last) == 1;
      out[k - inputs_] = straight ? address(k, column + b) : buffers.bytes[k];
    }
    loop_(in, out, m, uniform_, first + b, attrs_);
    for (int k = inputs_; k < inputs_ + outputs_; ++k) {
      if (out[k - inputs_] != buffers.bytes[k]) continue;
      operands_[k].store(buffers.bytes[k], address(k, column + b), stride(k, last), m);
    }
  }
}

// Short rows: blocks that span many of them.
void Sweep::packed(int64_t begin, int64_t end) const {
  const void* in[kMaxOperands];
  void* out[kMaxOperands];
  Buffers buffers;
  for (; begin < end; begin += kBlock) {
    const int64_t n = std::min(kBlock, end - begin);
    const Cursor at(*this, begin);
    for (int o = 0; o < inputs_; ++o) {
      const Operand& p = operands_[o];
      in[o] = p.constant             ? reinterpret_cast<const char*>(&p.value)
              : p.linear && p.direct ? p.data + begin * p.item
                                     : gather(o, at, n, buffers.bytes[o]);
    }
    for (int k = inputs_; k < inputs_ + outputs_; ++k) {
      const Operand& p = operands_[k];
      out[k - inputs_] = p.linear && p.direct ? p.data + begin * p.item : buffers.bytes[k];
    }
    loop_(in, out, n, constants_, begin, attrs_);
    for (int k = inputs_; k < inputs_ + outputs_; ++k)
      if (out[k - inputs_] == buffers.bytes[k]) scatter(k, at, n, buffers.bytes[k]);
  }
}

const char* Sweep::gather(int o, Cursor from, int64_t n, char* buffer) const {
  const Operand& p = operands_[o];
  char* const start = buffer;
  if (p.linear) {
    p.load(p.data + (from.offsets[size_t(o)] + from.column) * p.item, 1, buffer, n);
    return start;
  }
  const int64_t step = stride(o, ndim_ - 1), length = sizes_[ndim_ - 1];
  while (n > 0) {
    const int64_t m = std::min(n, length - from.column);
    p.load(p.data + (from.offsets[size_t(o)] + from.column * step) * p.item, step, buffer, m);
    buffer += m * p.buffered;
    n -= m;
    from.next_row_of(o);
  }
  return start;
}

void Sweep::scatter(int o, Cursor to, int64_t n, const char* buffer) const {
  const Operand& p = operands_[o];
  if (p.linear) {
    p.store(buffer, p.data + (to.offsets[size_t(o)] + to.column) * p.item, 1, n);
    return;
  }
  const int64_t step = stride(o, ndim_ - 1), length = sizes_[ndim_ - 1];
  while (n > 0) {
    const int64_t m = std::min(n, length - to.column);
    p.store(buffer, p.data + (to.offsets[size_t(o)] + to.column * step) * p.item, step, m);
    buffer += m * p.buffered;
    n -= m;
    to.next_row_of(o);
  }
}

void run_parallel(const Sweep& sweep) {
  LongWork work(sweep.numel() >= kLong);
  parallel_for(sweep.numel(), kGrain, [&](int64_t a, int64_t b) { sweep.run(a, b); });
}

}  // namespace eager::core

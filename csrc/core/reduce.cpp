// Generated reductions.
//
// Two ways to walk the input: *inner*, folding runs of elements that lie along a reduced
// dimension, and *outer*, folding whole rows of neighbouring outputs at a time.  Partial results
// are merged in a cascade (runs of 128 at every level), so that rounding errors grow with the
// logarithm of the number of terms.  How the work is cut depends on the shape alone: results do
// not change with the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels.h"
#include "lanes.h"
#include "placement.h"
#include "pool.h"

namespace eager::core {
namespace {

constexpr int64_t kWidth = 1024;     // states folded side by side
constexpr int64_t kRun = 2048;       // terms gathered for one call of `inner`
constexpr int64_t kGrain = 32768;    // elements worth a thread
constexpr int64_t kLong = 1 << 18;   // elements worth releasing the interpreter lock
constexpr int64_t kFewTerms = 16;    // too few for `inner` to pay
constexpr int64_t kDirectRun = 512;  // shorter runs are gathered into longer ones
constexpr int64_t kMaxParts = 64;

struct Dim {
  int64_t size, stride;
};
using DimList = Small<Dim, 6>;

// Adds a dimension inside the others, merged with the last one where it can be.
void append(DimList& dims, Dim d) {
  if (d.size == 1) return;
  if (!dims.empty() && dims.back().stride == d.stride * d.size) {
    dims.back() = {dims.back().size * d.size, d.stride};
  } else {
    dims.push_back(d);
  }
}

int64_t count(const DimList& dims) {
  int64_t n = 1;
  for (const Dim& d : dims) n *= d.size;
  return n;
}

// Walks a list of dimensions in row-major order, run by run along the last one.
class Walk {
 public:
  Walk(const DimList& dims, int64_t flat) : dims_(dims), at_(dims.size(), 0) {
    for (size_t d = dims.size(); d-- > 0;) {
      at_[d] = flat % dims[d].size;
      flat /= dims[d].size;
      offset_ += at_[d] * dims[d].stride;
    }
  }
  int64_t offset() const { return offset_; }
  int64_t stride() const { return dims_.empty() ? 1 : dims_.back().stride; }
  int64_t left() const { return dims_.empty() ? 1 : dims_.back().size - at_[dims_.size() - 1]; }
  // n <= left()
  void advance(int64_t n) {
    if (dims_.empty()) return;
    size_t d = dims_.size() - 1;
    at_[d] += n;
    offset_ += n * dims_[d].stride;
    while (d > 0 && at_[d] == dims_[d].size) {
      offset_ += dims_[d - 1].stride - dims_[d].size * dims_[d].stride;
      at_[d] = 0;
      ++at_[--d];
    }
  }

 private:
  const DimList& dims_;
  Dims at_;
  int64_t offset_ = 0;
};

using Buffer = char[kWidth * 8];

class Reduction {
 public:
  Reduction(const FoldLoops& fold, Lane lane, const Tensor& x, const Dims& dims)
      : fold_(fold),
        data_(x.data()),
        item_(int64_t(item_size(x.dtype))),
        size_(int64_t(lane_size(lane))),
        direct_(is_direct(x.dtype, lane)),
        load_(conversions().load[int(x.dtype)][int(lane)]) {
    DimList reduced;
    size_t next = 0;
    for (size_t d = 0; d < x.ndim(); ++d) {
      const bool is_reduced = next < dims.size() && dims[next] == int64_t(d);
      if (is_reduced) {
        ++next;
        reduced.push_back({x.shape[d], x.strides[d]});
      } else {
        append(kept_, {x.shape[d], x.strides[d]});
      }
    }
    // The order of terms is free: the densest dimension last.
    std::stable_sort(reduced.begin(), reduced.end(), [](const Dim& a, const Dim& b) {
      return std::abs(a.stride) > std::abs(b.stride);
    });
    for (const Dim& d : reduced) append(reduced_, d);
    outputs_ = count(kept_);
    terms_ = count(reduced_);
    const int64_t term_stride = reduced_.empty() ? 1 : std::abs(reduced_.back().stride);
    inner_ = kept_.empty() || (terms_ >= kFewTerms && term_stride < std::abs(kept_.back().stride));
    if (!inner_ && !reduced_.empty() && kept_.back().stride == 1 &&
        kept_.back().size <= kWidth / 8 && reduced_.back().stride == kept_.back().size) {
      joined_ = std::min(kWidth / kept_.back().size, reduced_.back().size);
    }
  }

  int64_t outputs() const { return outputs_; }
  int64_t terms() const { return terms_; }

  void run(char* states) const {
    const int64_t work = outputs_ * terms_;
    LongWork long_work(work >= kLong);
    const int64_t few_outputs = inner_ ? 16 : 4096;
    const int64_t parts = std::min(kMaxParts, work / (2 * kGrain));
    if (parts > 1 && outputs_ < few_outputs && terms_ >= parts * 32) {
      run_in_parts(states, (terms_ + parts - 1) / parts);
      return;
    }
    // Rows that are joined must not be cut.
    const int64_t unit = joined_ ? kept_.back().size : 1;
    parallel_for(outputs_ / unit, std::max<int64_t>(1, kGrain / (terms_ * unit)),
                 [&](int64_t a, int64_t b) {
                   fold(a * unit, b * unit, 0, terms_, states + a * unit * size_);
                 });
  }

 private:
  // Folds parts of the terms for all outputs, then the parts.
  void run_in_parts(char* states, int64_t part) const {
    const int64_t parts = (terms_ + part - 1) / part, bytes = outputs_ * size_;
    const Ref<Storage> partial = Storage::allocate(size_t(parts * bytes), Device::cpu);
    char* const base = static_cast<char*>(partial->data);
    parallel_for(parts, 1, [&](int64_t a, int64_t b) {
      for (int64_t p = a; p < b; ++p)
        fold(0, outputs_, p * part, std::min((p + 1) * part, terms_), base + p * bytes);
    });
    merge_rows(base, parts, outputs_);
    std::memcpy(states, base, size_t(bytes));
  }

  // Folds `rows` rows of n states into the first, as a tree.
  void merge_rows(char* states, int64_t rows, int64_t n) const {
    while (rows > 1) {
      const int64_t half = rows / 2;
      fold_.merge(states + (rows - half) * n * size_, half * n, states);
      rows -= half;
    }
  }

  // Writes the states of outputs [begin, end) over terms [first, last).
  void fold(int64_t begin, int64_t end, int64_t first, int64_t last, char* states) const {
    Walk out(kept_, begin);
    while (begin < end) {
      const int64_t n = inner_ ? 1 : std::min({out.left(), end - begin, kWidth});
      if (inner_) {
        fold_run(data_ + out.offset() * item_, first, last, states);
      } else {
        fold_rows(data_ + out.offset() * item_, n, first, last, states);
      }
      begin += n;
      states += n * size_;
      out.advance(n);
    }
  }

  void clear(char* states, int64_t n) const {
    int64_t identity;
    fold_.identity(&identity);
    if (size_ == 8) {
      std::fill_n(reinterpret_cast<int64_t*>(states), n, identity);
    } else {
      int32_t low;
      std::memcpy(&low, &identity, sizeof low);
      std::fill_n(reinterpret_cast<int32_t*>(states), n, low);
    }
  }

  // Partial results of the same `n` outputs; each level takes 128 of the level before.
  class Cascade {
   public:
    Cascade(const Reduction& r, int64_t n) : r_(r), n_(n) {}
    void add(const char* states) {
      for (int k = 0;; ++k) {
        if (k == used_) {
          r_.clear(levels_[k], n_);
          counts_[k] = 0;
          ++used_;
        }
        r_.fold_.merge(states, n_, levels_[k]);
        if (++counts_[k] < 128 || k + 1 == kLevels) return;
        // This level is full: it goes into the next and starts afresh.
        std::memcpy(carry_, levels_[k], size_t(n_ * r_.size_));
        r_.clear(levels_[k], n_);
        counts_[k] = 0;
        states = carry_;
      }
    }
    void finish(char* states) {
      r_.clear(states, n_);
      for (int k = used_; k-- > 0;) r_.fold_.merge(levels_[k], n_, states);
    }

   private:
    static constexpr int kLevels = 4;
    const Reduction& r_;
    const int64_t n_;
    int used_ = 0;
    int64_t counts_[kLevels];
    Buffer levels_[kLevels], carry_;
  };

  // One output: runs of terms, each folded by `inner`.
  void fold_run(const char* base, int64_t first, int64_t last, char* state) const {
    alignas(64) char buffer[kRun * 8];
    Walk at(reduced_, first);
    const auto next = [&](int64_t* n) -> const char* {
      if (direct_ && at.stride() == 1 && at.left() >= std::min(last - first, kDirectRun)) {
        *n = std::min(at.left(), last - first);
        const char* p = base + at.offset() * item_;
        at.advance(*n);
        return p;
      }
      int64_t filled = 0;
      const int64_t wanted = std::min(last - first, kRun);
      while (filled < wanted) {
        const int64_t n = std::min(at.left(), wanted - filled);
        load_(base + at.offset() * item_, at.stride(), buffer + filled * size_, n);
        filled += n;
        at.advance(n);
      }
      *n = filled;
      return buffer;
    };
    int64_t n;
    const char* x = next(&n);
    if (n == last - first) {
      fold_.inner(x, n, state);
      return;
    }
    Cascade cascade(*this, 1);
    for (;;) {
      int64_t partial;
      fold_.inner(x, n, &partial);
      cascade.add(reinterpret_cast<const char*>(&partial));
      first += n;
      if (first == last) break;
      x = next(&n);
    }
    cascade.finish(state);
  }

  // n neighbouring outputs: row after row folded by `outer`.
  void fold_rows(const char* base, int64_t n, int64_t first, int64_t last, char* states) const {
    const int64_t step = kept_.back().stride;
    const bool join = joined_ > 1 && n == kept_.back().size;
    const int64_t width = join ? joined_ * n : n;
    alignas(64) Buffer sums, row;
    Walk at(reduced_, first);
    // Folds up to 128 rows (or joined rows) into `sums`.
    const auto group = [&](char* into) {
      clear(into, width);
      for (int r = 0; r < 128 && first < last; ++r) {
        const int64_t rows = join ? std::min({joined_, at.left(), last - first}) : 1;
        const char* x = base + at.offset() * item_;
        if (!direct_ || step != 1) {
          load_(x, step, row, rows * n);
          x = row;
        }
        fold_.outer(x, rows * n, into);
        first += rows;
        at.advance(rows);
      }
      // Joined rows were folded side by side.
      merge_rows(into, width / n, n);
    };
    if (!join && last - first <= 128) {
      group(states);
      return;
    }
    group(sums);
    if (first == last) {
      std::memcpy(states, sums, size_t(n * size_));
      return;
    }
    Cascade cascade(*this, n);
    cascade.add(sums);
    while (first < last) {
      group(sums);
      cascade.add(sums);
    }
    cascade.finish(states);
  }

  const FoldLoops& fold_;
  const char* data_;
  int64_t item_, size_;  // bytes of an element and of a state
  bool direct_;
  Load load_;
  DimList kept_, reduced_;
  int64_t outputs_, terms_;
  bool inner_;
  int64_t joined_ = 0;  // narrow rows that lie one after another are folded as one wide row
};

Dims reduced_shape(const Op& op, const Tensor& x, const Dims& dims, bool keepdim) {
  Dims shape;
  size_t next = 0;
  for (size_t d = 0; d < x.ndim(); ++d) {
    if (next < dims.size() && dims[next] == int64_t(d)) {
      ++next;
      if (keepdim) shape.push_back(1);
    } else {
      shape.push_back(x.shape[d]);
    }
  }
  if (next != dims.size()) {
    fail(ErrorKind::index, op.name, "not dimensions of the tensor",
         "distinct dimensions in ascending order, below " + std::to_string(x.ndim()),
         to_string(dims));
  }
  return shape;
}

// amax and amin start from a value that no element gives: over nothing they have no result.
bool has_identity(const FoldLoops& fold, Compute c) {
  alignas(8) char state[8];
  fold.identity(state);
  if (c == Compute::f32) return std::isfinite(*reinterpret_cast<float*>(state));
  if (c == Compute::f64) return std::isfinite(*reinterpret_cast<double*>(state));
  const int64_t v = *reinterpret_cast<int64_t*>(state);
  return v != std::numeric_limits<int64_t>::min() && v != std::numeric_limits<int64_t>::max();
}

DType state_dtype(Compute c) {
  return c == Compute::f32 ? DType::f32 : c == Compute::f64 ? DType::f64 : DType::i64;
}

}  // namespace

Tensors reduce_kernel(const Op& op, const Tensors& in, const Attrs& attrs, Tensor*) {
  const Tensor& x = *in[0];
  AttrReader reader(attrs);
  const Dims dims = reader.ints();
  const Dims shape = reduced_shape(op, x, dims, reader.boolean());
  DType compute;
  const DType dtype = result_dtype(op, in, attrs, &compute);
  const Compute c = compute_type(compute);
  const FoldLoops& fold = op.folds->at[isa()][int(c)];
  if (!fold.inner) {
    fail(ErrorKind::dtype, op.name, "not defined for this dtype", "another dtype", name(compute));
  }
  const int64_t outputs = element_count(shape);
  if (x.numel == 0 && outputs && !has_identity(fold, c)) {
    fail(ErrorKind::shape, op.name, "the reduced dimensions have no elements",
         "at least one element", "shape " + to_string(x.shape));
  }
  if (x.device == Device::meta) return {Tensor::empty(shape, dtype, Device::meta)};
  const bool direct = state_dtype(c) == dtype;
  TensorRef states = direct ? result_memory(shape, dtype) : Tensor::empty(shape, state_dtype(c));
  if (x.numel == 0) {
    for (int64_t i = 0; i < outputs; ++i)
      fold.identity(states->data() + size_t(i) * item_size(states->dtype));
  } else {
    Reduction(fold, lane(c), x, dims).run(states->data());
  }
  if (direct) return {states};
  TensorRef result = result_memory(shape, dtype);
  conversions().store[int(c)][int(dtype)](states->data(), result->data(), 1, outputs);
  return {result};
}

}  // namespace eager::core

// Copies between strided layouts and dtypes.
#include <algorithm>
#include <cstring>

#include "element.h"
#include "kernels.h"
#include "pool.h"

namespace eager::core {
namespace {

// Converts n elements; strides in elements.
using CopyRow = void (*)(char* dst, int64_t ds, const char* src, int64_t ss, int64_t n);

template <class D, class S>
void convert_row(char* dst, int64_t ds, const char* src, int64_t ss, int64_t n) {
  D* d = reinterpret_cast<D*>(dst);
  const S* s = reinterpret_cast<const S*>(src);
  if (ds == 1 && ss == 1) {
    for (int64_t i = 0; i < n; ++i) d[i] = store<D>(load(s[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) d[i * ds] = store<D>(load(s[i * ss]));
  }
}

// The same bits: no conversion.
template <class T>
void move_row(char* dst, int64_t ds, const char* src, int64_t ss, int64_t n) {
  T* d = reinterpret_cast<T*>(dst);
  const T* s = reinterpret_cast<const T*>(src);
  if (ds == 1 && ss == 1) {
    std::memcpy(d, s, size_t(n) * sizeof(T));
  } else if (ss == 0) {
    for (int64_t i = 0; i < n; ++i) d[i * ds] = *s;
  } else {
    for (int64_t i = 0; i < n; ++i) d[i * ds] = s[i * ss];
  }
}

CopyRow pick_row(DType to, DType from) {
  if (to == from) {
    switch (item_size(to)) {
      case 1:
        return move_row<uint8_t>;
      case 2:
        return move_row<uint16_t>;
      case 4:
        return move_row<uint32_t>;
      default:
        return move_row<uint64_t>;
    }
  }
  return with_type(to, [&](auto d) -> CopyRow {
    return with_type(from,
                     [&](auto s) -> CopyRow { return convert_row<decltype(d), decltype(s)>; });
  });
}

struct Dim {
  int64_t size, ds, ss;
};
using CopyDims = Small<Dim, 6>;

// The dimensions that matter, the densest of dst last, merged where both sides allow.
CopyDims copy_dims(const Tensor& src, const Tensor& dst) {
  CopyDims dims;
  for (size_t d = 0; d < dst.ndim(); ++d)
    if (dst.shape[d] != 1) dims.push_back({dst.shape[d], dst.strides[d], src.strides[d]});
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return std::abs(a.ds) > std::abs(b.ds); });
  CopyDims merged;
  for (const Dim& d : dims) {
    if (!merged.empty() && merged.back().ds == d.ds * d.size && merged.back().ss == d.ss * d.size) {
      merged.back() = {merged.back().size * d.size, d.ds, d.ss};
    } else {
      merged.push_back(d);
    }
  }
  if (merged.empty()) merged.push_back({1, 1, 1});
  return merged;
}

struct Copy {
  CopyDims dims;
  CopyRow row;
  char* dst;
  const char* src;
  int64_t dst_item, src_item;

  // Elements [begin, end) in the order of `dims`, row by row.
  void rows(int64_t begin, int64_t end) const {
    const size_t last = dims.size() - 1;
    const Dim inner = dims[last];
    Dims at(dims.size(), 0);
    int64_t d = 0, s = 0, rest = begin;
    for (size_t k = dims.size(); k-- > 0;) {
      at[k] = rest % dims[k].size;
      rest /= dims[k].size;
      d += at[k] * dims[k].ds;
      s += at[k] * dims[k].ss;
    }
    while (begin < end) {
      const int64_t n = std::min(end - begin, inner.size - at[last]);
      row(dst + d * dst_item, inner.ds, src + s * src_item, inner.ss, n);
      begin += n;
      d -= at[last] * inner.ds;
      s -= at[last] * inner.ss;
      at[last] = 0;
      for (size_t k = last; k-- > 0;) {
        d += dims[k].ds;
        s += dims[k].ss;
        if (++at[k] < dims[k].size) break;
        d -= dims[k].size * dims[k].ds;
        s -= dims[k].size * dims[k].ss;
        at[k] = 0;
      }
    }
  }

  // Tiles [begin, end) of the last two dimensions, of which src is dense in the first and dst in
  // the second: squares small enough that both sides stay in the first-level cache.
  static constexpr int64_t kTile = 32;
  void tiles(int64_t begin, int64_t end) const {
    const Dim r = dims[dims.size() - 2], c = dims[dims.size() - 1];
    const int64_t row_tiles = (r.size + kTile - 1) / kTile;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t r0 = t % row_tiles * kTile, r1 = std::min(r0 + kTile, r.size);
      int64_t d = 0, s = 0, rest = t / row_tiles;
      for (size_t k = dims.size() - 2; k-- > 0;) {
        d += rest % dims[k].size * dims[k].ds;
        s += rest % dims[k].size * dims[k].ss;
        rest /= dims[k].size;
      }
      for (int64_t c0 = 0; c0 < c.size; c0 += kTile) {
        const int64_t n = std::min(kTile, c.size - c0);
        for (int64_t i = r0; i < r1; ++i)
          row(dst + (d + i * r.ds + c0 * c.ds) * dst_item, c.ds,
              src + (s + i * r.ss + c0 * c.ss) * src_item, c.ss, n);
      }
    }
  }
};

constexpr int64_t kGrain = 32768;  // elements worth a thread

}  // namespace

void copy_into(const Tensor& src, const Tensor& dst) {
  if (dst.numel == 0) return;
  Copy copy{copy_dims(src, dst), pick_row(dst.dtype, src.dtype), dst.data(),
            src.data(),          int64_t(item_size(dst.dtype)),  int64_t(item_size(src.dtype))};
  const size_t n = copy.dims.size();
  LongWork long_work(dst.numel > (1 << 20));
  // Move the dimension in which src is dense next to the last.
  if (n >= 2 && copy.dims[n - 1].ds == 1 && copy.dims[n - 1].ss != 1) {
    for (size_t k = 0; k + 1 < n; ++k) {
      if (copy.dims[k].ss != 1) continue;
      std::rotate(copy.dims.begin() + k, copy.dims.begin() + k + 1, copy.dims.begin() + n - 1);
      const int64_t rows = copy.dims[n - 2].size,
                    tile_rows = (rows + Copy::kTile - 1) / Copy::kTile;
      const int64_t tiles = dst.numel / (rows * copy.dims[n - 1].size) * tile_rows;
      const int64_t per_tile = std::max<int64_t>(1, dst.numel / tiles);
      parallel_for(tiles, std::max<int64_t>(1, kGrain / per_tile),
                   [&](int64_t a, int64_t b) { copy.tiles(a, b); });
      return;
    }
  }
  parallel_for(dst.numel, kGrain, [&](int64_t a, int64_t b) { copy.rows(a, b); });
}

TensorRef contiguous(const TensorRef& t) {
  if (t->contiguous) return t;
  TensorRef packed = Tensor::empty(t->shape, t->dtype, t->device);
  if (t->device != Device::meta) copy_into(*t, *packed);
  return packed;
}

TensorRef cast(const TensorRef& t, DType dtype) {
  if (t->dtype == dtype) return t;
  TensorRef result = Tensor::empty(t->shape, dtype, t->device);
  if (t->device != Device::meta) copy_into(*t, *result);
  return result;
}

}  // namespace eager::core

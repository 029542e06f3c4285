// What the printed loops share.  Included once per instruction set, with EAGER_ISA naming the
// namespace: nothing here may be merged by the linker with code compiled for another set, so no
// other header than these two is included.
#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#define EAGER_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
// Iterations are independent: an output is either apart from an input or exactly that input.
#define EAGER_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define EAGER_LOOP(name)                                                         \
  void name([[maybe_unused]] const void* const* in, void* const* out, int64_t n, \
            [[maybe_unused]] uint32_t uniform, [[maybe_unused]] int64_t first,   \
            [[maybe_unused]] const int64_t* attrs)

namespace eager::core::EAGER_ISA {

using Loop = void (*)(const void* const*, void* const*, int64_t, uint32_t, int64_t, const int64_t*);

// Runs `loop`, which knows only dense inputs, on inputs of which some are uniform: these are
// repeated in a buffer that stays in the first-level cache.
template <int Inputs, int Outputs>
inline void eager_blocks(Loop loop, const uint8_t (&in_sizes)[Inputs],
                         const uint8_t (&out_sizes)[Outputs], const void* const* in,
                         void* const* out, int64_t n, uint32_t uniform, int64_t first,
                         const int64_t* attrs) {
  constexpr int64_t kBlock = 256;
  alignas(64) unsigned char repeated[Inputs][kBlock * 8];
  const void* x[Inputs];
  void* y[Outputs];
  const int64_t filled = n < kBlock ? n : kBlock;
  for (int i = 0; i < Inputs; ++i) {
    if (!(uniform >> i & 1)) continue;
    for (int64_t j = 0; j < filled; ++j)
      __builtin_memcpy(repeated[i] + j * in_sizes[i], in[i], in_sizes[i]);
    x[i] = repeated[i];
  }
  for (int64_t start = 0; start < n; start += kBlock) {
    for (int i = 0; i < Inputs; ++i)
      if (!(uniform >> i & 1))
        x[i] = static_cast<const unsigned char*>(in[i]) + start * in_sizes[i];
    for (int i = 0; i < Outputs; ++i)
      y[i] = static_cast<unsigned char*>(out[i]) + start * out_sizes[i];
    const int64_t left = n - start;
    loop(x, y, left < kBlock ? left : kBlock, 0, first + start, attrs);
  }
}

// Runs `loop`, which is specialised for other inputs being uniform, element by element.
template <int Inputs, int Outputs>
inline void eager_singly(Loop loop, const uint8_t (&in_sizes)[Inputs],
                         const uint8_t (&out_sizes)[Outputs], const void* const* in,
                         void* const* out, int64_t n, uint32_t uniform, int64_t first,
                         const int64_t* attrs) {
  const void* x[Inputs];
  void* y[Outputs];
  for (int64_t j = 0; j < n; ++j) {
    for (int i = 0; i < Inputs; ++i)
      x[i] = static_cast<const unsigned char*>(in[i]) + (uniform >> i & 1 ? 0 : j * in_sizes[i]);
    for (int i = 0; i < Outputs; ++i) y[i] = static_cast<unsigned char*>(out[i]) + j * out_sizes[i];
    loop(x, y, 1, 0, first + j, attrs);
  }
}

// --- folds: F has the type T, identity(), map(x) and combine(a, b) ------------------------------
// The order of combination depends on n alone, so every instruction set gives the same result.

template <class F>
inline typename F::T fold_block(const typename F::T* x, int64_t n) {
  using T = typename F::T;
  constexpr int64_t kLanes = 256 / sizeof(T);
  if (n < 16) {
    T acc = F::identity();
    for (int64_t i = 0; i < n; ++i) acc = F::combine(acc, F::map(x[i]));
    return acc;
  }
  alignas(64) T acc[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) acc[j] = F::identity();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) acc[j] = F::combine(acc[j], F::map(x[i + j]));
  for (int64_t j = 0; j < n - i; ++j) acc[j] = F::combine(acc[j], F::map(x[i + j]));
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t j = 0; j < width; ++j) acc[j] = F::combine(acc[j], acc[j + width]);
  return acc[0];
}

// Blocks are combined in a balanced tree, so that rounding errors grow with log n.
template <class F>
inline void fold_inner(const void* data, int64_t n, void* out) {
  using T = typename F::T;
  constexpr int64_t kBlock = 4096;
  const T* x = static_cast<const T*>(data);
  T partial[56];  // of 2^k blocks each, largest first: the binary digits of the block count
  int depth = 0;
  int64_t block = 0;
  T value = F::identity();
  for (int64_t start = 0; start < n; start += kBlock, ++block) {
    value = fold_block<F>(x + start, n - start < kBlock ? n - start : kBlock);
    for (int64_t bits = block; bits & 1; bits >>= 1) value = F::combine(partial[--depth], value);
    partial[depth++] = value;
  }
  if (depth > 0) --depth;
  while (depth > 0) value = F::combine(partial[--depth], value);
  *static_cast<T*>(out) = value;
}

template <class F>
inline void fold_outer(const void* data, int64_t n, void* state) {
  using T = typename F::T;
  const T* x = static_cast<const T*>(data);
  T* acc = static_cast<T*>(state);
  EAGER_INDEPENDENT
  for (int64_t j = 0; j < n; ++j) acc[j] = F::combine(acc[j], F::map(x[j]));
}

template <class F>
inline void fold_merge(const void* data, int64_t n, void* state) {
  using T = typename F::T;
  const T* x = static_cast<const T*>(data);
  T* acc = static_cast<T*>(state);
  EAGER_INDEPENDENT
  for (int64_t j = 0; j < n; ++j) acc[j] = F::combine(acc[j], x[j]);
}

}  // namespace eager::core::EAGER_ISA

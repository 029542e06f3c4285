#include "gemm.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>

#include "error.h"
#include "pool.h"
#include "program.h"

namespace eager::core {
namespace {

enum { kRowMajor = 101, kNoTrans = 111, kTrans = 112 };

template <class T>
using CblasGemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, T alpha,
                           const T* a, int lda, const T* b, int ldb, T beta, T* c, int ldc);

struct Blas {
  CblasGemm<float> sgemm;
  CblasGemm<double> dgemm;
};

std::mutex load_mutex;
std::string& blas_path() {
  static std::string path;
  return path;
}
std::atomic<const Blas*> loaded{nullptr};

[[noreturn]] void no_blas(const std::string& problem) {
  fail(ErrorKind::internal, "matmul", "no BLAS library could be loaded",
       "the library of the package scipy-openblas32", problem,
       "pip install scipy-openblas32, or set EAGER_BLAS to the path of another BLAS library");
}

void* symbol(void* library, const char* name) {
  // The wheel's symbols carry a prefix; other builds have plain names.
  void* p = dlsym(library, (std::string("scipy_") + name).c_str());
  return p ? p : dlsym(library, name);
}

const Blas* load_blas() {
  std::lock_guard<std::mutex> lock(load_mutex);
  if (const Blas* b = loaded.load(std::memory_order_acquire)) return b;
  const char* chosen = getenv("EAGER_BLAS");
  const std::string path = chosen ? chosen : blas_path();
  if (path.empty()) no_blas("no path");
  // The pool has the threads: OpenBLAS, which asks the environment once, shall start none.
  const bool limit = !getenv("OPENBLAS_NUM_THREADS");
  if (limit) setenv("OPENBLAS_NUM_THREADS", "1", 0);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (limit) unsetenv("OPENBLAS_NUM_THREADS");
  if (!library) no_blas(dlerror());
  static Blas blas;
  blas.sgemm = reinterpret_cast<CblasGemm<float>>(symbol(library, "cblas_sgemm"));
  blas.dgemm = reinterpret_cast<CblasGemm<double>>(symbol(library, "cblas_dgemm"));
  if (!blas.sgemm || !blas.dgemm) no_blas(path + " has no cblas_sgemm and cblas_dgemm");
  using SetThreads = void (*)(int);
  if (auto set = reinterpret_cast<SetThreads>(symbol(library, "openblas_set_num_threads"))) set(1);
  loaded.store(&blas, std::memory_order_release);
  return &blas;
}

// A matrix as BLAS wants it.
struct Operand {
  int trans, ld;
};

// False if the strides do not fit.
bool operand(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride, Operand* o) {
  // The stride of a dimension of size 1 means nothing: choose it so that the rest fits.
  if (cols <= 1) col_stride = 1;
  if (rows <= 1) row_stride = col_stride == 1 ? std::max<int64_t>(cols, 1) : 1;
  if (col_stride == 1 && row_stride >= std::max<int64_t>(cols, 1) && row_stride <= INT_MAX) {
    *o = {kNoTrans, int(row_stride)};
    return true;
  }
  if (row_stride == 1 && col_stride >= std::max<int64_t>(rows, 1) && col_stride <= INT_MAX) {
    *o = {kTrans, int(col_stride)};
    return true;
  }
  return false;
}

// How many rows of c one call computes.  OpenBLAS multiplies small matrices without packing them,
// which is faster unless b is transposed.  A transposed a that it has to pack must not outgrow the
// second-level cache, or the product takes twice as long.
template <class T>
int64_t rows_per_call(const Gemm& g, int trans_a, int trans_b) {
  constexpr int64_t kSmall = 1'000'000, kPacked = (256 << 10) / sizeof(T), kAtLeast = 16;
  int64_t rows = g.m;
  const int64_t small = kSmall / std::max<int64_t>(g.n * g.k, 1);
  const int64_t packed = kPacked / std::max<int64_t>(g.k, 1);
  if (trans_b == kNoTrans && small >= kAtLeast) {
    rows = small;
  } else if (trans_a == kTrans && packed >= kAtLeast) {
    rows = packed;
  }
  const int64_t calls = (g.m + rows - 1) / rows;  // of about equal size
  return std::min(g.m, ((g.m + calls - 1) / calls + 7) / 8 * 8);
}

template <class T>
void blas_gemm(CblasGemm<T> call, const Gemm& g) {
  Operand a, b;
  if (!operand(g.m, g.k, g.a_row, g.a_col, &a) || !operand(g.k, g.n, g.b_row, g.b_col, &b))
    __builtin_unreachable();  // callers check blas_layout()
  const int ldc = int(g.m == 1 ? g.n : g.c_row);
  const int64_t rows = rows_per_call<T>(g, a.trans, b.trans);
  for (int64_t i = 0; i < g.m; i += rows) {
    call(kRowMajor, a.trans, b.trans, int(std::min(rows, g.m - i)), int(g.n), int(g.k), T(1),
         static_cast<const T*>(g.a) + i * g.a_row, a.ld, static_cast<const T*>(g.b), b.ld,
         T(g.accumulate), static_cast<T*>(g.c) + i * g.c_row, ldc);
  }
}

// Panels of b that stay in the second-level cache, rows of c in the first.
template <class T>
void plain_gemm(const Gemm& g) {
  // Integer products wrap around; narrow unsigned types would be promoted to int, which may not.
  using U = std::conditional_t<std::is_integral_v<T>,
                               std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>, T>;
  constexpr int64_t kColumns = 256, kDepth = 128;
  const T* a = static_cast<const T*>(g.a);
  const T* b = static_cast<const T*>(g.b);
  T* c = static_cast<T*>(g.c);
  if (!g.accumulate)
    for (int64_t i = 0; i < g.m; ++i) std::fill_n(c + i * g.c_row, g.n, T(0));
  for (int64_t j0 = 0; j0 < g.n; j0 += kColumns) {
    const int64_t columns = std::min(kColumns, g.n - j0);
    for (int64_t p0 = 0; p0 < g.k; p0 += kDepth) {
      const int64_t p1 = std::min(p0 + kDepth, g.k);
      for (int64_t i = 0; i < g.m; ++i) {
        T* to = c + i * g.c_row + j0;
        for (int64_t p = p0; p < p1; ++p) {
          const U x = U(a[i * g.a_row + p * g.a_col]);
          const T* from = b + p * g.b_row + j0 * g.b_col;
          if (g.b_col == 1) {
            for (int64_t j = 0; j < columns; ++j) to[j] = T(U(to[j]) + x * U(from[j]));
          } else {
            for (int64_t j = 0; j < columns; ++j) to[j] = T(U(to[j]) + x * U(from[j * g.b_col]));
          }
        }
      }
    }
  }
}

void run_gemm(const Gemm& g, const Blas* blas) {
  if (g.m == 0 || g.n == 0) return;
  switch (g.dtype) {
    case DType::f32:
      return blas ? blas_gemm(blas->sgemm, g) : plain_gemm<float>(g);
    case DType::f64:
      return blas ? blas_gemm(blas->dgemm, g) : plain_gemm<double>(g);
    case DType::i8:
      return plain_gemm<int8_t>(g);
    case DType::i16:
      return plain_gemm<int16_t>(g);
    case DType::i32:
      return plain_gemm<int32_t>(g);
    case DType::i64:
      return plain_gemm<int64_t>(g);
    case DType::u8:
      return plain_gemm<uint8_t>(g);
    default:
      __builtin_unreachable();  // matmul converts or rejects the others
  }
}

}  // namespace

void set_blas_path(const char* path) {
  std::lock_guard<std::mutex> lock(load_mutex);
  blas_path() = path;
}

void require_blas() {
  if (!loaded.load(std::memory_order_acquire)) load_blas();
}

bool blas_layout(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  Operand o;
  return operand(rows, cols, row_stride, col_stride, &o);
}

void gemm(const Gemm& g) {
  const bool floating = is_floating(g.dtype);
  if (floating) require_blas();
  run_gemm(g, floating ? loaded.load(std::memory_order_acquire) : nullptr);
}

void gemm_parallel(const Gemm& g) {
  constexpr double kWorthAThread = 2e6;  // operations: more than waking a worker costs
  const double work = 2.0 * double(g.m) * double(g.n) * double(g.k);
  LongWork long_work(work > 2e7);
  const int64_t tasks = std::min<int64_t>(num_threads(), int64_t(work / kWorthAThread));
  if (tasks < 2) return gemm(g);
  if (is_floating(g.dtype)) require_blas();
  const bool by_rows = g.m >= g.n;
  // Multiples of the widest register tile keep BLAS off its slower edge code.
  const int64_t size = by_rows ? g.m : g.n;
  const int64_t part = ((size + tasks - 1) / tasks + 15) / 16 * 16;
  const int64_t item = int64_t(item_size(g.dtype));
  parallel_for((size + part - 1) / part, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * part, end = std::min(last * part, size);
    Gemm piece = g;
    if (by_rows) {
      piece.a = static_cast<const char*>(g.a) + begin * g.a_row * item;
      piece.c = static_cast<char*>(g.c) + begin * g.c_row * item;
      piece.m = end - begin;
    } else {
      piece.b = static_cast<const char*>(g.b) + begin * g.b_col * item;
      piece.c = static_cast<char*>(g.c) + begin * item;
      piece.n = end - begin;
    }
    gemm(piece);
  });
}

void gemm_tile(void* const* buffers, const int64_t* ins) {
  Gemm g;
  g.dtype = ins[0] ? DType::f64 : DType::f32;
  g.m = ins[1];
  g.n = ins[2];
  g.k = ins[3];
  const int64_t batch = ins[4], *a = ins + 5, *b = ins + 10, *c = ins + 15;
  g.a_row = a[2];
  g.a_col = a[3];
  g.b_row = b[2];
  g.b_col = b[3];
  g.c_row = c[2];
  g.accumulate = c[4] != 0;
  // Bodies must not throw: without a BLAS library, or with strides that it cannot read, the
  // plain loops give the same result slowly.
  const Blas* blas =
      blas_layout(g.m, g.k, g.a_row, g.a_col) && blas_layout(g.k, g.n, g.b_row, g.b_col)
          ? loaded.load(std::memory_order_acquire)
          : nullptr;
  const int64_t item = int64_t(item_size(g.dtype));
  for (int64_t i = 0; i < batch; ++i) {
    g.a = static_cast<const char*>(buffers[a[0]]) + (a[1] + i * a[4]) * item;
    g.b = static_cast<const char*>(buffers[b[0]]) + (b[1] + i * b[4]) * item;
    g.c = static_cast<char*>(buffers[c[0]]) + (c[1] + i * c[3]) * item;
    run_gemm(g, blas);
  }
}

}  // namespace eager::core

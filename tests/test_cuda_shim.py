"""The host shim: fibers, barriers, orders, and what it reports.

The kernels are written by hand in the style of printed programs.
"""

import ml_dtypes
import numpy as np
import pytest

from eager.errors import EagerError
from jit.codegen import shim
from jit.codegen.cuda import PRELUDE

ORDERS = [shim.IN_TURN, shim.LOWEST_FIRST, shim.HIGHEST_FIRST, 3, 4, 5]
WORKERS = 4

# body 0: out[ins[2]] = sum of x[0 .. ins[3]), by a group of threads
SUM = """
__device__ void execute(int64_t body, void* const* buffers, const int64_t* ins) {
  const float* x = static_cast<const float*>(buffers[ins[1]]);
  const Group group(1, unsigned(ins[3]), true);
  float sum = 0;
  for (int64_t i = group.part; i < ins[3]; i += group.size) sum += x[i];
  sum = group.fold(sum, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) static_cast<float*>(buffers[ins[0]])[ins[2]] = sum;
}
"""


def kernel(execute, threads=32, prelude=PRELUDE):
    return shim.compile(prelude + execute, threads)


def table(*epochs):
    """Instruction words and starts of ``epochs[e][worker] = [instruction, ...]``."""
    words, starts = [], [0]
    for epoch in epochs:
        for instructions in epoch:
            for body, *ins in instructions:
                words += [2 + len(ins), body, *ins]
            starts.append(len(words))
    return np.array(words), np.array(starts)


def two_sums():
    """Each worker sums x into a place of its own; then each sums those places."""
    x = np.arange(100, dtype=np.float32)
    part, out = np.full((2, WORKERS), np.nan, np.float32)
    first = [[(0, 1, 0, w, 100)] for w in range(WORKERS)]
    second = [[(0, 2, 1, w, WORKERS)] for w in range(WORKERS)]
    return [x, part, out], first, second


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [16, 32, 128])
def test_epochs_are_separated_by_the_grid_barrier(order, threads):
    buffers, first, second = two_sums()
    kernel(SUM, threads).launch(buffers, *table(first, second), WORKERS, order=order)
    assert np.array_equal(buffers[2], np.full(WORKERS, WORKERS * 4950.0))


@pytest.mark.parametrize("blocks", [1, 3])
def test_fewer_blocks_than_workers(blocks):
    buffers, first, second = two_sums()
    kernel(SUM).launch(buffers, *table(first, second), WORKERS, blocks=blocks)
    assert np.array_equal(buffers[2], np.full(WORKERS, WORKERS * 4950.0))


def test_the_barrier_counter_is_never_reset():
    counter = np.zeros(1, np.uint64)
    for launch in range(1, 4):
        buffers, first, second = two_sums()
        kernel(SUM).launch(buffers, *table(first, second), WORKERS, arrived=counter)
        assert np.array_equal(buffers[2], np.full(WORKERS, WORKERS * 4950.0))
        assert counter[0] == launch * WORKERS


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_epoch_barrier_shows(order):
    buffers, first, second = two_sums()
    merged = [a + b for a, b in zip(first, second, strict=True)]
    kernel(SUM).launch(buffers, *table(merged), WORKERS, order=order)
    assert np.isnan(buffers[2]).any()


def test_a_missing_syncthreads_shows():
    broken = PRELUDE.replace("half /= 2) {\n      __syncthreads();", "half /= 2) {")
    assert broken != PRELUDE
    buffers, first, _ = two_sums()
    launch = kernel(SUM, prelude=broken).launch
    launch(buffers, *table(first), WORKERS, order=shim.LOWEST_FIRST)
    assert np.isnan(buffers[1]).any()


def test_shared_memory_starts_as_nan():
    read = """
    __device__ void execute(int64_t, void* const* buffers, const int64_t*) {
      static_cast<float*>(buffers[0])[blockIdx.x] = reinterpret_cast<float*>(shared_memory())[7];
    }
    """
    out = np.zeros(2, np.float32)
    kernel(read).launch([out], *table([[(0,)], [(0,)]]), 2)
    assert np.isnan(out).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_thread_that_skips_a_syncthreads_is_a_deadlock(order):
    skip = """
    __device__ void execute(int64_t, void* const*, const int64_t*) {
      if (threadIdx.x != 3) __syncthreads();
    }
    """
    with pytest.raises(shim.LaunchError, match=r"__syncthreads"):
        kernel(skip).launch([], *table([[(0,)]] * 2), 2, order=order)


def test_threads_at_different_syncthreads_are_reported():
    differ = """
    __device__ void execute(int64_t, void* const*, const int64_t*) {
      if (threadIdx.x < 16) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    }
    """
    with pytest.raises(shim.LaunchError, match="block 0: threads meet at different"):
        kernel(differ).launch([], *table([[(0,)]]), 1)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_skips_the_grid_barrier_is_a_deadlock(order):
    skip = """
    __device__ void execute(int64_t, void* const* buffers, const int64_t*) {
      if (blockIdx.x != 1) grid_barrier(static_cast<uint64_t*>(buffers[0]));
    }
    """
    counter = np.zeros(1, np.uint64)
    with pytest.raises(shim.LaunchError, match="block 2: 1 threads wait for another block"):
        kernel(skip).launch([counter], *table([[(0,)]] * 3), 3, order=order)


def test_the_compiler_s_messages_are_in_the_error():
    with pytest.raises(EagerError, match="no_such_name"):
        shim.compile(PRELUDE + "int x = no_such_name;")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [16, 64, 256])
@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_tile(dtype, threads, transposed):
    rng = np.random.default_rng(0)
    m, n, k, batch = 37, 70, 45, 2
    a = rng.standard_normal((batch, m, k)).astype(dtype)
    b = rng.standard_normal((batch, k, n)).astype(dtype)
    c = rng.standard_normal((batch, m, n)).astype(dtype)
    expected = c + a @ b
    a_strides = (1, m) if transposed else (k, 1)
    a = np.ascontiguousarray(a.transpose(0, 2, 1)) if transposed else a
    ins = [dtype == np.float64, m, n, k, batch, 0, 0, *a_strides, m * k, 1, 0, n, 1, k * n]
    execute = """
    __device__ void execute(int64_t, void* const* buffers, const int64_t* ins) {
      gemm_tile(buffers, ins);
    }
    """
    kernel(execute, threads).launch([a, b, c], *table([[(0, *ins, 2, 0, n, m * n, 1)]]), 1)
    np.testing.assert_allclose(c, expected, atol=1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("name, dtype", [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_the_twins_of_half_conversions(name, dtype):
    convert = f"""
    __device__ void execute(int64_t, void* const* buffers, const int64_t* ins) {{
      const half_bits* halves = static_cast<const half_bits*>(buffers[0]);
      const float* floats = static_cast<const float*>(buffers[1]);
      for (int64_t i = threadIdx.x; i < ins[0]; i += THREADS) {{
        static_cast<float*>(buffers[2])[i] = from_{name}(halves[i]);
        static_cast<half_bits*>(buffers[3])[i] = to_{name}(floats[i]);
      }}
    }}
    """
    halves = np.arange(1 << 16, dtype=np.uint16)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits[: 1 << 14] = np.arange(1 << 14) * 4096 + 0x33000000  # subnormal halves, ties, overflow
    floats = bits.view(np.float32)
    wide = np.zeros(1 << 16, np.float32)
    narrow = np.zeros(1 << 16, np.uint16)
    kernel(convert).launch([halves, floats, wide, narrow], *table([[(0, 1 << 16)]]), 1)
    np.testing.assert_array_equal(wide, halves.view(dtype).astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(narrow.view(dtype).astype(np.float32), expected)

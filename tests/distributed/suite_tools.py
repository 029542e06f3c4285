"""What the conformance suite is written with: data that every rank can compute, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

import eager
import eager.distributed as dist
from eager.distributed import ReduceOp

SECTIONS: dict[str, Callable[[], None]] = {}
FLOATS = (eager.float32, eager.float64, eager.float16, eager.bfloat16)
INTEGERS = (eager.int8, eager.uint8, eager.int16, eager.int32, eager.int64)
DTYPES = (*FLOATS, *INTEGERS, eager.bool)
OPS = (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.MIN, ReduceOp.MAX, ReduceOp.PRODUCT)
SIZES = (0, 1, 2, 7, 1000, 4099)
LARGE = (70_001, (1 << 18) + 5, 1 << 20)  # of float32: 280 kB to 4 MB
_checks = 0


def section(f: Callable[[], None]) -> Callable[[], None]:
    SECTIONS[f.__name__] = f
    return f


def same(result: eager.Tensor, expected: np.ndarray, what: object, tolerance: float = 0.0) -> None:
    """One check; tolerance 0 means bit for bit."""
    global _checks
    _checks += 1
    got = result.detach().contiguous().numpy()
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    if tolerance == 0.0:
        equal = np.array_equal(got, expected)
    else:
        wide = expected.astype(np.float64)
        equal = np.allclose(got.astype(np.float64), wide, rtol=tolerance, atol=tolerance)
    assert equal, f"rank {dist.get_rank()}: {what}: {got.ravel()[:8]} not {expected.ravel()[:8]}"


def holds(truth: bool, what: object) -> None:
    global _checks
    _checks += 1
    assert truth, f"rank {dist.get_rank()}: {what}"


def raises(error: type[BaseException], call: Callable[[], object], *words: str) -> str:
    global _checks
    _checks += 1
    try:
        call()
    except error as caught:
        text = str(caught)
        assert all(w in text for w in words), text
        return text
    raise AssertionError(f"rank {dist.get_rank()}: {error.__name__} was not raised")


def data(rank: int, count: int, dtype: eager.dtype, seed: int = 0) -> np.ndarray:
    """What `rank` holds: small whole numbers, so that sums are exact in every dtype and order."""
    rng = np.random.default_rng([seed, rank, count])
    low = -3 if dtype.is_signed or dtype.is_floating_point else 0
    values = rng.integers(low, 4, count)
    if dtype is eager.bool:
        values = values % 2
    return eager.tensor(values.tolist(), dtype=eager.int64).to(dtype).numpy()


def tensor(values: np.ndarray) -> eager.Tensor:
    return eager.from_numpy(np.array(values, copy=True))


def mine(count: int, dtype: eager.dtype, seed: int = 0) -> eager.Tensor:
    return tensor(data(dist.get_rank(), count, dtype, seed))


def combined(columns: list[np.ndarray], op: ReduceOp) -> np.ndarray:
    """The reduction over ranks, in NumPy, in the columns' dtype."""
    dtype = columns[0].dtype
    if dtype == np.bool_:
        either = op in (ReduceOp.SUM, ReduceOp.MAX)
        return np.logical_or.reduce(columns) if either else np.logical_and.reduce(columns)
    wide = [c.astype(np.int64 if dtype.kind in "iu" else np.float64) for c in columns]
    if op == ReduceOp.MIN:
        total = np.minimum.reduce(wide)
    elif op == ReduceOp.MAX:
        total = np.maximum.reduce(wide)
    elif op == ReduceOp.PRODUCT:
        total = np.multiply.reduce(wide)
    else:
        total = np.add.reduce(wide)
    if op == ReduceOp.AVG:
        total = total / len(columns)
    return total.astype(dtype)


def tolerance(dtype: eager.dtype, op: ReduceOp) -> float:
    """Only quotients are rounded, and how is left to the backend."""
    if op != ReduceOp.AVG:
        return 0.0
    return {2: 1e-2, 4: 1e-6, 8: 1e-14}[dtype.itemsize]


def ranks() -> range:
    return range(dist.get_world_size())


def cases() -> Iterator[tuple[int, eager.dtype, ReduceOp]]:
    for dtype in DTYPES:
        for op in OPS:
            if op == ReduceOp.AVG and not dtype.is_floating_point:
                continue
            for count in (1, 37):
                yield count, dtype, op
    for count in SIZES:
        yield count, eager.float32, ReduceOp.SUM
        yield count, eager.bfloat16, ReduceOp.SUM


def count_checks() -> int:
    """How many there were so far."""
    return _checks

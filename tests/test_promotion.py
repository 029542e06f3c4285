"""Type promotion and broadcasting, against tables written from PyTorch's documented rules."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eager
from eager.errors import DTypeError, ShapeError

NAMES = (
    "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool",
)  # fmt: skip
# The table on PyTorch's "Tensor Attributes" page (torch.promote_types), rows and columns as NAMES.
TABLE = """
    uint8    int16    int16    int32    int64    float16  bfloat16 float32  float64  uint8
    int16    int8     int16    int32    int64    float16  bfloat16 float32  float64  int8
    int16    int16    int16    int32    int64    float16  bfloat16 float32  float64  int16
    int32    int32    int32    int32    int64    float16  bfloat16 float32  float64  int32
    int64    int64    int64    int64    int64    float16  bfloat16 float32  float64  int64
    float16  float16  float16  float16  float16  float16  float32  float32  float64  float16
    bfloat16 bfloat16 bfloat16 bfloat16 bfloat16 float32  bfloat16 float32  float64  bfloat16
    float32  float32  float32  float32  float32  float32  float32  float32  float64  float32
    float64  float64  float64  float64  float64  float64  float64  float64  float64  float64
    uint8    int8     int16    int32    int64    float16  bfloat16 float32  float64  bool
"""
PROMOTED = {
    (a, b): name
    for a, row in zip(NAMES, TABLE.strip().splitlines(), strict=True)
    for b, name in zip(NAMES, row.split(), strict=True)
}
CATEGORY = {name: 2 if "float" in name else 0 if name == "bool" else 1 for name in NAMES}
PAIRS = list(itertools.product(NAMES, NAMES))


def tensor(dtype: str, *shape: int) -> Any:
    return eager.ones(shape, dtype=getattr(eager, dtype))


def is_float(name: str) -> bool:
    return CATEGORY[name] == 2


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_two_tensors(a: str, b: str) -> None:
    expected = PROMOTED[a, b]
    for op in (eager.add, eager.mul, eager.maximum):
        assert op(tensor(a, 2), tensor(b, 2)).dtype.name == expected
    assert eager.eq(tensor(a, 2), tensor(b, 2)).dtype.name == "bool"
    assert eager.where(tensor("bool", 2), tensor(a, 2), tensor(b, 2)).dtype.name == expected
    quotient = eager.div(tensor(a, 2), tensor(b, 2)).dtype.name
    assert quotient == (expected if is_float(expected) else "float32")
    if expected == "bool":
        with pytest.raises(DTypeError, match=r"^sub: "):
            eager.sub(tensor(a, 2), tensor(b, 2))
    if is_float(expected):
        with pytest.raises(DTypeError, match=r"^bitwise_or: "):
            eager.bitwise_or(tensor(a, 2), tensor(b, 2))
    else:
        assert eager.bitwise_or(tensor(a, 2), tensor(b, 2)).dtype.name == expected


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_zero_dimensional_tensors_only_raise_the_category(a: str, b: str) -> None:
    """A 0-dim tensor changes the dtype of a tensor with dimensions only if bool < integer <
    floating puts it higher."""
    expected = a if CATEGORY[a] >= CATEGORY[b] else PROMOTED[a, b]
    assert (tensor(a, 2) + tensor(b)).dtype.name == expected
    assert (tensor(b) + tensor(a, 2)).dtype.name == expected
    assert (tensor(a) + tensor(b)).dtype.name == PROMOTED[a, b]


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("a", NAMES)
def test_python_numbers_only_raise_the_category(a: str, shape: tuple[int, ...]) -> None:
    x = tensor(a, *shape)
    assert (x + True).dtype.name == a
    assert (x + 1).dtype.name == ("int64" if a == "bool" else a)
    assert (2 * x).dtype.name == ("int64" if a == "bool" else a)
    assert (x + 1.0).dtype.name == (a if is_float(a) else "float32")
    assert (1.0 / x).dtype.name == (a if is_float(a) else "float32")


@pytest.mark.parametrize("a", NAMES)
def test_functions_of_one_tensor(a: str) -> None:
    x = tensor(a, 2)
    assert eager.exp(x).dtype.name == (a if is_float(a) else "float32")
    assert eager.sum(x).dtype.name == (a if is_float(a) else "int64")
    assert eager.cumsum(x, 0).dtype.name == (a if is_float(a) else "int64")
    assert eager.amax(x).dtype.name == a
    assert eager.argmax(x).dtype.name == "int64"
    assert eager.any(x).dtype.name == "bool"
    assert eager.isnan(x).dtype.name == "bool"
    assert eager.logical_not(x).dtype.name == "bool"
    assert eager.square(x).dtype.name == ("bool" if a == "bool" else a)
    assert x.to(eager.float64).dtype.name == "float64"


def test_default_dtype() -> None:
    try:
        eager.set_default_dtype(eager.float64)
        assert eager.exp(tensor("int64", 2)).dtype == eager.float64
        assert (tensor("int64", 2) + 1.0).dtype == eager.float64
        assert eager.zeros(2).dtype == eager.float64
        assert (tensor("float32", 2) + 1.0).dtype == eager.float32
    finally:
        eager.set_default_dtype(eager.float32)


@pytest.mark.parametrize("a", NAMES)
def test_in_place_keeps_the_dtype(a: str) -> None:
    x = tensor(a, 2)
    if is_float(a):
        x += tensor("float64", 2)
        assert x.dtype.name == a
    else:
        with pytest.raises(DTypeError, match=r"^add: "):
            x += 1.5


@pytest.mark.parametrize("a", [n for n in NAMES if n not in ("bool", "uint8") and not is_float(n)])
def test_integer_arithmetic_wraps_around(a: str) -> None:
    dtype = getattr(eager, a)
    limit = 2 ** (8 * dtype.itemsize - 1)
    x = eager.tensor([limit - 1], dtype=dtype)
    assert (x + 1).tolist() == [-limit]
    assert (-(-x - 1)).tolist() == [-limit]
    assert (x * 2).tolist() == [-2]


@pytest.mark.parametrize("a", ["float16", "bfloat16"])
def test_narrow_floats_round_once_to_nearest_even(a: str) -> None:
    dtype = getattr(eager, a)
    ones = 2 ** (11 if a == "float16" else 8)  # the first integer whose successor does not exist
    x = eager.tensor([float(ones), float(ones + 2)], dtype=dtype)
    assert (x + 1).tolist() == [float(ones), float(ones + 4)]


# --- broadcasting ---------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 3), max_size=4)


def broadcast(a: list[int], b: list[int]) -> tuple[int, ...] | None:
    """The rule, written out: align at the last dimension; equal sizes, or one of them is 1."""
    out: list[int] = []
    for i in range(1, max(len(a), len(b)) + 1):
        n = a[-i] if i <= len(a) else 1
        m = b[-i] if i <= len(b) else 1
        if n != m and 1 not in (n, m):
            return None
        out.insert(0, m if n == 1 else n)
    return tuple(out)


def filled(shape: list[int]) -> Any:
    return np.arange(1.0, 1.0 + int(np.prod(shape))).reshape(shape)


@given(sizes, sizes)
def test_broadcasting(a: list[int], b: list[int]) -> None:
    expected = broadcast(a, b)
    x, y = eager.from_numpy(filled(a)), eager.from_numpy(filled(b))
    if expected is None:
        with pytest.raises(ShapeError, match=r"^add: "):
            x + y
        with pytest.raises(ShapeError):
            eager.broadcast_shapes(a, b)
        return
    assert tuple((x + y).shape) == expected == eager.broadcast_shapes(a, b)
    np.testing.assert_array_equal((x + y).numpy(), filled(a) + filled(b))
    np.testing.assert_array_equal((x < y).numpy(), filled(a) < filled(b))
    flags = eager.from_numpy(np.asarray(filled(b) > 2))
    np.testing.assert_array_equal(
        eager.where(flags, x, 0.5).numpy(), np.where(filled(b) > 2, filled(a), 0.5)
    )


@given(sizes, sizes)
def test_gradients_have_the_operands_shapes(a: list[int], b: list[int]) -> None:
    if broadcast(a, b) is None:
        return
    x = eager.from_numpy(filled(a)).requires_grad_()
    y = eager.from_numpy(filled(b)).requires_grad_()
    (x * y).sum().backward()
    ones = np.ones(broadcast(a, b) or ())
    for t, other in ((x, filled(b)), (y, filled(a))):
        assert t.grad.shape == t.shape
        total = ones * other
        lead = tuple(range(total.ndim - t.ndim))
        stretched = tuple(d + len(lead) for d, n in enumerate(t.shape) if n == 1)
        expected = total.sum(axis=(*lead, *stretched), keepdims=True).reshape(t.shape)
        np.testing.assert_allclose(t.grad.numpy(), expected)


@given(st.permutations(range(3)), st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_any_strides_give_the_same(order: list[int], shape: list[int]) -> None:
    base = filled(shape)
    x = eager.from_numpy(base).permute(order)
    expected = base.transpose(order)
    np.testing.assert_array_equal((x + x).numpy(), expected * 2)
    np.testing.assert_array_equal((x * x.contiguous()).numpy(), expected**2)
    np.testing.assert_array_equal(x.sum(1).numpy(), expected.sum(1))
    np.testing.assert_array_equal(eager.amax(x, (0, 2)).numpy(), expected.max((0, 2)))


OPERATORS: list[tuple[Callable[..., Any], str]] = [
    (operator.add, "+"), (operator.sub, "-"), (operator.mul, "*"), (operator.truediv, "/"),
    (operator.floordiv, "//"), (operator.mod, "%"), (operator.pow, "**"), (operator.lt, "<"),
    (operator.ge, ">="), (operator.eq, "=="), (operator.ne, "!="),
]  # fmt: skip


@pytest.mark.parametrize(("op", "sign"), OPERATORS, ids=[s for _, s in OPERATORS])
def test_operators_and_their_reflections(op: Callable[..., Any], sign: str) -> None:
    values = np.array([1.5, 2.0, 3.25])
    x = eager.from_numpy(values)
    np.testing.assert_allclose(op(x, 2.5).numpy(), op(values, 2.5), rtol=1e-14)
    np.testing.assert_allclose(op(2.5, x).numpy(), op(2.5, values), rtol=1e-14)
    np.testing.assert_allclose(op(x, x).numpy(), op(values, values), rtol=1e-14)


@pytest.mark.parametrize("op", [operator.and_, operator.or_, operator.xor])
def test_logic_operators(op: Callable[..., Any]) -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    np.testing.assert_array_equal(op(eager.from_numpy(a), eager.from_numpy(b)).numpy(), op(a, b))
    np.testing.assert_array_equal((~eager.from_numpy(a)).numpy(), ~a)
    i = np.array([5, -3, 0, 7])
    np.testing.assert_array_equal(op(eager.from_numpy(i), 6).numpy(), op(i, 6))
    np.testing.assert_array_equal((~eager.from_numpy(i)).numpy(), ~i)

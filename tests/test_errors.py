"""Bad input: an exception of a documented class that names the op and says what was expected."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import eager
from eager import errors
from eager.errors import (
    ArgumentError,
    AutogradError,
    DeviceError,
    DTypeError,
    EagerError,
    IndexOutOfRange,
    OutOfMemoryError,
    ShapeError,
)


def f32(*shape: int) -> eager.Tensor:
    return eager.empty(*shape).zero_()


META = eager.empty(2, 3, device="meta")
CASES: list[tuple[str, Callable[[], Any], type[Exception]]] = [
    # shapes
    ("add", lambda: f32(2, 3) + f32(4), ShapeError),
    ("mul", lambda: f32(2, 3) * f32(3, 2), ShapeError),
    ("matmul", lambda: f32(2, 3) @ f32(2, 3), ShapeError),
    ("matmul", lambda: f32(2, 2, 3) @ f32(3, 3, 1), ShapeError),
    ("matmul", lambda: f32(3) @ f32(4), ShapeError),
    ("reshape", lambda: f32(2, 3).reshape(5), ShapeError),
    ("expand", lambda: f32(2, 3).expand(3, 3), ShapeError),
    ("cat", lambda: eager.cat([f32(2, 3), f32(2, 4)]), ShapeError),
    ("where", lambda: eager.where(f32(2) > 0, f32(3), f32(3)), ShapeError),
    ("tensor", lambda: eager.tensor([[1, 2], [3]]), ShapeError),
    ("tensor", lambda: eager.tensor([1, [2]]), ShapeError),
    ("tensor", lambda: eager.tensor([[1], 2]), ShapeError),
    ("empty", lambda: eager.empty(-1), ShapeError),
    # dtypes
    ("bitwise_and", lambda: f32(2) & f32(2), DTypeError),
    ("sub", lambda: eager.tensor([True]) - eager.tensor([False]), DTypeError),
    ("mean", lambda: eager.tensor([1, 2]).mean(), DTypeError),
    ("requires_grad", lambda: eager.tensor([1]).requires_grad_(), DTypeError),
    ("index_select", lambda: eager.index_select(f32(2, 3), 0, f32(1)), DTypeError),
    ("dtype", lambda: eager.dtype("float8"), DTypeError),
    # indices
    ("index", lambda: f32(2)[2], IndexOutOfRange),
    ("index_select", lambda: f32(2)[eager.tensor([2])], IndexOutOfRange),
    ("gather", lambda: eager.gather(f32(2, 2), 0, eager.tensor([[5]])), IndexOutOfRange),
    ("sum", lambda: f32(2).sum(1), IndexOutOfRange),
    ("transpose", lambda: f32(2).transpose(0, 1), IndexOutOfRange),
    # devices
    ("add", lambda: f32(2, 3) + META, DeviceError),
    ("item", lambda: eager.empty((), device="meta").item(), DeviceError),
    ("tolist", META.tolist, DeviceError),
    ("numpy", META.numpy, DeviceError),
    ("to", lambda: META.to("cpu"), DeviceError),
    ("device", lambda: eager.tensor(1, device="tpu"), DeviceError),
    # values
    ("item", lambda: f32(2).item(), ArgumentError),
    ("bool", lambda: bool(f32(2)), ArgumentError),
    ("tensor", lambda: eager.tensor(300, dtype=eager.int8), ArgumentError),
    ("tensor", lambda: eager.tensor(float("nan"), dtype=eager.int64), ArgumentError),
    ("tensor", lambda: eager.tensor(2**64), ArgumentError),
    ("operand", lambda: f32(2) + 2**64, ArgumentError),
    # gradients
    ("backward", lambda: f32(2).requires_grad_().backward(), AutogradError),
    ("backward", lambda: f32().backward(), AutogradError),
    ("grad", lambda: eager.autograd.grad(f32().requires_grad_(), f32()), AutogradError),
    ("numpy", lambda: f32(2).requires_grad_().numpy(), AutogradError),
]


@pytest.mark.parametrize(
    ("name", "call", "error"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_class_and_text(name: str, call: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{name}: "), lines[0]
    assert lines[1].startswith("  expected: ") and lines[2].startswith("  given: ")
    assert all(line.startswith("  try: ") for line in lines[3:])
    assert isinstance(caught.value, EagerError)


def test_classes_derive_from_the_builtin_ones() -> None:
    for name, base in [
        ("ShapeError", ValueError), ("DTypeError", TypeError), ("IndexOutOfRange", IndexError),
        ("ArgumentError", ValueError), ("VersionError", AutogradError),
        ("OutOfMemoryError", MemoryError), ("SerializationError", ValueError),
        ("DeviceError", RuntimeError), ("AutogradError", RuntimeError),
    ]:  # fmt: skip
        assert issubclass(getattr(errors, name), base)
    text = str(errors.helpful(ShapeError, "op", "problem", "this", "that", "hint"))
    assert text == "op: problem\n  expected: this\n  given: that\n  try: hint"


@pytest.mark.parametrize(
    "call",
    [
        lambda: eager.tensor(), lambda: eager.tensor(1, 2), lambda: eager.tensor(1, bad=2),
        lambda: eager.tensor(None), lambda: eager.tensor("text"), lambda: eager.tensor(["a"]),
        lambda: eager.tensor({1: 2}), lambda: eager.tensor(1j), lambda: eager.tensor([None]),
        lambda: eager.tensor(1, dtype="float32"), lambda: eager.tensor(1, dtype=3),
        lambda: eager.tensor(1, device=3), lambda: eager.empty("a"), lambda: eager.empty(1.5),
        lambda: eager.empty(None), lambda: eager.exp("text"), lambda: eager.exp(),
        lambda: eager.exp(1, 2), lambda: eager.mul(1), lambda: eager.mul(None, 1),
        lambda: f32(2).reshape(None), lambda: f32(2).sum("a"),
        lambda: f32(2).sum(0, False, None, 1),
        lambda: f32(2).to(1.5), lambda: f32(2).matmul("a"), lambda: f32(2).copy_("a"),
        lambda: f32(2).fill_("a"), lambda: f32(2).transpose(0), lambda: f32(2).transpose(0, "a"),
        lambda: f32(2).register_hook(), lambda: f32(2).expand(None), lambda: f32(2).size("a"),
        lambda: f32(2).squeeze("a"), lambda: eager.from_numpy(3), lambda: eager.from_dlpack(3),
        lambda: eager.Tensor._make_subclass(int, f32(2)), lambda: eager.device(3),
        lambda: eager.autograd.grad(1, 2), lambda: eager.autograd.backward("text"),
        lambda: eager._C.execute("add", ()), lambda: eager._C.execute(0, (1,)),
        lambda: eager._C.run_backward(1, 2, 3, 4, 5, 6), lambda: eager._C.with_history(1, 2, 3),
        lambda: eager.dtype(3), lambda: eager.Size(3),
    ],
)  # fmt: skip
def test_wrong_types_are_type_errors(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        call()


def test_operator_with_none() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        f32(2) + None
    with pytest.raises(TypeError):
        f32(2) @ None


# --- sizes ---------------------------------------------------------------------------------------


def test_huge_shapes() -> None:
    for shape in [(2**62, 2**62), (2**63 - 1, 2), (2**32, 2**32)]:
        with pytest.raises((ShapeError, OutOfMemoryError)):
            eager.empty(*shape)
        with pytest.raises((ShapeError, OutOfMemoryError)):
            eager.zeros(*shape)
        with pytest.raises((ShapeError, OutOfMemoryError)):
            f32(1).expand(*shape)
    with pytest.raises(OutOfMemoryError):
        eager.empty(2**50)
    with pytest.raises(OutOfMemoryError):
        f32(1).expand(2**50) + 1
    with pytest.raises(ArgumentError):
        eager.empty(2**70)
    with pytest.raises(ShapeError):
        eager.empty([1] * 1000)


def test_deep_nesting() -> None:
    data: Any = 1
    for _ in range(10_000):
        data = [data]
    with pytest.raises(ShapeError, match="nested"):
        eager.tensor(data)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ShapeError):
        eager.tensor(loop)


def test_many_dimensions() -> None:
    x = f32(*[1] * 40)
    y = (x + 1).sum(39)
    assert y.ndim == 39 and y.permute(*reversed(range(39))).reshape(-1).tolist() == [1.0]
    assert x[(0,) * 40].shape == ()


def test_sequences_that_change_while_they_are_read() -> None:
    class Shrinks:
        def __float__(self) -> float:
            rows.clear()
            return 1.0

        def __index__(self) -> int:
            rows.clear()
            return 1

    rows: list[Any] = [Shrinks(), 2, 3]
    with pytest.raises((TypeError, ValueError)):
        eager.tensor([rows, [1.0, 2.0, 3.0]])
    rows = [Shrinks(), 1, 1]
    assert f32(1).reshape(rows).shape == (1,)


def test_errors_in_conversions_come_out() -> None:
    class Bad:
        def __index__(self) -> int:
            raise KeyError("index")

        def __len__(self) -> int:
            raise KeyError("len")

        def __getitem__(self, i: int) -> int:
            raise KeyError("item")

    for call in (lambda: f32(2).reshape(Bad()), lambda: eager.empty(Bad()), lambda: f32(2)[Bad()]):
        with pytest.raises(KeyError):
            call()


# --- values pass through -------------------------------------------------------------------------


def test_nan_and_infinity_pass_through() -> None:
    a = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    x = eager.tensor(a)
    with np.errstate(all="ignore"):
        for got, expected in [
            (x + 1, a + 1), (x * 0, a * 0), (x / x, a / a), (x.exp(), np.exp(a)), (-x, -a),
            (x > 0, a > 0), (x == x, a == a), (x.sum(), a.sum()),
        ]:  # fmt: skip
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal((eager.tensor([1.0, 0.0]) / 0).numpy(), [np.inf, np.nan])


def test_zero_sizes() -> None:
    x = eager.empty(0, 3, requires_grad=True)
    assert (x * 2).shape == (0, 3)
    assert x.sum().item() == 0.0 and x.sum(0).tolist() == [0.0] * 3 and x.sum(1).shape == (0,)
    assert (x @ f32(3, 4)).shape == (0, 4)
    assert (f32(4, 0) @ f32(0, 2)).tolist() == [[0.0, 0.0]] * 4
    (x * 2).sum().backward()
    assert x.grad.shape == (0, 3)
    assert x.reshape(3, 0).shape == (3, 0) and x.T.shape == (3, 0)
    assert x[:, 1].shape == (0,) and x[eager.empty(0, dtype=eager.int64)].shape == (0, 3)
    with pytest.raises(IndexOutOfRange):
        x[0]
    with pytest.raises(EagerError):
        x.amax()
    with pytest.raises(EagerError):
        x.argmax()


# --- the package ---------------------------------------------------------------------------------


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_stale_definitions_are_refused() -> None:
    code = (
        "import os, eager\n"
        "from eager import _bootstrap, _C, _registry_hash\n"
        "os.environ.pop('EAGER_ALLOW_STALE', None)\n"
        "_registry_hash.registry_hash = lambda root: 'another'\n"
        "_bootstrap.check_registry(_C)\n"
    )
    result = run(code)
    assert result.returncode == 1 and "ImportError" in result.stderr
    assert "reinstall" in result.stderr


def test_exit_with_tensors_alive() -> None:
    code = (
        "import eager, atexit, threading\n"
        "x = eager.tensor([1.0], requires_grad=True); y = (x * 2); y.register_hook(print)\n"
        "a = y.detach().numpy(); keep = eager.from_numpy(a)\n"
        "atexit.register(lambda: keep + 1)\n"
        "x.loop = y; y.loop = x\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr

"""The Tensor type: creation, operators, properties, conversions, printing, copying."""

from __future__ import annotations

import ast
import copy
import gc
import math
import operator
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eager
from eager.errors import ArgumentError, DTypeError, ShapeError

DTYPES = [
    eager.float32, eager.float64, eager.float16, eager.bfloat16, eager.int8, eager.int16,
    eager.int32, eager.int64, eager.uint8, eager.bool,
]  # fmt: skip


# --- creation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1, eager.int64, ()), (1.5, eager.float32, ()), (True, eager.bool, ()),
        ([], eager.float32, (0,)), ([[], []], eager.float32, (2, 0)), ([1, 2], eager.int64, (2,)),
        ([1, 2.0], eager.float32, (2,)), ([True, False], eager.bool, (2,)),
        ([True, 2], eager.int64, (2,)), ([[1, 2, 3]], eager.int64, (1, 3)),
        (((1.0,), (2.0,)), eager.float32, (2, 1)), (range(3), eager.int64, (3,)),
        (np.float64(2), eager.float64, ()), (np.int16(2), eager.int16, ()),
        (np.zeros((2, 3), np.uint8), eager.uint8, (2, 3)), ([np.float32(1)], eager.float32, (1,)),
        ([np.ones(2, np.int32)], eager.int32, (1, 2)), (bytearray(b"ab"), eager.uint8, (2,)),
        (np.arange(6.0)[::-2], eager.float64, (3,)), (np.arange(3, dtype=">i4"), eager.int32, (3,)),
    ],
    ids=repr,
)  # fmt: skip
def test_tensor_infers(data: Any, dtype: eager.dtype, shape: tuple[int, ...]) -> None:
    x = eager.tensor(data)
    assert x.dtype is dtype
    assert x.shape == shape
    np.testing.assert_array_equal(x.numpy(), np.array(data))
    assert x.is_leaf and not x.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_of_each_dtype(dtype: eager.dtype) -> None:
    x = eager.tensor([[1, 0], [1, 1]], dtype=dtype)
    assert x.dtype is dtype
    assert x.tolist() == [[1, 0], [1, 1]]
    assert x.itemsize == dtype.itemsize == x.element_size()
    assert x.nbytes == 4 * dtype.itemsize
    assert x.to(eager.float64).tolist() == [[1, 0], [1, 1]]
    assert eager.empty_like(x).dtype is dtype
    assert repr(dtype) == f"eager.{dtype.name}"
    assert pickle.loads(pickle.dumps(dtype)) is dtype
    assert copy.deepcopy(dtype) is dtype


def test_tensor_copies_and_as_tensor_shares() -> None:
    a = np.zeros(3, np.float32)
    copied, shared = eager.tensor(a), eager.as_tensor(a)
    a[0] = 1
    assert copied[0] == 0 and shared[0] == 1
    assert eager.as_tensor(shared) is shared
    assert eager.as_tensor(shared, dtype=eager.int64).dtype is eager.int64
    assert eager.as_tensor([1, 2]).dtype is eager.int64
    x = eager.tensor([1.0], requires_grad=True)
    again = eager.tensor(x)
    assert not again.requires_grad and again._storage_id != x._storage_id


def test_tensors_inside_sequences() -> None:
    x = eager.tensor(2.5)
    assert eager.tensor([x, 1]).tolist() == [2.5, 1.0]
    assert eager.tensor([eager.tensor(3), eager.tensor([4])]).dtype is eager.int64


def test_default_dtype() -> None:
    assert eager.get_default_dtype() is eager.float32
    eager.set_default_dtype(eager.float64)
    try:
        assert eager.tensor(1.5).dtype is eager.float64
        assert (eager.tensor([1, 2]) / 2).dtype is eager.float64
    finally:
        eager.set_default_dtype(eager.float32)
    with pytest.raises(DTypeError):
        eager.set_default_dtype(eager.int32)


def test_python_types_as_dtypes() -> None:
    assert eager.tensor(1, dtype=float).dtype is eager.float64
    assert eager.tensor([0.0, 2.0], dtype=bool).tolist() == [False, True]
    assert eager.tensor(1.7, dtype=int).item() == 1


def test_empty() -> None:
    assert eager.empty(2, 3).shape == (2, 3)
    assert eager.empty((2, 3), dtype=eager.int8).dtype is eager.int8
    assert eager.empty(()).shape == ()
    assert eager.empty(0).numel() == 0
    assert eager.empty(2, requires_grad=True).requires_grad
    meta = eager.empty(2**40, 2**10, device="meta")
    assert meta.is_meta and meta.numel() == 2**50
    assert (meta + 1).shape == meta.shape


# --- operators -----------------------------------------------------------------------------------

BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    operator.pow, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip
INTEGER = [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift]


@pytest.mark.parametrize("op", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [3, 2.5, True, np.float32(2), np.int64(2), np.float64(0.5)])
def test_operators_with_numbers(op: Any, other: Any) -> None:
    a = np.array([1.0, 2.0, 5.0], np.float32)
    x = eager.tensor(a)
    for got, expected in ((op(x, other), op(a, float(other))), (op(other, x), op(float(other), a))):
        assert isinstance(got, eager.Tensor)
        assert got.dtype in (eager.float32, eager.bool)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("op", [*BINARY, operator.matmul], ids=lambda f: f.__name__)
def test_operators_with_arrays(op: Any) -> None:
    a = np.array([1.0, 2.0, 5.0], np.float32)
    b = np.array([4.0, 2.0, 3.0], np.float32)
    x, y = eager.tensor(a), eager.tensor(b)
    for got in (op(x, y), op(x, b), op(a, y)):
        assert isinstance(got, eager.Tensor)
        np.testing.assert_allclose(got.numpy(), op(a, b), rtol=1e-6)


@pytest.mark.parametrize("op", INTEGER, ids=lambda f: f.__name__)
def test_integer_operators(op: Any) -> None:
    a, b = np.array([1, 6, 5]), np.array([3, 2, 1])
    np.testing.assert_array_equal(op(eager.tensor(a), eager.tensor(b)).numpy(), op(a, b))
    np.testing.assert_array_equal(op(eager.tensor(a), 2).numpy(), op(a, 2))
    np.testing.assert_array_equal(op(2, eager.tensor(a)).numpy(), op(2, a))
    with pytest.raises(DTypeError):
        op(eager.tensor(1.5), 1)


def test_unary_operators() -> None:
    x = eager.tensor([1.5, -2.0])
    assert (-x).tolist() == [-1.5, 2.0]
    assert (+x) is x
    assert abs(x).tolist() == [1.5, 2.0]
    assert (~eager.tensor([0, 5])).tolist() == [-1, -6]
    assert (~eager.tensor([True, False])).tolist() == [False, True]


@pytest.mark.parametrize(
    "op", [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
           operator.imod, operator.ipow], ids=lambda f: f.__name__)  # fmt: skip
def test_in_place_operators(op: Any) -> None:
    a = np.array([5.0, 7.0], np.float32)
    x = eager.tensor(a)
    same, version, address = x, x._version, x.data_ptr()
    x = op(x, 2)
    assert x is same and x._version > version and x.data_ptr() == address
    np.testing.assert_allclose(x.numpy(), op(a, np.float32(2)))


def test_in_place_keeps_the_dtype() -> None:
    x = eager.tensor([1, 2])
    x += 1
    assert x.dtype is eager.int64
    with pytest.raises(DTypeError):
        x += 0.5
    with pytest.raises(ShapeError):
        x += eager.tensor([[1, 2], [3, 4]])
    assert x.tolist() == [2, 3]


def test_foreign_operands_are_left_to_them() -> None:
    class Other:
        def __radd__(self, x: Any) -> str:
            return "radd"

        def __eq__(self, x: object) -> Any:
            return "eq"

        __hash__ = None  # type: ignore[assignment]

    x = eager.tensor([1.0])
    assert x + Other() == "radd"
    assert (x == Other()) == "eq"
    assert (x == None) is False  # noqa: E711
    assert (x != "text") is True
    for bad in ("text", None, [1.0], {}, 1j):
        with pytest.raises(TypeError):
            x + bad


def test_numbers_do_not_widen() -> None:
    assert (eager.tensor([1], dtype=eager.int8) + 1).dtype is eager.int8
    assert (eager.tensor([1], dtype=eager.int8) + 1.5).dtype is eager.float32
    assert (eager.tensor([1.0], dtype=eager.float16) * 2.5).dtype is eager.float16
    assert (eager.tensor([True]) + 1).dtype is eager.int64
    assert (eager.tensor([1.0]) + np.float64(1)).dtype is eager.float32


def test_conversions_to_numbers() -> None:
    assert float(eager.tensor([[2.5]])) == 2.5
    assert int(eager.tensor(2.9)) == 2
    assert bool(eager.tensor(0.0)) is False
    assert bool(eager.tensor([3])) is True
    assert [10, 20, 30][eager.tensor(1)] == 20
    assert f"{eager.tensor(1.23456):.2f}" == "1.23"
    with pytest.raises(TypeError):
        [1, 2][eager.tensor(1.0)]
    with pytest.raises(TypeError):
        operator.index(eager.tensor([1, 2]))
    with pytest.raises(ArgumentError, match="exactly one element"):
        bool(eager.tensor([1, 2]))
    with pytest.raises(ArgumentError):
        eager.tensor([]).item()
    with pytest.raises(ArgumentError):
        float(eager.tensor([1.0, 2.0]))


def test_container_protocol() -> None:
    x = eager.tensor([[1, 2], [3, 4], [5, 6]])
    assert len(x) == 3
    assert [row.tolist() for row in x] == x.tolist()
    assert 4 in x and 7 not in x
    *_, c = x
    assert c.tolist() == [5, 6]
    with pytest.raises(TypeError):
        len(eager.tensor(1))
    with pytest.raises(TypeError):
        iter(eager.tensor(1))


def test_hash_is_identity() -> None:
    x, y = eager.tensor([1.0]), eager.tensor([1.0])
    assert {x: 1, y: 2}[x] == 1
    assert hash(x) == hash(x)


# --- shape methods -------------------------------------------------------------------------------


def test_shape_methods() -> None:
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    x = eager.tensor(a)
    assert x.reshape(6, 4).shape == x.reshape((6, 4)).shape == x.view(6, -1).shape == (6, 4)
    assert x.reshape(-1).shape == (24,)
    np.testing.assert_array_equal(x.permute(2, 0, 1).numpy(), a.transpose(2, 0, 1))
    np.testing.assert_array_equal(x.permute((0, -1, 1)).numpy(), a.transpose(0, 2, 1))
    np.testing.assert_array_equal(x.transpose(0, -1).numpy(), a.swapaxes(0, 2))
    np.testing.assert_array_equal(x.T.numpy(), a.T)
    np.testing.assert_array_equal(x.mT.numpy(), a.swapaxes(1, 2))
    np.testing.assert_array_equal(x[0].t().numpy(), a[0].T)
    assert x.unsqueeze(-1).shape == (2, 3, 4, 1)
    assert x.unsqueeze(0).squeeze().shape == (2, 3, 4)
    assert x.unsqueeze(1).squeeze(1).shape == (2, 3, 4)
    assert x.squeeze(0).shape == (2, 3, 4)
    assert x[:, :1, None].squeeze((1, 2)).shape == (2, 4)
    assert x[:1].expand(5, -1, -1).shape == (5, 3, 4)
    assert x[0].expand(7, 3, 4).stride(0) == 0
    assert eager.tensor(1.0).expand(2, 2).tolist() == [[1, 1], [1, 1]]
    assert x.size() == (2, 3, 4) and x.size(-1) == 4 and x.dim() == x.ndim == 3
    assert x.stride() == (12, 4, 1) and x.stride(0) == 12
    assert x.numel() == 24 and x.is_contiguous() and not x.T.is_contiguous()
    assert x.contiguous() is x and x.T.contiguous().is_contiguous()
    assert x[1].storage_offset() == 12


def test_size() -> None:
    shape = eager.empty(2, 3).shape
    assert isinstance(shape, eager.Size) and isinstance(shape, tuple)
    assert shape.numel() == 6
    assert repr(shape) == "eager.Size([2, 3])"
    assert eager.Size([1, 2]) == (1, 2)
    assert pickle.loads(pickle.dumps(shape)) == shape
    assert [*shape] == [2, 3]


def test_bad_shapes() -> None:
    x = eager.tensor(np.zeros((2, 3), np.float32))
    for shape in [(4,), (-1, -1), (-2, 3), (-1, 4), (2**62, 2**62), (0, -1)]:
        with pytest.raises(ShapeError):
            x.reshape(shape)
    with pytest.raises(ShapeError, match="reshape"):
        x.T.view(6)
    with pytest.raises(ShapeError):
        x.expand(4, 3)
    with pytest.raises(ShapeError):
        x.expand(3)
    with pytest.raises(ValueError):
        x.permute(0)
    with pytest.raises(ValueError):
        x.permute(0, 0)
    for call in (lambda: x.transpose(0, 2), lambda: x.sum(2), lambda: x.unsqueeze(4)):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(TypeError):
        x.reshape("a")
    with pytest.raises(TypeError):
        x.reshape(1.5)


def test_reductions() -> None:
    a = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    x = eager.tensor(a)
    assert x.sum().item() == a.sum()
    np.testing.assert_array_equal(x.sum(-1).numpy(), a.sum(-1))
    np.testing.assert_array_equal(x.sum((0, 2), keepdim=True).numpy(), a.sum((0, 2), keepdims=True))
    np.testing.assert_allclose(x.mean(dim=[1]).numpy(), a.mean(1))
    assert eager.tensor([True, True]).sum().dtype is eager.int64
    assert eager.tensor([1, 2]).sum(dtype=eager.float32).dtype is eager.float32
    assert eager.empty(0).sum().item() == 0.0
    assert math.isnan(eager.empty(0).mean().item())
    with pytest.raises(DTypeError):
        eager.tensor([1, 2]).mean()
    with pytest.raises(ArgumentError):
        x.sum((0, 0))


def test_matmul_of_vectors() -> None:
    rng = np.random.default_rng(0)
    shapes = [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((4, 2, 3), (3,)), ((3,), (4, 3, 2))]
    for sa, sb in shapes:
        a, b = rng.normal(size=sa), rng.normal(size=sb)
        got = eager.tensor(a) @ eager.tensor(b)
        np.testing.assert_allclose(got.numpy(), a @ b, rtol=1e-12)
        assert tuple(got.shape) == (a @ b).shape
    with pytest.raises(ShapeError):
        eager.tensor(a) @ eager.tensor(2.0)
    with pytest.raises(TypeError):
        eager.tensor(a) @ 2.0


# --- values --------------------------------------------------------------------------------------


def test_to() -> None:
    x = eager.tensor([1.5, 2.5])
    assert x.to(eager.float32) is x
    assert x.to("cpu") is x
    assert x.to(eager.float32, copy=True) is not x
    assert x.to("cpu", eager.float64).dtype is eager.float64
    assert x.to(device="cpu", dtype=eager.int32).tolist() == [1, 2]
    assert x.to(eager.tensor([1])).dtype is eager.int64
    assert x.to("meta").is_meta
    for name, dtype in [
        ("float", eager.float32), ("double", eager.float64), ("half", eager.float16),
        ("bfloat16", eager.bfloat16), ("int", eager.int32), ("long", eager.int64),
        ("bool", eager.bool), ("short", eager.int16), ("char", eager.int8), ("byte", eager.uint8),
    ]:  # fmt: skip
        assert getattr(x, name)().dtype is dtype
    assert x.type_as(eager.tensor(1)).dtype is eager.int64


def test_copy_fill_zero() -> None:
    x = eager.empty(2, 3)
    assert x.fill_(2.5) is x and x.tolist() == [[2.5] * 3] * 2
    assert x.zero_() is x and x.tolist() == [[0.0] * 3] * 2
    assert x.copy_(eager.tensor([1, 2, 3])) is x and x.tolist() == [[1.0, 2.0, 3.0]] * 2
    x[1].fill_(9)
    assert x[1].tolist() == [9.0, 9.0, 9.0]
    i = eager.empty(2, dtype=eager.int64)
    assert i.fill_(2**62 + 1).tolist() == [2**62 + 1] * 2
    assert i.fill_(eager.tensor(3)).tolist() == [3, 3]
    with pytest.raises(ShapeError):
        x.copy_(eager.empty(4))
    with pytest.raises(ShapeError):
        x.fill_(eager.empty(2))


def test_clone_and_detach() -> None:
    x = eager.tensor([1.0], requires_grad=True)
    assert x.clone().requires_grad and not x.detach().requires_grad
    assert x.detach().data_ptr() == x.data_ptr() != x.clone().data_ptr()


# --- identity, attributes, lifetime --------------------------------------------------------------


def test_same_object_for_the_same_tensor() -> None:
    x = eager.tensor([1.0], requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad is x.grad
    y = x * 1
    y.label = "kept"
    assert y.__dict__ == {"label": "kept"}
    with pytest.raises(AttributeError):
        y.other


def test_weak_references() -> None:
    x = eager.tensor([1.0])
    ref = weakref.ref(x)
    assert ref() is x
    del x
    assert ref() is None


def test_cycles_are_collected() -> None:
    x = eager.tensor([1.0])
    x.me = x
    ref = weakref.ref(x)
    del x
    gc.collect()
    assert ref() is None


class Tagged(eager.Tensor):
    """A subclass with state."""

    tag: str = "none"


def test_subclasses() -> None:
    base = eager.tensor([1.0, 2.0])
    x = eager.Tensor._make_subclass(Tagged, base, True)
    assert type(x) is Tagged and x.requires_grad and x.data_ptr() == base.data_ptr()
    x.tag = "a"
    assert type(x * 2) is eager.Tensor
    again = copy.deepcopy(x)
    assert type(again) is Tagged and again.tag == "a" and again.requires_grad
    loaded = pickle.loads(pickle.dumps(x))
    assert type(loaded) is Tagged and loaded.tag == "a" and loaded.tolist() == [1.0, 2.0]
    (x.sum() * 3).backward()
    assert x.grad.tolist() == [3.0, 3.0]
    assert isinstance(Tagged([1.0]), Tagged)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pickle_and_deepcopy(dtype: eager.dtype) -> None:
    x = eager.tensor([[1, 0, 1]], dtype=dtype)
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), pickle.loads(pickle.dumps(x.T)).T):
        assert y.dtype is dtype and y.tolist() == x.tolist() and y.data_ptr() != x.data_ptr()
    if dtype.is_floating_point:
        x.requires_grad_()
        assert copy.deepcopy(x).requires_grad and pickle.loads(pickle.dumps(x)).requires_grad
    empty = eager.empty(0, 3, dtype=dtype)
    assert pickle.loads(pickle.dumps(empty)).shape == (0, 3)


def test_deepcopy_of_a_result() -> None:
    x = eager.tensor([1.0], requires_grad=True)
    with pytest.raises(eager.errors.AutogradError):
        copy.deepcopy(x * 2)
    x.grad = eager.tensor([5.0])
    memo: dict[int, Any] = {}
    y = copy.deepcopy(x, memo)
    assert y.grad.item() == 5.0 and y.grad is not x.grad
    assert copy.deepcopy(x, memo) is y


def test_data() -> None:
    x = eager.tensor([1.0, 2.0], requires_grad=True)
    x.data.add_(1)
    assert x.tolist() == [2.0, 3.0] and x.requires_grad
    x.data = eager.tensor([[5.0]])
    assert x.shape == (1, 1) and x.requires_grad and x.is_leaf


def test_device() -> None:
    cpu = eager.device("cpu")
    assert eager.tensor(1).device == cpu == "cpu" and cpu != "meta"
    assert cpu.type == "cpu" and str(cpu) == "cpu" and repr(cpu) == "device(type='cpu')"
    assert {cpu: 1}["cpu"] == 1
    assert eager.device(cpu) is cpu and pickle.loads(pickle.dumps(cpu)) is cpu
    with pytest.raises(eager.errors.DeviceError):
        eager.device("cuda")


def test_limits() -> None:
    for dtype in (eager.float16, eager.float32, eager.float64):
        ours, numpys = eager.finfo(dtype), np.finfo(dtype.to_numpy())
        for field in ("eps", "max", "min", "tiny", "bits", "resolution"):
            assert getattr(ours, field) == pytest.approx(float(getattr(numpys, field)), rel=1e-3)
    assert eager.finfo(eager.bfloat16).max == pytest.approx(3.3895e38, rel=1e-4)
    for dtype in (eager.int8, eager.int16, eager.int32, eager.int64, eager.uint8):
        ours, numpys = eager.iinfo(dtype), np.iinfo(dtype.to_numpy())
        assert (ours.min, ours.max, ours.bits) == (numpys.min, numpys.max, numpys.bits)
    with pytest.raises(DTypeError):
        eager.finfo(eager.int8)
    with pytest.raises(DTypeError):
        eager.iinfo(eager.bool)


# --- printing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (1.5, "tensor(1.5000)"), (3, "tensor(3)"), (True, "tensor(True)"),
        ([1.0, 2.0], "tensor([1., 2.])"), ([1.5, -2.0], "tensor([ 1.5000, -2.0000])"),
        ([1, -20], "tensor([  1, -20])"), ([True, False], "tensor([ True, False])"),
        ([], "tensor([])"), ([[], []], "tensor([], size=(2, 0))"),
        ([float("nan"), 1.0], "tensor([nan, 1.])"),
        ([1e10, 1.0], "tensor([1.0000e+10, 1.0000e+00])"),
        ([[1.0, 2.0], [3.0, 4.0]], "tensor([[1., 2.],\n        [3., 4.]])"),
        ([[[1]], [[2]]], "tensor([[[1]],\n\n        [[2]]])"),
    ],
)  # fmt: skip
def test_repr(data: Any, text: str) -> None:
    assert repr(eager.tensor(data)) == text


def test_repr_notes() -> None:
    x = eager.tensor([1.0], requires_grad=True)
    assert repr(x) == "tensor([1.], requires_grad=True)"
    assert repr(x + x) == "tensor([2.], grad_fn=<AddBackward>)"
    assert repr(x.double().detach()) == "tensor([1.], dtype=eager.float64)"
    assert repr(eager.empty(2, 3, device="meta")) == "tensor(..., device='meta', size=(2, 3))"


def test_repr_summarises() -> None:
    text = repr(eager.tensor(np.arange(10_000).reshape(100, 100)))
    assert len(text) < 1000 and text.count("...") == 7
    assert "[   0,    1,    2,  ...,   97,   98,   99]," in text
    assert len(repr(eager.tensor(np.arange(1000)))) > 4000
    eager.set_printoptions(precision=2, threshold=5, edgeitems=1)
    try:
        assert repr(eager.tensor([0.125] * 6)) == "tensor([0.12,  ..., 0.12])"
    finally:
        eager.set_printoptions(precision=4, threshold=1000, edgeitems=3)


# --- the package ---------------------------------------------------------------------------------


def test_import_is_light() -> None:
    code = (
        "import sys, eager; bad = set(sys.modules)"
        " & {'numba', 'cupy', 'jit', 'torch', 'scipy_openblas32', 'ml_dtypes'}; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_is_complete() -> None:
    assert len(eager.__all__) == len(set(eager.__all__))
    for name in eager.__all__:
        assert hasattr(eager, name), name
    assert eager.is_tensor(eager.tensor(1)) and not eager.is_tensor(1)
    with pytest.raises(AttributeError):
        eager.no_such_name


def test_threads_and_memory() -> None:
    before = eager.get_num_threads()
    eager.set_num_threads(2)
    assert eager.get_num_threads() == 2
    eager.set_num_threads(before)
    with pytest.raises(ArgumentError):
        eager.set_num_threads(0)
    eager.reset_peak_memory_stats()
    base = eager.memory_stats()["allocated_bytes"]
    x = eager.empty(1 << 20)
    assert eager.memory_stats()["allocated_bytes"] - base >= x.nbytes
    del x
    assert eager.memory_stats()["allocated_bytes"] - base < 1 << 20
    eager.empty_cache()


def test_the_stub_lists_what_there_is() -> None:
    """eager/_C.pyi is written by hand: nothing missing, nothing that is not there."""
    tree = ast.parse(Path(eager.__file__).with_name("_C.pyi").read_text())

    def names(body: list[ast.stmt]) -> set[str]:
        found = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        return found | {n.target.id for n in body if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr]

    stub = names(tree.body)
    assert {n for n in stub if not n.startswith("_")} == {
        n for n in dir(eager._C) if not n.startswith("_")
    }
    tensor = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Tensor")
    methods = names(tensor.body)
    actual = set(vars(eager.Tensor))
    public = {n for n in actual if not n.startswith("__")}
    assert public - methods == set()
    assert methods - actual - {"__buffer__"} == set()  # from Python 3.12 on


def test_long_work_lets_other_threads_run() -> None:
    """A thread that waits for a long product does not hold the interpreter."""
    a = eager.zeros(1500, 1500)
    ticks, done = 0, threading.Event()

    def work() -> None:
        for _ in range(3):
            a @ a
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks += 1
    thread.join()
    assert ticks > 100


def test_python_types_are_dtypes_of_creation_functions():
    assert eager.ones(2, dtype=int).dtype == eager.int64
    assert eager.zeros(2, dtype=bool).dtype == eager.bool
    assert eager.full((2,), 2, dtype=float).dtype == eager.empty(0, dtype=float).dtype

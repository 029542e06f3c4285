"""NumPy, DLPack and the buffer protocol, both ways, without a copy."""

from __future__ import annotations

import array
import gc
import hashlib
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import eager
from eager.errors import ArgumentError, AutogradError, DeviceError, DTypeError

NUMPY = [
    np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [*NUMPY, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
def test_numpy_both_ways_shares_memory(dtype: Any) -> None:
    a = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    x = eager.from_numpy(a)
    b = x.numpy()
    assert b.dtype == a.dtype == x.dtype.to_numpy() and b.shape == a.shape
    assert np.shares_memory(a, b)
    x[0, 0] = 0
    assert a[0, 0] == 0 and b[0, 0] == 0
    np.testing.assert_array_equal(x.T.numpy(), a.T)
    assert np.shares_memory(x.T.numpy(), a)
    np.testing.assert_array_equal(x[:, 1:].numpy(), a[:, 1:])
    np.testing.assert_array_equal(eager.from_numpy(a[:, ::2]).numpy(), a[:, ::2])


def test_the_array_is_kept_alive() -> None:
    class Array(np.ndarray):
        pass

    a = np.arange(1000.0).view(Array)
    ref = weakref.ref(a)
    x = eager.from_numpy(a)
    y = x[10:20]
    del a, x
    gc.collect()
    assert ref() is not None and y.tolist() == list(range(10, 20))
    del y
    gc.collect()
    assert ref() is None


def test_the_tensor_is_kept_alive() -> None:
    a = eager.tensor(np.arange(1000.0)).numpy()
    other = eager.empty(1000, dtype=eager.float64).fill_(7)
    np.testing.assert_array_equal(a, np.arange(1000.0))
    del other


def test_read_only_arrays_stay_read_only() -> None:
    a = np.arange(3.0)
    a.flags.writeable = False
    x = eager.from_numpy(a)
    assert (x + 1).tolist() == [1, 2, 3]
    for change in (lambda: x.add_(1), lambda: x.zero_(), lambda: x.__setitem__(0, 1.0)):
        with pytest.raises(eager.errors.EagerError, match=r"read-only|readonly"):
            change()
    assert not x.numpy().flags.writeable
    assert a.tolist() == [0, 1, 2]


def test_arrays_without_a_tensor_layout() -> None:
    with pytest.raises(ArgumentError, match="copy"):
        eager.from_numpy(np.arange(3.0)[::-1])
    for dtype in (np.complex64, np.uint32, "U3", object, ">f4", "datetime64[s]"):
        with pytest.raises(DTypeError):
            eager.from_numpy(np.zeros(2, dtype))
    records = np.zeros(4, [("a", np.int8), ("b", np.float32)])
    with pytest.raises(ArgumentError):
        eager.from_numpy(records["b"])
    with pytest.raises(TypeError):
        eager.from_numpy([1.0])  # type: ignore[arg-type]


def test_array_protocol() -> None:
    x = eager.tensor([[1.0, 2.0]])
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert np.asarray(x, dtype=np.int32).tolist() == [[1, 2]]
    assert not np.shares_memory(np.array(x), x.numpy())
    np.testing.assert_array_equal(np.sin(x), np.sin(x.numpy()))
    assert np.stack([x, x]).shape == (2, 1, 2)
    with pytest.raises(ValueError):
        x.__array__(np.float64, copy=False)
    g = eager.tensor([1.0], requires_grad=True)
    with pytest.raises(AutogradError, match="detach"):
        g.numpy()
    with pytest.raises(AutogradError):
        np.asarray(g)
    assert g.numpy(force=True).tolist() == [1.0]
    with pytest.raises(DeviceError):
        eager.empty(2, device="meta").numpy()


def test_bfloat16_arrays() -> None:
    x = eager.tensor([1.0, 2.5], dtype=eager.bfloat16)
    a = np.asarray(x)
    assert a.dtype == ml_dtypes.bfloat16 and a.tolist() == [1.0, 2.5]
    assert eager.tensor(a).dtype is eager.bfloat16
    assert (x * ml_dtypes.bfloat16(2)).dtype is eager.bfloat16


@pytest.mark.parametrize("dtype", NUMPY, ids=lambda d: d.__name__)
def test_dlpack_with_numpy(dtype: Any) -> None:
    a = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    x = eager.from_dlpack(a)
    assert x.dtype.to_numpy() == a.dtype and x.tolist() == a.tolist()
    b = np.from_dlpack(x[:, 1:])
    assert np.shares_memory(a, b) and b.tolist() == a[:, 1:].tolist()
    t = eager.from_dlpack(a.T)
    assert t.stride() == (1, 3)
    assert x.__dlpack_device__() == (1, 0)


def test_dlpack_lifetimes() -> None:
    x = eager.tensor(np.arange(100.0))
    y = eager.from_dlpack(x)
    assert y.data_ptr() == x.data_ptr()
    x.__dlpack__()  # never consumed
    capsule = x.__dlpack__(max_version=(1, 0))
    z = eager.from_dlpack(capsule)
    del x, y
    gc.collect()
    assert z.tolist() == list(range(100))
    with pytest.raises(ValueError):
        eager.from_dlpack(capsule)  # consumed
    bf = eager.tensor([1.5], dtype=eager.bfloat16)
    assert eager.from_dlpack(bf).dtype is eager.bfloat16
    copied = eager.from_dlpack(bf.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.data_ptr() != bf.data_ptr()


def test_dlpack_errors() -> None:
    with pytest.raises(TypeError):
        eager.from_dlpack([1.0])
    with pytest.raises(DTypeError):
        eager.from_dlpack(np.zeros(2, np.complex64))
    with pytest.raises(AutogradError):
        eager.tensor([1.0], requires_grad=True).__dlpack__()
    readonly = np.arange(3.0)
    readonly.flags.writeable = False
    with pytest.raises(BufferError):
        eager.from_numpy(readonly).__dlpack__()
    with pytest.raises(BufferError):
        eager.tensor([1.0]).__dlpack__(dl_device=(2, 0))
    with pytest.raises(ArgumentError):
        eager.from_dlpack(np.arange(3.0)[::-1])


def test_buffer_protocol() -> None:
    x = eager.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    view = memoryview(x)
    assert (view.format, view.shape, view.strides) == ("f", (2, 3), (12, 4))
    view[1, 2] = 9.0
    assert x[1, 2].item() == 9.0
    assert memoryview(x.T).strides == (4, 12)
    assert bytes(eager.tensor([1, 2], dtype=eager.uint8)) == b"\x01\x02"
    with pytest.raises(BufferError):
        memoryview(eager.tensor([1.0], dtype=eager.bfloat16))
    with pytest.raises(BufferError):
        memoryview(eager.tensor([1.0], requires_grad=True))
    # The memory outlives a change of the tensor's data.
    x.data = eager.tensor([0.0])
    assert view.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]


def test_frombuffer() -> None:
    data = bytearray(np.arange(6, dtype=np.float32).tobytes())
    x = eager.frombuffer(data, dtype=eager.float32)
    assert x.tolist() == [0, 1, 2, 3, 4, 5]
    x[0] = 7
    assert np.frombuffer(data, np.float32)[0] == 7
    assert eager.frombuffer(data, dtype=eager.float32, count=2, offset=8).tolist() == [2, 3]
    assert eager.frombuffer(array.array("i", [1, 2]), dtype=eager.int32).tolist() == [1, 2]
    assert eager.frombuffer(b"", dtype=eager.int8).shape == (0,)
    for bad in ({"count": 7}, {"offset": 25}, {"offset": -1}, {"offset": 2}, {"offset": 22}):
        with pytest.raises(ArgumentError):
            eager.frombuffer(data, dtype=eager.float32, **bad)
    with pytest.raises(TypeError):
        eager.frombuffer([1, 2], dtype=eager.int8)  # type: ignore[arg-type]


def test_zero_sizes() -> None:
    x = eager.from_numpy(np.zeros((0, 3), np.float32))
    assert x.shape == (0, 3) and x.numpy().shape == (0, 3) and x.tolist() == []
    assert eager.from_dlpack(np.zeros((2, 0))).shape == (2, 0)
    assert eager.empty(2, 0).tolist() == [[], []]
    assert (x + 1).shape == (0, 3)


def test_no_references_are_lost() -> None:
    a = np.zeros(4, np.float32)
    before = sys.getrefcount(a)
    for _ in range(10):
        x = eager.from_numpy(a)
        np.asarray(x), memoryview(x), x.numpy(), np.from_dlpack(x), eager.from_dlpack(a)
        x + a, a + x
    del x
    gc.collect()
    assert sys.getrefcount(a) == before


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    a = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    x = eager.from_dlpack(a)
    x[0, 0] = 5
    assert a[0, 0] == 5
    back = torch.from_dlpack(x.T)
    assert back.shape == (3, 2) and back.data_ptr() == a.data_ptr()


def test_buffers_without_a_shape_are_bytes_in_a_row():
    x = eager.arange(6, dtype=eager.int64).reshape(2, 3)
    assert hashlib.sha256(x).digest() == hashlib.sha256(x.numpy().tobytes()).digest()
    if sys.version_info >= (3, 12):  # where Python can ask for one itself
        writable = 1
        assert x.__buffer__(writable).ndim == 1

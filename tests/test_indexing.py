"""x[key] and x[key] = value against NumPy, with gradients."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eager
from eager.errors import ArgumentError, IndexOutOfRange, ShapeError

BASIC = [
    0, -1, slice(None), slice(1, 3), slice(None, None, 2), slice(5, 2), slice(-2, None), ...,
    None, (0, 1), (slice(1, None), 2), (..., 0), (0, ..., -1), (None, 0), (slice(None), None, 1),
    (..., None), (None, ..., None), (1, 2, 3), (slice(0, 0), 1), (slice(None), slice(1, 2), 0),
    (0, slice(None, None, 3), slice(3, None, 2)), (),
]  # fmt: skip


def cube() -> np.ndarray:
    return np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)


@pytest.mark.parametrize("key", BASIC, ids=repr)
def test_basic_get_is_a_view(key: Any) -> None:
    a = cube()
    x = eager.from_numpy(a)
    got = x[key]
    np.testing.assert_array_equal(got.numpy(), a[key])
    assert got._storage_id == x._storage_id
    a += 1
    np.testing.assert_array_equal(got.numpy(), a[key])


@pytest.mark.parametrize("key", BASIC, ids=repr)
@pytest.mark.parametrize("recorded", [False, True])
def test_basic_set(key: Any, recorded: bool) -> None:
    a = cube()
    x = eager.tensor(a, requires_grad=recorded)
    y = x * 1 if recorded else x
    value = -np.arange(a[key].size, dtype=np.float32).reshape(a[key].shape)
    y[key] = eager.tensor(value)
    a[key] = value
    np.testing.assert_array_equal(y.detach().numpy(), a)
    y[key] = 7
    a[key] = 7
    np.testing.assert_array_equal(y.detach().numpy(), a)
    if recorded:
        y.sum().backward()
        expected = np.ones_like(a)
        expected[key] = 0
        np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize(
    "key", [0, slice(1, 3), (..., 2), (slice(None, None, 2), None, 1)], ids=repr
)
def test_basic_gradient(key: Any) -> None:
    x = eager.tensor(cube(), requires_grad=True)
    weight = np.random.default_rng(0).normal(size=cube()[key].shape).astype(np.float32)
    (x[key] * eager.tensor(weight)).sum().backward()
    expected = np.zeros_like(cube())
    expected[key] = weight
    np.testing.assert_array_equal(x.grad.numpy(), expected)


I1 = np.array([2, 0, -1])
I2 = np.array([[0, 1], [3, -2]])
MASK1 = np.array([True, False, True, True])
MASK2 = cube()[:, :, 0] % 4 == 0
# Keys whose meaning NumPy and PyTorch agree on.
ADVANCED = [
    I1, I2, (slice(None), I1), (slice(None), I2), (..., I2), (I1, slice(1, 3)),
    (slice(1, 4), I1, slice(None, None, 2)), (I1, I1), (I2, I2), (slice(None), I1, I1),
    (I1, slice(None), I1), (I1, I1, I1), (I2, I1[:2]), MASK1, MASK2, (MASK1, 0),
    (MASK1, slice(1, 2)),
    (slice(None), np.array([True, False, True, True, False])), (None, I1), (I1, None),
    cube() > 50, (MASK1, ..., 1), [0, 2], [True, False, False, True], ([0, 1], [1, 2]),
    np.zeros((0,), np.int64), np.zeros((2, 0), np.int64),
]  # fmt: skip


def convert(key: Any) -> Any:
    if isinstance(key, np.ndarray):
        return eager.tensor(key)
    return tuple(convert(k) for k in key) if isinstance(key, tuple) else key


@pytest.mark.parametrize("key", ADVANCED, ids=lambda k: repr(k).replace("\n", ""))
def test_advanced_get(key: Any) -> None:
    a = cube()
    x = eager.tensor(a, requires_grad=True)
    got = x[convert(key)]
    assert tuple(got.shape) == a[key].shape
    np.testing.assert_array_equal(got.detach().numpy(), a[key])
    np.testing.assert_array_equal(eager.tensor(a)[key].numpy(), a[key])  # NumPy keys, too
    weight = np.random.default_rng(0).normal(size=a[key].shape).astype(np.float32)
    (got * eager.tensor(weight)).sum().backward()
    expected = np.zeros_like(a)
    np.add.at(expected, key, weight)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("key", ADVANCED, ids=lambda k: repr(k).replace("\n", ""))
@pytest.mark.parametrize("recorded", [False, True])
def test_advanced_set(key: Any, recorded: bool) -> None:
    a = cube()
    x = eager.tensor(a, requires_grad=recorded)
    y = x * 1 if recorded else x
    value = -np.arange(a[key].size, dtype=np.float32).reshape(a[key].shape)
    v = eager.tensor(value, requires_grad=recorded)
    y[convert(key)] = v
    a[key] = value
    np.testing.assert_array_equal(y.detach().numpy(), a)
    if recorded:
        weight = np.arange(a.size, dtype=np.float32).reshape(a.shape)
        (y * eager.from_numpy(weight)).sum().backward()
        expected = weight.copy()
        expected[key] = 0
        np.testing.assert_array_equal(x.grad.numpy(), expected)
        np.testing.assert_array_equal(v.grad.numpy(), weight[key])
    y = y.detach()
    y[convert(key)] = 3.5
    a[key] = 3.5
    np.testing.assert_array_equal(y.numpy(), a)


def test_ints_join_the_basic_part() -> None:
    """As in PyTorch: the indexed dimension stays where it is."""
    x = eager.tensor(cube())
    assert x[0, :, eager.tensor([1, 2])].shape == (5, 2)


def test_zero_dim_keys() -> None:
    a = cube()
    x = eager.tensor(a)
    index = eager.tensor(2)
    np.testing.assert_array_equal(x[index].numpy(), a[2])
    np.testing.assert_array_equal(x[:, index, 1].numpy(), a[:, 2, 1])
    np.testing.assert_array_equal(x[np.int32(1)].numpy(), a[1])
    assert x[True].shape == (1, 4, 5, 6)
    assert x[False].shape == (0, 4, 5, 6)
    assert x[eager.tensor(True)].shape == (1, 4, 5, 6)
    scalar = eager.tensor(3.0)
    assert scalar[()].item() == 3.0
    assert scalar[...].item() == 3.0
    assert scalar[None].shape == (1,)


def test_duplicate_indices_keep_the_last_value() -> None:
    x = eager.tensor([0.0, 0.0, 0.0])
    x[eager.tensor([1, 1, 1])] = eager.tensor([1.0, 2.0, 3.0])
    assert x.tolist() == [0.0, 3.0, 0.0]


def test_assigned_values_may_overlap() -> None:
    a = np.arange(6.0)
    x = eager.tensor(a)
    x[1:] = x[:-1]
    a[1:] = a[:-1].copy()
    assert x.tolist() == a.tolist()
    y = eager.tensor([1.0, 2.0, 3.0])
    y[eager.tensor([1, 0])] = y[:2]
    assert y.tolist() == [2.0, 1.0, 3.0]


def test_assignment_converts_and_broadcasts() -> None:
    x = eager.tensor([[1, 2], [3, 4]])
    x[0] = 9.7
    assert x.tolist() == [[9, 9], [3, 4]]
    x[:, 1] = eager.tensor([[5.0, 6.0]])
    assert x.tolist() == [[9, 5], [3, 6]]
    x[1] = [7, 8]
    assert x.tolist() == [[9, 5], [7, 8]]
    x[x > 7] = 0
    assert x.tolist() == [[0, 5], [7, 0]]
    x[eager.tensor([True, False])] += 1
    assert x.tolist() == [[1, 6], [7, 0]]


def test_augmented_assignment_of_a_part_has_a_gradient() -> None:
    x = eager.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 2
    y[1] *= 5
    y[eager.tensor([0, 2])] += 1
    y.sum().backward()
    assert y.tolist() == [3.0, 20.0, 7.0]
    assert x.grad.tolist() == [2.0, 10.0, 2.0]


def test_setting_writes_through_views() -> None:
    x = eager.tensor(cube())
    x.transpose(0, 2)[0, eager.tensor([1, 2])] = -1
    expected = cube()
    expected.transpose(2, 1, 0)[0, [1, 2]] = -1
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (4, IndexOutOfRange), (-5, IndexOutOfRange), ((0, 0, 0, 0), IndexOutOfRange),
        ((..., ...), ArgumentError), (slice(None, None, -1), ArgumentError),
        (slice(None, None, 0), ValueError), (eager.tensor([4]), IndexOutOfRange),
        (eager.tensor([-5]), IndexOutOfRange), (eager.tensor([1.0]), IndexOutOfRange),
        (eager.tensor([True]), ShapeError), ("a", TypeError), (1.5, TypeError), ({}, TypeError),
        ((eager.tensor([0, 1]), eager.tensor([0, 1, 2])), ShapeError),
        ((0, eager.tensor([9])), IndexOutOfRange), (2**70, ArgumentError),
        ((eager.tensor([0]), eager.tensor([9])), IndexOutOfRange),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_keys(key: Any, error: type[Exception]) -> None:
    x = eager.tensor(cube())
    with pytest.raises(error):
        x[key]
    with pytest.raises(error):
        x[key] = 0
    np.testing.assert_array_equal(x.numpy(), cube())


def test_bad_values() -> None:
    x = eager.tensor(cube())
    with pytest.raises(ShapeError):
        x[0] = eager.tensor([1.0, 2.0])
    with pytest.raises(ShapeError):
        x[0, 0, 0] = eager.tensor([1.0, 2.0])
    with pytest.raises(TypeError):
        x[0] = "text"
    with pytest.raises(TypeError):
        x[0] = None
    with pytest.raises(TypeError):
        del x[0]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_basic_against_numpy(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    a = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    parts = key if isinstance(key, tuple) else (key,)
    x = eager.tensor(a)
    if any(isinstance(p, slice) and p.step is not None and p.step < 0 for p in parts):
        with pytest.raises(ArgumentError):
            x[key]
        return
    np.testing.assert_array_equal(x[key].numpy(), a[key])
    x[key] = -1
    a[key] = -1
    np.testing.assert_array_equal(x.numpy(), a)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_integer_arrays_against_numpy(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    a = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    count = data.draw(st.integers(1, len(shape)))
    broadcast = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=3))
    key = tuple(
        data.draw(hnp.arrays(np.int64, broadcast, elements=st.integers(-n, n - 1)))
        for n in shape[:count]
    )
    np.testing.assert_array_equal(eager.tensor(a)[convert(key)].numpy(), a[key])

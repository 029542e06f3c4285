"""Files in the safetensors format: round trips, other readers and writers, bad files."""

import contextlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import eager
from eager import nn
from eager.errors import ArgumentError, EagerError, SerializationError

DTYPES = [
    eager.float32, eager.float64, eager.float16, eager.bfloat16, eager.int8, eager.int16,
    eager.int32, eager.int64, eager.uint8, eager.bool,
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(path, dtype):
    tensors = {
        "matrix": eager.tensor([[1.0, 0.0, 3.0], [4.0, 5.0, 6.0]]).to(dtype),
        "scalar": eager.tensor(1.0).to(dtype),
        "empty": eager.zeros(0, 3).to(dtype),
        "view": eager.tensor([[1.0, 2.0], [3.0, 0.0]]).to(dtype).t(),
    }
    eager.save_file(tensors, path)
    loaded = eager.load_file(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype and loaded[name].shape == tensor.shape
        assert loaded[name].tolist() == tensor.tolist()


def test_mixed_dtypes_and_names(path):
    tensors = {f"x.{i}.ü": eager.ones(3).to(d) for i, d in enumerate(DTYPES)}
    eager.save_file(tensors, path, {"format": "pt", "note": "ü"})
    loaded = eager.load_file(str(path))
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in tensors.items()}
    assert eager.serialization.load_metadata(path) == {"format": "pt", "note": "ü"}
    eager.save_file({}, path)
    assert eager.load_file(path) == {}


def test_loaded_tensors_own_their_memory(path):
    eager.save_file({"a": eager.zeros(2)}, path)
    a, b = (eager.load_file(path)["a"] for _ in range(2))
    a.fill_(1)
    assert b.tolist() == [0, 0] and eager.load_file(path)["a"].tolist() == [0, 0]


def test_the_safetensors_library_reads_our_files(path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int8)}
    eager.save_file({k: eager.tensor(v) for k, v in arrays.items()}, path, {"k": "v"})
    loaded = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"k": "v"}


def test_we_read_the_safetensors_librarys_files(path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int8)}
    safetensors.numpy.save_file(arrays, path)
    loaded = eager.load_file(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)


def test_modules(path):
    net = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    eager.save_file(net.state_dict(), path)
    other = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    other.load_state_dict(eager.load_file(path))
    assert other[0].weight.tolist() == net[0].weight.tolist()


def test_replacing_is_atomic(path, monkeypatch):
    eager.save_file({"a": eager.ones(1)}, path)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(SerializationError, match="disk full"):
        eager.save_file({"a": eager.zeros(1)}, path)
    assert eager.load_file(path)["a"].tolist() == [1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_saved(path):
    with pytest.raises(ArgumentError, match="'a': list"):
        eager.save_file({"a": [1]}, path)
    with pytest.raises(ArgumentError):
        eager.save_file({"__metadata__": eager.ones(1)}, path)
    with pytest.raises(ArgumentError, match="metadata"):
        eager.save_file({}, path, {"a": 1})
    with pytest.raises(SerializationError, match="missing"):
        eager.save_file({}, path.parent / "missing" / "file")
    assert not path.exists()


# --- bad files ----------------------------------------------------------------------------------


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "not json": (b"{bad", b""),
    "not utf-8": (b"\xff\xfe{}", b""),
    "not an object": ([], b""),
    "entry not an object": ({"a": 1}, b""),
    "entry incomplete": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "unknown dtype": ({"a": entry("F8")}, bytes(8)),
    "dtype not text": ({"a": entry(["F32"])}, bytes(8)),
    "negative size": ({"a": entry(shape=(-2,))}, bytes(8)),
    "fractional size": ({"a": entry(shape=(2.0,))}, bytes(8)),
    "true as size": ({"a": entry(shape=(True, 2))}, bytes(8)),
    "huge size": ({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "offsets do not fit": ({"a": entry(offsets=(0, 4))}, bytes(4)),
    "offsets reversed": ({"a": entry(offsets=(8, 0))}, bytes(8)),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, bytes(8)),
    "overlap": ({"a": entry(), "b": entry()}, bytes(8)),
    "gap": ({"a": entry(offsets=(4, 12))}, bytes(12)),
    "truncated data": ({"a": entry()}, bytes(7)),
    "trailing data": ({"a": entry()}, bytes(9)),
    "metadata not text": ({"__metadata__": {"a": 1}}, b""),
    "metadata not an object": ({"__metadata__": "a"}, b""),
    "name twice": (b'{"a":{},"a":{}}', b""),
    "deep nesting": (b"[" * 100000, b""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(path, case):
    write(path, *BAD[case])
    with pytest.raises(SerializationError, match=r"weights\.safetensors") as caught:
        eager.load_file(path)
    assert "expected:" in str(caught.value) and "given:" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63), bytes(8)])
def test_too_short_files(path, content):
    path.write_bytes(content)
    with pytest.raises(SerializationError, match=r"weights\.safetensors"):
        eager.load_file(path)


def test_header_longer_than_the_file(path):
    write(path, {}, length=1000)
    with pytest.raises(SerializationError, match="header"):
        eager.load_file(path)


def test_missing_file(path):
    with pytest.raises(SerializationError, match=r"weights\.safetensors"):
        eager.load_file(path)


def test_every_truncation_is_noticed(path):
    eager.save_file({"a": eager.ones(3), "b": eager.ones(2, dtype=eager.int64)}, path)
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(SerializationError):
            eager.load_file(path)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_corrupt_bytes_never_crash(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    eager.save_file({"a": eager.ones(3), "b": eager.ones(2, dtype=eager.int64)}, path)
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data)
    with contextlib.suppress(SerializationError):
        eager.load_file(path)


# --- nested dictionaries ------------------------------------------------------------------------


def test_save_and_load_nested(path):
    weight = eager.ones(2, 2)
    state = {
        "model": {"fc.weight": weight, "fc": {"weight": weight * 2}},
        "optimizer": {"state": {0: {"step": eager.tensor(3.0)}}, "groups": [{"betas": (0.9, 0.5)}]},
        "epoch": 3,
        "name": "run",
        "best": None,
        "done": False,
        "loss": float("inf"),
        "empty": [],
    }
    eager.save(state, path)
    loaded = eager.load(path)
    assert loaded["model"]["fc.weight"].tolist() == weight.tolist()
    assert loaded["model"]["fc"]["weight"].tolist() == (weight * 2).tolist()
    assert loaded["optimizer"]["state"][0]["step"].item() == 3
    assert loaded["optimizer"]["groups"] == [{"betas": (0.9, 0.5)}]
    plain = ("epoch", "name", "best", "done", "loss", "empty")
    assert {k: loaded[k] for k in plain} == {k: state[k] for k in plain}
    assert list(loaded) == list(state)


def test_load_of_a_plain_file(path):
    eager.save_file({"a": eager.ones(1)}, path)
    assert eager.load(path)["a"].tolist() == [1]


def test_save_rejects_other_objects(path):
    for value in (object(), {"a": nn.Linear(1, 1)}, {"a": {1.5: 1}}, {"a": lambda: 0}):
        with pytest.raises(ArgumentError, match="cannot be saved"):
            eager.save(value, path)
    assert not path.exists()


@pytest.mark.parametrize("structure", ["{", '{"code": "x"}', '{"tensor": "none"}', '{"list": 3}'])
def test_bad_structure(path, structure):
    eager.save_file({}, path, {"structure": structure})
    with pytest.raises(EagerError, match="structure"):
        eager.load(path)

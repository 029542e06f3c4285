"""Tensors in files, in the safetensors format.

A file is the length of its header (8 bytes, little-endian), the header (JSON: for each name the
dtype, the shape and the byte range of the data, and optional string metadata), and the data, row
by row and little-endian.  Nothing in a file is ever executed.  Reading checks every statement of
the header against the file before a tensor is made; writing goes to a temporary file that then
takes the name, so that a reader sees the old file or the new one, whole.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import eager
from eager import Tensor
from eager.errors import ArgumentError, SerializationError, helpful

FilePath = str | os.PathLike[str]

_NAMES = {
    eager.float32: "F32", eager.float64: "F64", eager.float16: "F16", eager.bfloat16: "BF16",
    eager.int8: "I8", eager.int16: "I16", eager.int32: "I32", eager.int64: "I64",
    eager.uint8: "U8", eager.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_MAX_HEADER = 100_000_000  # the format's limit
_ALIGNMENT = 8


class _Entry(NamedTuple):
    dtype: Any
    shape: tuple[int, ...]
    begin: int
    end: int


# --- writing ------------------------------------------------------------------------------------


def save_file(
    tensors: Mapping[str, Tensor], filename: FilePath, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` to `filename`, replacing it at once when complete.

    Raises ArgumentError for names or metadata that are not strings or values that are not
    tensors, and SerializationError, naming the path, if the file cannot be written.
    """
    entries = _check_saved(tensors, metadata)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in entries:
        end = at + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    path = Path(filename)
    temporary: str | None = None
    try:
        # In the same directory, because a rename is atomic only within a file system.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, tensor in entries:
                file.write(_bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise SerializationError(f"save_file: cannot write {str(path)!r}: {error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _check_saved(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> list[tuple[str, Tensor]]:
    """The entries in the order they are written: wide dtypes first, which aligns all of them."""
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(tensor, Tensor):
            raise helpful(
                ArgumentError, "save_file", "an entry cannot be saved",
                expected="a mapping from names to tensors",
                given=f"{name!r}: {type(tensor).__name__}",
            )  # fmt: skip
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise helpful(
                ArgumentError, "save_file", "metadata must be text",
                expected="a mapping from str to str", given=f"{key!r}: {value!r}",
            )  # fmt: skip
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def _bytes(tensor: Tensor) -> Any:
    """The elements in row-major order as a flat array of bytes; a copy only if they are not."""
    array = tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8)
    if sys.byteorder == "big":
        array = array.reshape(-1, tensor.dtype.itemsize)[:, ::-1].copy()
    return array.data


def _mode(path: Path) -> int:
    """The permissions an ordinary new file would have, or those of the file that is replaced."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


# --- reading ------------------------------------------------------------------------------------


def load_file(filename: FilePath, device: Any = "cpu") -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file.

    Raises SerializationError, naming the path and the problem, if the file cannot be read, is
    truncated or corrupt, or holds a dtype that does not exist here.
    """
    path = Path(filename)
    try:
        with path.open("rb") as file:
            entries, _, start = _read_header(path, file)
            result = {}
            for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
                tensor = eager.empty(*entry.shape, dtype=entry.dtype)
                if entry.end > entry.begin:
                    file.seek(start + entry.begin)
                    _fill(path, file, name, tensor)
                result[name] = tensor.to(device)
            return result
    except OSError as error:
        raise SerializationError(f"load_file: cannot read {str(path)!r}: {error}") from error


def load_metadata(filename: FilePath) -> dict[str, str]:
    """The string metadata of a safetensors file.  Raises as `load_file`."""
    path = Path(filename)
    try:
        with path.open("rb") as file:
            return _read_header(path, file)[1]
    except OSError as error:
        raise SerializationError(f"load_metadata: cannot read {str(path)!r}: {error}") from error


def _fill(path: Path, file: IO[bytes], name: str, tensor: Tensor) -> None:
    array = tensor.numpy().reshape(-1).view(np.uint8)
    if file.readinto(array.data) != array.size:  # type: ignore[attr-defined]
        raise _corrupt(path, f"the file ends within {name!r}", f"{array.size} bytes", "fewer")
    if sys.byteorder == "big":
        array[:] = array.reshape(-1, tensor.dtype.itemsize)[:, ::-1].reshape(-1)


def _corrupt(path: Path, problem: str, expected: str, given: str) -> Exception:
    return helpful(
        SerializationError, f"load_file {str(path)!r}", problem, expected=expected, given=given,
        hint="the file is corrupt or not a safetensors file; write it anew",
    )  # fmt: skip


def _read_header(path: Path, file: IO[bytes]) -> tuple[dict[str, _Entry], dict[str, str], int]:
    """(entries, metadata, where the data begins), all checked against the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise _corrupt(path, "the file is truncated", "at least 8 bytes", f"{size} bytes")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_HEADER):
        raise _corrupt(
            path, "the header does not fit into the file",
            f"a header of at most {min(size - 8, _MAX_HEADER)} bytes", f"{length} bytes",
        )  # fmt: skip
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "the header is not valid JSON", "JSON text", str(error)) from error
    if not isinstance(header, dict):
        raise _corrupt(path, "the header is not an object", "{...}", type(header).__name__)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(path, "the metadata is not text", "strings by name", repr(metadata)[:80])
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != at:
            raise _corrupt(
                path, f"the data of {name!r} leaves a gap or overlaps another tensor's",
                f"a beginning at byte {at}", f"{entry.begin}",
            )  # fmt: skip
        at = entry.end
    if at != size - 8 - length:
        raise _corrupt(
            path, "the file is truncated or too long",
            f"{at} bytes of data", f"{size - 8 - length}",
        )  # fmt: skip
    return entries, metadata, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(path: Path, name: str, value: Any) -> _Entry:
    """One checked statement of the header."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(
            path, f"the header's entry {name!r} is malformed",
            "dtype, shape and data_offsets", repr(value)[:80],
        )  # fmt: skip
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise helpful(
            SerializationError, f"load_file {str(path)!r}", f"{name!r} has an unknown dtype",
            expected=", ".join(_DTYPES), given=repr(dtype),
        )  # fmt: skip
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise _corrupt(path, f"the shape of {name!r} is malformed", "sizes", repr(shape)[:80])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _corrupt(
            path, f"the offsets of {name!r} are malformed", "[begin, end]", repr(offsets)[:80]
        )
    nbytes = prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise _corrupt(
            path, f"the data of {name!r} does not fit its shape",
            f"{nbytes} bytes for {dtype} {shape}", f"{offsets[1] - offsets[0]}",
        )  # fmt: skip
    return _Entry(_DTYPES[dtype], tuple(shape), *offsets)


# --- nested dictionaries ------------------------------------------------------------------------


def save(obj: Mapping[str, Any], f: FilePath) -> None:
    """Writes a dictionary of tensors, numbers, strings, None, lists and dictionaries.

    Tensors go into a safetensors file under their path (``model.fc.weight``), the structure and
    everything else as JSON into its metadata.  Other objects raise ArgumentError: unlike a pickle,
    the file can be read without running code.
    """
    tensors: dict[str, Tensor] = {}
    structure = _flatten(obj, "", tensors)
    save_file(tensors, f, {"structure": json.dumps(structure)})


def load(f: FilePath) -> Any:
    """Reads what `save` wrote; a file that `save_file` wrote gives its dictionary of tensors."""
    tensors = load_file(f)
    structure = load_metadata(f).get("structure")
    if structure is None:
        return tensors
    try:
        return _unflatten(json.loads(structure), tensors)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _corrupt(
            Path(f), "the structure is malformed", "what save wrote", repr(error)
        ) from error


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON: one-key objects {"tensor": name}, {"list": ...}, {"tuple": ...},
    {"dict": [[key, value], ...]}, and plain values as they are."""
    if isinstance(value, Tensor):
        name = path
        while name in tensors:
            name += "_"
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    below = f"{path}." if path else ""
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise _unsaved(f"{path}[{key!r}]", key)
            pairs.append([key, _flatten(item, f"{below}{key}", tensors)])
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{below}{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise _unsaved(path, value)


def _unsaved(path: str, value: Any) -> Exception:
    return helpful(
        ArgumentError, "save", f"{path or 'the object'} cannot be saved",
        expected="tensors, numbers, strings, None, lists, tuples and dictionaries",
        given=type(value).__name__, hint="save the state_dict() of a module or an optimizer",
    )  # fmt: skip


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"no such kind: {kind}")
    items = [_unflatten(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items

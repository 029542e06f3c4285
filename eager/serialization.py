"""Tensors in files, in the safetensors format.

The `safetensors` library reads and writes the format; here are the rules around it: writing goes
to a temporary file that then takes the name, so that a reader sees the old file or the new one,
whole; and whatever is wrong with a file is a `SerializationError` that names it.  Nothing in a
file is ever executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eager
from eager import Tensor
from eager.errors import ArgumentError, DTypeError, SerializationError, helpful
from eager.structure import Structure

if TYPE_CHECKING:
    from collections.abc import Iterator

FilePath = str | os.PathLike[str]


# --- writing ------------------------------------------------------------------------------------


def save_file(
    tensors: Mapping[str, Tensor], filename: FilePath, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` to `filename`, replacing it at once when complete.

    Raises ArgumentError for names or metadata that are not strings or values that are not
    tensors, and SerializationError, naming the path, if the file cannot be written.
    """
    from safetensors import SafetensorError, TensorSpec, serialize_file

    _check_saved(tensors, metadata)
    packed = {name: t.detach().contiguous() for name, t in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=t.dtype.name, shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in packed.items()  # which stay alive while they are written
    }
    path = Path(filename)
    temporary: str | None = None
    try:
        # In the same directory, because a rename is atomic only within a file system.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "rb") as file:
            serialize_file(specs, temporary, metadata=dict(metadata) if metadata else None)
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
        temporary = None
    except (OSError, SafetensorError) as error:
        raise SerializationError(f"save_file: cannot write {str(path)!r}: {error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _check_saved(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
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
    with _opened("load_file", filename) as file:
        return {name: eager.from_numpy(file.get_tensor(name)).to(device) for name in file.keys()}  # noqa: SIM118


def load_metadata(filename: FilePath) -> dict[str, str]:
    """The string metadata of a safetensors file.  Raises as `load_file`."""
    with _opened("load_metadata", filename) as file:
        return file.metadata() or {}


@contextmanager
def _opened(op: str, filename: FilePath) -> Iterator[Any]:
    """The file's handle in the library; its failures, and ours with what it holds, are ours."""
    import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by name once this is imported)
    from safetensors import SafetensorError, safe_open

    path = Path(filename)
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except OSError as error:
        raise SerializationError(f"{op}: cannot read {str(path)!r}: {error}") from error
    except (SafetensorError, DTypeError, ValueError, TypeError) as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, problem: str) -> Exception:
    return helpful(
        SerializationError, f"load_file {str(path)!r}", "the file cannot be understood",
        expected="a whole safetensors file with dtypes that exist here", given=problem,
        hint="the file is truncated, corrupt or of another kind; write it anew",
    )  # fmt: skip


# --- nested dictionaries ------------------------------------------------------------------------


def save(obj: Mapping[str, Any], f: FilePath) -> None:
    """Writes a dictionary of tensors, numbers, strings, None, lists and dictionaries.

    Tensors go into a safetensors file under their path (``model.fc.weight``), the structure and
    everything else as JSON into its metadata.  Other objects raise ArgumentError: unlike a pickle,
    the file can be read without running code.
    """
    packed = Structure()
    structure = packed.pack(obj)
    save_file(packed.tensors, f, {"structure": json.dumps(structure)})


def load(f: FilePath) -> Any:
    """Reads what `save` wrote; a file that `save_file` wrote gives its dictionary of tensors."""
    tensors = load_file(f)
    structure = load_metadata(f).get("structure")
    if structure is None:
        return tensors
    try:
        return Structure(tensors).unpack(json.loads(structure))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _corrupt(Path(f), f"a structure that save did not write: {error!r}") from error

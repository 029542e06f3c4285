"""Checkpoints that are there: finding, checking and loading them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eager import Tensor
from eager.distributed.checkpoint.content import Content, merged
from eager.distributed.checkpoint.manifest import Path_, damaged, digest, manifest, manifests
from eager.distributed.checkpoint.ranks import gathered, group_of
from eager.errors import EagerError, SerializationError
from eager.serialization import load_file, load_metadata

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup


def verify(path: Path_) -> None:
    """Reads all of a checkpoint and compares sizes and checksums.

    Raises:
        SerializationError: it is damaged or incomplete; the text says what.
    """
    folder = Path(path)
    for shard in manifest(folder)["shards"]:
        file = folder / shard["name"]
        try:
            if file.stat().st_size != shard["bytes"]:
                raise damaged(folder, f"{shard['name']} has another size")
            if digest(file)[1] != shard["sha256"]:
                raise damaged(folder, f"{shard['name']} has another checksum")
        except OSError as error:
            raise damaged(folder, f"{shard['name']}: {error}") from error


def latest(path: Path_, *, process_group: ProcessGroup | None = None) -> Path | None:
    """The newest checkpoint in the directory `path` that is whole; None if there is none.

    Collective if this process is part of a job: rank 0 looks, so that all ranks agree.
    """
    group = group_of(process_group)
    found: str | None = None
    if group is None or group.rank() == 0:
        for folder, _ in manifests(Path(path)):
            try:
                verify(folder)
            except SerializationError:
                continue
            found = str(folder)
            break
    answer = gathered(group, found)[0]
    return None if answer is None else Path(answer)


def load(
    path: Path_, *, process_group: ProcessGroup | None = None, check: bool = True
) -> dict[str, Any]:
    """What `save` was given on all ranks, put together.  Not collective.

    Args:
        path: the checkpoint's directory.
        check: compare checksums first; `latest` has done so for what it returns.

    Raises:
        SerializationError: it is damaged or incomplete.
    """
    group = group_of(process_group)
    rank = 0 if group is None else group.rank()
    folder = Path(path)
    shards = manifest(folder)["shards"]
    if check:
        verify(folder)
    tensors: dict[str, Tensor] = {}
    structures = []
    try:
        for shard in shards:
            file = folder / shard["name"]
            tensors.update(load_file(file))
            structures.append(json.loads(load_metadata(file)["structure"]))
        whole = functools.reduce(merged, structures)
        result = Content(rank, len(shards), tensors).unpack(whole)
    except EagerError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"a structure that save did not write: {error!r}") from error
    if not isinstance(result, dict):
        raise damaged(folder, "its content is no dictionary")
    return result

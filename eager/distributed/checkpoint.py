"""Checkpoints of a job: sharded, asynchronous, atomic, checksummed.

A checkpoint is a directory::

    step-000400/
        shard-00000-of-00002.safetensors    tensors that rank 0 has written, and its structure
        shard-00001-of-00002.safetensors
        manifest.json                       sizes and SHA-256 of the shards; written last

Ranks see one file system.  They write into a hidden directory beside it, which rank 0 renames
when all have reported: what has the final name is complete.  Entries that all ranks have are
written by one of them each; entries that only some ranks have (the state of a
`ZeroRedundancyOptimizer`) by these.  `load` puts all shards together, so the number of ranks may
change in between.

    state = {"model": model.state_dict(), "optimizer": optimizer.local_state_dict(), "step": step,
             "random": checkpoint.PerRank(eager.get_rng_state())}
    checkpoint.async_save(state, f"{root}/step-{step:06}", keep=3)
    ...
    found = checkpoint.latest(root)
    if found is not None:
        state = checkpoint.load(found)
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eager import Tensor
from eager.distributed.errors import PeerLost, Timeout
from eager.errors import ArgumentError, EagerError, SerializationError, helpful
from eager.serialization import load_file, load_metadata, save_file
from eager.structure import Structure

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup

__all__ = ["PerRank", "Save", "async_save", "latest", "load", "save", "verify"]

FORMAT = "eager.distributed.checkpoint 1"
MANIFEST = "manifest.json"
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")
_RANK = "rank "  # keys of a PerRank's dictionary
_HIDDEN = ".writing-"
_POLL = 0.01  # seconds between looks for other ranks' reports
_MANIFEST_LIMIT = 64 << 20

Path_ = str | os.PathLike[str]


class PerRank:
    """A value that differs between ranks, such as the state of a random stream.

    `load` gives rank r that of the rank r, or of r modulo the number of ranks there were.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class Save:
    """A checkpoint that is being written.  What was saved may change meanwhile."""

    def __init__(self, path: Path, work: Callable[[], None]) -> None:
        self.path = path
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()  # not a daemon: a program that ends finishes it

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        """Whether this rank's part has ended; on rank 0, whether the checkpoint is complete."""
        return not self._thread.is_alive()

    def exception(self) -> BaseException | None:
        """What went wrong; None if nothing did, or while it runs."""
        return self._error if self.done() else None

    def wait(self, timeout: float | None = None) -> Path:
        """Waits until `done`; returns the path, or raises what went wrong.

        Raises:
            Timeout: `timeout` seconds have passed; writing goes on.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise helpful(Timeout, "checkpoint", "still being written", f"{timeout} seconds",
                          str(self.path))  # fmt: skip
        if self._error is not None:
            raise self._error
        return self.path


# The last save by number of the group (-1: none): a rank writes one checkpoint at a time.
_last: dict[int, Save] = {}


def save(
    state_dict: Mapping[str, Any], path: Path_, *, keep: int | None = None, async_: bool = False,
    process_group: ProcessGroup | None = None, timeout: float = 600.0,
) -> Save:  # fmt: skip
    """Writes a checkpoint.  Collective; without a job, of this process alone.

    Args:
        state_dict: nested dictionaries, lists and tuples of tensors, numbers, strings, None and
            `PerRank`.  Entries that several ranks have must be equal on them.
        path: the directory to make; an earlier checkpoint of that name is replaced.
        keep: delete all but the newest `keep` checkpoints beside it afterwards.
        async_: return once the tensors are copied, and write on a thread.
        timeout: seconds that rank 0 waits for the other ranks' shards.

    Returns:
        A handle; unless `async_`, of a checkpoint that is complete on all ranks.

    Raises:
        ArgumentError: an entry cannot be saved, `keep` is below 1, or something that is no
            checkpoint has the name.
        SerializationError: a file cannot be written; on all ranks unless `async_`.
        Timeout, PeerLost: a rank did not report.  Nothing then has the final name.
    """
    if keep is not None and keep < 1:
        raise helpful(ArgumentError, "checkpoint.save", "keep must leave something",
                      "None, or at least 1", str(keep))  # fmt: skip
    group = _group(process_group)
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    number = -1 if group is None else group.id
    if number in _last:
        _last[number]._thread.join()  # its error is for who holds the handle
    target = Path(path).absolute()
    packed = _Structure(rank, size)
    structure = packed.pack(state_dict)
    tensors = packed.tensors
    named = [(name, t.nbytes) for name, t in tensors.items()]
    occupied = _is_something_else(target)
    everyone = _gathered(group, (named, secrets.token_hex(8), str(target), occupied))
    if any(entry[3] for entry in everyone):
        raise helpful(
            ArgumentError, "checkpoint.save", "something else has this name",
            "a new name, or a checkpoint, which is replaced", str(target),
        )  # fmt: skip
    nonce = everyone[0][1]
    mine = _share([entry[0] for entry in everyone], rank)
    snapshot = {n: tensors[n].detach().clone() if async_ else tensors[n].detach() for n in mine}
    folder = target.parent / f"{_HIDDEN}{target.name}-{nonce}"
    shard = _Shard(folder, rank, size, target, None if group is None else group.backend.lost)

    def work() -> None:
        shard.write(snapshot, structure)
        snapshot.clear()
        if rank == 0:
            shard.publish(timeout)
            if keep is not None:
                _prune(target.parent, keep)

    _last[number] = handle = Save(target, work)
    if async_:
        return handle
    handle._thread.join()
    problems = _gathered(group, None if handle._error is None else str(handle._error))
    handle.wait()
    for r, problem in enumerate(problems):
        if problem is not None:
            raise SerializationError(f"checkpoint.save: rank {r} has failed\n  {problem}")
    return handle


def async_save(state_dict: Mapping[str, Any], path: Path_, **options: Any) -> Save:
    """`save` with ``async_=True``."""
    return save(state_dict, path, async_=True, **options)


# --- writing -------------------------------------------------------------------------------------


def _group(given: ProcessGroup | None) -> ProcessGroup | None:
    from eager.distributed import process_group

    if given is None and not process_group.is_initialized():
        return None
    return process_group.resolve(given, "checkpoint")


def _gathered(group: ProcessGroup | None, value: Any) -> list[Any]:
    """Every rank's `value`."""
    if group is None or group.size() == 1:
        return [value]
    from eager.distributed.object_collectives import all_gather_object

    found: list[Any] = [None] * group.size()
    all_gather_object(found, value, group=group)
    return found


class _Structure(Structure):
    """With `PerRank`: ``{"rank": [["rank r", value], ...]}``.  Names are the same on all ranks,
    whatever else they hold."""

    op = "checkpoint.save"
    kinds = "tensors, numbers, strings, None, lists, tuples, dictionaries and PerRank"

    def __init__(self, rank: int, ranks: int, tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(tensors)
        self.rank, self.ranks = rank, ranks

    def name(self, path: str) -> str:
        return path

    def below(self, path: str, key: str | int) -> str:
        if isinstance(key, int):
            return f"{path}/{key}#"
        # the length keeps "a/b": {"c": x} and "a": {"b/c": x} apart
        return f"{path}/{key}" if "/" not in key else f"{path}/{len(key)}:{key}"

    def pack(self, value: Any, path: str = "") -> Any:
        if not isinstance(value, PerRank):
            return super().pack(value, path)
        key = f"{_RANK}{self.rank}"
        return {"rank": [[key, self.pack(value.value, f"{path}/{key}")]]}

    def unpack(self, value: Any) -> Any:
        if not isinstance(value, dict) or "rank" not in value:
            return super().unpack(value)
        ((_, content),) = value.items()
        return self.unpack(dict(content)[f"{_RANK}{self.rank % self.ranks}"])


def _share(names: list[list[tuple[str, int]]], rank: int) -> list[str]:
    """What `rank` writes: each entry goes to that of its owners which has least to write."""
    owners: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for r, entries in enumerate(names):
        for name, nbytes in entries:
            owners.setdefault(name, []).append(r)
            sizes[name] = nbytes
    loads = [0] * len(names)
    mine = []
    for name in sorted(owners, key=lambda n: (-sizes[n], n)):
        chosen = min(owners[name], key=loads.__getitem__)
        loads[chosen] += sizes[name]
        if chosen == rank:
            mine.append(name)
    return mine


class _Shard:
    """One rank's part in writing the checkpoint `target`; ``lost()`` tells of a lost rank."""

    def __init__(
        self, folder: Path, rank: int, size: int, target: Path,
        lost: Callable[[], int] | None,
    ) -> None:  # fmt: skip
        self.folder, self.rank, self.size, self.target = folder, rank, size, target
        self.lost = lost

    def write(self, tensors: dict[str, Tensor], structure: Any) -> None:
        """The shard, then the report that it is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"shard-{self.rank:05}-of-{self.size:05}.safetensors"
            save_file(tensors, file, {"structure": json.dumps(structure)})
            size, digest = _digest(file)
            _write(self._report(self.rank), {"name": file.name, "bytes": size, "sha256": digest})
        except OSError as error:
            raise SerializationError(
                f"checkpoint.save: cannot write {self.folder}: {error}"
            ) from error

    def _report(self, rank: int) -> Path:
        return self.folder / f"report-{rank:05}.json"

    def publish(self, timeout: float) -> None:
        """On rank 0: waits for all reports, writes the manifest, and gives the final name."""
        try:
            self._await_reports(timeout)
            shards = [json.loads(self._report(r).read_text()) for r in range(self.size)]
            number = 1 + max((m["number"] for _, m in _manifests(self.target.parent)), default=0)
            _write(self.folder / MANIFEST, {"format": FORMAT, "number": number, "shards": shards})
            for r in range(self.size):
                self._report(r).unlink()
            _sync(self.folder)
            if not (self.target.exists() and _exchange(self.folder, self.target)):
                if self.target.exists():
                    os.rename(self.target, self.folder.with_name(self.folder.name + "-replaced"))
                os.rename(self.folder, self.target)
            _sync(self.target.parent)
            # What crashed writers have left, too: one job at a time writes here.
            for left in self.target.parent.glob(f"{_HIDDEN}*"):
                shutil.rmtree(left, ignore_errors=True)
        except (Timeout, PeerLost):  # which are OSErrors
            raise
        except OSError as error:
            raise SerializationError(
                f"checkpoint.save: cannot write {self.target}: {error}"
            ) from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _await_reports(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while missing := [r for r in range(self.size) if not self._report(r).exists()]:
            if self.lost is not None and (gone := self.lost()) >= 0:
                raise PeerLost(f"checkpoint.save: rank {gone} is lost; {self.target} is not made",
                               gone)  # fmt: skip
            if time.monotonic() > deadline:
                raise helpful(
                    Timeout, "checkpoint.save", f"no shard came from ranks {missing[:16]}",
                    expected=f"all shards within {timeout:g} s", given=str(self.folder),
                )  # fmt: skip
            time.sleep(_POLL)


def _digest(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    size = 0
    with file.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _write(file: Path, content: Any) -> None:
    """A JSON file that is there as a whole or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as f:
        json.dump(content, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, file)


def _is_something_else(target: Path) -> bool:
    """Whether what has this name is neither a checkpoint nor an empty directory, or cannot be
    looked into: an error here, on one rank, would leave the others waiting."""
    try:
        if not target.is_dir():
            return target.exists()
        return not (target / MANIFEST).is_file() and next(target.iterdir(), None) is not None
    except OSError:
        return True


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names at one instant; False if the system cannot (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # of this file system or kernel
        return False
    raise OSError(number, os.strerror(number), str(b))


def _sync(folder: Path) -> None:
    """Makes renames in `folder` survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(root: Path, keep: int) -> None:
    for folder, _ in _manifests(root)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


# --- reading -------------------------------------------------------------------------------------


def _manifests(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoints in `root` whose manifests can be read, newest first."""
    found = []
    try:
        folders = list(root.iterdir())
    except OSError:
        return []
    for folder in folders:
        if folder.name.startswith(_HIDDEN):
            continue
        try:
            found.append((folder, _manifest(folder)))
        except SerializationError:
            continue
    return sorted(found, key=lambda pair: -pair[1]["number"])


def _damaged(folder: Path, problem: str) -> Exception:
    return helpful(
        SerializationError, f"checkpoint {str(folder)!r}", "it is damaged or incomplete",
        expected="a directory that checkpoint.save has made", given=problem,
        hint="latest() finds the newest checkpoint that is whole",
    )  # fmt: skip


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with every field of the type it should have."""
    try:
        with (folder / MANIFEST).open("rb") as f:
            data = f.read(_MANIFEST_LIMIT + 1)
        content = json.loads(data) if len(data) <= _MANIFEST_LIMIT else None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST}: {error}") from error
    shards = content.get("shards") if isinstance(content, dict) else None
    fine = (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and type(content.get("number")) is int
        and isinstance(shards, list)
        and bool(shards)
        and all(
            isinstance(s, dict)
            and isinstance(s.get("name"), str)
            and _SHARD.fullmatch(s["name"]) is not None
            and type(s.get("bytes")) is int
            and isinstance(s.get("sha256"), str)
            for s in shards
        )
        and len({s["name"] for s in shards}) == len(shards)
    )
    if not fine:
        raise _damaged(folder, f"{MANIFEST} is not one of {FORMAT!r}")
    assert isinstance(content, dict)
    return content


def verify(path: Path_) -> None:
    """Reads all of a checkpoint and compares sizes and checksums.

    Raises:
        SerializationError: it is damaged or incomplete; the text says what.
    """
    folder = Path(path)
    for shard in _manifest(folder)["shards"]:
        file = folder / shard["name"]
        try:
            if file.stat().st_size != shard["bytes"]:
                raise _damaged(folder, f"{shard['name']} has another size")
            if _digest(file)[1] != shard["sha256"]:
                raise _damaged(folder, f"{shard['name']} has another checksum")
        except OSError as error:
            raise _damaged(folder, f"{shard['name']}: {error}") from error


def latest(path: Path_, *, process_group: ProcessGroup | None = None) -> Path | None:
    """The newest checkpoint in the directory `path` that is whole; None if there is none.

    Collective if this process is part of a job: rank 0 looks, so that all ranks agree.
    """
    group = _group(process_group)
    found: str | None = None
    if group is None or group.rank() == 0:
        for folder, _ in _manifests(Path(path)):
            try:
                verify(folder)
            except SerializationError:
                continue
            found = str(folder)
            break
    answer = _gathered(group, found)[0]
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
    group = _group(process_group)
    rank = 0 if group is None else group.rank()
    folder = Path(path)
    shards = _manifest(folder)["shards"]
    if check:
        verify(folder)
    tensors: dict[str, Tensor] = {}
    structures = []
    try:
        for shard in shards:
            file = folder / shard["name"]
            tensors.update(load_file(file))
            structures.append(json.loads(load_metadata(file)["structure"]))
        merged = structures[0]
        for other in structures[1:]:
            merged = _merged(merged, other)
        result = _Structure(rank, len(shards), tensors).unpack(merged)
    except EagerError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"a structure that save did not write: {error!r}") from error
    if not isinstance(result, dict):
        raise _damaged(folder, "its content is no dictionary")
    return result


def _merged(a: Any, b: Any) -> Any:
    """Dictionaries have the keys of both; elsewhere the first counts."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a
    (kind, one), (other_kind, two) = *a.items(), *b.items()
    if kind != other_kind or kind == "tensor":
        return a
    if kind in ("dict", "rank"):
        known = {_key(k): i for i, (k, _) in enumerate(one)}
        pairs = [list(pair) for pair in one]
        for k, v in two:
            at = known.get(_key(k))
            if at is None:
                pairs.append([k, v])
            else:
                pairs[at][1] = _merged(pairs[at][1], v)
        if len(pairs) > len(one) and all(type(k) is int for k, _ in pairs):
            pairs.sort(key=lambda pair: pair[0])  # numbers of parameters
        return {kind: pairs}
    if len(one) != len(two):
        return a
    return {kind: [_merged(x, y) for x, y in zip(one, two, strict=True)]}


def _key(key: str | int) -> tuple[bool, str | int]:
    return isinstance(key, int), key

"""One rank's part in writing a checkpoint, and the instant at which it is complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eager import Tensor
from eager.distributed.checkpoint.manifest import FORMAT, HIDDEN, MANIFEST, digest, manifests
from eager.distributed.errors import PeerLost, Timeout
from eager.errors import SerializationError, helpful
from eager.serialization import save_file

_POLL = 0.01  # seconds between looks for other ranks' reports


class Shard:
    """One rank's part in writing the checkpoint `target`; ``lost()`` tells of a lost rank."""

    def __init__(
        self, folder: Path, rank: int, size: int, target: Path,
        lost: Callable[[], int] | None,
    ) -> None:  # fmt: skip
        self.folder, self.rank, self.size, self.target = folder, rank, size, target
        self.lost = lost

    def write(self, tensors: dict[str, Tensor], structure: Any) -> None:
        """The shard, then the report that it is there, or why not."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"shard-{self.rank:05}-of-{self.size:05}.safetensors"
            save_file(tensors, file, {"structure": json.dumps(structure)})
            size, sha256 = digest(file)
            _write(self._report(self.rank), {"name": file.name, "bytes": size, "sha256": sha256})
        except Exception as error:
            with contextlib.suppress(OSError):  # rank 0 notices at its deadline
                _write(self._report(self.rank), {"failed": str(error)})
            if not isinstance(error, OSError):
                raise
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
            for r, shard in enumerate(shards):
                if "failed" in shard:
                    raise SerializationError(f"checkpoint.save: rank {r}: {shard['failed']}")
            number = 1 + max((m["number"] for _, m in manifests(self.target.parent)), default=0)
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
            for left in self.target.parent.glob(f"{HIDDEN}*"):
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


def _write(file: Path, content: Any) -> None:
    """A JSON file that is there as a whole or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as f:
        json.dump(content, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, file)


def is_something_else(target: Path) -> bool:
    """Whether what has this name is neither a checkpoint nor an empty directory, or cannot be
    looked into: it must not be replaced."""
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


def prune(root: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints in `root`."""
    for folder, _ in manifests(root)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)

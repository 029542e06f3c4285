"""Writing a checkpoint: what each rank writes, and when all have."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eager.distributed.checkpoint.content import Content
from eager.distributed.checkpoint.manifest import HIDDEN, Path_
from eager.distributed.checkpoint.ranks import gathered, group_of
from eager.distributed.checkpoint.shard import Shard, is_something_else, prune
from eager.distributed.errors import Timeout
from eager.errors import ArgumentError, SerializationError, helpful

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup


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
        ArgumentError: on one rank an entry cannot be saved, `keep` is below 1, or something that
            is no checkpoint has the name; or the names differ.  On all ranks.
        SerializationError: a file cannot be written; on all ranks unless `async_`.
        Timeout, PeerLost: a rank did not report.  Nothing then has the final name.
    """
    group = group_of(process_group)
    rank, size = (0, 1) if group is None else (group.rank(), group.size())
    number = -1 if group is None else group.id
    if number in _last:
        _last[number]._thread.join()  # its error is for who holds the handle
    target, content, structure = Path(), Content(rank, size), None
    refused: Exception | None = None
    try:
        target = _checked(path, keep)
        structure = content.pack(state_dict)
    except Exception as error:  # told to the others, who would wait for this rank
        refused = error
    tensors = content.tensors
    offers: list[_Offer] = gathered(group, _Offer(
        None if refused is None else str(refused), [(n, t.nbytes) for n, t in tensors.items()],
        str(target), secrets.token_hex(8),
    ))  # fmt: skip
    if refused is not None:
        raise refused
    _agree(offers)
    nonce = offers[0].nonce
    mine = _share([offer.entries for offer in offers], rank)
    snapshot = {n: tensors[n].detach().clone() if async_ else tensors[n].detach() for n in mine}
    folder = target.parent / f"{HIDDEN}{target.name}-{nonce}"
    shard = Shard(folder, rank, size, target, None if group is None else group.backend.lost)

    def work() -> None:
        shard.write(snapshot, structure)
        snapshot.clear()
        if rank == 0:
            shard.publish(timeout)
            if keep is not None:
                prune(target.parent, keep)

    _last[number] = handle = Save(target, work)
    if async_:
        return handle
    handle._thread.join()
    problems = gathered(group, None if handle._error is None else str(handle._error))
    handle.wait()
    for r, problem in enumerate(problems):
        if problem is not None:
            raise SerializationError(f"checkpoint.save: rank {r} has failed\n  {problem}")
    return handle


def async_save(state_dict: Mapping[str, Any], path: Path_, **options: Any) -> Save:
    """`save` with ``async_=True``."""
    return save(state_dict, path, async_=True, **options)


class _Offer(NamedTuple):
    """What a rank tells the others before any of them writes."""

    refused: str | None  # why it cannot take part
    entries: list[tuple[str, int]]  # name and bytes of each tensor that it has
    target: str
    nonce: str


def _checked(path: Path_, keep: int | None) -> Path:
    if keep is not None and keep < 1:
        raise helpful(ArgumentError, "checkpoint.save", "keep must leave something",
                      "None, or at least 1", str(keep))  # fmt: skip
    target = Path(path).absolute()
    if is_something_else(target):
        raise helpful(
            ArgumentError, "checkpoint.save", "something else has this name",
            "a new name, or a checkpoint, which is replaced", str(target),
        )  # fmt: skip
    return target


def _agree(offers: list[_Offer]) -> None:
    for r, offer in enumerate(offers):
        if offer.refused is not None:
            raise ArgumentError(f"checkpoint.save: rank {r} cannot save\n  {offer.refused}")
    for r, offer in enumerate(offers):
        if offer.target != offers[0].target:
            raise helpful(
                ArgumentError, "checkpoint.save", "ranks gave different names",
                expected=f"{offers[0].target}, as on rank 0", given=f"{offer.target} on rank {r}",
            )  # fmt: skip


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

"""Process groups: joining the job, and subsets of its ranks.

`init_process_group` finds the other ranks through a store (`store.TCPStore`) and makes the group
of all, `group.WORLD`.  `new_group` makes subsets.  Names and arguments are those of
`torch.distributed`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from eager.distributed import backends
from eager.distributed.backends.base import Backend, Engine, number
from eager.distributed.errors import DistributedError
from eager.distributed.rendezvous import Meeting, meet
from eager.distributed.store import PrefixStore, TCPStore
from eager.errors import ArgumentError, helpful

__all__ = [
    "GroupMember",
    "ProcessGroup",
    "by_id",
    "destroy_process_group",
    "get_backend",
    "get_global_rank",
    "get_group_rank",
    "get_process_group_ranks",
    "get_rank",
    "get_world_size",
    "group",
    "init_process_group",
    "is_available",
    "is_initialized",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
]

Store = TCPStore | PrefixStore


class ProcessGroup:
    """Some ranks of the job.

    Attributes:
        id: a small number, the same on all ranks of the job and never used again.
        ranks: the ranks of the job that are in it, ascending.
        backend: its collectives (`backends.base.Backend`).
        name: what it was called, or its id.
        timeout: of its operations, in seconds.
    """

    def __init__(
        self, id: int, ranks: Sequence[int], backend: Backend, name: str, timeout: float
    ) -> None:
        self.id = id
        self.ranks = tuple(ranks)
        self.backend = backend
        self.name = name
        self.timeout = timeout
        self._rank = backend.rank
        self._calls = 0
        self._place = {rank: place for place, rank in enumerate(self.ranks)}

    def rank(self) -> int:
        """This process's rank within the group."""
        return self._rank

    def size(self) -> int:
        """The number of ranks."""
        return len(self.ranks)

    def group_rank(self, rank: int, op: str = "get_group_rank") -> int:
        """The rank within the group of a rank of the job; ArgumentError if it is not in it."""
        place = self._place.get(rank)
        if place is None:
            raise helpful(ArgumentError, op, "the rank is not in the group",
                          f"one of {_brief(self.ranks)}", repr(rank))  # fmt: skip
        return place

    def next_call(self) -> int:
        """Numbers the calls that go through the store: equal on all ranks, as their order is."""
        self._calls += 1
        return self._calls

    def __repr__(self) -> str:
        return f"<ProcessGroup {self.name} on {self.backend.name}: ranks {_brief(self.ranks)}>"


class _NonMember:
    """What `new_group` returns on ranks that are not in the group."""

    def __repr__(self) -> str:
        return "GroupMember.NON_GROUP_MEMBER"


class _WorldProperty(type):
    @property
    def WORLD(cls) -> ProcessGroup | None:
        """The group of all ranks; None before init_process_group."""
        return world_group


class group(metaclass=_WorldProperty):
    """``group.WORLD`` is the group of all ranks."""


class GroupMember(metaclass=_WorldProperty):
    """``GroupMember.WORLD``, and what stands for a group that this rank is not in."""

    # Typed as what it stands for, so that groups have one type in signatures.
    NON_GROUP_MEMBER: ProcessGroup = _NonMember()  # type: ignore[assignment]


class _Job:
    """What init_process_group made."""

    def __init__(self, engine: Engine, meeting: Meeting | None, timeout: float) -> None:
        self.engine = engine
        self.meeting = meeting
        self.timeout = timeout
        self.groups: dict[int, ProcessGroup] = {}
        self.made = 0  # groups so far, those without this rank included
        self.pid = os.getpid()


world_group: ProcessGroup | None = None
_job: _Job | None = None


def _brief(ranks: Sequence[int]) -> str:
    return str(list(ranks)) if len(ranks) <= 16 else f"{list(ranks[:16])[:-1]}, ...]"


def _current(op: str) -> _Job:
    if _job is None:
        raise helpful(DistributedError, op, "this process has joined no job",
                      "a call of init_process_group before", "none",
                      "eager.distributed.init_process_group()")  # fmt: skip
    return _job


def resolve(given: ProcessGroup | None, op: str) -> ProcessGroup:
    """`given`, or WORLD for None.

    Raises:
        DistributedError: not initialized, or the group was destroyed.
    """
    if given is None:
        _current(op)
        assert world_group is not None
        return world_group
    if given is GroupMember.NON_GROUP_MEMBER:
        return given
    if not isinstance(given, ProcessGroup):
        raise helpful(ArgumentError, op, "not a process group",
                      "what new_group returned, or None", repr(given))  # fmt: skip
    if _job is None or _job.groups.get(given.id) is not given:
        raise helpful(DistributedError, op, "the group was destroyed", "a living group",
                      given.name)  # fmt: skip
    return given


def seconds(timeout: timedelta | float | None, default: float) -> float:
    """A time-out in seconds."""
    if timeout is None:
        return default
    value = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not value > 0:
        raise helpful(ArgumentError, "timeout", "not a time-out", "more than 0 seconds",
                      str(timeout))  # fmt: skip
    return value


def is_available() -> bool:
    """True: the package was built with its communication library."""
    return True


def is_initialized() -> bool:
    """Whether this process has joined a job."""
    return _job is not None


def init_process_group(
    backend: str | None = None, init_method: str | None = None,
    timeout: timedelta | float | None = None, world_size: int = -1, rank: int = -1,
    store: Store | None = None, group_name: str = "", pg_options: object = None,
    device_id: object = None,
) -> None:  # fmt: skip
    """Joins the job: meets the other ranks and makes the group of all.

    Args:
        backend: "rdma" (the default: verbs, shared memory or TCP, chosen per pair of ranks),
            "mpi" (mpi4py) or "nccl" (CuPy).
        init_method: where to meet: "env://" (the default), "tcp://host:port" or "file:///path".
            Variables are those of torchrun, Kubernetes operators, OpenMPI, PMI and Slurm; see
            `eager.distributed.env`.
        timeout: of joining and of every later operation; by default EAGER_COMM_TIMEOUT or 300 s.
        world_size, rank: needed with `store`; else override the variables.
        store: meet here instead.
        group_name: what WORLD is called.
        pg_options, device_id: accepted for PyTorch's signature, not used.

    Peers prove to each other that they know EAGER_COMM_SECRET, which the launcher sets.  Without
    it, EAGER_COMM_INSECURE=1 allows jobs on one host (loopback) to go without.

    Raises:
        Timeout: not all ranks came in time; the text names those that are missing.
        AuthenticationError: a rank has another secret.
        DistributedError: already initialized, or what the backend needs is missing.
        ArgumentError: the arguments or the variables make no sense.
    """
    global _job, world_group
    del pg_options, device_id
    name = "init_process_group"
    if _job is not None:
        raise helpful(
            DistributedError, name, "this process has already joined a job", "one call",
            "a second one", "destroy_process_group() before it",
        )  # fmt: skip
    limit = seconds(timeout, number("EAGER_COMM_TIMEOUT", 300))
    kind = backends.canonical(backend)
    meeting = None
    if kind != "mpi":
        meeting = meet(init_method, rank, world_size, store, limit)
    engine: Engine | None = None
    try:
        engine = backends.make(kind, meeting, limit)
        everyone = range(engine.size)
        made = engine.group(everyone, "world", limit)
        # No rank goes on (and perhaps exits, with the store's server) before all have come.
        made.barrier()
    except BaseException:
        if engine is not None:
            engine.close()
        if meeting is not None:
            meeting.close()
        raise
    job = _Job(engine, meeting, limit)
    world = ProcessGroup(0, everyone, made, group_name or "world", limit)
    job.groups[0] = world
    job.made = 1
    _job, world_group = job, world


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """Leaves the group; without argument or with WORLD, the job.

    Not collective, but a rank that leaves while others still wait for it is lost to them.
    Tensors stay valid."""
    global _job, world_group
    if group is GroupMember.NON_GROUP_MEMBER:
        return
    job = _current("destroy_process_group")
    if group is not None and resolve(group, "destroy_process_group") is not world_group:
        del job.groups[group.id]
        group.backend.close()
        return
    _job = world_group = None
    for each in reversed(job.groups.values()):
        each.backend.close()
    job.engine.close()
    if job.meeting is not None:
        job.meeting.close()


@atexit.register
def _leave() -> None:
    """Says good-bye when the program ends: others must not take it for a death."""
    if _job is not None and _job.pid == os.getpid():
        destroy_process_group()


def new_group(
    ranks: Sequence[int] | None = None, timeout: timedelta | float | None = None,
    backend: str | None = None, pg_options: object = None,
    use_local_synchronization: bool = False, group_desc: str | None = None,
    device_id: object = None,
) -> ProcessGroup:  # fmt: skip
    """A group of some ranks of the job, by default all of them.

    All ranks of the job call it, in the same order, also those that are not in it: they get
    GroupMember.NON_GROUP_MEMBER.  Ranks are numbered in ascending order.

    Raises:
        ArgumentError: `ranks` are not distinct ranks of the job, or another backend is asked for.
        PeerLost, Timeout: as collectives.
    """
    del pg_options, use_local_synchronization, device_id
    job = _current("new_group")
    size = job.engine.size
    members = sorted(range(size) if ranks is None else ranks)
    if not members or len(set(members)) < len(members) or not 0 <= members[0] <= members[-1] < size:
        raise helpful(ArgumentError, "new_group", "these are not ranks of the job",
                      f"distinct ranks from 0 to {size - 1}", _brief(members))  # fmt: skip
    if backend is not None and backends.canonical(backend) != job.engine.name:
        raise helpful(ArgumentError, "new_group", "a job has one backend", job.engine.name,
                      backend)  # fmt: skip
    number = job.made
    job.made += 1
    if job.engine.rank not in members:
        return GroupMember.NON_GROUP_MEMBER
    limit = seconds(timeout, job.timeout)
    made = job.engine.group(members, str(number), limit)
    result = ProcessGroup(number, members, made, group_desc or f"group {number}", limit)
    job.groups[number] = result
    return result


def new_subgroups(
    group_size: int | None = None, group: ProcessGroup | None = None,
    timeout: timedelta | float | None = None, backend: str | None = None,
    pg_options: object = None, group_desc: str | None = None,
) -> tuple[ProcessGroup, list[ProcessGroup]]:  # fmt: skip
    """Cuts `group` into groups of `group_size` ranks, by default those of one host.

    Returns this rank's group and all of them.

    Raises:
        ArgumentError: `group_size` does not divide the size of the group.
    """
    del pg_options
    everyone = resolve(group, "new_subgroups")
    if group_size is None:
        group_size = int(os.environ.get("LOCAL_WORLD_SIZE") or everyone.size())
    if group_size < 1 or everyone.size() % group_size:
        raise helpful(ArgumentError, "new_subgroups", "the group cannot be cut evenly",
                      f"a divisor of {everyone.size()}", str(group_size))  # fmt: skip
    parts = [everyone.ranks[at : at + group_size] for at in range(0, everyone.size(), group_size)]
    mine, made = new_subgroups_by_enumeration(parts, timeout, backend, group_desc=group_desc)
    assert mine is not None
    return mine, made


def new_subgroups_by_enumeration(
    ranks_per_subgroup_list: Sequence[Sequence[int]],
    timeout: timedelta | float | None = None, backend: str | None = None,
    pg_options: object = None, group_desc: str | None = None,
) -> tuple[ProcessGroup | None, list[ProcessGroup]]:  # fmt: skip
    """Several disjoint groups.  Returns this rank's group (None: it is in none) and all of them.

    Raises:
        ArgumentError: a rank is in two of them, or there is none.
    """
    flat = [rank for ranks in ranks_per_subgroup_list for rank in ranks]
    if not flat or len(set(flat)) < len(flat):
        raise helpful(ArgumentError, "new_subgroups_by_enumeration", "the groups overlap",
                      "disjoint lists of ranks", str(ranks_per_subgroup_list)[:80])  # fmt: skip
    made = [
        new_group(ranks, timeout, backend, pg_options, group_desc=group_desc)
        for ranks in ranks_per_subgroup_list
    ]
    mine = [one for one in made if one is not GroupMember.NON_GROUP_MEMBER]
    return (mine[0] if mine else None), made


# --- questions -----------------------------------------------------------------------------------


def by_id(id: int) -> ProcessGroup:
    """The living group with this `ProcessGroup.id`; DistributedError if there is none."""
    found = _current("by_id").groups.get(id)
    if found is None:
        raise helpful(DistributedError, "by_id", "there is no such group here", "a living group",
                      str(id))  # fmt: skip
    return found


def get_rank(group: ProcessGroup | None = None) -> int:
    """This process's rank in the group; -1 if it is not in it."""
    found = resolve(group, "get_rank")
    return -1 if found is GroupMember.NON_GROUP_MEMBER else found.rank()


def get_world_size(group: ProcessGroup | None = None) -> int:
    """The number of ranks in the group; -1 if this rank is not in it."""
    found = resolve(group, "get_world_size")
    return -1 if found is GroupMember.NON_GROUP_MEMBER else found.size()


def get_backend(group: ProcessGroup | None = None) -> str:
    """The name of its backend: "rdma", "mpi" or "nccl"."""
    found = resolve(group, "get_backend")
    return (
        _current("get_backend").engine.name
        if found is GroupMember.NON_GROUP_MEMBER
        else (found.backend.name)
    )


def get_process_group_ranks(group: ProcessGroup | None) -> list[int]:
    """The ranks of the job that are in it."""
    return list(resolve(group, "get_process_group_ranks").ranks)


def get_group_rank(group: ProcessGroup, global_rank: int) -> int:
    """A rank of the job as a rank of the group; ArgumentError if it is not in it."""
    return resolve(group, "get_group_rank").group_rank(global_rank)


def get_global_rank(group: ProcessGroup, group_rank: int) -> int:
    """A rank of the group as a rank of the job; ArgumentError if there is no such rank."""
    ranks = resolve(group, "get_global_rank").ranks
    if not 0 <= group_rank < len(ranks):
        raise helpful(ArgumentError, "get_global_rank", "there is no such rank in the group",
                      f"0 to {len(ranks) - 1}", str(group_rank))  # fmt: skip
    return ranks[group_rank]


def open_window(group: ProcessGroup, nbytes: int) -> Any:
    """See `Backend.open_window`."""
    return group.backend.open_window(nbytes)


def peers() -> list[dict[str, Any]]:
    """See `Engine.peers`."""
    return _current("info").engine.peers()


def rendezvous_store() -> Store | None:
    """The store the ranks met at, under the job's prefix; None for mpi."""
    meeting = _current("store").meeting
    return None if meeting is None else meeting.store

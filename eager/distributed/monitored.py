"""A barrier that says who did not come."""

from __future__ import annotations

import time
from datetime import timedelta

from eager.distributed import process_group as _groups
from eager.distributed.errors import DistributedError, Timeout
from eager.distributed.process_group import GroupMember, ProcessGroup
from eager.errors import helpful

__all__ = ["monitored_barrier"]


def monitored_barrier(
    group: ProcessGroup | None = None, timeout: timedelta | float | None = None,
    wait_all_ranks: bool = False,
) -> None:  # fmt: skip
    """As barrier, but through the store, so that the group is not broken by ranks that are late,
    and the error of all others names them.

    Args:
        group: as for collectives.
        timeout: how long the group's first rank waits; by default that of the group.
        wait_all_ranks: name all ranks that are missing, not just the first.

    Raises:
        Timeout: ranks are missing.
        DistributedError: the backend has no store ("mpi").
    """
    pg = _groups.resolve(group, "monitored_barrier")
    if pg is GroupMember.NON_GROUP_MEMBER:
        return
    store = _groups.rendezvous_store()
    if store is None:
        raise helpful(DistributedError, "monitored_barrier", "the backend has no store",
                      'backend "rdma" or "nccl"', pg.backend.name, "barrier()")  # fmt: skip
    limit = _groups.seconds(timeout, pg.timeout)
    base = f"monitored/{pg.id}/{pg.next_call()}"
    keys = [f"{base}/{rank}" for rank in pg.ranks]
    store.set(keys[pg.rank()], b"")
    if pg.rank() == 0:
        deadline = time.monotonic() + limit
        missing: list[int] = []
        for rank, key in zip(pg.ranks, keys, strict=True):
            if missing and not wait_all_ranks:
                break
            try:
                store.wait([key], max(0.001, deadline - time.monotonic()))
            except Timeout:
                missing.append(rank)
        store.set(f"{base}/verdict", ",".join(map(str, missing)))
    store.wait([f"{base}/verdict"], pg.timeout + limit)
    verdict = store.get(f"{base}/verdict").decode()
    if verdict:
        raise helpful(Timeout, "monitored_barrier", f"ranks did not come within {limit:g} s",
                      f"all of {list(pg.ranks)}", f"without {verdict}")  # fmt: skip

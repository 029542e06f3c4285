"""What was chosen, and why: `info()`."""

from __future__ import annotations

from typing import Any

from eager.distributed import process_group as _groups

__all__ = ["info"]


class _Info(dict[str, Any]):
    """Prints as a table."""

    def __repr__(self) -> str:
        lines = [f"rank {self['rank']} of {self['world_size']}, backend {self['backend']}"]
        lines += [
            f"  rank {p['rank']}: {p['transport']} (host {p['host']}): {p['reason']}"
            for p in self["peers"]
        ]
        for g in self["groups"]:
            lines.append(f"group {g['name']}: ranks {g['ranks']}")
            chosen = g.get("all_reduce", {})
            lines += [f"  all_reduce of {size} bytes: {name}" for size, name in chosen.items()]
        lines.append(", ".join(f"{name} {count}" for name, count in self["stats"].items()))
        return "\n".join(lines)


def info() -> dict[str, Any]:
    """The job as this process sees it.

    Returns a dictionary, which prints as a table, of:
        backend, rank, world_size;
        peers: for each rank of the job its ``rank``, ``transport`` ("self", "shm", "tcp",
            "verbs"), ``reason`` (why that was chosen) and ``host`` (equal numbers: one host);
        groups: for each group ``id``, ``name``, ``ranks`` and, with backend "rdma",
            ``all_reduce``: the algorithm by size in bytes;
        stats: `backends.base.Backend.stats`.

    Raises:
        DistributedError: init_process_group was not called.
    """
    world = _groups.resolve(None, "info")
    job = _groups._current("info")
    return _Info(
        backend=job.engine.name,
        rank=job.engine.rank,
        world_size=job.engine.size,
        peers=job.engine.peers(),
        groups=[
            {"id": g.id, "name": g.name, "ranks": list(g.ranks), **g.backend.info()}
            for g in job.groups.values()
        ],
        stats=world.backend.stats(),
    )

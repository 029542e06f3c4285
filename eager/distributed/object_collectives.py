"""Collectives of Python objects, pickled.

Unpickling runs whatever code the sender chose.  Ranks have proved to each other that they belong
to the job, and are trusted: do not join jobs with ranks you would not let run code here.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import eager
from eager import Tensor
from eager.distributed import collectives as c
from eager.distributed import point_to_point as p2p
from eager.distributed.process_group import ProcessGroup
from eager.errors import ArgumentError, helpful

__all__ = [
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
]

Group = ProcessGroup | None


def _packed(value: Any) -> Tensor:
    return eager.frombuffer(bytearray(pickle.dumps(value)), dtype=eager.uint8)


def _unpacked(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())


def _size(data: Tensor) -> Tensor:
    return eager.tensor([data.numel()], dtype=eager.int64)


def _expect(op: str, objects: object, size: int, role: str) -> None:
    if not isinstance(objects, list) or len(objects) < size:
        raise helpful(ArgumentError, op, f"{role} is too short",
                      f"a list of at least {size} entries",
                      f"{len(objects)}" if isinstance(objects, list) else type(objects).__name__,
                      )  # fmt: skip


def all_gather_object(object_list: list[Any], obj: Any, group: Group = None) -> None:
    """object_list[r] becomes rank r's `obj`.  Objects are pickled; see the module's remark."""
    pg = c._resolve(group, "all_gather_object")
    if pg is None:
        return
    _expect("all_gather_object", object_list, pg.size(), "object_list")
    data = _packed(obj)
    sizes, longest = _all_sizes(pg, data)
    padded = eager.zeros(longest, dtype=eager.uint8)
    padded[: data.numel()] = data
    everything = eager.empty(pg.size() * longest, dtype=eager.uint8)
    pg.backend.all_gather(everything, padded)
    for rank, size in enumerate(sizes):
        object_list[rank] = _unpacked(everything[rank * longest : rank * longest + size])


def _all_sizes(pg: ProcessGroup, data: Tensor) -> tuple[list[int], int]:
    """Every rank's length, and the greatest."""
    gathered = eager.empty(pg.size(), dtype=eager.int64)
    pg.backend.all_gather(gathered, _size(data))
    sizes = gathered.tolist()
    return sizes, max(sizes)


def gather_object(
    obj: Any, object_gather_list: list[Any] | None = None, dst: int | None = None,
    group: Group = None, group_dst: int | None = None,
) -> None:  # fmt: skip
    """object_gather_list[r] of `dst` (by default rank 0) becomes rank r's `obj`.

    Objects are pickled; see the module's remark."""
    pg = c._resolve(group, "gather_object")
    if pg is None:
        return
    root = c._member("gather_object", pg, dst, group_dst, "dst", 0)
    if pg.rank() == root:
        _expect("gather_object", object_gather_list, pg.size(), "object_gather_list")
    data = _packed(obj)
    sizes, longest = _all_sizes(pg, data)
    padded = eager.zeros(longest, dtype=eager.uint8)
    padded[: data.numel()] = data
    if pg.rank() != root:
        pg.backend.gather(None, padded, root)
        return
    everything = eager.empty(pg.size() * longest, dtype=eager.uint8)
    pg.backend.gather(everything, padded, root)
    assert object_gather_list is not None
    for rank, size in enumerate(sizes):
        object_gather_list[rank] = _unpacked(everything[rank * longest : rank * longest + size])


def broadcast_object_list(
    object_list: list[Any], src: int | None = None, group: Group = None, device: object = None,
    group_src: int | None = None,
) -> None:  # fmt: skip
    """The entries of `object_list` become those of `src` (by default rank 0).

    Objects are pickled; see the module's remark."""
    del device
    pg = c._resolve(group, "broadcast_object_list")
    if pg is None:
        return
    root = c._member("broadcast_object_list", pg, src, group_src, "src", 0)
    _expect("broadcast_object_list", object_list, 0, "object_list")
    data = _packed(list(object_list)) if pg.rank() == root else None
    size = eager.zeros(1, dtype=eager.int64) if data is None else _size(data)
    pg.backend.broadcast(size, root)
    if data is None:
        data = eager.empty(int(size.item()), dtype=eager.uint8)
    pg.backend.broadcast(data, root)
    if pg.rank() != root:
        found = _unpacked(data)
        _expect("broadcast_object_list", object_list, len(found), "object_list")
        object_list[:] = found


def scatter_object_list(
    scatter_object_output_list: list[Any], scatter_object_input_list: Sequence[Any] | None = None,
    src: int | None = None, group: Group = None, group_src: int | None = None,
) -> None:  # fmt: skip
    """The first entry of rank r's output list becomes entry r of the input list of `src` (by
    default rank 0).  Objects are pickled; see the module's remark."""
    pg = c._resolve(group, "scatter_object_list")
    if pg is None:
        return
    op, ranks = "scatter_object_list", pg.size()
    root = c._member(op, pg, src, group_src, "src", 0)
    _expect(op, scatter_object_output_list, 1, "scatter_object_output_list")
    if pg.rank() != root:
        header = eager.empty(1, dtype=eager.int64)
        pg.backend.scatter(header, None, root)
        data = eager.empty(int(header.item()), dtype=eager.uint8)
        pg.backend.all_to_all(
            data, eager.empty(0, dtype=eager.uint8), _at(root, ranks, data.numel()), [0] * ranks
        )
    else:
        given = list(scatter_object_input_list or ())
        if len(given) != ranks:
            raise helpful(ArgumentError, op, "scatter_object_input_list does not fit the group",
                          f"{ranks} entries", str(len(given)))  # fmt: skip
        pieces = [_packed(one) for one in given]
        sizes = [piece.numel() for piece in pieces]
        header = eager.empty(1, dtype=eager.int64)
        pg.backend.scatter(header, eager.tensor(sizes, dtype=eager.int64), root)
        data = eager.empty(sizes[root], dtype=eager.uint8)
        pg.backend.all_to_all(data, eager.cat(pieces), _at(root, ranks, sizes[root]), sizes)
    scatter_object_output_list[0] = _unpacked(data)


def _at(place: int, size: int, value: int) -> list[int]:
    """Zeros but for one entry."""
    return [value if i == place else 0 for i in range(size)]


def send_object_list(
    object_list: Sequence[Any], dst: int | None = None, group: Group = None,
    device: object = None, group_dst: int | None = None,
) -> None:  # fmt: skip
    """Sends the entries to rank `dst`.  Objects are pickled; see the module's remark."""
    del device
    data = _packed(list(object_list))
    p2p.send(_size(data), dst, group, group_dst=group_dst)
    p2p.send(data, dst, group, group_dst=group_dst)


def recv_object_list(
    object_list: list[Any], src: int | None = None, group: Group = None, device: object = None,
    group_src: int | None = None,
) -> int:  # fmt: skip
    """Receives the entries that rank `src` (None: any) sent, and returns its rank.

    Objects are pickled; see the module's remark."""
    del device
    size = eager.empty(1, dtype=eager.int64)
    source = p2p.recv(size, src, group, group_src=group_src)
    if source < 0:
        return source
    data = eager.empty(int(size.item()), dtype=eager.uint8)
    p2p.recv(data, source, group)
    found = _unpacked(data)
    _expect("recv_object_list", object_list, len(found), "object_list")
    object_list[: len(found)] = found
    return source

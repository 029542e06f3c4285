"""Messages between two ranks: send, recv, and their asynchronous forms.

Messages from one rank to another with one tag arrive in the order in which they were sent.  All
raise what the module `collectives` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eager import Tensor
from eager.distributed.backends.base import Work
from eager.distributed.collectives import Group, _member, _named, _resolve, _tensor, _written
from eager.distributed.process_group import ProcessGroup
from eager.errors import ArgumentError, helpful

__all__ = ["P2POp", "batch_isend_irecv", "irecv", "isend", "recv", "send"]


def send(
    tensor: Tensor, dst: int | None = None, group: Group = None, tag: int = 0,
    group_dst: int | None = None,
) -> None:  # fmt: skip
    """Sends `tensor` to rank `dst`, whose `recv` has the same tag, dtype and element count."""
    pg = _resolve(group, "send")
    if pg is not None:
        to = _peer("send", pg, dst, group_dst, "dst")
        pg.backend.send(_tensor("send", tensor), to, _tag("send", tag))


def recv(
    tensor: Tensor, src: int | None = None, group: Group = None, tag: int = 0,
    group_src: int | None = None,
) -> int:  # fmt: skip
    """Receives into `tensor` from rank `src`, or from any if neither it nor `group_src` is given;
    returns the sender's rank in the job."""
    pg = _resolve(group, "recv")
    if pg is None:
        return -1
    source = None
    if src is not None or group_src is not None:
        source = _peer("recv", pg, src, group_src, "src")
    return pg.ranks[pg.backend.recv(_written("recv", tensor), source, _tag("recv", tag))]


def isend(
    tensor: Tensor, dst: int | None = None, group: Group = None, tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:  # fmt: skip
    """`send`, asynchronously."""
    pg = _resolve(group, "isend")
    if pg is None:
        return None
    to = _peer("isend", pg, dst, group_dst, "dst")
    return _named(pg.backend.isend(_tensor("isend", tensor), to, _tag("isend", tag)), [tensor])


def irecv(
    tensor: Tensor, src: int | None = None, group: Group = None, tag: int = 0,
    group_src: int | None = None,
) -> Work | None:  # fmt: skip
    """`recv`, asynchronously."""
    pg = _resolve(group, "irecv")
    if pg is None:
        return None
    source = None
    if src is not None or group_src is not None:
        source = _peer("irecv", pg, src, group_src, "src")
    work = pg.backend.irecv(_written("irecv", tensor), source, _tag("irecv", tag))
    return _named(work, [tensor])


def _peer(op: str, pg: ProcessGroup, rank: int | None, group_rank: int | None, role: str) -> int:
    other = _member(op, pg, rank, group_rank, role)
    if other == pg.rank():
        raise helpful(ArgumentError, op, f"{role} is this rank", "another rank", str(other))
    return other


def _tag(op: str, tag: int) -> int:
    if not isinstance(tag, int) or not 0 <= tag < 1 << 31:
        raise helpful(ArgumentError, op, "not a tag", "0 to 2**31 - 1", repr(tag))
    return tag


class P2POp:
    """One entry of `batch_isend_irecv`: `op` is `isend` or `irecv`."""

    def __init__(
        self, op: Callable[..., Any], tensor: Tensor, peer: int | None = None,
        group: Group = None, tag: int = 0, group_peer: int | None = None,
    ) -> None:  # fmt: skip
        if op is not isend and op is not irecv:
            raise helpful(ArgumentError, "P2POp", "not a point-to-point operation",
                          "isend or irecv", repr(op))  # fmt: skip
        self.op, self.tensor, self.peer = op, _tensor("P2POp", tensor), peer
        self.group, self.tag, self.group_peer = group, tag, group_peer


def batch_isend_irecv(p2p_op_list: Sequence[P2POp]) -> list[Work]:
    """Starts all of them; the order does not matter."""
    if not p2p_op_list or not all(isinstance(p, P2POp) for p in p2p_op_list):
        raise helpful(ArgumentError, "batch_isend_irecv", "not a list of operations",
                      "at least one P2POp, and nothing else", repr(p2p_op_list)[:80])  # fmt: skip
    started = []
    for p in p2p_op_list:
        side = "group_dst" if p.op is isend else "group_src"
        work = p.op(p.tensor, p.peer, p.group, p.tag, **{side: p.group_peer})
        if work is not None:
            started.append(work)
    return started

"""What goes wrong between ranks.

All derive from `DistributedError` and, through it, from `eager.errors.EagerError`.  Arguments that
are wrong on their own, without other ranks, raise `eager.errors.ArgumentError` and its siblings.
"""

from __future__ import annotations

import re

from eager.errors import ArgumentError, EagerError

__all__ = [
    "AuthenticationError",
    "DistError",
    "DistributedError",
    "Mismatch",
    "PeerLost",
    "ProtocolError",
    "Timeout",
]


class DistributedError(EagerError):
    """The base of all errors of this package."""


class PeerLost(DistributedError, ConnectionError):
    """A rank died, hangs, or cannot be reached any more.

    The group is broken from then on: its later collectives raise at once.  What its tensors hold
    is undefined.  `destroy_process_group` still works.

    Attributes:
        rank: the rank to blame, in the numbering of the job; -1 for the store's server.
        in_flight: what this rank was waiting in, such as ``"all_reduce 17 of group 0"``; empty if
            nothing was under way.
    """

    def __init__(self, text: str, rank: int = -1, in_flight: str = "") -> None:
        super().__init__(text)
        self.rank = rank
        self.in_flight = in_flight

    def __reduce__(self) -> tuple[type[PeerLost], tuple[str, int, str]]:
        return type(self), (str(self), self.rank, self.in_flight)


class Mismatch(DistributedError, ValueError):
    """Ranks called one collective with different operations, sizes, dtypes or roots.

    Raised on all ranks of the group before any data has moved; the group can be used again.
    """


class Timeout(DistributedError, TimeoutError):
    """No answer came in time, and no single rank is to blame."""


class AuthenticationError(DistributedError, PermissionError):
    """A peer could not prove that it knows the job's secret."""


class ProtocolError(DistributedError):
    """A peer sent what no correct peer sends."""


DistError = DistributedError
"""The name `torch.distributed` has for the base class."""

_KINDS: dict[str, type[EagerError]] = {
    "invalid": ArgumentError,
    "mismatch": Mismatch,
    "timeout": Timeout,
    "protocol": ProtocolError,
    "authentication": AuthenticationError,
    "system": DistributedError,
}
_IN_FLIGHT = re.compile(r"in flight: ([^\n]*)")


def from_native(kind: str, text: str, peer: int) -> EagerError:
    """The exception for an error of the communication library (csrc/comm/error.h)."""
    if kind == "peer_lost":
        found = _IN_FLIGHT.search(text)
        return PeerLost(text, peer, found[1].strip() if found else "")
    return _KINDS.get(kind, DistributedError)(text)

"""What a checkpoint holds: a structure per rank, and how those of all ranks go together."""

from __future__ import annotations

from typing import Any

from eager import Tensor
from eager.structure import Structure

_RANK = "rank "  # keys of a PerRank's dictionary


class PerRank:
    """A value that differs between ranks, such as the state of a random stream.

    `load` gives rank r that of the rank r, or of r modulo the number of ranks there were.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


class Content(Structure):
    """With `PerRank`: ``{"rank": [["rank r", value], ...]}``.  Names are the same on all ranks,
    whatever else they hold."""

    op = "checkpoint.save"
    kinds = "tensors, numbers, strings, None, lists, tuples, dictionaries and PerRank"

    def __init__(self, rank: int, ranks: int, tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(tensors)
        self.rank, self.ranks = rank, ranks

    def name(self, path: str) -> str:
        """The path itself: no two tensors have the same."""
        return path

    def below(self, path: str, key: str | int) -> str:
        """See `Structure.below`."""
        if isinstance(key, int):
            return f"{path}/{key}#"
        # the length keeps "a/b": {"c": x} and "a": {"b/c": x} apart
        return f"{path}/{key}" if "/" not in key else f"{path}/{len(key)}:{key}"

    def pack(self, value: Any, path: str = "") -> Any:
        """See `Structure.pack`."""
        if not isinstance(value, PerRank):
            return super().pack(value, path)
        key = f"{_RANK}{self.rank}"
        return {"rank": [[key, self.pack(value.value, f"{path}/{key}")]]}

    def unpack(self, value: Any) -> Any:
        """See `Structure.unpack`; of a `PerRank`, this rank's."""
        if not isinstance(value, dict) or "rank" not in value:
            return super().unpack(value)
        ((_, content),) = value.items()
        return self.unpack(dict(content)[f"{_RANK}{self.rank % self.ranks}"])


def merged(a: Any, b: Any) -> Any:
    """Two structures as one: dictionaries have the keys of both; elsewhere the first counts."""
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
                pairs[at][1] = merged(pairs[at][1], v)
        if len(pairs) > len(one) and all(type(k) is int for k, _ in pairs):
            pairs.sort(key=lambda pair: pair[0])  # numbers of parameters
        return {kind: pairs}
    if len(one) != len(two):
        return a
    return {kind: [merged(x, y) for x, y in zip(one, two, strict=True)]}


def _key(key: str | int) -> tuple[bool, str | int]:
    return isinstance(key, int), key

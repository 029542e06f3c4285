"""Collectives as ops (`eager.ops.collectives`): what runs them, and how calls become them.

While an interpreter is installed (`jit` traces), `eager.distributed` records a call as an op
instead of handing it to the backend; the compiled program then issues the collective itself.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import eager
import eager.op
from eager.errors import ArgumentError, helpful
from eager.ops import collectives as ops

if TYPE_CHECKING:
    from eager.distributed.backends.base import Backend, Plan

REDUCTIONS = ("SUM", "AVG", "MIN", "MAX", "PRODUCT")
"""Names of `ReduceOp`, by the number that ops give."""

_numbers = itertools.count()
_plans: weakref.WeakValueDictionary[int, StaticPlan] = weakref.WeakValueDictionary()


class StaticPlan:
    """A plan with the tensor over the memory it works on.

    Attributes:
        plan: the backend's.
        tensor: one-dimensional; all of the memory that `plan` reduces, in place.
        number: what graphs call it.
    """

    def __init__(self, plan: Plan, tensor: Any) -> None:
        self.plan, self.tensor = plan, tensor
        self.number = next(_numbers)
        _plans[self.number] = self


def plan_by_number(number: int) -> StaticPlan:
    """The living plan `number`; raises ArgumentError if it is gone."""
    found = _plans.get(number)
    if found is None:
        raise helpful(
            ArgumentError, "all_reduce", "the static memory of this collective is gone",
            expected="that the DistributedDataParallel module which was traced still exists",
            given=f"plan {number}", hint="compile the function again",
        )  # fmt: skip
    return found


def record(name: str, x: Any, target: Any | None, **attrs: Any) -> Any:
    """One collective on `x` as an op call that interpreters see; in place if there is a target."""
    return eager.op.call(eager.op.registry[name], (x,), attrs, target)


def reduce_gradients(
    static: StaticPlan, group: int, reduction: int, places: Sequence[tuple[int, tuple[int, ...]]],
    gradients: Sequence[Any | None],
) -> list[Any]:  # fmt: skip
    """Reduces gradients into static memory, as ops.

    Args:
        static: whose tensor holds all places.
        group: number of the process group.
        reduction: `ReduceOp` as a number.
        places: (offset in elements, shape) of each gradient, ascending.
        gradients: None stands for zeros.

    Returns:
        For each place the view of the static memory that is the reduced gradient.
    """
    memory = static.tensor
    pieces, end = [], 0

    def fill(n: int) -> None:
        if n:
            pieces.append(eager.zeros(n, dtype=memory.dtype))

    for (offset, shape), gradient in zip(places, gradients, strict=True):
        fill(offset - end)
        size = math.prod(shape)
        if gradient is None:
            fill(size)
        else:
            pieces.append(gradient.detach().reshape(-1))
        end = offset + size
    fill(memory.numel() - end)
    attrs = {"group": group, "reduction": reduction, "plan": static.number}
    record("all_reduce", eager.cat(pieces), memory, **attrs)
    return [memory[o : o + math.prod(shape)].reshape(shape) for o, shape in places]


def recording() -> bool:
    """Whether calls of this thread are to become ops."""
    return eager.op.interpreting()


def backend_of(group: int) -> Backend | None:
    """The backend of a process group; None for `SELF`."""
    if group == ops.SELF:
        return None
    from eager.distributed import process_group

    return process_group.by_id(group).backend


def rank_in(group: int) -> int:
    """This process' rank in a group."""
    backend = backend_of(group)
    return 0 if backend is None else backend.rank


def run(name: str, x: Any, attrs: Mapping[str, Any]) -> Any:
    """Executes the op `name` eagerly; gives a fresh tensor."""
    backend = backend_of(attrs["group"])
    if backend is None:
        return x.clone()
    result: Any = _RUN[name](backend, x.contiguous(), attrs)
    return result


def _all_reduce(backend: Backend, x: Any, attrs: Mapping[str, Any]) -> Any:
    if attrs["plan"] != ops.NO_PLAN:
        static = plan_by_number(attrs["plan"])
        static.tensor.copy_(x.reshape(static.tensor.shape))
        static.plan.run()
        return static.tensor.clone().reshape(x.shape)
    out = x.clone()
    backend.all_reduce(out, _reduction(attrs), False)
    return out


def _reduce_scatter(backend: Backend, x: Any, attrs: Mapping[str, Any]) -> Any:
    out = eager.empty((x.shape[0] // attrs["size"], *x.shape[1:]), dtype=x.dtype)
    backend.reduce_scatter(out, x, _reduction(attrs), False)
    return out


def _all_gather(backend: Backend, x: Any, attrs: Mapping[str, Any]) -> Any:
    out = eager.empty((x.shape[0] * attrs["size"], *x.shape[1:]), dtype=x.dtype)
    backend.all_gather(out, x, False)
    return out


def _broadcast(backend: Backend, x: Any, attrs: Mapping[str, Any]) -> Any:
    out = x.clone()
    backend.broadcast(out, attrs["root"], False)
    return out


def _reduction(attrs: Mapping[str, Any]) -> Any:
    from eager.distributed.backends.base import ReduceOp

    return getattr(ReduceOp, REDUCTIONS[attrs["reduction"]])


_RUN: dict[str, Callable[[Any, Any, Mapping[str, Any]], Any]] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "broadcast": _broadcast,
}

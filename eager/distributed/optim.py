"""`ZeroRedundancyOptimizer`: every rank keeps the optimizer state of a part of the parameters.

Stage 1 of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models" (SC 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import eager
from eager import Tensor, _state
from eager.distributed import graph
from eager.distributed.backends.base import Buffer, Plan
from eager.distributed.errors import DistributedError
from eager.dtypes import DType
from eager.errors import ArgumentError, helpful
from eager.optim.optimizer import Optimizer
from eager.optim.param_group import ParamGroup

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup

__all__ = ["ZeroRedundancyOptimizer"]

_NAME = "ZeroRedundancyOptimizer"


class ZeroRedundancyOptimizer(Optimizer):
    """An optimizer whose state is spread over the ranks of a group.

    Each parameter belongs to one rank: from the largest on, each goes to the rank that has least.
    `step` updates a rank's own parameters with `optimizer_class` and exchanges the results, so
    that parameters are bit-identical to those of `optimizer_class` alone.  Gradients must be the
    same on all ranks, as `DistributedDataParallel` leaves them.

    Args:
        params: as of every optimizer; the same on all ranks, in the same order.
        optimizer_class: such as `eager.optim.AdamW`.
        process_group: WORLD by default.
        parameters_as_bucket_view: parameters become views of static memory of the group, where
            the exchange needs no copy.  Their ``data`` must not be replaced afterwards.
        overlap_with_ddp: not supported.
        defaults: options of `optimizer_class`.

    Raises:
        ArgumentError: `optimizer_class` is none, or an option is not supported.
    """

    def __init__(
        self, params: Any, optimizer_class: Callable[..., Optimizer],
        process_group: ProcessGroup | None = None, parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False, **defaults: Any,
    ) -> None:  # fmt: skip
        from eager.distributed.process_group import resolve

        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
            raise helpful(ArgumentError, _NAME, "not an optimizer class", "such as optim.AdamW",
                          repr(optimizer_class))  # fmt: skip
        if overlap_with_ddp:
            raise helpful(ArgumentError, _NAME, "overlap_with_ddp is not supported",
                          "overlap_with_ddp=False", "True")  # fmt: skip
        self.process_group = resolve(process_group, _NAME)
        self._backend = self.process_group.backend
        self._owner: dict[int, int] = {}  # rank by id of the parameter
        self._loads = [0] * self._backend.size  # bytes of parameters by rank
        self._class, self._options = optimizer_class, defaults
        self._local: Optimizer | None = None
        self._views = parameters_as_bucket_view
        self._exchanges: list[_Exchange] | None = None
        self._whole: dict[str, Any] | None = None
        super().__init__(params, {})
        self.defaults = self.optim.defaults
        self.state = self.optim.state

    @property
    def optim(self) -> Optimizer:
        """The optimizer of this rank's parameters."""
        assert self._local is not None
        return self._local

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `Optimizer.add_param_group`.  Parameters that are there stay where they are."""
        super().add_param_group(param_group)
        params: list[Tensor] = self.param_groups.pop()["params"]
        for p in sorted(params, key=lambda p: -p.nbytes):  # stable: in order among equals
            rank = min(range(len(self._loads)), key=self._loads.__getitem__)
            self._owner[id(p)] = rank
            self._loads[rank] += p.nbytes
        mine = [p for p in params if self._owner[id(p)] == self._backend.rank]
        local = {**param_group, "params": mine}
        if self._local is None:
            self._local = self._class([local], **self._options)
        else:
            self._local.add_param_group(local)
        part = self._local.param_groups[-1]
        whole = ParamGroup({**part, "params": params}, self._local.switches)
        # One set of tensors, so that compiled steps see a schedule that writes to the whole group.
        part._mirrors = whole._mirrors
        self.param_groups.append(whole)
        self._exchanges = self._whole = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters.  Collective."""
        loss = None
        if closure is not None:
            with eager.enable_grad():
                loss = closure()
        for part, whole in zip(self.optim.param_groups, self.param_groups, strict=True):
            for key, value in whole.items():
                if key != "params":
                    dict.__setitem__(part, key, value)
        self.optim.step()
        self._whole = None
        if self._backend.size > 1:
            if self._exchanges is None:
                self._exchanges = self._lay_out()
            with eager.no_grad():
                for exchange in self._exchanges:
                    exchange.run()
        return loss

    def _lay_out(self) -> list[_Exchange]:
        """One exchange for each dtype; collective."""
        params = list(self._all_params())
        made = []
        for dtype in dict.fromkeys(p.dtype for p in params):
            shares: list[list[Tensor]] = [[] for _ in range(self._backend.size)]
            for p in params:
                if p.dtype == dtype:
                    shares[self._owner[id(p)]].append(p)
            made.append(_Exchange(self.process_group, dtype, shares, self._views))
        _state.bump()
        return made

    # --- state dictionaries ----------------------------------------------------------------------

    def _numbers(self) -> dict[int, int]:
        return {id(p): n for n, p in enumerate(self._all_params())}

    def _groups(self) -> list[dict[str, Any]]:
        numbers = self._numbers()
        return [
            {**group, "params": [numbers[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]

    def local_state_dict(self) -> dict[str, Any]:
        """As `state_dict`, with the state of this rank's parameters only.

        What `eager.distributed.checkpoint` takes: it puts the ranks' parts together."""
        numbers = self._numbers()
        state = {numbers[id(p)]: dict(values) for p, values in self.optim.state.items()}
        return {"state": dict(sorted(state.items())), "param_groups": self._groups()}

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Collects all ranks' state on rank `to`, for `state_dict`.  Collective."""
        from eager.distributed.object_collectives import gather_object

        if not 0 <= to < self._backend.size:
            raise helpful(ArgumentError, "consolidate_state_dict", "there is no such rank",
                          f"0 to {self._backend.size - 1}", str(to))  # fmt: skip
        mine = self.local_state_dict()["state"]
        here = self._backend.rank == to
        parts: list[Any] | None = [None] * self._backend.size if here else None
        gather_object(mine, parts, dst=self.process_group.ranks[to], group=self.process_group)
        if parts is not None:
            state = {number: values for part in parts for number, values in part.items()}
            self._whole = {"state": dict(sorted(state.items())), "param_groups": self._groups()}

    def state_dict(self) -> dict[str, Any]:
        """The state of all parameters, as `optimizer_class` alone would give it.

        Raises:
            DistributedError: `consolidate_state_dict` was not called on all ranks, with this rank
                as `to`, since the last step.
        """
        if self._backend.size == 1:
            return self.local_state_dict()
        if self._whole is None:
            raise helpful(
                DistributedError, f"{_NAME}.state_dict", "the state is spread over the ranks",
                expected="consolidate_state_dict on all ranks, after the last step",
                given=f"none with rank {self._backend.rank} as its `to`",
                hint="local_state_dict() for a sharded checkpoint",
            )  # fmt: skip
        return self._whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the state of all parameters, of however many ranks it was."""
        own, given = (
            [len(g["params"]) for g in gs] for gs in (self.param_groups, state_dict["param_groups"])
        )
        if own != given:
            raise helpful(
                ArgumentError, f"{_NAME}.load_state_dict", "the groups differ",
                expected=f"groups of {own} parameters", given=f"groups of {given}",
            )  # fmt: skip
        groups = []
        for whole, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            mine = [
                number
                for p, number in zip(whole["params"], loaded["params"], strict=True)
                if self._owner[id(p)] == self._backend.rank
            ]
            groups.append({**loaded, "params": mine})
            whole.update({k: v for k, v in loaded.items() if k != "params"})
        kept = {n for group in groups for n in group["params"]}
        state = {n: v for n, v in state_dict["state"].items() if n in kept}
        self.optim.load_state_dict({"state": state, "param_groups": groups})
        self._whole = None


class _Exchange:
    """Gives all ranks the parameters of one dtype that others have updated.

    Each rank's parameters lie one after another in its share of a flat tensor; shares are of one
    size.  With `views` the parameters are that memory.
    """

    def __init__(
        self, group: ProcessGroup, dtype: DType, shares: list[list[Tensor]], views: bool
    ) -> None:
        self.group, self.shares = group, shares
        backend = group.backend
        self.mine = shares[backend.rank]
        self.count = max(1, *(_total(share) for share in shares))
        self.plan: Plan | None = None
        self.flat: Tensor | None = None
        if not views:
            return
        item = next(p for share in shares for p in share).itemsize
        # a multiple of a cache line, so that shares do not touch
        self.count = -(-self.count * item // 64) * 64 // item
        self.buffer: Buffer = backend.allocate(backend.size * self.count * item)
        self.flat = self.buffer.tensor((backend.size * self.count,), dtype)
        self.plan = backend.plan_all_gather(self.buffer, 0, self.count, dtype)
        with eager.no_grad():
            for p, view in self._places(self.flat):
                view.copy_(p.detach())
                p.data = view

    def _places(self, flat: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        for rank, share in enumerate(self.shares):
            at = rank * self.count
            for p in share:
                yield p, flat[at : at + p.numel()].reshape(p.shape)
                at += p.numel()

    def run(self) -> None:
        if self.plan is not None and not graph.recording():
            self.plan.run()
            return
        from eager.distributed.collectives import all_gather_into_tensor

        dtype = next(p for share in self.shares for p in share).dtype
        pieces = [p.detach().reshape(-1) for p in self.mine]
        padding = self.count - _total(self.mine)
        if padding:
            pieces.append(eager.zeros(padding, dtype=dtype))
        flat = eager.empty(len(self.shares) * self.count, dtype=dtype)
        all_gather_into_tensor(flat, eager.cat(pieces), group=self.group)
        own = {id(p) for p in self.mine}
        for p, view in self._places(flat):
            if id(p) not in own:
                p.copy_(view)


def _total(share: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in share)

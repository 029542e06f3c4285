"""What all optimizers share: groups of parameters with options, and state per parameter."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import eager
from eager import Tensor, _state
from eager.errors import ArgumentError, helpful
from eager.optim.param_group import ParamGroup, checked_params


class Optimizer:
    """Base class of the optimizers.

    Attributes:
        param_groups: one `ParamGroup` per group, with its parameters under "params".
        state: what `step` remembers of each parameter; filled when the parameter is first updated.
        defaults: the options of groups that do not give their own.
    """

    switches: ClassVar[tuple[str, ...]] = ()  # options whose being zero chooses the kernel

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[ParamGroup] = []
        groups: list[Any] = [params] if isinstance(params, Tensor | dict) else list(params)
        if not groups:
            raise helpful(
                ArgumentError, type(self).__name__, "there is nothing to optimize",
                expected="at least one parameter", given="an empty list",
            )  # fmt: skip
        if not isinstance(groups[0], dict):
            groups = [{"params": params if isinstance(params, Tensor | set) else groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with their own options; options not given are the defaults."""
        params = checked_params(param_group["params"])
        present = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in present for p in params):
            raise helpful(
                ArgumentError, type(self).__name__, "a parameter occurs in two groups",
                expected="each parameter in one group", given="one that is in a group already",
            )  # fmt: skip
        group = {**self.defaults, **param_group, "params": params}
        self._check(group)
        self.param_groups.append(ParamGroup(group, self.switches))
        _state.bump()

    def _check(self, group: dict[str, Any]) -> None:
        """Raises ArgumentError if an option of `group` is out of range."""

    def _require(self, group: dict[str, Any], key: str, fine: bool, expected: str) -> None:
        if not fine:
            raise helpful(
                ArgumentError, type(self).__name__, f"{key} is out of range",
                expected=expected, given=f"{key} = {group[key]}",
            )  # fmt: skip

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all parameters, or fills them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if set_to_none:
                    p.grad = None
                else:
                    p.grad = p.grad.detach()
                    p.grad.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        `closure` computes the loss and its gradients anew, and is called first; the loss it gives
        is returned.
        """
        loss = None
        if closure is not None:
            with eager.enable_grad():
                loss = closure()
        with eager.no_grad():
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    grads = [p.grad for p in params]
                    if group["maximize"]:
                        grads = [-g for g in grads]
                    self._update(group, params, grads)
        return loss

    def _state_of(self, p: Tensor, make: Callable[[Tensor], dict[str, Any]]) -> dict[str, Any]:
        """The state of `p`; made by `make`, which is a structural change, if there is none."""
        state = self.state.get(p)
        if not state:
            state = self.state[p] = make(p)
            _state.bump()
        return state

    def _update(self, group: ParamGroup, params: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError(f"{type(self).__name__}: the class defines no _update")

    # --- state dictionaries ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {number: {...}}, "param_groups": [{..., "params": [numbers]}]}``.

        Parameters are numbered in the order of the groups.  The tensors are the optimizer's own.
        """
        numbers: dict[int, int] = {}
        for p in self._all_params():
            numbers[id(p)] = len(numbers)
        groups = [
            {**group, "params": [numbers[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        state = {numbers[id(p)]: dict(values) for p, values in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; groups must hold as many parameters.

        State goes into the tensors there are, so that compiled steps see it; the others are copied,
        floating ones in the dtype of their parameter.
        """
        groups = state_dict["param_groups"]
        own, given = ([len(g["params"]) for g in gs] for gs in (self.param_groups, groups))
        if own != given:
            raise helpful(
                ArgumentError, f"{type(self).__name__}.load_state_dict", "the groups differ",
                expected=f"groups of {own} parameters", given=f"groups of {given}",
            )  # fmt: skip
        numbers = [n for group in groups for n in group["params"]]
        for p, number in zip(self._all_params(), numbers, strict=True):
            loaded = state_dict["state"].get(number)
            if loaded is None:
                self.state.pop(p, None)
            else:
                before = self.state[p]
                self.state[p] = {
                    key: _loaded(key, value, p, before.get(key)) for key, value in loaded.items()
                }
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update({k: copy.deepcopy(v) for k, v in values.items() if k != "params"})
        _state.bump()

    def _all_params(self) -> Iterable[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


def _loaded(key: str, value: Any, param: Tensor, before: Any) -> Any:
    """A value of a loaded state, in the tensor that held it before if that has its shape."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    with eager.no_grad():
        if isinstance(before, Tensor) and before.shape == value.shape:
            return before.copy_(value)
        fresh = value.detach().clone()
        # Counters stay as they are: bfloat16 counts no further than 256.
        is_moment = fresh.dtype.is_floating_point and key != "step"
        return fresh.to(param.dtype) if is_moment else fresh


def unsupported(op: str, option: str, value: Any) -> None:
    """Raises ArgumentError if `option` is asked for."""
    if value:
        raise helpful(
            ArgumentError, op, f"{option} is not supported",
            expected=f"{option}=False", given=repr(value),
        )  # fmt: skip

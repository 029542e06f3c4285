"""Loading a state dict into a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import eager
from eager import Tensor, _state
from eager.errors import ArgumentError, EagerError, ShapeError, helpful
from eager.nn.parameter import Parameter

if TYPE_CHECKING:
    from eager.nn.module import Module


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` found amiss."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


def load(
    module: Module, state: Mapping[str, Tensor], strict: bool, assign: bool
) -> IncompatibleKeys:
    """See `Module.load_state_dict`.  Checks everything before it changes anything."""
    own = module.state_dict(keep_vars=True)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    op = f"{type(module).__name__}.load_state_dict"
    if strict and (missing or unexpected):
        raise helpful(
            ArgumentError, op, "the names do not match",
            expected=f"exactly the {len(own)} names of this module's state_dict()",
            given=f"missing {missing}, unexpected {unexpected}",
            hint="pass strict=False to load the names that match",
        )  # fmt: skip
    shared = [name for name in own if name in state]
    for name in shared:
        if not isinstance(state[name], Tensor):
            raise helpful(
                ArgumentError, op, f"{name} is not a tensor",
                expected="a Tensor", given=type(state[name]).__name__,
            )  # fmt: skip
    wrong = [name for name in shared if tuple(state[name].shape) != tuple(own[name].shape)]
    if wrong:
        raise helpful(
            ShapeError, op, f"{len(wrong)} entries have another shape",
            expected=", ".join(f"{n} {tuple(own[n].shape)}" for n in wrong),
            given=", ".join(f"{n} {tuple(state[n].shape)}" for n in wrong),
        )  # fmt: skip
    if assign:
        for name in shared:
            _assign(module, name, state[name])
        _state.bump()
    else:
        with eager.no_grad():
            for name in shared:
                _copy(op, name, own[name], state[name])
    return IncompatibleKeys(missing, unexpected)


def _copy(op: str, name: str, target: Tensor, source: Tensor) -> None:
    try:
        target.copy_(source)
    except EagerError as error:
        raise helpful(
            ArgumentError, op, f"{name} cannot be copied",
            expected=f"a {target.dtype} tensor on {target.device} or one that casts to it",
            given=str(error),
        ) from error  # fmt: skip


def _assign(module: Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    before = owner._parameters.get(leaf)
    if before is None:
        owner._buffers[leaf] = value
    elif isinstance(value, Parameter):
        owner._parameters[leaf] = value
    else:
        owner._parameters[leaf] = Parameter(value, requires_grad=before.requires_grad)

"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import eager
from eager import _C, Tensor
from eager.errors import ArgumentError, helpful
from eager.op import registry
from eager.optim.optimizer import Optimizer, unsupported
from eager.optim.param_group import ParamGroup


class SGD(Optimizer):
    """``p -= lr * d``, where d is the gradient plus ``weight_decay * p``, with momentum::

        buf = momentum * buf + (1 - dampening) * d      (buf = d in the first step)
        d = d + momentum * buf if nesterov else buf

    All parameters of a group are updated by one native call.  `foreach` and `fused` choose between
    kernels elsewhere and are ignored here.
    """

    switches = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,  # noqa: ARG002
        differentiable: bool = False,
        fused: bool | None = None,  # noqa: ARG002
    ) -> None:
        unsupported("SGD", "differentiable", differentiable)
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "dampening": dampening,
                "weight_decay": weight_decay, "nesterov": nesterov, "maximize": maximize,
            },
        )  # fmt: skip
        self._zero, self._one = eager.tensor(0.0), eager.tensor(1.0)

    def _check(self, group: dict[str, Any]) -> None:
        for key in ("lr", "momentum", "weight_decay"):
            self._require(group, key, group[key] >= 0, f"{key} >= 0")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise helpful(
                ArgumentError, "SGD", "nesterov needs momentum without dampening",
                expected="momentum > 0 and dampening = 0",
                given=f"momentum = {group['momentum']}, dampening = {group['dampening']}",
            )  # fmt: skip

    def _update(self, group: ParamGroup, params: list[Tensor], grads: list[Tensor]) -> None:
        lr, decay = group.tensor("lr"), group.tensor("weight_decay")
        if group["momentum"] == 0:
            _C.multi_update(
                registry["sgd_plain_update"].id,
                [(p, g, lr, decay) for p, g in zip(params, grads, strict=True)],
                [(p,) for p in params],
            )
            return
        options = (lr, group.tensor("momentum"), group.tensor("dampening"), decay)
        nesterov = self._one if group["nesterov"] else self._zero
        inputs, targets = [], []
        for p, g in zip(params, grads, strict=True):
            # In the first step the buffer is only written.
            first = self._zero if self.state.get(p) else self._one
            buf = self._state_of(p, _fresh)["momentum_buffer"]
            inputs.append((p, g, buf, *options, nesterov, first))
            targets.append((p, buf))
        _C.multi_update(registry["sgd_update"].id, inputs, targets)


def _fresh(p: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": eager.zeros_like(p)}

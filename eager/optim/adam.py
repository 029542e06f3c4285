"""Adam and AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

import eager
from eager import _C, Tensor
from eager.op import registry
from eager.optim.optimizer import Optimizer, unsupported
from eager.optim.param_group import ParamGroup


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015)::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p -= lr * (m / (1 - beta1 ** step)) / (sqrt(v / (1 - beta2 ** step)) + eps)

    with ``g`` the gradient plus ``weight_decay * p``.  All parameters of a group are updated by one
    native call; `step`, m (exp_avg) and v (exp_avg_sq) are tensors that are updated in place.
    `foreach`, `capturable` and `fused` choose between kernels elsewhere and are ignored here;
    amsgrad and differentiable are not supported.
    """

    kernel: ClassVar[str] = "adam_update"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,  # noqa: ARG002
        maximize: bool = False,
        capturable: bool = False,  # noqa: ARG002
        differentiable: bool = False,
        fused: bool | None = None,  # noqa: ARG002
    ) -> None:
        unsupported(type(self).__name__, "differentiable", differentiable)
        super().__init__(
            params,
            {
                "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
                "amsgrad": amsgrad, "maximize": maximize,
            },
        )  # fmt: skip
        self._one = eager.tensor(1.0)

    def _check(self, group: dict[str, Any]) -> None:
        unsupported(type(self).__name__, "amsgrad", group["amsgrad"])
        for key in ("lr", "eps", "weight_decay"):
            self._require(group, key, group[key] >= 0, f"{key} >= 0")
        betas = group["betas"]
        fine = len(betas) == 2 and all(0 <= b < 1 for b in betas)
        self._require(group, "betas", fine, "two numbers with 0 <= beta < 1")

    def _update(self, group: ParamGroup, params: list[Tensor], grads: list[Tensor]) -> None:
        options = (
            group.tensor("lr"), group.tensor("betas", 0), group.tensor("betas", 1),
            group.tensor("eps"), group.tensor("weight_decay"),
        )  # fmt: skip
        counts, inputs, targets = [], [], []
        for p, g in zip(params, grads, strict=True):
            state = self._state_of(p, _fresh)
            step, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
            counts.append(step)
            inputs.append((p, g, m, v, step, *options))
            targets.append((p, m, v))
        _C.multi_update(
            registry["add"].id, [(step, self._one) for step in counts], [(s,) for s in counts]
        )
        _C.multi_update(registry[self.kernel].id, inputs, targets)


def _fresh(p: Tensor) -> dict[str, Tensor]:
    return {
        "step": eager.tensor(0.0),
        "exp_avg": eager.zeros_like(p),
        "exp_avg_sq": eager.zeros_like(p),
    }


class AdamW(Adam):
    """`Adam` whose weight decay is ``p -= lr * weight_decay * p``, apart from the gradient
    (Loshchilov & Hutter 2019)."""

    kernel = "adamw_update"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
        )  # fmt: skip

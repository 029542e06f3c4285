"""Learning rates that change over time.

A scheduler writes ``group["lr"]`` of every parameter group when its `step` is called, once per
epoch or batch after the optimizer's `step`.  Most compute the new rate from the present one, so
that several can act on one optimizer.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from eager.errors import ArgumentError, helpful
from eager.optim.optimizer import Optimizer


class LRScheduler:
    """Base class: subclasses define `get_lr`.

    `last_epoch` counts calls of `step`; it is 0 after construction.  Constructing with another
    `last_epoch` resumes: then every group must already have its "initial_lr".
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise helpful(
                    ArgumentError, type(self).__name__, "a parameter group has no initial_lr",
                    expected="initial_lr in every group when last_epoch is given",
                    given=f"last_epoch = {last_epoch}",
                )  # fmt: skip
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        self.step()

    def get_lr(self) -> list[float]:
        """The rates for `last_epoch`, one per group."""
        raise NotImplementedError(f"{type(self).__name__}: the class defines no get_lr")

    def get_last_lr(self) -> list[float]:
        """The rates this scheduler set last."""
        return self._last_lr

    def step(self) -> None:
        """Goes to the next epoch and sets its rates."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def _set(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _present(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and functions."""
        left_out = ("optimizer", "lr_lambdas", "schedulers")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self.__dict__.update(state_dict)


def _per_group(op: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """`value` for each group: itself a list of as many, or one for all."""
    count = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise helpful(
            ArgumentError, op, "there must be one value per parameter group",
            expected=f"{count} values", given=f"{len(value)}",
        )  # fmt: skip
    return list(value)


class LambdaLR(LRScheduler):
    """initial_lr * lr_lambda(epoch)."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas = _per_group("LambdaLR", optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        return [
            base * fn(self.last_epoch)
            for base, fn in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]


class MultiplicativeLR(LRScheduler):
    """The present rate * lr_lambda(epoch)."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.lr_lambdas = _per_group("MultiplicativeLR", optimizer, lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        if self.last_epoch == 0:
            return self._present()
        return [
            lr * fn(self.last_epoch)
            for lr, fn in zip(self._present(), self.lr_lambdas, strict=True)
        ]


class StepLR(LRScheduler):
    """Multiplies by gamma every `step_size` epochs."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        due = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return [lr * (self.gamma if due else 1) for lr in self._present()]


class MultiStepLR(LRScheduler):
    """Multiplies by gamma at each of `milestones`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        return [lr * self.gamma ** self.milestones[self.last_epoch] for lr in self._present()]


class ExponentialLR(LRScheduler):
    """Multiplies by gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        return [lr * (self.gamma if self.last_epoch > 0 else 1) for lr in self._present()]


class ConstantLR(LRScheduler):
    """initial_lr * factor for the first `total_iters` epochs, then initial_lr."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        scale = 1.0
        if self.last_epoch == 0:
            scale = self.factor
        elif self.last_epoch == self.total_iters:
            scale = 1 / self.factor
        return [lr * scale for lr in self._present()]


class LinearLR(LRScheduler):
    """initial_lr times a factor that goes linearly from `start_factor` to `end_factor` in
    `total_iters` epochs."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise helpful(
                ArgumentError, "LinearLR", "a factor is out of range",
                expected="0 < start_factor <= 1 and 0 <= end_factor <= 1",
                given=f"{start_factor=}, {end_factor=}",
            )  # fmt: skip
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _factor(self, epoch: int) -> float:
        part = min(epoch, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * part

    def get_lr(self) -> list[float]:
        """See the class."""
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in self._present()]
        if self.last_epoch > self.total_iters:
            return self._present()
        scale = self._factor(self.last_epoch) / self._factor(self.last_epoch - 1)
        return [lr * scale for lr in self._present()]


class CosineAnnealingLR(LRScheduler):
    """From initial_lr to `eta_min` along half a cosine in `T_max` epochs, and back again
    (Loshchilov & Hutter 2017)."""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """See the class."""
        epoch = self.last_epoch
        if epoch == 0:
            return self._present()
        turn = 1 + math.cos(math.pi * epoch / self.T_max)
        before = 1 + math.cos(math.pi * (epoch - 1) / self.T_max)
        if (epoch - 1) % (2 * self.T_max) == self.T_max:
            # The rate was eta_min, from which no ratio leads away.
            return [self.eta_min + (base - self.eta_min) * turn / 2 for base in self.base_lrs]
        return [self.eta_min + (lr - self.eta_min) * turn / before for lr in self._present()]


class SequentialLR(LRScheduler):
    """One scheduler after another: number i + 1 takes over at ``milestones[i]``."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        if len(milestones) != len(schedulers) - 1:
            raise helpful(
                ArgumentError, "SequentialLR", "there must be one milestone between schedulers",
                expected=f"{len(schedulers) - 1} milestones", given=f"{len(milestones)}",
            )  # fmt: skip
        self.optimizer = optimizer
        self.schedulers = list(schedulers)
        self.milestones = list(milestones)
        self.last_epoch = last_epoch + 1
        # Constructing the schedulers has already applied all of them: begin again with the first.
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self.schedulers[0].last_epoch = -1
        self.schedulers[0].step()
        self._last_lr = self.schedulers[0].get_last_lr()

    def step(self) -> None:
        """Goes to the next epoch."""
        self.last_epoch += 1
        at = bisect.bisect_right(self.milestones, self.last_epoch)
        scheduler = self.schedulers[at]
        if at > 0 and self.milestones[at - 1] == self.last_epoch:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"]
            scheduler.last_epoch = -1
        scheduler.step()
        self._last_lr = scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """The states of all schedulers."""
        return {**super().state_dict(), "_schedulers": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        own = dict(state_dict)
        for scheduler, state in zip(self.schedulers, own.pop("_schedulers"), strict=True):
            scheduler.load_state_dict(state)
        super().load_state_dict(own)


class OneCycleLR(LRScheduler):
    """Up to `max_lr` in the first `pct_start` of `total_steps`, then down to almost nothing
    (Smith & Topin 2018).  Step it after every batch.

    Begins at max_lr / div_factor and ends at that divided by final_div_factor.  With
    `cycle_momentum`, momentum (or Adam's beta1) runs the other way between its two bounds.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        last_epoch: int = -1,
    ) -> None:
        if total_steps <= 0 or not 0 <= pct_start <= 1 or anneal_strategy not in ("cos", "linear"):
            raise helpful(
                ArgumentError, "OneCycleLR", "an option is out of range",
                expected="total_steps >= 1, 0 <= pct_start <= 1, 'cos' or 'linear'",
                given=f"{total_steps=}, {pct_start=}, {anneal_strategy=}",
            )  # fmt: skip
        self.max_lrs = _per_group("OneCycleLR", optimizer, max_lr)
        self.total_steps = total_steps
        self.peak = pct_start * total_steps - 1
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        if last_epoch == -1:
            for group, top in zip(optimizer.param_groups, self.max_lrs, strict=True):
                group["initial_lr"] = top / div_factor
        super().__init__(optimizer, last_epoch)

    def _between(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "cos":
            return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
        return start + (end - start) * part

    def get_lr(self) -> list[float]:
        """See the class."""
        at = self.last_epoch
        if at >= self.total_steps:
            raise helpful(
                ArgumentError, "OneCycleLR", "the cycle is over",
                expected=f"at most {self.total_steps} steps", given=f"step {at + 1}",
            )  # fmt: skip
        rising = at <= self.peak
        last = self.total_steps - 1
        if rising:
            part = at / self.peak if self.peak > 0 else 1.0
        else:
            part = (at - self.peak) / (last - self.peak) if last > self.peak else 1.0
        low, high = self.base_momentum, self.max_momentum
        if self.cycle_momentum:
            momentum = self._between(*((high, low) if rising else (low, high)), part)
            for group in self.optimizer.param_groups:
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                elif "momentum" in group:
                    group["momentum"] = momentum
        rates = []
        for base, top in zip(self.base_lrs, self.max_lrs, strict=True):
            ends = (base, top) if rising else (top, base / self.final_div_factor)
            rates.append(self._between(*ends, part))
        return rates


class ReduceLROnPlateau(LRScheduler):
    """Multiplies by `factor` when the metric given to `step` has not improved for more than
    `patience` epochs.

    "min" counts a decrease as improvement, "max" an increase; by more than `threshold`, which is
    a fraction ("rel") or absolute ("abs").  After a reduction, `cooldown` epochs are not counted.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1 or mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise helpful(
                ArgumentError, "ReduceLROnPlateau", "an option is out of range",
                expected="factor < 1, mode 'min' or 'max', threshold_mode 'rel' or 'abs'",
                given=f"{factor=}, {mode=}, {threshold_mode=}",
            )  # fmt: skip
        self.optimizer = optimizer
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lrs = _per_group("ReduceLROnPlateau", optimizer, min_lr)
        self.eps = eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self.last_epoch = 0
        self._last_lr = self._present()

    def _improved(self, value: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        margin = self.threshold
        if self.threshold_mode == "rel" and math.isfinite(self.best):
            margin *= self.best
        return value * sign < self.best * sign - margin

    def step(self, metrics: Any = None) -> None:
        """Takes the metric (a number or a tensor of one element) of one more epoch."""
        if metrics is None:
            raise helpful(
                ArgumentError, "ReduceLROnPlateau.step", "there is no metric",
                expected="a number", given="None",
            )  # fmt: skip
        value = float(metrics)
        self.last_epoch += 1
        if self._improved(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            present = self._present()
            lower = [
                max(lr * self.factor, least)
                for lr, least in zip(present, self.min_lrs, strict=True)
            ]
            self._set([b if a - b > self.eps else a for a, b in zip(present, lower, strict=True)])
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = self._present()

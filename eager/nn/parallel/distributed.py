"""`DistributedDataParallel`: one replica of a module per rank, with averaged gradients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import eager
from eager import Tensor, _state
from eager.distributed import graph
from eager.distributed.backends.base import Backend
from eager.distributed.errors import DistributedError, Mismatch
from eager.errors import ArgumentError, helpful
from eager.nn.module import Module
from eager.nn.parallel.reducer import Reducer, tensors_in

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup

_NAME = "DistributedDataParallel"


class DistributedDataParallel(Module):
    """Wraps a module so that backward leaves every rank with the mean of all ranks' gradients.

    Every rank constructs it around the same module, computes on its own data, and steps its own
    optimizer.  Parameters and buffers become those of rank 0.  Gradients live in buckets in memory
    that other ranks read or write (`Backend.allocate`): backward computes them there, and each
    bucket is reduced on the group's thread as soon as it is complete, while backward goes on.

    Args:
        module: what every rank computes; at least one parameter requires grad.
        device_ids, output_device: None, or for a module on the CPU an empty list.
        dim: accepted for PyTorch's signature, not used.
        broadcast_buffers: every forward begins with rank 0's buffers (running means and such).
        init_sync: begin with rank 0's parameters and buffers.
        process_group: of ranks; WORLD by default.
        bucket_cap_mb: size of buckets in MiB; 25 by default.
        find_unused_parameters: parameters may be without gradient in some backward of some rank.
            They count as zeros; what no rank has used keeps its gradient.  Every forward then
            walks the graph of its outputs, and every backward exchanges which were used.
        gradient_as_bucket_view: gradients are views of the buckets; False is an error.
        static_graph: the same parameters are unused in every backward of every rank.

    Differences from PyTorch: every backward is a reduction of its own, so two forwards may be
    followed by two backwards, and `loss.backward()` twice is as right as without this class.

    While a step is traced by `jit`, reductions become ops of the compiled program; `stats` does
    not count those.

    Raises:
        ArgumentError: an option that is not supported here, or nothing to train.
        Mismatch: ranks wrap different modules; raised on all ranks, naming the first difference.
        DistributedError: this process has joined no job.
    """

    def __init__(
        self, module: Module, device_ids: Sequence[Any] | None = None, output_device: Any = None,
        dim: int = 0, broadcast_buffers: bool = True, init_sync: bool = True,
        process_group: ProcessGroup | None = None, bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False, check_reduction: bool = False,
        gradient_as_bucket_view: bool = True, static_graph: bool = False,
        delay_all_reduce_named_params: Any = None, param_to_hook_all_reduce: Any = None,
        mixed_precision: Any = None, device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
    ) -> None:  # fmt: skip
        from eager.distributed.process_group import resolve

        super().__init__()
        for name, given in (
            ("delay_all_reduce_named_params", delay_all_reduce_named_params),
            ("param_to_hook_all_reduce", param_to_hook_all_reduce),
            ("mixed_precision", mixed_precision), ("device_mesh", device_mesh),
            ("skip_all_reduce_unused_params", skip_all_reduce_unused_params),
        ):  # fmt: skip
            if given:
                raise helpful(ArgumentError, _NAME, f"{name} is not supported", "its default",
                              repr(given)[:80])  # fmt: skip
        if device_ids or output_device not in (None, "cpu"):
            raise helpful(ArgumentError, _NAME, "the module is on the CPU",
                          "device_ids=None and output_device=None",
                          f"{device_ids=}, {output_device=}")  # fmt: skip
        if not gradient_as_bucket_view:
            raise helpful(ArgumentError, _NAME, "gradients live in the buckets",
                          "gradient_as_bucket_view=True", "False",
                          "leave it out, and clone gradients that must stay")  # fmt: skip
        del dim, check_reduction
        limit = 25.0 if bucket_cap_mb is None else float(bucket_cap_mb)
        if not limit > 0:
            raise helpful(ArgumentError, _NAME, "buckets must hold something",
                          "bucket_cap_mb above 0", str(bucket_cap_mb))  # fmt: skip
        group = resolve(process_group, _NAME)
        named = _trained(module)
        self.module = module
        self.device = named[0][1].device
        self.process_group = group
        self.broadcast_buffers = broadcast_buffers
        self.find_unused_parameters = find_unused_parameters
        self.static_graph = static_graph
        self.require_backward_grad_sync = True
        self.bucket_bytes_cap = int(limit * (1 << 20))
        self._check_same(group.backend, named)
        if init_sync:
            self._send_state(group.backend)
        self._reducer = Reducer(
            [p for _, p in named], [n for n, _ in named], group, self.bucket_bytes_cap,
            find_unused_parameters, static_graph,
        )  # fmt: skip
        self._listing = _Listing()

    # --- calls -----------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """What the module gives, ready for a backward that reduces.

        Raises:
            DistributedError: the last backward gave some parameters no gradient, which
                `find_unused_parameters` was not set for.
        """
        reducer = self._reducer
        reducer.abandon()
        self._check_complete()
        training = eager.is_grad_enabled()
        if training:
            reducer.armed = self.require_backward_grad_sync
        if self.broadcast_buffers and reducer.armed:
            self._send_buffers()
        result = self.module(*inputs, **kwargs)
        if training and reducer.armed:
            search = self.find_unused_parameters and not self.static_graph
            reducer.prepare(tensors_in(result) if search and not graph.recording() else None)
        return result

    def _check_complete(self) -> None:
        missing, self._reducer.missing = self._reducer.missing, []
        if not missing:
            return
        names = [self._reducer.names[i] for i in missing]
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise helpful(
            DistributedError, _NAME,
            "the last backward was not reduced: some parameters got no gradient",
            expected="gradients of all parameters",
            given=f"none of {shown} on rank {self._reducer.backend.rank}",
            hint="find_unused_parameters=True, or outputs that use all parameters",
        )  # fmt: skip

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, forward and its backward add to this rank's own gradients; the first
        backward whose forward was outside reduces their sum."""
        before = self.require_backward_grad_sync
        self.require_backward_grad_sync = False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before

    def join(
        self, divide_by_initial_world_size: bool = True, enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Any:  # fmt: skip
        """Uneven inputs are not supported: always raises ArgumentError."""
        del divide_by_initial_world_size, enable, throw_on_early_termination
        raise helpful(
            ArgumentError, f"{_NAME}.join", "uneven inputs are not supported",
            expected="the same number of backwards on every rank", given="a call of join",
            hint="drop_last, or a sampler that pads, such as DistributedSampler",
        )  # fmt: skip

    def register_comm_hook(self, state: Any, hook: Callable[[Any, Any], Any]) -> None:
        """Replaces the average over ranks: ``hook(state, bucket)`` returns a future of the reduced
        ``bucket.buffer()``.  See `eager.distributed.algorithms.ddp_comm_hooks`.

        Raises:
            ArgumentError: it cannot be called, or there is one already.
        """
        if not callable(hook) or self._reducer.hook is not None:
            raise helpful(ArgumentError, "register_comm_hook", "the hook cannot be registered",
                          "a function, once", repr(hook))  # fmt: skip
        self._reducer.hook = (hook, state)

    def stats(self) -> dict[str, float]:
        """Counters of this rank since construction.

        Returns:
            rounds: backwards that were reduced; bytes_reduced: the sum of their buckets;
            buckets: how many there are; staging_copies, staging_bytes: gradients that were
            computed elsewhere and copied into a bucket; wait_seconds: time after backward spent
            waiting for reductions.
        """
        return self._reducer.stats()

    def __getstate__(self) -> dict[str, Any]:
        raise helpful(
            ArgumentError, _NAME, "it can be neither copied nor pickled",
            expected="its .module or its state_dict()", given="the wrapper, with its buckets",
            hint="copy the .module, and wrap that",
        )  # fmt: skip

    # --- what ranks share ------------------------------------------------------------------------

    def _check_same(self, backend: Backend, named: Sequence[tuple[str, Tensor]]) -> None:
        """All ranks have the same parameters; names the first that differs."""
        if backend.size == 1:
            return
        lines = [
            f"{n}: {tuple(t.shape)} {t.dtype}{' trained' if t.requires_grad else ''}"
            for n, t in [*self.module.named_parameters(), *self.module.named_buffers()]
        ]
        del named
        digests = [hashlib.sha256(line.encode()).digest()[:8] for line in lines]
        first = _broadcast_bytes(backend, json.dumps([d.hex() for d in digests]).encode())
        theirs = json.loads(first)
        mine = [d.hex() for d in digests]
        differs = -1
        if mine != theirs:
            differs = next(
                (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
                min(len(mine), len(theirs)),
            )
        found = eager.full((backend.size,), -1, dtype=eager.int64)
        backend.all_gather(found, eager.tensor([differs], dtype=eager.int64))
        places = [int(x) for x in found.tolist()]
        if max(places) < 0:
            return
        rank = next(r for r, place in enumerate(places) if place >= 0)
        place = places[rank]
        here = lines[place] if place < len(lines) else "no such entry"
        raise helpful(
            Mismatch, _NAME, f"the module of rank {rank} differs from that of rank 0",
            expected="the same parameters and buffers on all ranks, in the same order",
            given=f"entry {place}, which is here: {here}",
        )  # fmt: skip

    def _send_state(self, backend: Backend) -> None:
        with eager.no_grad():
            for t in [*self.module.parameters(), *self.module.buffers()]:
                backend.broadcast(t.detach(), 0)

    def _send_buffers(self) -> None:
        """All buffers become rank 0's: one message for each dtype."""
        buffers = self._listing.of(self.module)
        backend = self._reducer.backend
        if not buffers or backend.size == 1:
            return
        if graph.recording():
            from eager.distributed.collectives import broadcast

            for b in buffers:
                broadcast(b, group=self.process_group, group_src=0)
            return
        with eager.no_grad():
            for dtype in dict.fromkeys(b.dtype for b in buffers):
                alike = [b for b in buffers if b.dtype == dtype]
                flat = eager.cat([b.detach().reshape(-1) for b in alike])
                backend.broadcast(flat, 0)
                if backend.rank == 0:
                    continue
                at = 0
                for b in alike:
                    b.copy_(flat[at : at + b.numel()].reshape(b.shape))
                    at += b.numel()


class _Listing:
    """A module's buffers, listed anew when some module has changed."""

    def __init__(self) -> None:
        self._epoch = -1
        self._buffers: list[Tensor] = []

    def of(self, module: Module) -> list[Tensor]:
        if self._epoch != _state.epoch:
            self._buffers, self._epoch = list(module.buffers()), _state.epoch
        return self._buffers


def _trained(module: Module) -> list[tuple[str, Tensor]]:
    """The parameters that require grad, by name; each once."""
    if not isinstance(module, Module):
        raise helpful(ArgumentError, _NAME, "not a module", "an eager.nn.Module",
                      type(module).__name__)  # fmt: skip
    named: list[tuple[str, Tensor]] = [
        (n, p) for n, p in module.named_parameters() if p.requires_grad
    ]
    if not named:
        raise helpful(ArgumentError, _NAME, "the module has nothing to train",
                      "at least one parameter that requires grad", repr(module)[:80])  # fmt: skip
    for name, p in named:
        if p.is_meta:
            raise helpful(ArgumentError, _NAME, f"{name} has no data", "parameters on the CPU",
                          "one on meta")  # fmt: skip
    return named


def _broadcast_bytes(backend: Backend, data: bytes) -> bytes:
    """Rank 0's `data`."""
    size = eager.tensor([len(data)], dtype=eager.int64)
    backend.broadcast(size, 0)
    if backend.rank == 0:
        content = eager.frombuffer(bytearray(data), dtype=eager.uint8)
    else:
        content = eager.zeros(int(size.item()), dtype=eager.uint8)
    backend.broadcast(content, 0)
    return bytes(content.numpy())

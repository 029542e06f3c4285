"""Runs programs on the core's worker pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import eager
from eager import _C
from jit import collective, debug
from jit.fusion.bodies import EXCHANGE, FIRST, GEMM
from jit.fusion.program import Program
from jit.fusion.schedule import describe_schedule
from jit.fusion.tile import Exchange, describe_plan
from jit.runtime import native


@dataclass(frozen=True)
class ExecutableStats:
    """Figures of one compiled segment.

    Attributes:
        workers: that share a launch.
        stages: of the plan.
        tasks: instructions over all workers.
        bodies: different compiled bodies, the core's matrix product not counted.
        epochs: barriers plus one.
        arena_bytes: memory for intermediates.
        words: length of the instruction table.
    """

    workers: int
    stages: int
    tasks: int
    bodies: int
    epochs: int
    arena_bytes: int
    words: int


class Executable:
    """A program ready to run on this machine's CPU.

    Attributes:
        program: the tables.
        stats: figures.
        launches: programs started per run: always 1.
    """

    launches = 1

    def __init__(self, program: Program) -> None:
        self.program = program
        plan = program.plan
        self.stats = ExecutableStats(
            program.workers, len(plan.stages), len(program.schedule.tasks), len(program.bodies),
            program.epochs, program.arena, len(program.words),
        )  # fmt: skip
        debug.show(3, "stages", describe_plan(plan))
        debug.show(3, "schedule", describe_schedule(plan, program.schedule))
        debug.show(3, "figures", self.stats)
        for i, body in enumerate(program.bodies if debug.level() >= 4 else ()):
            debug.show(4, f"body {i + FIRST}", native.source(body))
        # what the instructions of collectives point to
        self._owners = [
            x for s in plan.stages if isinstance(s, Exchange) for x in collective.owners(s)
        ]
        self._native = _launcher(program, [GEMM, EXCHANGE, *native.addresses(program.bodies)])

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """One launch.

        Args:
            inputs: contiguous tensors of the shapes and dtypes of the graph's inputs.

        Returns:
            The outputs; those that overwrite an input are that input.

        Raises:
            IndexOutOfRange: an index computed by the program was out of range.
            ArgumentError: the inputs do not fit.
        """
        results: list[Any] = self._native.run(inputs)
        return results


def _launcher(program: Program, addresses: list[int]) -> Any:
    """The native side: tables, arena, constants."""
    plan = program.plan
    constants = [
        (b.id, _tensor(b.data)) for b in plan.buffers if b.kind == "constant" and b.data is not None
    ]
    native_program = _C.Program(
        words=program.words.tolist(),
        starts=program.starts.tolist(),
        workers=program.workers,
        epochs=program.epochs,
        bodies=addresses,
        names=[b.name or f"buffer {b.id}" for b in plan.buffers],
        arena_bytes=max(program.arena, 1),
        places=list(program.offsets.items()),
        constants=constants,
    )
    for number, (shape, dtype) in zip(plan.inputs, plan.input_types, strict=True):
        buffer = -1 if number is None else number
        native_program.add_input(buffer, getattr(eager, dtype), shape)
    for number, shape, dtype in plan.outputs:
        source = plan.inputs.index(number) if number in plan.inputs else -1
        native_program.add_output(number, source, getattr(eager, dtype), shape)
    return native_program


def _tensor(data: np.ndarray[Any, Any]) -> Any:
    return eager.from_numpy(data.copy())

"""What a compiled function has done so far."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from jit.places import frames_to_user


class CompileWarning(UserWarning):
    """A call runs eagerly although it was to be compiled; says why and where."""


@dataclass
class Stats:
    """Counters of one compiled function.

    Attributes:
        calls: calls so far.
        compiled_calls: calls served by compiled code (`cache hits`).
        traces: traced calls.
        guard_misses: calls for which there were programs, but none whose guards held.
        launches_per_call: programs started by the last compiled call's forward.
        backward_launches: programs started by its backward, if the result needs one.
        eager_ops_per_call: ops the last compiled call ran one by one.
        compile_seconds: time spent in passes and code generation.
        fallbacks: reasons why calls stay eager.
    """

    calls: int = 0
    compiled_calls: int = 0
    traces: int = 0
    guard_misses: int = 0
    launches_per_call: int = 0
    backward_launches: int = 0
    eager_ops_per_call: int = 0
    compile_seconds: float = 0.0
    fallbacks: list[str] = field(default_factory=list)

    def fall_back(self, name: str, reason: str) -> None:
        """Notes why calls stay eager; the first time with a warning."""
        if not self.fallbacks:
            text = f"jit.compile: {name} runs eagerly: {reason}"
            warnings.warn(text, CompileWarning, stacklevel=1 + frames_to_user())
        if reason not in self.fallbacks:
            self.fallbacks.append(reason)

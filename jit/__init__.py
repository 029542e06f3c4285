"""The compiler: traces functions on eager tensors and runs them as few fused programs.

    step = jit.compile(train_step)

`compile` compiles a function, `value_and_grad` and `grad` make gradient functions, `explain`
says what became of a call.
"""

from jit.compile import Compiled, CompileError, compile
from jit.explain import explain
from jit.functional import grad, value_and_grad
from jit.stats import CompileWarning, Stats

__all__ = [
    "CompileError",
    "CompileWarning",
    "Compiled",
    "Stats",
    "compile",
    "explain",
    "grad",
    "value_and_grad",
]

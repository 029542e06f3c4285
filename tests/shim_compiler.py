"""A segment compiler whose programs run on the host shim instead of the worker pool."""

import eager
from jit.codegen import shim
from jit.codegen.cuda import print_program
from jit.fusion import build_program


class ShimExecutable:
    """See `jit.segments.Executable`.  `inputs`: those of the last run, as they were before it."""

    launches = 1

    def __init__(self, program, order):
        self.cuda = print_program(program)
        self.order = order
        self.inputs = None

    def run(self, inputs):
        arrays = [t.detach().numpy() for t in inputs]
        self.inputs = [a.copy() for a in arrays]
        outputs = shim.run(self.cuda, arrays, order=self.order)
        places = self.cuda.program.plan.inputs
        return [
            inputs[places.index(b)] if b in places else eager.tensor(array)
            for array, (b, _, _) in zip(outputs, self.cuda.program.plan.outputs, strict=True)
        ]


class ShimCompiler:
    """``Compiled(fn, compiler=ShimCompiler())``.  Keeps what it has compiled, in `executables`."""

    def __init__(self, workers=4, order=shim.IN_TURN):
        self.workers, self.order = workers, order
        self.executables = []

    def __call__(self, graph, *, threads, writes=None):
        program = build_program(graph, workers=self.workers, writes=writes)
        self.executables.append(ShimExecutable(program, self.order))
        return self.executables[-1]

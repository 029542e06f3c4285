"""A segment compiler that runs the graph with eager ops: what the fused one is compared with."""

import numpy as np

import eager
from jit.graph import Graph, evaluate


class Reference:
    """See `jit.segments.Executable`."""

    launches = 1

    def __init__(self, graph: Graph, *, threads: int, writes: dict[int, int]) -> None:
        self.graph, self.threads, self.writes = graph, threads, writes

    def run(self, inputs: list) -> list:
        with eager.no_grad():
            assert all(t.is_contiguous() for t in inputs)
            outputs = [t.contiguous().clone() for t in evaluate(self.graph, inputs)]
            for o, i in self.writes.items():
                inputs[i].data.copy_(outputs[o])
                outputs[o] = inputs[i]
        return outputs


def close(a, b, tolerance=1e-6):
    """Asserts that two tensors agree."""
    np.testing.assert_allclose(
        a.detach().numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance
    )

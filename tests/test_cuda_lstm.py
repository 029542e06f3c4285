"""The main job's training step as one CUDA kernel: losses and gradients equal the CPU program's."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from shim_compiler import ShimCompiler

import eager
import jit
from eager import optim
from eager.nn import functional as F
from jit.codegen import shim
from jit.codegen.cuda import print_program
from jit.fusion.program import assemble, without_barrier
from jit.runtime import nvrtc

TUTORIAL = Path(__file__).parents[1] / "tutorials" / "digits_lstm.py"
BATCH, HIDDEN, STEPS = 8, 16, 3
pytestmark = pytest.mark.xdist_group("cuda_lstm")  # one process compiles


@pytest.fixture(scope="module")
def tutorial():
    spec = importlib.util.spec_from_file_location("digits_lstm", TUTORIAL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Training:
    """The tutorial's step from fixed initial weights."""

    def __init__(self, tutorial, compiler=None, hidden=HIDDEN):
        eager.manual_seed(0)
        self.model = tutorial.RowReader(8, hidden, 10)
        self.optimizer = optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=0.1)
        self.step = jit.Compiled(self._step, compiler=compiler, fullgraph=True)

    def _step(self, images, labels):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=0.1)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, steps=STEPS, batch=BATCH):
        """Losses of a few steps, and the last gradients and weights."""
        rng = np.random.default_rng(0)
        losses = []
        for _ in range(2 + steps):  # the first call is eager, the second traces
            images = eager.tensor(rng.random((batch, 8, 8), np.float32))
            labels = eager.tensor(rng.integers(0, 10, batch))
            losses.append(self.step(images, labels).item())
        assert self.step.stats().compiled_calls == steps
        assert self.step.stats().launches_per_call == 1
        parameters = list(self.model.parameters())
        return losses, [p.grad for p in parameters], [p.detach() for p in parameters]


@pytest.fixture(scope="module")
def on_cpu(tutorial):
    return Training(tutorial).run()


@pytest.fixture(scope="module")
def executable(tutorial):
    """The step's program for four blocks, after its last launch."""
    compiler = ShimCompiler()
    Training(tutorial, compiler).run()
    (made,) = compiler.executables
    return made


@pytest.mark.parametrize("order", [shim.LOWEST_FIRST, shim.HIGHEST_FIRST, 3])
def test_losses_gradients_and_weights_equal_the_cpu_program_s(tutorial, on_cpu, order):
    losses, gradients, weights = Training(tutorial, ShimCompiler(order=order)).run()
    np.testing.assert_allclose(losses, on_cpu[0], rtol=1e-5)
    for actual, expected in zip(gradients + weights, on_cpu[1] + on_cpu[2], strict=True):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.skipif(nvrtc.find_library() is None, reason="nvidia-cuda-nvrtc is not installed")
def test_the_main_job_s_program_compiles_for_cards(tutorial):
    compiler = ShimCompiler()
    Training(tutorial, compiler, hidden=128).run(steps=0, batch=64)
    source = compiler.executables[0].cuda.source
    for arch in nvrtc.ARCHITECTURES:
        compiled = nvrtc.compile(source, arch)
        assert compiled.cubin[:4] == b"\x7fELF"
        assert compiled.log == ""
        # Buffers change while the kernel runs: nothing may be read through the read-only cache.
        assert "ld.global.nc" not in compiled.ptx
        assert compiled.seconds < 30  # about 1.5 alone on a machine


def test_leaving_out_any_barrier_shows(executable):
    program = executable.cuda.program

    def outputs(broken, order):
        inputs = [a.copy() for a in executable.inputs]
        return np.concatenate(
            [a.ravel() for a in shim.run(print_program(broken), inputs, order=order)]
        )

    assert program.epochs > 10
    expected = outputs(program, shim.IN_TURN)
    for barrier in range(program.epochs - 1):
        broken = assemble(program.plan, without_barrier(program.schedule, barrier))
        assert any(
            not np.allclose(outputs(broken, order), expected, rtol=1e-4, atol=1e-6)
            for order in (shim.LOWEST_FIRST, shim.HIGHEST_FIRST, 3, 4)
        ), f"barrier {barrier}"

"""Settings and fixtures of all tests."""

import os

# Graphs are verified after the tracer and after every pass, and failures to compile are errors.
os.environ["EAGER_VERIFY"] = "1"

import numpy as np
import pytest
from hypothesis import settings
from jit_reference import Reference

import eager
from jit.compile import Compiled

# Examples compile code: how long one takes says nothing.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")


def pytest_runtest_setup(item):
    """A test's random numbers are its own, whatever ran before it in its worker."""
    eager.manual_seed(0)
    module = getattr(item, "module", None)
    for name, value in vars(module).items() if module else ():
        if isinstance(value, np.random.Generator):
            setattr(module, name, np.random.default_rng(0))


@pytest.fixture(params=["reference", "fused"])
def compile(request):
    """`jit.compile` with the reference compiler, and as it is."""
    compiler = Reference if request.param == "reference" else None

    def build(fn, **options):
        return Compiled(fn, compiler=compiler, **options)

    return build

"""Printed programs compile for real architectures, without a GPU."""

import pytest
from shim_compiler import ShimCompiler
from test_cuda_codegen import CASES

import jit
from eager.errors import DeviceError
from jit.codegen.cuda import print_bodies
from jit.runtime import nvrtc

# Seconds, with a wide margin for busy machines: it takes about 3.  Inlined stages take minutes.
COMPILE_LIMIT = 30.0

if nvrtc.find_library() is None:
    pytest.skip("the wheel nvidia-cuda-nvrtc is not installed", allow_module_level=True)


def check(source):
    for arch in nvrtc.ARCHITECTURES:
        compiled = nvrtc.compile(source, arch)
        assert compiled.cubin[:4] == b"\x7fELF"
        assert compiled.seconds < COMPILE_LIMIT
        assert f".target {arch}" in compiled.ptx
        assert compiled.log == ""
    assert "#include" not in source


def test_the_runtime_compiles_without_warnings():
    check(print_bodies([]))


def test_the_bodies_of_all_test_programs_compile():
    compiler = ShimCompiler()
    for fn, args in CASES.values():
        jit.Compiled(fn, compiler=compiler, warmup=0, fullgraph=True)(*args)
    bodies = {b: None for e in compiler.executables for b in e.cuda.program.bodies}
    assert len(bodies) > 50
    check(print_bodies(list(bodies)))


def test_the_grid_barrier_releases_and_acquires():
    ptx = nvrtc.compile(print_bodies([]), "sm_90a").ptx
    assert "atom.add.release.gpu.global.u64" in ptx
    assert "ld.acquire.gpu.global.u64" in ptx


def test_a_source_that_does_not_compile():
    with pytest.raises(nvrtc.CompileError, match=r'nvrtc: .*\n(.*\n)*.*"no_such_name"'):
        nvrtc.compile("__global__ void f() { no_such_name(); }")


def test_a_missing_wheel_is_explained(monkeypatch):
    monkeypatch.setattr(nvrtc, "find_library", lambda: "/nonexistent/libnvrtc.so")
    nvrtc._library.cache_clear()
    try:
        with pytest.raises(DeviceError, match="pip install nvidia-cuda-nvrtc"):
            nvrtc.version()
    finally:
        nvrtc._library.cache_clear()

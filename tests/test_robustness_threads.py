"""Threads, processes, signals and copies.

Cases that ended the interpreter once run in a process of their own, so that a relapse is one
failed test.
"""

import copy
import ctypes
import multiprocessing
import os
import pickle
import threading
import time

import numpy as np
import pytest
from robustness_tools import no_hang, run_alone  # noqa: F401

import eager
import jit

# --- threads -------------------------------------------------------------------------------------


def _in_threads(n, work):
    errors, start = [], threading.Barrier(n)

    def guarded(i):
        try:
            start.wait()
            work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return errors


def test_ops_backward_and_compiled_functions_from_many_threads():
    @jit.compile
    def scaled(x):
        return (x * 2 + 1).exp().sum()

    large = eager.ones(300_000)

    def work(i):
        for k in range(12):
            if i == 0:
                eager.set_num_threads(1 + k % 3)
            assert (large * i).sum().item() == 300_000 * i
            w = eager.full((16, 16), 0.5, requires_grad=True)
            (w @ w).sum().backward()
            assert w.grad.tolist() == [[16.0] * 16] * 16
            np.testing.assert_allclose(scaled(eager.zeros(10)).item(), 10 * np.e, rtol=1e-5)
            repr(w)

    assert _in_threads(6, work) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_a_shared_leaf_add_up(threads):
    eager.set_num_threads(threads)
    x = eager.zeros(1 << 19, requires_grad=True)

    def work(_):
        for _ in range(5):
            (x * 1).sum().backward()

    assert _in_threads(4, work) == []
    assert x.grad.amin().item() == x.grad.amax().item() == 20


def test_two_backwards_through_one_tape():
    for _ in range(5):
        x = eager.ones(300_000, requires_grad=True)
        trunk = (x * x).exp() * x
        ends = [(trunk * 2).sum(), (trunk * 3).sum()]
        errors = _in_threads(2, lambda i, ends=ends: ends[i].backward())
        assert all(isinstance(e, eager.errors.AutogradError) for e in errors)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_memory_and_gradients_exchanged_while_kernels_read_them(threads):
    code = """
        import threading
        x = eager.ones(1 << 20, requires_grad=True)
        y = eager.ones(1 << 21)
        done = False
        def exchange():
            while not done:
                x.grad = None
                y.data = eager.ones(1 << 21)
                eager.empty_cache()
        other = threading.Thread(target=exchange)
        other.start()
        for _ in range(40):
            (x * 2).sum().backward()
            (y + 1).sum()
        done = True
        other.join()
        print("done")
        """
    assert run_alone(code, EAGER_NUM_THREADS=threads) == "done"


def test_threads_that_still_compute_when_the_process_ends():
    code = """
        import threading, time
        class Same(eager.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1
            @staticmethod
            def backward(ctx, g):
                return sum(g for _ in range(3))
        def work():
            x = eager.ones(300, 300, requires_grad=True)
            while True:
                Same.apply((x @ x).softmax(-1)).sum().backward()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        print("done")
        """
    for _ in range(3):
        assert run_alone(code) == "done"


# --- processes, signals, copies ------------------------------------------------------------------


def test_fork_while_the_pool_is_up():
    x = eager.ones(1_000_000)
    (x + x).sum()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            leaf = x.clone().requires_grad_()
            (leaf * 2).sum().backward()
            code = int(leaf.grad.sum().item() != 2_000_000)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def _sum(x):
    return (x * 2).sum()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_tensors_travel_between_processes(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_sum, (eager.ones(100_000),)).item() == 200_000


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(protocol):
    x = eager.tensor([[1.5, 2.5]], requires_grad=True)
    x.tag = "kept"
    for y in (pickle.loads(pickle.dumps(x, protocol)), copy.deepcopy(x), copy.copy(x)):
        assert y.tolist() == x.tolist() and y.requires_grad and y.tag == "kept"
    for value in (eager.float16, eager.device("meta"), x.shape):
        again = pickle.loads(pickle.dumps(value, protocol))
        assert again == value and type(again) is type(value)
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps((x * 2).grad_fn, protocol))


def test_an_interrupt_leaves_everything_usable():
    class Slow(eager.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            time.sleep(0.05)
            return g

    x = eager.ones(3, requires_grad=True)
    y = x
    for _ in range(100):
        y = Slow.apply(y)
    main = threading.main_thread().ident
    threading.Timer(0.2, lambda: ctypes.pythonapi.PyErr_SetInterrupt()).start()
    assert main is not None
    with pytest.raises(KeyboardInterrupt):
        y.sum().backward()
    assert eager.is_grad_enabled() and x.grad is None
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]

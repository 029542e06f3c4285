"""What one rank does in the tests of test_api.py: `rank_api.py scenario`."""

import os
import signal
import sys
import threading
import time

import eager
import eager.distributed as dist
from eager.distributed.errors import DistributedError, PeerLost, Timeout


def interrupted() -> None:
    """Ctrl-C in a call that rank 1 does not come to."""
    call = {
        "all_reduce": lambda: dist.all_reduce(eager.ones(4)),
        "recv": lambda: dist.recv(eager.ones(4), 1),
        "recv from any": lambda: dist.recv(eager.ones(4)),
    }[sys.argv[3]]
    dist.init_process_group()
    if dist.get_rank() == 0:
        begun = time.monotonic()
        print("waiting", flush=True)
        try:
            call()
        except KeyboardInterrupt:
            print(f"interrupted after {time.monotonic() - begun:.1f} s", flush=True)
            try:
                dist.all_reduce(eager.ones(4))
            except DistributedError:
                print("the group is broken", flush=True)
    else:
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
    dist.destroy_process_group()


def interrupted_work() -> None:
    """Ctrl-C while waiting for a Work, and in a store."""
    dist.init_process_group()
    store = dist.process_group.rendezvous_store()
    if dist.get_rank() == 0:
        work = dist.all_reduce(eager.ones(4), async_op=True)
        for wait in (work.wait, lambda: store.get("nothing")):
            print("waiting", flush=True)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            try:
                wait()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        store.set("go on", b"")
        work.wait()  # it went on meanwhile
    else:
        store.wait(["go on"])
        dist.all_reduce(eager.ones(4))
    print("fine", flush=True)
    dist.destroy_process_group()


def killed() -> None:
    """Rank 1 dies; every other is told so while it waits."""
    dist.init_process_group()
    x = eager.ones(1 << 20)
    try:
        dist.all_reduce(x)  # over tcp, what rank 1 sends of it may die with it
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(1000):
            dist.all_reduce(x)
    except PeerLost as error:
        assert error.rank == 1, error
        assert "all_reduce" in error.in_flight, error
        print("lost rank 1", flush=True)
    try:
        dist.all_reduce(x)
    except DistributedError:
        print("the group is broken", flush=True)
    dist.destroy_process_group()


def left() -> None:
    """Rank 1 leaves while others wait for its message."""
    dist.init_process_group()
    if dist.get_rank() != 1:
        try:
            dist.recv(eager.ones(4), 1)
        except PeerLost as error:
            assert error.rank == 1 and "recv" in error.in_flight, error
            # One rank may hear first that the other has given up.
            assert "left the job" in str(error), error
            print("fine", flush=True)
    else:
        print("fine", flush=True)
    dist.destroy_process_group()


def again() -> None:
    """Leaving and joining again; tensors of the first job stay."""
    dist.init_process_group()
    x = eager.full((1 << 20,), 1.0 + dist.get_rank())
    dist.all_reduce(x)
    dist.barrier()
    dist.destroy_process_group()
    total = x.sum().item()
    dist.init_process_group()
    y = x.clone()
    dist.all_reduce(y)
    assert x.sum().item() == total
    assert y.sum().item() == total * dist.get_world_size()
    del x
    eager.empty_cache()
    dist.all_reduce(y)
    dist.destroy_process_group()
    assert eager.ones(1 << 20).sum().item() == 1 << 20
    print("fine", flush=True)


def forked() -> None:
    """A child of a rank has its own copy of the tensors, and is told that it is no rank."""
    dist.init_process_group()
    x = eager.ones(1 << 20)
    dist.all_reduce(x)
    expected = float(dist.get_world_size() << 20)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert x.sum().item() == expected
            x.fill_(-1.0)
            more = [eager.full((1 << 19,), -2.0) for _ in range(8)]
            assert more[0][0].item() == -2.0
            try:
                dist.all_reduce(x)
            except Exception as error:
                assert "fork" in str(error), error
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert x.sum().item() == expected
    dist.all_reduce(x)
    dist.destroy_process_group()
    print("fine", flush=True)


def late() -> None:
    """monitored_barrier names who did not come, and the group lives on."""
    dist.init_process_group()
    store = dist.process_group.rendezvous_store()
    if dist.get_rank() == 2:
        store.wait(["all told"])
    else:
        try:
            dist.monitored_barrier(timeout=0.5)
        except Timeout as error:
            assert "without 2" in str(error), error
            print("rank 2 is late", flush=True)
        if store.add("told", 1) == 2:
            store.set("all told", b"")
    dist.barrier()
    dist.destroy_process_group()


def threads() -> None:
    """A thread goes on computing while another waits in a collective."""
    dist.init_process_group()
    store = dist.process_group.rendezvous_store()
    if dist.get_rank() == 0:
        waiting = threading.Thread(target=dist.all_reduce, args=(eager.ones(4),))
        waiting.start()
        total = sum(range(1000))  # needs the interpreter lock
        store.set("computed", str(total))
        waiting.join()
    else:
        assert store.get("computed") == b"499500"
        dist.all_reduce(eager.ones(4))
    dist.destroy_process_group()
    print("fine", flush=True)


def info() -> None:
    """Large tensors are reduced in place: no staging copies."""
    dist.init_process_group()
    for n in (1 << 16, 1 << 18, 1 << 22):
        x = eager.ones(n)
        dist.all_reduce(x)
        assert x[0].item() == x[-1].item() == dist.get_world_size()
    before = dist.info()["stats"]
    x = eager.ones(1 << 20)
    dist.all_reduce(x)
    stats = dist.info()["stats"]
    print("staged", stats["staged_bytes"] - before["staged_bytes"], flush=True)
    print("direct", stats["direct_bytes"] - before["direct_bytes"], flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    globals()[sys.argv[1]]()

"""One rank of the distributed benchmarks: ``mpirun -n 2 python -m benchmarks.distributed.ranks
all_reduce 21 result.json``.  Rank 0 prints a table to standard error and writes the JSON."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

WORLD = MPI.COMM_WORLD
SIZES = (4096, 65536, 1 << 20, 4 << 20, 16 << 20, 64 << 20)
BLOCK = 0.01  # seconds of calls per round and library, at least


def say(text: str) -> None:
    """Prints on rank 0."""
    if WORLD.rank == 0:
        print(text, file=sys.stderr, flush=True)


def block(fn: Callable[[], Any], calls: int) -> float:
    """Seconds per call, of the slowest rank."""
    WORLD.Barrier()
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    mine = (time.perf_counter() - start) / calls
    slowest: float = WORLD.allreduce(mine, op=MPI.MAX)
    return slowest


def enough(fn: Callable[[], Any]) -> int:
    """How many calls take `BLOCK` seconds.  A few first calls do not tell: the blocks of what was
    slow by chance would be short, and mostly measure what follows another library's turn."""
    calls = 3
    block(fn, calls)
    while (seconds := block(fn, calls)) * calls < BLOCK:
        calls = math.ceil(min(10.0, 1.2 * BLOCK / (seconds * calls)) * calls)
    return calls


def interleaved(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of every case, which take turns."""
    calls = {name: enough(fn) for name, fn in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, fn in cases.items():
            seconds[name].append(block(fn, calls[name]))
    return seconds


def report(title: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the first case's ratios to the others."""
    subject = next(iter(seconds))
    medians = {n: statistics.median(x) for n, x in seconds.items()}
    parts = [f"{n} {m * 1e6:10.1f} us" for n, m in medians.items()]
    ratios = {n: m / medians[subject] for n, m in medians.items() if n != subject}
    parts += [f"x{r:.2f} {n}" for n, r in ratios.items()]
    say(f"{title:28}" + "  ".join(parts))
    return {"median_seconds": medians, "faster_than": ratios, "rounds": seconds}


def all_reduce(rounds: int) -> dict[str, Any]:
    """float32 sums of all sizes: ours, on its own tensors and on memory of NumPy, which peers
    cannot map; gloo; Open MPI; NumPy in a mapping that all ranks share."""
    import numpy as np
    import torch
    import torch.distributed as gloo

    import eager
    import eager.distributed as dist

    torch.set_num_threads(1)
    gloo.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{os.environ['GLOO_PORT']}",
        rank=WORLD.rank, world_size=WORLD.size,
    )  # fmt: skip
    dist.init_process_group("rdma")
    results = {}
    for size in SIZES:
        n = size // 4
        ours = eager.zeros(n)
        ours.fill_(0.0)
        theirs = torch.zeros(n)
        theirs.fill_(0.0)
        array = np.zeros(n, np.float32)
        array.fill(0.0)
        ordinary = eager.from_numpy(np.copy(array))
        window = MPI.Win.Allocate_shared(size, 1, comm=WORLD)
        shared = [
            np.frombuffer(window.Shared_query(r)[0], np.float32, n) for r in range(WORLD.size)
        ]
        shared[WORLD.rank].fill(0.0)
        share = slice(n * WORLD.rank // WORLD.size, n * (WORLD.rank + 1) // WORLD.size)
        parts = [a[share] for a in shared]

        def in_mapping(parts: list[Any] = parts) -> None:
            WORLD.Barrier()
            first, *others = parts
            for a in others:
                np.add(first, a, out=first)
            for a in others:
                np.copyto(a, first)
            WORLD.Barrier()

        def ours_call(t: Any = ours) -> None:
            dist.all_reduce(t)

        def staged_call(t: Any = ordinary) -> None:
            dist.all_reduce(t)

        def gloo_call(t: Any = theirs) -> None:
            gloo.all_reduce(t)

        def mpi_call(a: Any = array) -> None:
            WORLD.Allreduce(MPI.IN_PLACE, a)

        cases = {
            "eager": ours_call,
            "foreign memory": staged_call,
            "gloo": gloo_call,
            "openmpi": mpi_call,
            "numpy": in_mapping,
        }
        results[str(size)] = report(f"all_reduce {size} B", interleaved(cases, rounds))
        del shared, parts
        window.Free()
    results["info"] = dist.info()
    results["versions"] = {
        "torch": torch.__version__, "mpi": MPI.Get_library_version().split(",")[0],
        "numpy": np.__version__,
    }  # fmt: skip
    dist.destroy_process_group()
    gloo.destroy_process_group()
    return results


def put(rounds: int) -> dict[str, Any]:
    """1 MB from rank 0 into memory of rank 1, until rank 0 knows that it is there."""
    import grpc
    import numpy as np

    import eager
    import eager.distributed as dist

    dist.init_process_group("rdma")
    size = 1 << 20
    source = eager.ones(size // 4)
    landing = np.zeros(size, np.uint8)
    window = dist.Window(size)
    address = f"127.0.0.1:{os.environ['GRPC_PORT']}"
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = None
    if WORLD.rank == 1:
        from concurrent.futures import ThreadPoolExecutor

        def place(request: bytes, _context: Any) -> bytes:
            landing[:] = np.frombuffer(request, np.uint8)
            return b""

        handler = grpc.method_handlers_generic_handler(
            "tensor", {"put": grpc.unary_unary_rpc_method_handler(place)}
        )
        server = grpc.server(ThreadPoolExecutor(1), options=options)
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(address)
        server.start()
    WORLD.Barrier()
    channel = grpc.insecure_channel(address, options)
    call = channel.unary_unary("/tensor/put")
    array = source.numpy()

    def ours_call() -> None:
        if WORLD.rank == 0:
            window.put(source, 1)
            window.wait(1)
        else:
            window.wait(0)
            window.signal(0)

    def grpc_call() -> None:
        if WORLD.rank == 0:
            call(array.tobytes())

    cases = {"eager": ours_call, "grpc": grpc_call}
    result = report("put 1 MB and acknowledge", interleaved(cases, rounds))
    result["versions"] = {"grpc": grpc.__version__}
    channel.close()
    if server is not None:
        server.stop(None).wait()
    dist.destroy_process_group()
    return result


def step(rounds: int) -> dict[str, Any]:
    """A training step of an MLP of ten million parameters: reduced, and not reduced."""
    import eager
    import eager.distributed as dist
    from eager import nn
    from eager.nn.parallel import DistributedDataParallel

    dist.init_process_group("rdma")
    eager.set_num_threads(1)
    eager.manual_seed(0)
    layers = [nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(),
              nn.Linear(2048, 1856), nn.ReLU(), nn.Linear(1856, 10)]  # fmt: skip
    model = nn.Sequential(*layers)
    parameters = sum(p.numel() for p in model.parameters())
    parallel = DistributedDataParallel(model)
    optimizer = eager.optim.SGD(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    results: dict[str, Any] = {"parameters": parameters}

    def copied() -> int:
        world = dist.group.WORLD
        assert world is not None
        staged: int = world.backend.stats()["staged_bytes"] + parallel.stats()["staging_bytes"]
        return staged

    for batch in (64, 256):
        eager.manual_seed(WORLD.rank)
        x, y = eager.randn(batch, 1024), eager.randint(0, 10, (batch,))

        def train(sync: bool, x: Any = x, y: Any = y) -> None:
            optimizer.zero_grad()
            if sync:
                loss_fn(parallel(x), y).backward()
            else:
                with parallel.no_sync():
                    loss_fn(parallel(x), y).backward()
            optimizer.step()

        before = copied()
        cases = {"not reduced": lambda: train(False), "reduced": lambda: train(True)}
        seconds = interleaved(cases, rounds)
        result = report(f"training step, batch {batch}", seconds)
        reduced, alone = (statistics.median(seconds[k]) for k in ("reduced", "not reduced"))
        result["not_hidden"] = (reduced - alone) / reduced
        result["staged_bytes"] = copied() - before
        say(f"  not hidden {result['not_hidden']:.1%}, staged {result['staged_bytes']} bytes")
        results[f"batch {batch}"] = result
    dist.destroy_process_group()
    return results


def algorithms(rounds: int) -> dict[str, Any]:
    """Every algorithm of all_reduce on memory that peers cannot map, over one transport."""
    import numpy as np

    import eager
    import eager.distributed as dist

    dist.init_process_group("rdma")
    # Of three ranks on two cores, it matters which two share one: two speeds, between which the
    # scheduler would choose now and then.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[dist.get_rank() % len(cores)]})
    groups = {}
    for name in ("one_shot", "direct", "ring", "halving_doubling"):
        os.environ["EAGER_COMM_ALGORITHM"] = name
        groups[name] = dist.new_group()

    def call(name: str, size: int) -> Callable[[], None]:
        t = eager.from_numpy(np.zeros(size // 4, np.float32))
        return lambda: dist.all_reduce(t, group=groups[name])

    # Sizes take turns as well: what disturbs the machine for a while disturbs all of them.
    octaves = [*np.arange(10, 19, 0.5), *np.arange(19, 24.01, 0.25)]
    sizes = [round(2**k) & ~63 for k in octaves]
    cases = {
        f"{name} {size}": call(name, size)
        for size in sizes for name in groups if name != "one_shot" or size <= 1 << 20
    }  # fmt: skip
    seconds = interleaved(cases, rounds)
    results = {}
    for size in sizes:
        mine = {n: seconds[f"{n} {size}"] for n in groups if f"{n} {size}" in seconds}
        results[str(size)] = report(f"all_reduce {size} B", mine)
    dist.destroy_process_group()
    return results


def main() -> None:
    """Runs the case that the command line names."""
    case = {"all_reduce": all_reduce, "put": put, "step": step, "algorithms": algorithms}[
        sys.argv[1]
    ]
    result = case(int(sys.argv[2]))
    if WORLD.rank == 0:
        Path(sys.argv[3]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

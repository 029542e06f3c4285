"""Tutorial 11: two processes train one model, and no gradient is copied on the way.

    python tutorials/11_distributed.py

starts itself twice through ``eager.distributed.run`` and shows, in this order:

1. a one-sided write: one rank puts numbers straight into the other's memory;
2. all_reduce over memory that both ranks can reach against memory that must be staged, and what
   the copies cost;
3. DistributedDataParallel: gradients are written where they are reduced (0 bytes staged), and
   two ranks with half a batch each learn what one process with the whole batch does;
4. the same step under jit.compile: the collective is an instruction of the one program.

Writes ``distributed.png`` and ``distributed.json`` into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import eager
import eager.distributed as dist
import jit
from eager import Tensor, nn
from eager.nn.parallel import DistributedDataParallel

SIZES = [1 << k for k in range(14, 25, 2)]  # bytes: 16 KiB to 16 MiB
BATCH, STEPS = 64, 120


def one_sided_write() -> None:
    """Rank 0 writes into rank 1's window; rank 1 only waits for the arrival."""
    window = dist.Window(4 * 8)
    if dist.get_rank() == 0:
        window.put(eager.arange(8, dtype=eager.float32), 1)
    else:
        window.wait(0)
        landed = window.tensor((8,), eager.float32)
        assert landed.tolist() == [float(i) for i in range(8)]
        print(f"1. rank 1 found in its memory: {landed.tolist()}", flush=True)
    dist.barrier()


def median_seconds(fn: Callable[[], Any], calls: int) -> float:
    """The median over calls, each begun together."""
    seconds = []
    for _ in range(calls):
        dist.barrier()
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def staged_bytes() -> int:
    """Bytes this rank has copied between tensors and the library's own memory so far."""
    world = dist.group.WORLD
    assert world is not None
    return world.backend.stats()["staged_bytes"]


def what_zero_copy_saves() -> dict[str, Any]:
    """all_reduce in shared memory, where each rank adds up half of the elements in place, and of
    ordinary memory, whose halves travel through a buffer."""
    world = dist.group.WORLD
    assert world is not None
    found: dict[str, Any] = {"bytes": SIZES, "shared": [], "ordinary": [], "staged": []}
    for size in SIZES:
        shared = world.backend.allocate(size).tensor((size // 4,), eager.float32)
        ordinary = eager.from_numpy(np.zeros(size // 4, np.float32))
        shared.fill_(0.0)
        before = staged_bytes()
        found["shared"].append(median_seconds(lambda t=shared: dist.all_reduce(t), 15))
        assert staged_bytes() == before
        found["ordinary"].append(median_seconds(lambda t=ordinary: dist.all_reduce(t), 15))
        found["staged"].append((staged_bytes() - before) // 15)
    return found


def digits(rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's share of every batch: images (steps, batch / ranks, 64) and labels."""
    data = load_digits()
    order = np.random.default_rng(0).integers(0, len(data.target), (STEPS, BATCH))
    mine = order[:, rank::ranks]
    images = (data.images.reshape(-1, 64) / 16).astype(np.float32)
    return eager.from_numpy(images[mine]), eager.from_numpy(data.target[mine].astype(np.int64))


def train(
    model: nn.Module, images: Tensor, labels: Tensor, compiled: bool
) -> tuple[list[float], int]:
    """SGD over all steps; the losses of this rank's share, and the bytes staged by the steps
    after the first two, in which ranks agree on the order of buckets."""
    optimizer = eager.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    call = jit.compile(step) if compiled else step
    losses, before = [], 0
    for i, (x, y) in enumerate(zip(images, labels, strict=True)):
        if i == 2:
            before = staged_bytes()
        losses.append(call(x, y).item())
    if compiled:
        stats = call.stats()
        assert stats.launches_per_call == 1 and stats.eager_ops_per_call == 0, stats
    return losses, staged_bytes() - before


def classifier() -> nn.Module:
    """The same weights in every process."""
    eager.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def mean_over_ranks(losses: list[float]) -> list[float]:
    """The loss of the whole batch."""
    mean = eager.tensor(losses)
    dist.all_reduce(mean, dist.ReduceOp.AVG)
    values: list[float] = mean.tolist()
    return values


def rank_main(out: Path) -> None:
    """What each of the two processes does."""
    dist.init_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        peer = dist.info()["peers"][1]
        print(f"0. rank 1 is reached by {peer['transport']}: {peer['reason']}", flush=True)
    one_sided_write()
    saved = what_zero_copy_saves()

    whole, _ = train(classifier(), *digits(0, 1), compiled=False)
    curves = {"one process, whole batches": whole}
    for name, compiled in (("two ranks", False), ("two ranks, compiled", True)):
        parallel = DistributedDataParallel(classifier())
        losses, staged = train(parallel, *digits(rank, ranks), compiled=compiled)
        staged += parallel.stats()["staging_bytes"]  # gradients computed outside of the buckets
        assert staged == 0, f"{staged} bytes were staged"
        curves[name] = mean_over_ranks(losses)
    if rank == 0:
        report(out, saved, curves)
    dist.destroy_process_group()


def report(out: Path, saved: dict[str, Any], curves: dict[str, list[float]]) -> None:
    """Prints what was found; writes the plot and the figures."""
    for size, shared, ordinary, staged in zip(*saved.values(), strict=True):
        print(f"2. all_reduce of {size:>9} bytes: {shared * 1e6:8.1f} us in place, "
              f"{ordinary * 1e6:8.1f} us with {staged} bytes staged")  # fmt: skip
    whole = np.array(curves["one process, whole batches"])
    for name, losses in list(curves.items())[1:]:
        difference = float(np.abs(np.array(losses) - whole).max())
        print(f"3. {name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, 0 bytes staged; "
              f"at most {difference:.1e} from one process")  # fmt: skip
        assert difference < 1e-3 and losses[-1] < 0.3
    out.mkdir(parents=True, exist_ok=True)
    (out / "distributed.json").write_text(json.dumps({"all_reduce": saved, "loss": curves}))
    plot(out / "distributed.png", saved, curves)
    print(f"wrote {out / 'distributed.png'}", flush=True)


def plot(path: Path, saved: dict[str, Any], curves: dict[str, list[float]]) -> None:
    """Left: time of an all_reduce by size.  Right: training curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.loglog(saved["bytes"], np.array(saved["ordinary"]) * 1e6, "o-", label="staged")
    left.loglog(saved["bytes"], np.array(saved["shared"]) * 1e6, "o-", label="zero copy")
    left.set(xlabel="bytes", ylabel="microseconds", title="all_reduce, two ranks on one host")
    for (name, losses), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        right.plot(losses, style, label=name)
    right.set(xlabel="step", ylabel="loss", title="the same training three times")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Starts two ranks of this script, or is one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/distributed"))
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank_main(options.out)
        return 0
    command = [
        sys.executable, "-m", "eager.distributed.run", "--standalone", "--nproc-per-node", "2",
        __file__, "--out", str(options.out),
    ]  # fmt: skip
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())

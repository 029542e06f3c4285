"""Data-parallel training that goes on from its newest checkpoint, however often it is started.

    python -m eager.distributed.run --nproc-per-node 2 --max-restarts 3 train.py

The same program runs in the pods of ``trainjob.yaml``.  Data are drawn by step and rank, so a run
that was interrupted ends with bit for bit the loss of one that was not; ``--die-at-step`` shows it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import eager
import eager.distributed as dist
from eager import Tensor, nn
from eager.distributed import checkpoint
from eager.distributed.elastic import record
from eager.nn.parallel import DistributedDataParallel

BATCH, WIDTH = 64, 32


def log(text: str) -> None:
    """Prints a line with the time, in seconds of the machine's monotonic clock."""
    # in one piece, since ranks share the console: print() writes the end of a line by itself
    sys.stdout.write(f"{time.monotonic():.4f} rank {dist.get_rank()}: {text}\n")
    sys.stdout.flush()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """This rank's data for a step: points (BATCH, WIDTH) and values (BATCH, 1), float32."""
    random = np.random.default_rng([step, dist.get_rank()])
    x = random.standard_normal((BATCH, WIDTH), dtype=np.float32)
    return eager.tensor(x), eager.tensor(np.sin(x.sum(axis=1, keepdims=True)))


@record
def main() -> None:
    """Trains, beginning where the newest checkpoint ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--die-at-step", type=int, help="the last rank kills itself there, once")
    options = parser.parse_args()

    dist.init_process_group()
    rank, size = dist.get_rank(), dist.get_world_size()
    eager.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, 1))
    replica = DistributedDataParallel(model)
    optimizer = eager.optim.Adam(model.parameters(), lr=1e-3)

    options.checkpoints.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest(options.checkpoints)
    first = 0
    if found is not None:
        saved = checkpoint.load(found, check=False)  # latest() has done that
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    log(f"starts at step {first}")

    loss = eager.tensor(float("nan"))
    saving: checkpoint.Save | None = None
    for step in range(first, options.steps):
        x, y = batch(step)
        optimizer.zero_grad()
        error = nn.functional.mse_loss(replica(x), y)
        error.backward()
        optimizer.step()
        loss = error.detach().clone()
        dist.all_reduce(loss, dist.ReduceOp.AVG)
        if step == first:
            log(f"did step {step}")
        if (step + 1) % options.every == 0:
            if saving is not None:
                saving.wait()  # or raise what went wrong
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            path = options.checkpoints / f"step-{step + 1:09}"
            saving = checkpoint.async_save({**state, "step": step + 1}, path, keep=3)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if step == options.die_at_step and rank == size - 1 and not restarts:
            log(f"dies after step {step}")
            os.kill(os.getpid(), signal.SIGKILL)
    if saving is not None:
        saving.wait()
    if rank == 0:
        log(f"final loss {loss.item():.6f} ({loss.item().hex()})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

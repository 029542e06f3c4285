"""What the ranks of test_netns.py run: `python netns_rank.py SCENARIO`.

Says "ready" once all ranks have met, then what happened, a JSON object per line.
"""

import json
import sys
import time
from datetime import timedelta

import numpy as np

import eager
import eager.distributed as dist


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def values(rank: int, n: int) -> np.ndarray:
    """Whole numbers: sums are exact in any order."""
    return ((np.arange(n) * (rank + 3)) % 1009).astype(np.float32)


def collectives() -> None:
    """Every kind of traffic, checked on every rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for n in (0, 1, 1001, 65_537, 400_000):
        every = [values(r, n) for r in range(size)]
        t = eager.tensor(every[rank])
        dist.all_reduce(t)
        assert np.array_equal(t.numpy(), np.sum(every, axis=0)), ("all_reduce", n)

        out = eager.zeros(size * n)
        dist.all_gather_into_tensor(out, eager.tensor(every[rank]))
        assert np.array_equal(out.numpy(), np.concatenate(every)), ("all_gather", n)

        root = n % size
        t = eager.tensor(every[rank])
        dist.broadcast(t, root)
        assert np.array_equal(t.numpy(), every[root]), ("broadcast", n)

        # Around a ring, both directions at once.
        out = eager.zeros(n)
        work = dist.isend(eager.tensor(every[rank]), (rank + 1) % size)
        dist.recv(out, (rank - 1) % size)
        work.wait()
        assert np.array_equal(out.numpy(), every[rank - 1]), ("send", n)
    dist.barrier()
    say(done=True)


def endless() -> None:
    """Adds up until a rank is lost."""
    t = eager.tensor(values(dist.get_rank(), 200_000))
    expect_loss(lambda: dist.all_reduce(t))


def waiting() -> None:
    """Rank 0 waits for the others, who do not come."""
    if dist.get_rank() == 0:
        expect_loss(dist.barrier)
    else:
        sys.stdin.readline()  # until long after the loss
        expect_loss(dist.barrier)


def finite(rounds: int = 60) -> None:
    """So many sums, and their times."""
    rank, size = dist.get_rank(), dist.get_world_size()
    expected = np.sum([values(r, 50_000) for r in range(size)], axis=0)
    longest = 0.0
    for _ in range(rounds):
        start = time.monotonic()
        t = eager.tensor(values(rank, 50_000))
        dist.all_reduce(t)
        longest = max(longest, time.monotonic() - start)
        assert np.array_equal(t.numpy(), expected)
    dist.barrier()
    say(done=True, longest=longest)


def expect_loss(call: object) -> None:
    """Calls until PeerLost; says who was lost, in what, and how long the last call took."""
    while True:
        start = time.monotonic()
        try:
            call()
        except dist.PeerLost as e:
            say(lost=e.rank, in_flight=e.in_flight, seconds=time.monotonic() - start, text=str(e))
            return


def main() -> None:
    dist.init_process_group(timeout=timedelta(seconds=100))
    dist.barrier()
    say(ready=True, info=json.loads(json.dumps(dist.info(), default=str)))
    {f.__name__: f for f in (collectives, endless, waiting, finite)}[sys.argv[1]]()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""The conformance suite: a script that every rank of a job runs, under any launcher and backend.

    python suite.py [--backend rdma|mpi] [section ...]

Every rank computes from the ranks' numbers what all of them hold, so results are compared with
NumPy and not with each other.  Prints ``SUITE OK rank r (n checks)``.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import suite_static  # noqa: F401  registers its sections
from suite_tools import (
    LARGE,
    SECTIONS,
    SIZES,
    cases,
    combined,
    count_checks,
    data,
    holds,
    mine,
    raises,
    ranks,
    same,
    section,
    tensor,
    tolerance,
)

import eager
import eager.distributed as dist
from eager.distributed import ReduceOp
from eager.distributed.errors import Mismatch
from eager.errors import ArgumentError, AutogradError, DTypeError, EagerError, ShapeError


@section
def all_reduce() -> None:
    for count, dtype, op in cases():
        x = mine(count, dtype)
        for async_op in (False, True):
            y = x.clone()
            work = dist.all_reduce(y, op, async_op=async_op)
            if async_op:
                holds(work.wait() and work.is_completed() and work.is_success(), "work")
            expected = combined([data(r, count, dtype) for r in ranks()], op)
            same(y, expected, ("all_reduce", count, dtype, op), tolerance(dtype, op))
    for count in LARGE:
        y = mine(count, eager.float32)
        dist.all_reduce(y)
        expected = combined([data(r, count, eager.float32) for r in ranks()], ReduceOp.SUM)
        same(y, expected, ("all_reduce", count))


@section
def views() -> None:
    """Slices at odd addresses, strided tensors, expanded inputs, 0-dim tensors."""
    for start, step, count in ((1, 1, 9), (3, 1, 70_000), (0, 2, 50), (1, 3, 4096)):
        base = mine(start + step * count, eager.float32)
        untouched = base.clone()
        view = base[start::step][:count]
        dist.all_reduce(view)
        columns = [
            data(r, start + step * count, eager.float32)[start::step][:count] for r in ranks()
        ]
        same(view, combined(columns, ReduceOp.SUM), ("view", start, step, count))
        mask = np.ones(start + step * count, bool)
        mask[start::step][:count] = False
        same(base[tensor(mask)], untouched.numpy()[mask], "memory around the view")
    matrix = mine(35, eager.float32).reshape(5, 7)
    dist.broadcast(matrix.t(), 0)
    same(matrix, data(0, 35, eager.float32).reshape(5, 7), "transposed")
    scalar = eager.tensor(float(dist.get_rank()))
    work = dist.all_reduce(scalar, ReduceOp.MAX, async_op=True)
    work.wait()
    holds(scalar.item() == dist.get_world_size() - 1, "0-dim")
    wide = eager.ones(1).expand(6)
    out = eager.zeros(6 * dist.get_world_size())
    dist.all_gather_into_tensor(out, wide)
    same(out, np.ones(6 * dist.get_world_size(), np.float32), "expanded input")
    before = matrix._version
    dist.all_reduce(matrix)
    holds(matrix._version > before, "the version counter is advanced")


@section
def identical() -> None:
    """Bit-identical on all ranks and from run to run, for numbers whose sum depends on order."""
    for count in (3, 1001, 70_001, 1 << 19):
        for dtype in (eager.float32, eager.float16, eager.bfloat16):
            rng = np.random.default_rng([count, dist.get_rank()])
            x = tensor(rng.standard_normal(count).astype(np.float32)).to(dtype)
            results = []
            for _ in range(2):
                y = x.clone()
                dist.all_reduce(y)
                results.append(tensor(y.numpy().view(np.uint8)))
            same(results[1], results[0].numpy(), ("run to run", count, dtype))
            everyone = eager.empty((dist.get_world_size(), results[0].numel()), dtype=eager.uint8)
            dist.all_gather_into_tensor(everyone, results[0])
            for r in ranks():
                same(everyone[r], results[0].numpy(), ("rank to rank", count, dtype, r))
            exact = sum(
                np.random.default_rng([count, r]).standard_normal(count).astype(np.float32)
                for r in ranks()
            )
            same(y, exact, ("sum", count, dtype), {2: 0.1, 4: 1e-5}[dtype.itemsize])


@section
def reduce() -> None:
    kinds = (
        (1, eager.float32, ReduceOp.SUM), (999, eager.int32, ReduceOp.MAX),
        (0, eager.float32, ReduceOp.SUM), (8, eager.bfloat16, ReduceOp.SUM),
        (70_001, eager.float32, ReduceOp.SUM),
    )  # fmt: skip
    for root in ranks():
        for count, dtype, op in kinds:
            x = mine(count, dtype, root)
            work = dist.reduce(x, root, op, async_op=bool(root % 2))
            if work is not None:
                work.wait()
            expected = data(dist.get_rank(), count, dtype, root)
            if dist.get_rank() == root:
                expected = combined([data(r, count, dtype, root) for r in ranks()], op)
            same(x, expected, ("reduce", root, count, dtype, op))


@section
def reduce_scatter() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    for count, dtype, op in cases():
        out = eager.empty(count, dtype=dtype)
        dist.reduce_scatter_tensor(out, mine(count * size, dtype), op)
        whole = combined([data(r, count * size, dtype) for r in ranks()], op)
        expected = whole[me * count : (me + 1) * count]
        same(out, expected, ("reduce_scatter", count, dtype, op), tolerance(dtype, op))
    for count in LARGE:
        x = mine(count * size, eager.float32)
        out = eager.empty(count)
        dist.reduce_scatter_tensor(out, x, async_op=True).wait()
        whole = combined([data(r, count * size, eager.float32) for r in ranks()], ReduceOp.SUM)
        same(out, whole[me * count : (me + 1) * count], ("reduce_scatter", count))
        same(x, data(me, count * size, eager.float32), "the input stays as it is")
    parts = [mine(5, eager.int64, seed) for seed in ranks()]
    out = eager.empty(5, dtype=eager.int64)
    dist.reduce_scatter(out, parts)
    columns = [data(r, 5, eager.int64, me) for r in ranks()]
    same(out, combined(columns, ReduceOp.SUM), "reduce_scatter of a list")


@section
def all_gather() -> None:
    size = dist.get_world_size()
    for count in (*SIZES, 70_001):
        for dtype in (eager.float32, eager.bool, eager.bfloat16, eager.int16):
            out = eager.empty(count * size, dtype=dtype)
            dist.all_gather_into_tensor(out, mine(count, dtype))
            same(out, np.concatenate([data(r, count, dtype) for r in ranks()]), ("into", count))
    stacked = eager.empty(size, 2, 3)
    dist.all_gather_into_tensor(stacked, mine(6, eager.float32).reshape(2, 3), async_op=True).wait()
    expected = np.stack([data(r, 6, eager.float32).reshape(2, 3) for r in ranks()])
    same(stacked, expected, "stacked")
    pieces = [eager.empty(2, 3) for _ in ranks()]
    for async_op in (False, True):
        work = dist.all_gather(pieces, mine(6, eager.float32).reshape(2, 3), async_op=async_op)
        if work is not None:
            work.wait()
        for r in ranks():
            same(pieces[r], expected[r], "all_gather")
    place = eager.zeros(size, 4)  # the input is a part of the output
    place[dist.get_rank()] = mine(4, eager.float32)
    dist.all_gather_into_tensor(place, place[dist.get_rank()])
    same(place, np.stack([data(r, 4, eager.float32) for r in ranks()]), "in place")


@section
def broadcast() -> None:
    for root in ranks():
        for count, dtype in ((0, eager.float32), (1, eager.bool), (1001, eager.float16),
                             (70_001, eager.float32), (1 << 20, eager.uint8)):  # fmt: skip
            for async_op in (False, True):
                x = mine(count, dtype, root)
                work = dist.broadcast(x, root, async_op=async_op)
                if work is not None:
                    work.wait()
                same(x, data(root, count, dtype, root), ("broadcast", root, count, dtype))


@section
def gather_scatter() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    for root in ranks():
        for count in (0, 1, 77, 70_001):
            pieces = [eager.empty(count) for _ in ranks()] if me == root else None
            work = dist.gather(mine(count, eager.float32), pieces, root, async_op=count == 77)
            if work is not None:
                work.wait()
            for r in ranks() if me == root else ():
                same(pieces[r], data(r, count, eager.float32), ("gather", root, count, r))
            parts = [tensor(data(root, count, eager.int32, s)) for s in ranks()]
            out = eager.empty(count, dtype=eager.int32)
            work = dist.scatter(out, parts if me == root else None, root, async_op=count == 77)
            if work is not None:
                work.wait()
            same(out, data(root, count, eager.int32, me), ("scatter", root, count))
    if size > 1:
        wrong = [eager.empty(1) for _ in ranks()]
        call = (lambda: dist.gather(eager.ones(1), wrong, 0)) if me else (
            lambda: dist.gather(eager.ones(1), None, 0))  # fmt: skip
        raises(ArgumentError, call, "gather_list")


@section
def all_to_all() -> None:
    size, me = dist.get_world_size(), dist.get_rank()

    def length(source: int, target: int) -> int:
        return (3 * source + target) % 5  # 0 for some

    inputs = [tensor(data(me, length(me, t), eager.float32, t)) for t in ranks()]
    outputs = [eager.empty(length(s, me)) for s in ranks()]
    for async_op in (False, True):
        work = dist.all_to_all(outputs, inputs, async_op=async_op)
        if work is not None:
            work.wait()
        for s in ranks():
            same(outputs[s], data(s, length(s, me), eager.float32, me), ("all_to_all", s))
    for count in (1, 501, 20_001):
        x = mine(count * size, eager.int16).reshape(count * size, 1)
        out = eager.empty((count * size, 1), dtype=eager.int16)
        dist.all_to_all_single(out, x)
        expected = [
            data(s, count * size, eager.int16)[me * count : (me + 1) * count] for s in ranks()
        ]
        same(out, np.concatenate(expected).reshape(-1, 1), ("all_to_all_single", count))
    sent, received = [length(me, t) for t in ranks()], [length(s, me) for s in ranks()]
    x = eager.cat([tensor(data(me, 2 * n, eager.float32, t)) for t, n in enumerate(sent)])
    out = eager.empty(sum(received), 2)
    dist.all_to_all_single(out, x.reshape(-1, 2), received, sent)
    expected = [data(s, 2 * n, eager.float32, me) for s, n in enumerate(received)]
    same(out, np.concatenate(expected).reshape(-1, 2), "split sizes")


@section
def p2p() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    if size == 1:
        raises(ArgumentError, lambda: dist.send(eager.ones(1), 0), "this rank")
        return
    right, left = (me + 1) % size, (me - 1) % size
    for count in (0, 1, 1001, 300_001):
        x, y = mine(count, eager.float32), eager.empty(count)
        if me % 2 == 0:
            dist.send(x, right)
            source = dist.recv(y, left)
        else:
            source = dist.recv(y, left)
            dist.send(x, right)
        if size % 2 == 0 or count < 4000:
            holds(source == left, "the sender")
            same(y, data(left, count, eager.float32), ("send", count))
    for count in (1, 50_001):
        x, y = mine(count, eager.int64), eager.empty(count, dtype=eager.int64)
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.irecv, y, left, tag=7), dist.P2POp(dist.isend, x, right, tag=7)]
        )
        for work in works:
            work.wait()
        same(y, data(left, count, eager.int64), ("isend", count))
    if me == 0:  # by tag, out of order
        for tag in (2, 1):
            dist.isend(eager.full((3,), float(tag)), 1, tag=tag).wait()
    elif me == 1:
        for tag in (1, 2):
            y = eager.empty(3)
            dist.recv(y, 0, tag=tag)
            holds(y.tolist() == [float(tag)] * 3, "tags")
    if me == 0:  # from anyone
        seen = set()
        for _ in range(size - 1):
            y = eager.empty(1, dtype=eager.int64)
            source = dist.recv(y, tag=9)
            holds(y.item() == source, "from anyone")
            seen.add(source)
        holds(seen == set(range(1, size)), "all of them")
    else:
        dist.send(eager.tensor([me]), 0, tag=9)


@section
def barrier() -> None:
    for _ in range(20):
        dist.barrier()
    work = dist.barrier(async_op=True)
    holds(work.wait(), "barrier")
    if dist.get_backend() != "mpi":
        dist.monitored_barrier()


@section
def asynchronous() -> None:
    """Many at once, of several kinds, waited for in another order."""
    size = dist.get_world_size()
    xs = [mine(64 * (i + 1), eager.float32, i) for i in range(12)]
    outs = [eager.empty(64 * (i + 1) * size) for i in range(12)]
    works = []
    for i, x in enumerate(xs):
        works.append(dist.all_gather_into_tensor(outs[i], x, async_op=True))
        works.append(dist.all_reduce(x, async_op=True))
    y = mine(10, eager.float32)
    dist.all_reduce(y)  # runs after them
    same(y, combined([data(r, 10, eager.float32) for r in ranks()], ReduceOp.SUM), "after")
    for work in reversed(works):
        work.wait()
        holds(work.is_success() and work.exception() is None, "success")
    for i, x in enumerate(xs):
        columns = [data(r, 64 * (i + 1), eager.float32, i) for r in ranks()]
        same(x, combined(columns, ReduceOp.SUM), ("async", i))
        same(outs[i], np.concatenate(columns), ("async gather", i))
    x = eager.ones(4)
    future = dist.all_reduce(x, async_op=True).get_future()
    chained = future.then(lambda f: f.value()[0].sum().item())
    holds(chained.wait() == 4.0 * size, "futures")
    holds(future.wait()[0] is x, "the future's value")


@section
def coalesced() -> None:
    tensors = [mine(n, eager.float32, n) for n in (3, 1, 500)]
    dist.all_reduce_coalesced(tensors)
    for n, x in zip((3, 1, 500), tensors, strict=True):
        columns = [data(r, n, eager.float32, n) for r in ranks()]
        same(x, combined(columns, ReduceOp.SUM), ("coalesced", n))


@section
def objects() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    mine_ = {"rank": me, "text": "x" * (100 * me)}
    found: list[object] = [None] * size
    dist.all_gather_object(found, mine_)
    holds(found == [{"rank": r, "text": "x" * (100 * r)} for r in ranks()], "all_gather_object")
    for root in ranks():
        values = [(root, "a"), None, 3.5] if me == root else [None] * 3
        dist.broadcast_object_list(values, root)
        holds(values == [(root, "a"), None, 3.5], "broadcast_object_list")
        gathered: list[object] | None = [None] * size if me == root else None
        dist.gather_object(mine_, gathered, root)
        holds(me != root or gathered == found, "gather_object")
        out: list[object] = [None]
        dist.scatter_object_list(
            out, [f"for {r}" * r for r in ranks()] if me == root else None, root
        )
        holds(out == [f"for {me}" * me], "scatter_object_list")
    if size > 1 and me < 2:
        if me == 0:
            dist.send_object_list([1, "two"], 1)
        else:
            received: list[object] = [None, None]
            holds(dist.recv_object_list(received, 0) == 0, "the sender")
            holds(received == [1, "two"], "recv_object_list")


@section
def groups() -> None:
    size, me = dist.get_world_size(), dist.get_rank()
    evens = dist.new_group(range(0, size, 2))
    everyone = dist.new_group()
    last = dist.new_group([size - 1])
    holds(dist.get_process_group_ranks(everyone) == list(ranks()), "ranks")
    if me % 2 == 0:
        holds(dist.get_rank(evens) == me // 2 and evens.size() == len(range(0, size, 2)), "rank")
        holds(dist.get_global_rank(evens, dist.get_group_rank(evens, me)) == me, "numbering")
        for count in (5, 70_001):
            x = mine(count, eager.float32)
            dist.all_reduce(x, group=evens)
            columns = [data(r, count, eager.float32) for r in range(0, size, 2)]
            same(x, combined(columns, ReduceOp.SUM), ("group", count))
        root = evens.ranks[-1]
        x = mine(9, eager.float32)
        dist.broadcast(x, root, group=evens)
        same(x, data(root, 9, eager.float32), "a root of the job")
        dist.broadcast(x, group=evens, group_src=0)
        if size > 1:
            raises(ArgumentError, lambda: dist.broadcast(x, 1, group=evens), "not in the group")
    else:
        holds(evens is dist.GroupMember.NON_GROUP_MEMBER, "not a member")
        holds(dist.get_rank(evens) == -1 and dist.get_world_size(evens) == -1, "-1")
    # Groups at the same time: their works interleave.
    x, y = mine(1000, eager.float32, 1), mine(1000, eager.float32, 2)
    works = [dist.all_reduce(x, group=everyone, async_op=True), dist.all_reduce(y, async_op=True)]
    for work in reversed(works):
        work.wait()
    for seed, t in ((1, x), (2, y)):
        columns = [data(r, 1000, eager.float32, seed) for r in ranks()]
        same(t, combined(columns, ReduceOp.SUM), ("concurrent groups", seed))
    if me == size - 1:
        z = mine(4, eager.float32)
        dist.all_reduce(z, group=last)
        same(z, data(me, 4, eager.float32), "a group of one")
    dist.destroy_process_group(everyone)
    raises(EagerError, lambda: dist.all_reduce(x, group=everyone), "destroyed")
    raises(EagerError, lambda: dist.barrier(everyone), "destroyed")
    for _ in range(8):  # numbers are used again
        g = dist.new_group()
        dist.barrier(g)
        dist.destroy_process_group(g)
    pair, pairs = dist.new_subgroups(1)
    holds(pair.ranks == (me,) and len(pairs) == size, "subgroups")


@section
def grad() -> None:
    """Collectives are not differentiable, and say so."""
    w = eager.ones(3, requires_grad=True)
    for call in (lambda: dist.all_reduce(w), lambda: dist.all_reduce(w * 2),
                 lambda: dist.all_reduce(w, async_op=True),
                 lambda: dist.all_gather([w * 1 for _ in ranks()], eager.ones(3)),
                 lambda: dist.reduce_scatter_tensor(w, eager.ones(3 * dist.get_world_size())),
                 ):  # fmt: skip
        raises(AutogradError, call, "not differentiable")
    with eager.no_grad():
        dist.all_reduce(w)
    holds(w.tolist() == [float(dist.get_world_size())] * 3 and w.requires_grad, "with no_grad")
    x = eager.ones(3, requires_grad=True)
    y = (x * x).detach()
    out = eager.empty(3 * dist.get_world_size())
    dist.all_gather_into_tensor(out, x)  # what is only read may require grad
    dist.all_reduce(y)


@section
def arguments() -> None:
    """Wrong on their own: raised before anything is sent, so the ranks stay in step."""
    size = dist.get_world_size()
    x = eager.ones(4)
    raises(ArgumentError, lambda: dist.all_reduce(x, ReduceOp.BAND), "SUM")
    whole = eager.ones(4, dtype=eager.int32)
    raises(EagerError, lambda: dist.all_reduce(whole, ReduceOp.AVG), "avg")
    raises(ArgumentError, lambda: dist.broadcast(x, size), "rank")
    raises(ArgumentError, lambda: dist.broadcast(x), "src")
    raises(ShapeError, lambda: dist.all_gather_into_tensor(x, eager.ones(4 * size + 1)), "elements")
    raises(DTypeError, lambda: dist.all_gather_into_tensor(
        eager.ones(4 * size), eager.ones(4, dtype=eager.int32)), "dtype")  # fmt: skip
    raises(ArgumentError, lambda: dist.all_gather([x] * (size + 1), x), "one tensor for each rank")
    raises(EagerError, lambda: dist.all_reduce(eager.empty(3, device="meta")), "meta")
    raises((EagerError, TypeError), lambda: dist.all_reduce([1.0]))
    raises(ArgumentError, lambda: dist.new_group([0, 0]), "distinct")
    raises(ArgumentError, lambda: dist.new_group([size]), "ranks of the job")
    raises(EagerError, lambda: dist.init_process_group(), "already")
    readonly = eager.from_numpy(np.broadcast_to(np.ones(4, np.float32), (4,)))
    raises(EagerError, lambda: dist.all_reduce(readonly))
    raises(EagerError, lambda: dist.all_reduce(eager.ones(1).expand(4)))
    dist.all_reduce(x)
    holds(x.tolist() == [float(size)] * 4, "the group still works")


@section
def mismatch() -> None:
    """What differs between ranks is raised on all of them, and the group can be used again."""
    size, me = dist.get_world_size(), dist.get_rank()
    if dist.get_backend() != "rdma" or size == 1:
        print(f"mismatch: not detected by {dist.get_backend()} with {size} ranks", flush=True)
        return
    odd = me == size - 1

    def again() -> None:
        x = mine(33, eager.float32)
        dist.all_reduce(x)
        same(x, combined([data(r, 33, eager.float32) for r in ranks()], ReduceOp.SUM), "again")

    for count in (4, 100_000):
        raises(Mismatch, lambda n=count: dist.all_reduce(eager.ones(n + odd)))
        again()
        raises(Mismatch, lambda n=count: dist.all_reduce(
            eager.ones(n), ReduceOp.MAX if odd else ReduceOp.SUM))  # fmt: skip
        again()
        raises(Mismatch, lambda n=count: dist.all_reduce(
            eager.ones(n, dtype=eager.int32 if odd else eager.float32)))  # fmt: skip
        again()
        raises(Mismatch, lambda n=count: dist.broadcast(eager.ones(n), int(odd)))
        again()
        raises(Mismatch, lambda n=count: (
            dist.all_reduce(eager.ones(n)) if odd else dist.broadcast(eager.ones(n), 0)
        ))  # fmt: skip
        again()
        work = dist.all_reduce(eager.ones(count + odd), async_op=True)
        raises(Mismatch, work.wait)
        holds(isinstance(work.exception(), Mismatch) and not work.is_success(), "exception()")
        again()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="rdma")
    parser.add_argument("--init-method")
    parser.add_argument("sections", nargs="*", default=[])
    given = parser.parse_args()
    dist.init_process_group(given.backend, given.init_method)
    holds(dist.is_initialized() and dist.get_backend() == given.backend, "backend")
    for name in given.sections or SECTIONS:
        before = count_checks()
        SECTIONS[name]()
        print(f"{name}: {count_checks() - before} checks", flush=True)
    me = dist.get_rank()
    holds(math.isfinite(sum(dist.info()["stats"].values())), "stats")
    print(repr(dist.info()), flush=True)
    dist.destroy_process_group()
    holds(not dist.is_initialized(), "left")
    print(f"SUITE OK rank {me} ({count_checks()} checks)", flush=True)


if __name__ == "__main__":
    main()

"""The averages over ranks that most jobs want: exact, or in half precision.

A hook gets its state, here a process group or None for WORLD, and a `GradBucket`; it returns a
future of the reduced bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import eager
from eager import Tensor
from eager.distributed.backends.base import ReduceOp
from eager.dtypes import DType

if TYPE_CHECKING:
    from eager.distributed.backends.base import Work
    from eager.distributed.process_group import ProcessGroup
    from eager.nn.parallel.reducer import GradBucket

Hook = Callable[[Any, "GradBucket"], Any]


class BucketFuture:
    """The future of a bucket: waits for the work, then lets `finish` give the result, once."""

    def __init__(self, work: Work | None, finish: Callable[[], Tensor]) -> None:
        self._work, self._finish = work, finish
        self._result: Tensor | None = None

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._result is not None or self._work is None or self._work.is_completed()

    def wait(self) -> Tensor:
        """The reduced bucket; raises what went wrong."""
        if self._result is None:
            if self._work is not None:
                self._work.wait()
            with eager.no_grad():
                self._result = self._finish()
        return self._result

    value = wait

    def then(self, callback: Callable[[BucketFuture], Tensor]) -> BucketFuture:
        """A future of ``callback(self)``."""
        return BucketFuture(None, lambda: (self.wait(), callback(self))[1])


def _average(group: ProcessGroup | None, tensor: Tensor) -> Work | None:
    from eager.distributed.process_group import resolve

    return resolve(group, "ddp_comm_hooks").backend.all_reduce(tensor, ReduceOp.AVG, True)


def allreduce_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> BucketFuture:
    """The average, as without a hook."""
    tensor = bucket.buffer()
    return BucketFuture(_average(process_group, tensor), lambda: tensor)


def _compressed(group: ProcessGroup | None, bucket: GradBucket, dtype: DType) -> BucketFuture:
    whole = bucket.buffer()
    small = whole.to(dtype)
    return BucketFuture(_average(group, small), lambda: whole.copy_(small))


def bf16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> BucketFuture:
    """The average of gradients rounded to bfloat16: half the bytes of float32, 8 bits of mantissa;
    ranks add in float32."""
    return _compressed(process_group, bucket, eager.bfloat16)


def fp16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> BucketFuture:
    """The average of gradients rounded to float16: values above 65504 become infinite."""
    return _compressed(process_group, bucket, eager.float16)


def _wrapper(hook: Hook, dtype: DType) -> Hook:
    def compressed(state: Any, bucket: GradBucket) -> BucketFuture:
        whole = bucket.buffer()
        bucket.set_buffer(whole.to(dtype))
        inner = hook(state, bucket)

        def finish() -> Tensor:
            result = inner.wait()
            return whole.copy_(result[0] if isinstance(result, list | tuple) else result)

        return BucketFuture(None, finish)

    return compressed


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """`hook` on buckets rounded to bfloat16."""
    return _wrapper(hook, eager.bfloat16)


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """`hook` on buckets rounded to float16."""
    return _wrapper(hook, eager.float16)

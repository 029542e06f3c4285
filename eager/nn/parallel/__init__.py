"""Training with several processes: `DistributedDataParallel`."""

from eager.nn.parallel.distributed import DistributedDataParallel

__all__ = ["DistributedDataParallel"]

"""Training in several processes.  Names and semantics are those of `torch.distributed`.

Start the processes with ``python -m eager.distributed.run``, torchrun, mpirun or srun; each calls
`init_process_group` and then `all_reduce` and its siblings, or uses
`eager.nn.parallel.DistributedDataParallel`.

=========================  ========================================================================
variable                   meaning for the backend "rdma"
=========================  ========================================================================
EAGER_COMM_SECRET          what ranks prove to each other that they know; launchers make one
EAGER_COMM_INSECURE        1: no secret, for jobs that meet on the loopback interface
EAGER_COMM_TRANSPORT       "shm", "tcp" or "verbs" for all pairs of ranks; else the best for each
EAGER_COMM_ADDRESS         the address to listen on; else that which reaches the store
EAGER_COMM_DEVICES         verbs devices, such as "mlx5_0,mlx5_1:1"; else every active port
EAGER_COMM_TIMEOUT         seconds until an operation is given up (300)
EAGER_COMM_HEARTBEAT       seconds of silence after which a rank is taken for lost (10)
EAGER_COMM_ALGORITHM       one algorithm for all_reduce instead of the measured table's choice
EAGER_COMM_TABLE           a file with rules for that table (csrc/comm/choose.h)
EAGER_COMM_SHARED_TENSORS  0: large tensors lie in ordinary memory (`backends.rdma`)
=========================  ========================================================================

>>> import eager.distributed as dist
>>> dist.is_available(), dist.is_initialized()
(True, False)
"""

from eager.distributed.backends.base import Backend, Future, ReduceOp, Work
from eager.distributed.collectives import *  # noqa: F403
from eager.distributed.collectives import __all__ as _collectives
from eager.distributed.errors import *  # noqa: F403
from eager.distributed.errors import __all__ as _errors
from eager.distributed.info import info
from eager.distributed.monitored import monitored_barrier
from eager.distributed.object_collectives import *  # noqa: F403
from eager.distributed.object_collectives import __all__ as _objects
from eager.distributed.point_to_point import *  # noqa: F403
from eager.distributed.point_to_point import __all__ as _messages
from eager.distributed.process_group import *  # noqa: F403
from eager.distributed.process_group import __all__ as _groups
from eager.distributed.store import PrefixStore, Store, TCPStore
from eager.distributed.window import Window

__all__ = [
    "Backend",
    "Future",
    "PrefixStore",
    "ReduceOp",
    "Store",
    "TCPStore",
    "Window",
    "Work",
    "info",
    "monitored_barrier",
]
__all__ += _collectives
__all__ += _errors
__all__ += _messages
__all__ += _objects
__all__ += _groups

"""What the launcher is made of, and `record` for scripts that it runs.

`eager.distributed.run` starts one *agent* per node.  The agents meet in a store (`rendezvous`),
start their workers (`workers`), and stop and start all of them again when one dies or when nodes
come and go (`agent`).
"""

from __future__ import annotations

from eager.distributed.elastic.failures import Failure, WorkersFailed, record

__all__ = ["Failure", "WorkersFailed", "record"]

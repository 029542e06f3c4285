"""Checkpoints of a job: sharded, asynchronous, atomic, checksummed.

A checkpoint is a directory::

    step-000400/
        shard-00000-of-00002.safetensors    tensors that rank 0 has written, and its structure
        shard-00001-of-00002.safetensors
        manifest.json                       sizes and SHA-256 of the shards; written last

Ranks see one file system.  They write into a hidden directory beside it, which rank 0 renames
when all have reported: what has the final name is complete.  Entries that all ranks have are
written by one of them each; entries that only some ranks have (the state of a
`ZeroRedundancyOptimizer`) by these.  `load` puts all shards together, so the number of ranks may
change in between.

    state = {"model": model.state_dict(), "optimizer": optimizer.local_state_dict(), "step": step,
             "random": checkpoint.PerRank(eager.get_rng_state())}
    checkpoint.async_save(state, f"{root}/step-{step:06}", keep=3)
    ...
    found = checkpoint.latest(root)
    if found is not None:
        state = checkpoint.load(found)
"""

from __future__ import annotations

from eager.distributed.checkpoint.content import PerRank
from eager.distributed.checkpoint.read import latest, load, verify
from eager.distributed.checkpoint.write import Save, async_save, save

__all__ = ["PerRank", "Save", "async_save", "latest", "load", "save", "verify"]

"""What ranks tell each other of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eager.distributed.process_group import ProcessGroup


def group_of(given: ProcessGroup | None) -> ProcessGroup | None:
    """The group that a call is for; None if there is no job."""
    from eager.distributed import process_group

    if given is None and not process_group.is_initialized():
        return None
    return process_group.resolve(given, "checkpoint")


def gathered(group: ProcessGroup | None, value: Any) -> list[Any]:
    """Every rank's `value`."""
    if group is None or group.size() == 1:
        return [value]
    from eager.distributed.object_collectives import all_gather_object

    found: list[Any] = [None] * group.size()
    all_gather_object(found, value, group=group)
    return found

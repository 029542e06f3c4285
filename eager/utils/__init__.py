"""Tools around training."""

from eager.utils import data

__all__ = ["data"]

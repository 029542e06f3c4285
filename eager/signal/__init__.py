"""Signal processing: window functions."""

from eager.signal import windows

__all__ = ["windows"]

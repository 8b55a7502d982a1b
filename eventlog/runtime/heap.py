"""The heap of a program's own process: what a long run of large reads leaves behind."""

import ctypes
import sys
from typing import Final

__all__ = ["give_back_large_blocks"]

_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 1024 * 1024


def give_back_large_blocks() -> None:
    """Have freed blocks of a megabyte or more returned to the system, where the C library would keep them.

    For programs, as it concerns the whole process: glibc learns from the first files that are read that such blocks
    are used again, and keeps up to 64 MB of them for each thread.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)

"""Memory of tensors on CPUs."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep what one step frees for the next.

    Otherwise it gives large blocks back, and the kernel makes every page of the next ones anew: in
    a small model's step tens of thousands of page faults. Other C libraries have no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)

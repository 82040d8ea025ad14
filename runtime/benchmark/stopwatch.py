"""Seconds of one call, of the slowest rank, over as many calls as fill a given time."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

WARM_UP = 2  # calls before the clock runs: first ones set up channels and choose kernels
FEWEST, MOST = 3, 500


class Stopwatch:
    def __init__(self, device: torch.device, *, seconds: float) -> None:
        """`seconds`: about how long one measurement may take."""
        self._device, self._seconds = device, seconds

    def time(self, call: Callable[[], object]) -> float:
        """Return the seconds of one `call`. Every rank must call this with its own part of it."""
        for _ in range(WARM_UP):
            call()
        once = self._slowest(self._run(call, 1))
        count = int(min(MOST, max(FEWEST, self._seconds / max(once, 1e-9))))
        return self._slowest(self._run(call, count))

    def _run(self, call: Callable[[], object], count: int) -> float:
        self._wait()
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter()
        for _ in range(count):
            call()
        self._wait()
        return (time.perf_counter() - began) / count

    def _slowest(self, seconds: float) -> float:
        if not dist.is_initialized():
            return seconds
        value = torch.tensor([seconds], dtype=torch.float64, device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value.item())

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

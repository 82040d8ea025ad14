"""Collectives of one axis by size. All groups of the axis run at once, as they do in training.

What `bytes` means, with n ranks in a group:

    all-reduce       the tensor that every rank gives and gets
    all-gather       what every rank gets, of which it gave 1/n
    reduce-scatter   what every rank gives, of which it gets 1/n
    all-to-all       what every rank gives, 1/n to each
    send             the message from an even rank of the group to the next one
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from parctl.runtime.benchmark.stopwatch import Stopwatch

SMALLEST = 4096  # bytes
FACTOR = 8  # from one size to the next


def measure_axis(
    group: dist.ProcessGroup, device: torch.device, stopwatch: Stopwatch, *, max_bytes: int
) -> Iterator[dict[str, object]]:
    """Yield a line per collective and size. `group`: this rank's group of the axis."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name, make in COLLECTIVES.items():
        for num_bytes in sizes(max_bytes):
            elements = max(1, num_bytes // dtype.itemsize // group.size()) * group.size()
            # zeros, which no number of sums can make overflow
            call = make(group, torch.zeros(elements, dtype=dtype, device=device))
            yield {
                "collective": name,
                "bytes": elements * dtype.itemsize,
                "seconds": stopwatch.time(call),
            }


def sizes(max_bytes: int) -> Iterator[int]:
    """4 kB, 32 kB, ... up to `max_bytes`.

    >>> list(sizes(300_000))
    [4096, 32768, 262144]
    """
    size = SMALLEST
    while size <= max_bytes:
        yield size
        size *= FACTOR


def _all_reduce(group: dist.ProcessGroup, whole: torch.Tensor) -> Callable[[], object]:
    return lambda: dist.all_reduce(whole, group=group)


def _all_gather(group: dist.ProcessGroup, whole: torch.Tensor) -> Callable[[], object]:
    part = whole[: whole.numel() // group.size()].clone()
    return lambda: dist.all_gather_into_tensor(whole, part, group=group)


def _reduce_scatter(group: dist.ProcessGroup, whole: torch.Tensor) -> Callable[[], object]:
    part = torch.empty_like(whole[: whole.numel() // group.size()])
    return lambda: dist.reduce_scatter_tensor(part, whole, group=group)


def _all_to_all(group: dist.ProcessGroup, whole: torch.Tensor) -> Callable[[], object]:
    received = torch.empty_like(whole)
    return lambda: dist.all_to_all_single(received, whole, group=group)


def _send(group: dist.ProcessGroup, whole: torch.Tensor) -> Callable[[], object]:
    rank, size = group.rank(), group.size()
    if rank % 2:
        source = dist.get_global_rank(group, rank - 1)
        return lambda: dist.recv(whole, source, group=group)
    if rank + 1 < size:
        target = dist.get_global_rank(group, rank + 1)
        return lambda: dist.send(whole, target, group=group)
    return lambda: None  # the last of an odd number has no partner


COLLECTIVES = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-to-all": _all_to_all,
    "send": _send,
}

"""Copies between device and host: of activations that wait, of gradients and their updates.

On CUDA copies go through pinned memory on a stream of their own, beside the computation. On CPUs
the same code copies within host memory, so that what is kept, and when, can be tested there.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OnHost:
    """A tensor that waits in host memory, and where it came from."""

    tensor: Tensor
    device: torch.device


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all copies between this device and its host."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def to_host(tensor: Tensor) -> OnHost:
    """Begin the copy to host memory. The device's memory is free once it is done."""
    pinned = tensor.device.type == "cuda"
    host = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    if not pinned:
        host.copy_(tensor)
        return OnHost(tensor=host, device=tensor.device)
    stream = copy_stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return OnHost(tensor=host, device=tensor.device)


def wait_for_copies(device: torch.device) -> None:
    """Wait, on the host, until all that was sent to it is there."""
    if device.type == "cuda":
        copy_stream(device).synchronize()


def to_device(kept: OnHost) -> Tensor:
    """Copy back. What the current stream does next waits for it, the host does not."""
    if kept.device.type != "cuda":
        return kept.tensor.clone()
    stream, current = copy_stream(kept.device), torch.cuda.current_stream(kept.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        tensor = kept.tensor.to(kept.device, non_blocking=True)
    current.wait_stream(stream)
    tensor.record_stream(current)
    return tensor

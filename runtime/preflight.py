"""Whether one node can do its work: `python -m parctl.runtime.preflight`, a rank per device.

Every rank multiplies matrices whose product is known, then all ranks of the node reduce a tensor
whose sum is known. A device that is slow, wrong or stuck is found here in seconds, and not after
hours by the whole job. The last line that a rank prints is `preflight` and what it measured, JSON.
"""

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from parctl.runtime.parallel.mesh import choose_device
from parctl.runtime.rendezvous import open_store

TIMEOUT = timedelta(seconds=60)
ROUNDS = 5


def main() -> int:
    """Measure, print, and return 1 when a result is wrong."""
    device = choose_device()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=open_store(rank, world_size, TIMEOUT),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    tflops, product_right = multiply(device)
    gb_per_s, sum_right = reduce(device)
    dist.barrier()
    dist.destroy_process_group()
    found = {
        "rank": int(os.environ["PARCTL_PREFLIGHT_RANK"]),
        "device": device.type,
        "tflops": tflops,
        "gb_per_s": gb_per_s,
        "right": product_right and sum_right,
    }
    print(f"preflight {json.dumps(found)}", flush=True)
    return 0 if found["right"] else 1


def multiply(device: torch.device) -> tuple[float, bool]:
    """Return the best rate of a square product (TFLOP/s), and whether it is what it must be.

    All elements of the factors are 1, so all of the product are the size, exactly.
    """
    cuda = device.type == "cuda"
    size, kind = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    ones = torch.ones(size, size, device=device, dtype=kind)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        product = ones @ ones
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e12, bool((product == size).all())


def reduce(device: torch.device) -> tuple[float, bool]:
    """Return the best rate of an all-reduce (GB of the tensor per second), and whether it adds."""
    cuda = device.type == "cuda"
    ones = torch.ones(2**26 if cuda else 2**20, device=device)
    best = float("inf")
    for _ in range(ROUNDS):
        value = ones.clone()
        began = time.perf_counter()
        dist.all_reduce(value)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    right = bool((value == dist.get_world_size()).all())
    return ones.numel() * ones.element_size() / best / 1e9, right


if __name__ == "__main__":
    sys.exit(main())

"""Exchanges of ranks on one node's CPUs: through shared memory, beside gloo's sockets, in one run.

Both take turns on the same tensors. A time is the slowest rank's, the median of several. With more
ranks than cores the ranks also wait for each other's turns, in both columns.

    python -m benchmarks.exchanges_cpu [--ranks 2 4] [--megabytes 0.1 1 8]
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.multiprocessing.spawn import spawn

from parctl.launcher.port import hold_port
from parctl.runtime.parallel import collectives, shared_memory
from parctl.runtime.parallel.shard_exchanges import GradientSum, ParameterGather

ROUNDS, CALLS, DIM = 7, 10, 512
Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.1, 1, 8])
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    print(f"{'exchange':<24}{'ranks':>6}{'MB':>6}{'gloo ms':>10}{'shared ms':>11}{'ratio':>7}")
    for ranks in options.ranks:
        with hold_port("127.0.0.1") as held:
            port = held.getsockname()[1]
            arguments = (port, ranks, options.megabytes)
            spawn(measure, arguments, ranks)  # type: ignore[no-untyped-call]


def measure(rank: int, port: int, size: int, megabytes: list[float]) -> None:
    """One rank; rank 0 prints."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    sockets, memory = (DeviceMesh.from_group(dist.new_group(), "cpu") for _ in range(2))
    shared_memory.connect(memory)
    for megabyte in megabytes:
        ways = [exchanges(mesh.get_group(), megabyte) for mesh in (sockets, memory)]
        for name in ways[0]:
            times: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                for found, way in zip(times, ways, strict=True):
                    found.append(seconds(way[name]))
            gloo, shared = (1e3 * median(found) for found in times)
            if rank == 0:
                print(
                    f"{name:<24}{size:>6}{megabyte:>6g}{gloo:>10.2f}{shared:>11.2f}"
                    f"{shared / gloo:>7.2f}",
                    flush=True,
                )
    dist.destroy_process_group()


def exchanges(group: dist.ProcessGroup, megabyte: float) -> dict[str, Call]:
    """The exchanges of TP, TP with SP, and FSDP, of float32 tensors that are whole at this size."""
    size = group.size()
    tokens = max(1, int(megabyte * 1e6) // 4 // DIM // size) * size
    whole = torch.randn(1, tokens, DIM)
    part = whole.chunk(size, dim=1)[group.rank()].contiguous()
    flat, gather, total = whole.flatten(), ParameterGather(), GradientSum(None)
    shard, own = torch.empty(flat.numel() // size), flat.chunk(size)[group.rank()]
    return {
        "all-reduce (TP)": lambda: collectives.all_reduce(whole, group),
        "all-gather (SP)": lambda: collectives.all_gather_tokens(part, group),
        "reduce-scatter (SP)": lambda: collectives.reduce_scatter_tokens(whole, group),
        "all-gather (FSDP)": lambda: gather(torch.empty_like(flat), own, group),
        "reduce-scatter (FSDP)": lambda: total(shard, flat, group, dist.ReduceOp.SUM),
    }


def seconds(call: Call) -> float:
    """Of one call, on the slowest rank."""
    call()
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    elapsed = torch.tensor((time.perf_counter() - begin) / CALLS)
    dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
    return float(elapsed)


if __name__ == "__main__":
    main()

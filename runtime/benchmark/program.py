"""The program of `parctl bench`: one rank of it.

Started as any `task: script`: it reads RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*. Ranks are in the
order of the layout, so the groups are slices of the mesh that the plan describes. Rank 0 prints a
line of JSON for every measurement, the slowest rank's seconds::

    parctl-bench {"axis": "tp", "size": 8, "collective": "send", "bytes": 4096, "seconds": 2e-5}
    parctl-bench {"product": [8192, 8192, 3584], "dtype": "bf16", "seconds": 8e-4}
"""

import argparse
import json
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from parctl.runtime.benchmark.collectives import measure_axis
from parctl.runtime.benchmark.products import measure_products
from parctl.runtime.benchmark.stopwatch import Stopwatch

PREFIX = "parctl-bench "


def main(words: Sequence[str] | None = None) -> None:
    """Measure what the job on the command line says and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True, help="JSON: axes, expert_axes, products, ...")
    job = json.loads(parser.parse_args(words).job)
    device = _device()
    world = int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            device_id=device if device.type == "cuda" else None,
        )
    stopwatch = Stopwatch(device, seconds=job["seconds"])
    try:
        _say({"device": device.type, "world": world})
        for axes, names in _meshes(job):
            mesh = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
            for name in names:
                group = mesh.get_group(name)
                for line in measure_axis(group, device, stopwatch, max_bytes=job["max_bytes"]):
                    _say({"axis": name, "size": axes[name], **line})
        for line in measure_products(
            job["products"], device, stopwatch, most_flops=job["most_flops"]
        ):
            _say(line)
    finally:
        if world > 1:
            dist.destroy_process_group()


def _meshes(job: dict[str, object]) -> list[tuple[dict[str, int], list[str]]]:
    """The meshes over all ranks, each with the axes whose groups it has and others have not."""
    found: list[tuple[dict[str, int], list[str]]] = []
    seen: set[str] = set()
    for key in ("axes", "expert_axes"):
        axes = job[key]
        if not isinstance(axes, dict):
            continue
        names = [name for name, size in axes.items() if size > 1 and name not in seen]
        seen.update(names)
        if names:
            found.append((axes, names))
    return found


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _say(line: dict[str, object]) -> None:
    if os.environ["RANK"] == "0":
        print(f"{PREFIX}{json.dumps(line)}", flush=True)


if __name__ == "__main__":
    main()

"""How long a layout takes and what it needs, by number of GPUs; and what it saves.

    python benchmarks/layout_scale.py             both tables
    python benchmarks/layout_scale.py --one 1024  one size, in this process

The first table lays out TP8 x FSDP8 x DP x PP16 on H100 nodes in two fabric tiers, each size in a
process of its own: CPU seconds of `lay_out` alone and the peak memory of the whole process, the
cluster in it. Goal: 131,072 GPUs in a second and under 1 GB, growing with the number of GPUs.

The second table puts the documented cost of a layout (bytes per step over the worst link of every
axis, nominal traffic) beside three orders in use, on five shapes from the literature:

    linear    rank r on the r-th GPU by node name, mesh axes in the order of the recipe
    torchrun  the same, nodes in the order that c10d rendezvous gives them: host names as text
    megatron  nodes by name, mesh order tp-cp-ep-dp-pp whatever the recipe says

`!` marks an order that breaks the hard rule: some tp group leaves its NVLink domain. The cost knows
how far fabric tiers are apart, not how thin they are, for nobody says so; hence a third table: the
gigabytes per step and rank on groups that leave the nearest fabric block.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parctl.topology.model import Node, Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.candidates import views
from parctl.topology.placement.experts import expert_axes
from parctl.topology.placement.pool import Ints, Pool, make_pool
from parctl.topology.placement.proofs import facts_of, seconds_of
from parctl.topology.placement.traffic import nominal_traffic
from parctl.topology.synthetic import parse_cluster

SIZES = tuple(2**exponent for exponent in range(10, 18))
MEGATRON = ("pp", "dp", "fsdp", "cp", "tp")  # outermost first


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    request: LayoutRequest
    topology: Topology


def tiered(topology: Topology, **sizes: int) -> Topology:
    """The same nodes in blocks of so many by name."""
    nodes = [
        replace(node, tiers=tuple(f"{name}-{i // size}" for name, size in sizes.items()))
        for i, node in enumerate(topology.nodes)
    ]
    return replace(topology, tiers=tuple(sizes), nodes=tuple(nodes))


def dealt(topology: Topology, blocks: int) -> Topology:
    """Nodes dealt out to racks in turn, as many sites name them."""
    nodes = [replace(node, tiers=(f"leaf-{i % blocks}",)) for i, node in enumerate(topology.nodes)]
    return replace(topology, tiers=("leaf",), nodes=tuple(nodes))


def one_gpu_lost(topology: Topology, number: int) -> Topology:
    """One GPU of one node has fallen off its bus."""
    node = topology.nodes[number]
    first, *rest = node.hardware.devices
    hardware = replace(node.hardware, devices=(replace(first, faults=("lost",)), *rest))
    nodes = list(topology.nodes)
    nodes[number] = replace(node, hardware=hardware)
    return replace(topology, nodes=tuple(nodes))


def shapes() -> list[Shape]:
    return [
        Shape(
            name="GPT-3 175B, A100, racks dealt by name",
            request=LayoutRequest(axes={"pp": 8, "dp": 16, "tp": 8}),
            topology=dealt(parse_cluster("a100-80g:128x8"), 8),
        ),
        Shape(
            name="Llama-3 70B HSDP, H100, one GPU lost",
            request=LayoutRequest(axes={"dp": 8, "fsdp": 8, "tp": 8}),
            topology=one_gpu_lost(tiered(parse_cluster("h100:66x8"), leaf=16), 5),
        ),
        Shape(
            name="Llama-3 405B, 16k H100, pods of 3,072",
            request=LayoutRequest(axes={"fsdp": 128, "pp": 16, "tp": 8}),
            topology=tiered(parse_cluster("h100:2304x8"), rack=2, pod=384),
        ),
        Shape(
            name="DeepSeek-V3, H800, EP64 over 8 nodes",
            request=LayoutRequest(axes={"pp": 16, "fsdp": 128}, ep=64),
            topology=dealt(parse_cluster("h800:256x8"), 8),
        ),
        Shape(
            name="Llama-3 405B TP16, GB200 NVL72",
            request=LayoutRequest(axes={"pp": 4, "dp": 8, "tp": 16}),
            topology=parse_cluster("gb200:8x18x4"),
        ),
    ]


def laid_out(shape: Shape, nodes: Sequence[Node], order: Sequence[str], pool: Pool) -> Ints:
    """Devices by mesh coordinate when ranks follow `nodes` and the mesh is built in `order`."""
    position = {node.name: i for i, node in enumerate(pool.nodes)}
    devices = [
        int(pool.first_device[position[node.name]]) + i
        for node in nodes
        for i, device in enumerate(node.hardware.devices)
        if not device.faults
    ]
    axes = shape.request.axes
    names = [axis for axis in order if axis in axes]
    flat = np.array(devices[: shape.request.world_size], dtype=np.int64)
    grid = flat.reshape([axes[name] for name in names])
    return grid.transpose([names.index(name) for name in axes])


def seconds(shape: Shape, devices: Ints, pool: Pool, traffic: Mapping[str, float]) -> str:
    request = shape.request
    facts = facts_of(pool, request, devices, expert_axes(request.axes, request.ep, request.etp))
    broken = any(fact.axis == "tp" and fact.crossing.link == "network" for fact in facts)
    return f"{seconds_of(facts, traffic):.4f}{'!' if broken else ' '}"


def leaving(shape: Shape, devices: Ints, pool: Pool, traffic: Mapping[str, float]) -> str:
    """Gigabytes per step and rank of groups that do not lie in one nearest block."""
    place = np.empty(len(pool.nodes), dtype=np.int64)
    place[pool.walk] = np.arange(len(pool.walk))
    block = next(c for c in pool.containers if c.is_network and c.rate is None)
    total = 0.0
    for position, axis in enumerate(shape.request.axes):
        groups = np.moveaxis(devices, position, -1).reshape(-1, devices.shape[position])
        labels = block.labels[place[pool.node_of(groups)]]
        share = float((labels.min(axis=1) != labels.max(axis=1)).mean())
        total += traffic.get(axis, 0.0) * share
    return f"{total / 1e9:.2f} "


def orders(shape: Shape, pool: Pool) -> tuple[Ints, ...]:
    """Devices by mesh coordinate: ours, then the three orders in use."""
    request, nodes = shape.request, shape.topology.nodes
    layout = lay_out(request, shape.topology)
    position = {node.name: i for i, node in enumerate(pool.nodes)}
    own = [
        int(pool.first_device[position[slot.node]]) + slot.gpu
        for slot in (layout.slots[rank] for rank in layout.ranks)
    ]
    by_text = sorted(nodes, key=lambda node: node.name)
    return (
        np.array(own, dtype=np.int64).reshape(tuple(request.axes.values())),
        laid_out(shape, nodes, list(request.axes), pool),
        laid_out(shape, by_text, list(request.axes), pool),
        laid_out(shape, nodes, MEGATRON, pool),
    )


def compare() -> None:
    head = "".join(f"{name:>11}" for name in ("parctl", "linear", "torchrun", "megatron"))
    costs, crossings = [], []
    for shape in shapes():
        request = shape.request
        traffic = nominal_traffic(request.axes, request.ep)
        pool = make_pool(shape.topology.nodes, views(request, shape.topology), shape.topology.tiers)
        grids = orders(shape, pool)
        cells = "".join(f"{seconds(shape, grid, pool, traffic):>11}" for grid in grids)
        costs.append(f"{shape.name:<42}{cells}")
        if shape.topology.tiers:
            cells = "".join(f"{leaving(shape, grid, pool, traffic):>11}" for grid in grids)
            crossings.append(f"{shape.name:<42}{cells}")
    print(f"\n{'cost in seconds per step':<42}{head}", *costs, sep="\n")
    print(f"\n{'GB per step and rank out of their block':<42}{head}", *crossings, sep="\n")


def measure(num_gpus: int) -> None:
    topology = tiered(parse_cluster(f"h100:{num_gpus // 8}x8"), leaf=32, pod=1024)
    request = LayoutRequest(axes={"pp": 16, "dp": num_gpus // 1024, "fsdp": 8, "tp": 8})
    begin = time.process_time()
    lay_out(request, topology)
    took = time.process_time() - begin
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{num_gpus:>9,}{took:>10.3f}{took / num_gpus * 1e6:>16.2f}{megabytes:>12.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", type=int, metavar="GPUS")
    only = parser.parse_args().one
    if only:
        measure(only)
        return
    print(f"{'GPUs':>9}{'CPU s':>10}{'us per GPU':>16}{'peak MB':>12}", flush=True)
    for size in SIZES:
        subprocess.run([sys.executable, __file__, "--one", str(size)], check=True)
    compare()


if __name__ == "__main__":
    main()

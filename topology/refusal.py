"""Say why a job cannot be placed: the arithmetic, the largest that can be, what to change."""

from collections.abc import Sequence

from parctl.errors import CannotPlaceError
from parctl.topology.hard_rule import largest_tp
from parctl.topology.model import Topology
from parctl.topology.packing import count_tp_groups
from parctl.topology.pool import Pool
from parctl.topology.request import TP, LayoutRequest, product_text

# which axis gives way first when the job is too large: replicas before what holds the model
GIVES_WAY = ("dp", "fsdp", "cp", "pp")


def device_noun(topology: Topology, count: int) -> str:
    """`8 GPUs`, `1 CPU device`."""
    gpu = any(node.hardware.kind == "gpu" for node in topology.nodes)
    noun = "GPU" if gpu else "CPU device"
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def refuse(topology: Topology, request: LayoutRequest, pools: Sequence[Pool]) -> CannotPlaceError:
    """The error for a request that no pool of nodes can hold."""
    largest = largest_tp(
        topology,
        allow_pcie_tp=request.allow_pcie_tp,
        allow_cross_node_tp=request.allow_cross_node_tp,
        strict_node=request.strict_node,
    )
    usable = max((pool.num_devices(with_stragglers=True) for pool in pools), default=0)
    if request.tp > max(1, largest):
        return _tp_too_large(topology, request, largest)
    if request.world_size > usable:
        return _too_few_devices(topology, request, usable, pools)
    if request.linear and _most_groups(request, pools) * request.tp >= request.world_size:
        return CannotPlaceError(
            f"{request.arithmetic}: the ranks of a script keep their own order, "
            f"{' x '.join(request.axes)} with the last axis fastest, and no order of nodes and "
            "devices puts every tp group of that order into one full mesh",
            hint="name tp last in the axes of the script, or let each axis divide a node evenly",
        )
    return _too_few_groups(topology, request, pools)


def _tp_too_large(topology: Topology, request: LayoutRequest, largest: int) -> CannotPlaceError:
    tp = request.tp
    with_pcie = largest_tp(
        topology, allow_pcie_tp=True, allow_cross_node_tp=False, strict_node=request.strict_node
    )
    with_domain = largest_tp(
        topology,
        allow_pcie_tp=request.allow_pcie_tp,
        allow_cross_node_tp=False,
        strict_node=False,
    )
    allow: list[str] = []
    if request.strict_node and with_domain >= tp:
        allow.append("strict_node: false")
    elif with_pcie >= tp and not request.allow_pcie_tp:
        allow.append("allow_pcie_tp: true")
    elif not request.allow_cross_node_tp and request.world_size <= topology.num_devices:
        allow.append("allow_cross_node_tp: true")
        if largest <= 1 and with_pcie > 1:
            allow.append("allow_pcie_tp: true")
    settings = " and ".join(f"`parallelism.{setting}`" for setting in allow)
    if largest <= 1 and with_pcie > 1:
        products = sorted(
            {d.product or "these" for n in topology.nodes for d in n.hardware.devices}
        )
        return CannotPlaceError(
            f"tp({tp}) needs NVLink between all GPUs of a group, but {'+'.join(products)} GPUs "
            "are joined by PCIe only",
            hint="take tp out and shard with fsdp or pp instead"
            + (f", or set {settings}" if allow else ""),
        )
    container = "full NVLink mesh" if with_pcie > largest else "NVLink domain"
    if request.strict_node and with_domain > largest:
        container = "node (strict_node)"
    elif all(node.hardware.kind == "cpu" for node in topology.nodes):
        container = "node"
    noun = device_noun(topology, largest)
    return CannotPlaceError(
        f"tp({tp}) > {noun} per {container}",
        hint=f"set tp to {largest} or less" + (f", or set {settings}" if allow else ""),
    )


def _too_few_devices(
    topology: Topology, request: LayoutRequest, usable: int, pools: Sequence[Pool]
) -> CannotPlaceError:
    total = topology.num_devices
    has = f"cluster has {device_noun(topology, total)}"
    if usable < total:
        has += f", of which this job can use {usable:,}"
    return CannotPlaceError(f"{request.arithmetic}, {has}", hint=_largest_that_fits(request, pools))


def _too_few_groups(
    topology: Topology, request: LayoutRequest, pools: Sequence[Pool]
) -> CannotPlaceError:
    need = request.world_size // request.tp
    have = _most_groups(request, pools)
    return CannotPlaceError(
        f"{request.arithmetic} needs {need:,} groups of tp({request.tp}), but the full meshes of "
        f"this cluster ({device_noun(topology, topology.num_devices)}) hold {have:,}",
        hint=_largest_that_fits(request, pools),
    )


def _largest_that_fits(request: LayoutRequest, pools: Sequence[Pool]) -> str:
    """Shrink the axes in their order until the job fits; say what that leaves."""
    room = _most_groups(request, pools)
    sizes = {axis: size for axis, size in request.axes.items() if axis != TP}
    for axis in (*GIVES_WAY, *sizes):
        if axis not in sizes:
            continue
        others = 1
        for name, size in sizes.items():
            others *= 1 if name == axis else size
        sizes[axis] = min(sizes[axis], max(1, room // others))
        if others * sizes[axis] <= room:
            best = {name: sizes.get(name, request.tp) for name in request.axes}
            return f"the largest that fits: {product_text(best)}"
    return "add nodes, or lower a degree"


def _most_groups(request: LayoutRequest, pools: Sequence[Pool]) -> int:
    most = 0
    for pool in pools:
        if request.tp == 1:
            most = max(most, pool.num_devices(with_stragglers=True))
            continue
        most = max(most, count_tp_groups(pool, request.tp, level=0))
        names = [name for name, _ in pool.containers]
        if "domain" in names and not request.strict_node:
            most = max(most, count_tp_groups(pool, request.tp, level=names.index("domain") + 1))
        if request.allow_cross_node_tp:
            most = max(most, pool.num_devices(with_stragglers=False) // request.tp)
    return most

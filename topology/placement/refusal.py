"""Say why a job cannot be placed: the arithmetic, the largest that can be, the smallest change.

A change is small when it leaves the job as it is: first a setting of the recipe, then nodes taken
back from the excluded or the spare ones, then more nodes; last a smaller job.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod

from parctl.errors import CannotPlaceError, UsageError
from parctl.topology.model import Topology
from parctl.topology.placement.candidates import candidate_pools
from parctl.topology.placement.experts import expert_axes
from parctl.topology.placement.hard_rule import Inside, largest_tp
from parctl.topology.placement.pool import Pool
from parctl.topology.placement.request import TP, LayoutRequest, product_text

# which axis gives way first when the job is too large: replicas before what holds the model
GIVES_WAY = ("dp", "fsdp", "cp", "pp")

MAX_TRIED = 16  # sizes of one axis; room is counted before, so the first nearly always fits

Places = Callable[[LayoutRequest], bool]


def device_noun(topology: Topology, count: int) -> str:
    """`8 GPUs`, `1 CPU device`."""
    gpu = any(node.hardware.kind == "gpu" for node in topology.nodes)
    noun = "GPU" if gpu else "CPU device"
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def refuse(
    topology: Topology, request: LayoutRequest, pools: Sequence[Pool], places: Places
) -> CannotPlaceError:
    """The error for a request that no pool of nodes can hold. `places` tries another request."""
    if request.tp > max(1, _largest_tp(topology, request)):
        return _tp_too_large(topology, request)
    usable = max((pool.num_devices(with_stragglers=True) for pool in pools), default=0)
    need, have = request.world_size // request.tp, _most_groups(request, pools)
    if not pools and (request.require or request.spares):
        message = f"{request.arithmetic}: {_unmet(request, topology)}"
    elif request.world_size > usable:
        total = topology.num_devices
        message = f"{request.arithmetic}, cluster has {device_noun(topology, total)}"
        if usable < total:
            message += f", of which this job can use {usable:,}"
    elif need > have:
        message = (
            f"{request.arithmetic} needs {need:,} groups of tp({request.tp}), but the full meshes "
            f"of this cluster ({device_noun(topology, topology.num_devices)}) hold {have:,}"
        )
    elif request.linear:
        return CannotPlaceError(
            f"{request.arithmetic}: the ranks of a script keep their own order, "
            f"{' x '.join(request.axes)} with the last axis fastest, and no order of nodes and "
            "devices puts every tp group of that order into one full mesh",
            hint="name tp last in the axes of the script, or let each axis divide a node evenly",
        )
    else:
        return CannotPlaceError(
            f"{request.arithmetic}: no placement uses all {len(request.require)} required nodes",
            hint="require fewer nodes",
        )
    hints = [*_largest(request, pools, places), *_changes(topology, request, pools, places)]
    return CannotPlaceError(message, hint="; or ".join(hints) or "add nodes, or lower a degree")


def _unmet(request: LayoutRequest, topology: Topology) -> str:
    """Why no pool of nodes fulfils what is asked of the nodes."""
    if not list(candidate_pools(replace(request, spares=0), topology)):
        return f"no candidates hold all required nodes ({', '.join(request.require[:8])})"
    total = len(topology.nodes)
    return (
        f"{request.spares} spare node{'s' * (request.spares > 1)} able to stand in for any other "
        f"leave too few of {total} nodes"
    )


def _tp_too_large(topology: Topology, request: LayoutRequest) -> CannotPlaceError:
    tp, largest = request.tp, _largest_tp(topology, request)
    with_pcie = _largest_tp(topology, replace(request, allow_pcie_tp=True))
    with_domain = _largest_tp(topology, replace(request, strict_node=False))
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


def _largest_tp(topology: Topology, request: LayoutRequest) -> int:
    kept = tuple(node for node in topology.nodes if node.name not in request.exclude)
    return largest_tp(
        replace(topology, nodes=kept),
        allow_pcie_tp=request.allow_pcie_tp,
        allow_cross_node_tp=request.allow_cross_node_tp,
        strict_node=request.strict_node,
    )


def _largest(request: LayoutRequest, pools: Sequence[Pool], places: Places) -> Iterator[str]:
    """Shrink the axes in their order until the job fits; say what that leaves."""
    room = _most_groups(request, pools)
    sizes = {axis: size for axis, size in request.axes.items() if axis != TP}
    for axis in dict.fromkeys((*GIVES_WAY, *sizes)):
        if axis not in sizes:
            continue
        others = prod(size for name, size in sizes.items() if name != axis)
        tried = 0
        for size in range(min(sizes[axis], max(1, room // others)), 0, -1):
            sizes[axis] = size
            axes = {name: sizes.get(name, request.tp) for name in request.axes}
            smaller = replace(request, axes=axes, traffic=None)
            if others * size > room or not _divides(smaller) or tried == MAX_TRIED:
                continue
            tried += 1
            if places(smaller):
                yield f"the largest that fits: {product_text(axes)}"
                return


def _divides(request: LayoutRequest) -> bool:
    try:
        expert_axes(request.axes, request.ep, request.etp)
    except UsageError:
        return False
    return True


def _changes(
    topology: Topology, request: LayoutRequest, pools: Sequence[Pool], places: Places
) -> Iterator[str]:
    """The smallest change to anything but the job's degrees that places it."""
    for setting, allowed in (
        ("allow_pcie_tp", replace(request, allow_pcie_tp=True)),
        ("allow_cross_node_tp", replace(request, allow_cross_node_tp=True)),
    ):
        if request.tp > 1 and allowed != request and places(allowed):
            yield f"set `parallelism.{setting}: true`"
            break
    if request.spares and places(replace(request, spares=0)):
        fewer = next(n for n in range(request.spares, -1, -1) if places(replace(request, spares=n)))
        yield f"keep {fewer} spare node{'s' * (fewer != 1)}"
        return
    if request.exclude and places(replace(request, exclude=())):
        yield f"take back some of the {len(request.exclude)} excluded nodes"
        return
    if request.require and places(replace(request, require=())):
        yield "require fewer nodes"
        return
    if pools:
        missing = request.world_size // request.tp - _most_groups(request, pools)
        pool = max(pools, key=lambda pool: _groups(request, pool))
        kind = max(pool.kinds, key=lambda kind: (_node_groups(request, kind), -len(kind.usable)))
        per_node = _node_groups(request, kind)
        if missing > 0 and per_node:
            nodes = -(-missing // per_node)
            yield (f"add {nodes:,} node{'s' * (nodes > 1)} of {len(kind.usable)} {kind.product}")


def _node_groups(request: LayoutRequest, kind: Inside) -> int:
    """How many tp groups one more node of this kind holds."""
    if request.tp == 1:
        return len(kind.usable)
    return kind.num_meshes(request.tp)


def _most_groups(request: LayoutRequest, pools: Sequence[Pool]) -> int:
    return max((_groups(request, pool) for pool in pools), default=0)


def _groups(request: LayoutRequest, pool: Pool) -> int:
    """How many TP groups the pool holds under the hard rule."""
    if request.tp == 1:
        return pool.num_devices(with_stragglers=True)
    per_kind = [kind.num_meshes(request.tp) for kind in pool.kinds]
    most: int = sum(per_kind[kind] for kind in pool.kind_of.tolist())
    if pool.near and not request.strict_node:
        labels = pool.containers[pool.near].labels
        members = [len(k.members(False)) if k.is_one_mesh else 0 for k in pool.kinds]
        held = [0] * (int(labels.max()) + 1)
        for label, kind in zip(labels.tolist(), pool.kind_of[pool.walk].tolist(), strict=True):
            held[label] += members[kind]
        most = max(most, sum(count // request.tp for count in held))
    if request.allow_cross_node_tp:
        most = max(most, pool.num_devices(with_stragglers=False) // request.tp)
    return most

"""Properties that hold for every cluster and every job, tried on generated ones."""

import re
from dataclasses import replace
from itertools import combinations
from math import prod
from random import Random
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parctl.errors import CannotPlaceError
from parctl.topology.layout import Layout
from parctl.topology.links import link_class
from parctl.topology.model import Hardware, LinkClass, Node, Topology
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.late_binding import Binding, bind, rebind
from parctl.topology.products import product_named
from parctl.topology.synthetic import node_hardware

AXES = ("pp", "dp", "fsdp", "cp", "tp")
MESHES = (LinkClass.NVLINK, LinkClass.XGMI, LinkClass.HOST)


@st.composite
def hardwares(draw: st.DrawFn) -> Hardware:
    """A node of 1 to 8 devices, some with faults, some without NVLink."""
    product = product_named(draw(st.sampled_from(["h100", "v100", "l40s", "mi300x", "gb200"])))
    size = draw(st.integers(1, product.max_devices_per_node if product.key == "gb200" else 8))
    hardware = node_hardware(product, size)
    dead = draw(st.sets(st.integers(0, size - 1), max_size=2))
    faulty = draw(st.sets(st.integers(0, size - 1), max_size=1))
    return replace(
        hardware,
        devices=tuple(
            replace(device, faults=("broken",) if i in faulty else ())
            for i, device in enumerate(hardware.devices)
        ),
        matrix=tuple(
            tuple("SYS" if i != j and {i, j} & dead else code for j, code in enumerate(row))
            for i, row in enumerate(hardware.matrix)
        ),
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    kinds = draw(st.lists(hardwares(), min_size=1, max_size=3))
    nodes = []
    for i in range(draw(st.integers(1, 12))):
        hardware = draw(st.sampled_from(kinds))
        rack_scale = hardware.devices[0].product == "gb200"
        nodes.append(
            Node(
                name=f"n{i}",
                hardware=hardware,
                domain=draw(st.sampled_from(["a", "b", None])) if rack_scale else None,
                tiers=(draw(st.sampled_from(["x", "y", "?"])), draw(st.sampled_from(["p", "q"]))),
            )
        )
    return Topology(name="generated", source="test", tiers=("block", "pod"), nodes=tuple(nodes))


@st.composite
def requests(draw: st.DrawFn, *, with_nodes: bool = False) -> LayoutRequest:
    names = draw(st.permutations(AXES))[: draw(st.integers(1, 5))]
    sizes = {name: draw(st.sampled_from([1, 2, 2, 3, 4, 8])) for name in names}
    data = prod(size for name, size in sizes.items() if name not in ("pp", "tp"))
    return LayoutRequest(
        axes=sizes,
        ep=draw(st.sampled_from([n for n in (1, 2, 4, 8) if data % n == 0])),
        allow_pcie_tp=draw(st.booleans()),
        strict_node=draw(st.booleans()),
        linear=draw(st.sampled_from([False, False, True])),
        exclude=("n1",) if with_nodes and draw(st.booleans()) else (),
        require=("n0",) if with_nodes and draw(st.booleans()) else (),
        spares=draw(st.integers(0, 2)) if with_nodes else 0,
    )


def tp_breaks_the_rule(topology: Topology, request: LayoutRequest, group: list[Any]) -> bool:
    nodes = {node.name: node for node in topology.nodes}
    for a, b in combinations(group, 2):
        node, other = nodes[a.node], nodes[b.node]
        if node is not other:
            if request.strict_node or node.domain is None or node.domain != other.domain:
                return True
            continue
        link = link_class(node.hardware.matrix[a.gpu][b.gpu])
        if link not in MESHES and not (request.allow_pcie_tp and link is LinkClass.PCIE):
            return True
    return False


@settings(max_examples=1200, deadline=None, derandomize=True)
@given(
    topology=topologies(),
    request=requests(with_nodes=True),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_layout_is_a_layout(topology: Topology, request: LayoutRequest, shuffle: Any) -> None:
    assume({*request.exclude, *request.require} <= {node.name for node in topology.nodes})
    nodes = list(topology.nodes)
    shuffle.shuffle(nodes)
    shuffled = replace(topology, nodes=tuple(nodes))
    try:
        layout = lay_out(request, topology)
    except CannotPlaceError as error:
        assert error.message
        assert refusal_of(request, shuffled) == (error.message, error.hint)
        return
    check_ranks(layout, request.world_size)
    by_name = {node.name: node for node in topology.nodes}
    assert not any(by_name[s.node].hardware.devices[s.gpu].faults for s in layout.slots)
    if request.linear:
        assert layout.ranks == tuple(range(request.world_size))
    # the hard rule
    if "tp" in layout.axes:
        for group in layout.groups("tp"):
            slots = [layout.slots[rank] for rank in group]
            assert not tp_breaks_the_rule(topology, request, slots)
    # nodes named in the request
    used = {slot.node for slot in layout.slots}
    assert not used & set(request.exclude)
    assert used >= set(request.require)
    assert len(topology.nodes) - len(used) >= request.spares + len(request.exclude)
    # the order in which nodes are given does not matter
    assert lay_out(request, shuffled) == layout


def refusal_of(request: LayoutRequest, topology: Topology) -> tuple[str, str | None]:
    try:
        lay_out(request, topology)
    except CannotPlaceError as error:
        return error.message, error.hint
    raise AssertionError("not refused")


def check_ranks(layout: Layout, size: int) -> None:
    """Every rank once, every device at most once, one group per axis, torchrun's numbering."""
    assert sorted(layout.ranks) == list(range(size))
    assert [slot.rank for slot in layout.slots] == list(range(size))
    assert len({(slot.node, slot.gpu) for slot in layout.slots}) == size
    for axis in layout.axes:
        assert sorted(rank for group in layout.groups(axis) for rank in group) == list(range(size))
    expected = [(s.node_rank, s.local_rank) for s in layout.slots]
    assert expected == sorted(expected)
    assert all(s.local_rank == 0 for s, p in zip(layout.slots[1:], layout.slots, strict=False)
               if s.node != p.node)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(topology=topologies(), request=requests(with_nodes=True))
def test_the_largest_that_fits_does_fit(topology: Topology, request: LayoutRequest) -> None:
    assume({*request.exclude, *request.require} <= {node.name for node in topology.nodes})
    try:
        lay_out(request, topology)
    except CannotPlaceError as error:
        found = re.search(r"the largest that fits: (.*?) = \d+", error.hint or "")
        assume(found is not None)
        assert found is not None
        named = {a: int(n) for a, n in re.findall(r"(\w+)\((\d+)\)", found[1])}
        axes = {axis: named.get(axis, 1) for axis in request.axes}
        assert lay_out(replace(request, axes=axes), topology).world_size == prod(axes.values())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(topology=topologies(), request=requests(with_nodes=True))
def test_a_plan_whose_nodes_come_up_is_bound_as_planned(
    topology: Topology, request: LayoutRequest
) -> None:
    assume({*request.exclude, *request.require} <= {node.name for node in topology.nodes})
    try:
        planned = lay_out(request, topology)
    except CannotPlaceError:
        return
    binding = bind(request, planned, planned.slots, topology)
    assert not binding.difference, binding.difference.sentences
    assert binding.layout.ranks == planned.ranks


def bound(request: LayoutRequest, planned: Layout, there: Any, topology: Topology) -> Binding | str:
    """What rebinding gives: a binding, or the sentence that refuses it."""
    try:
        return rebind(request, planned, there, topology)
    except CannotPlaceError as error:
        return f"{error.message}; {error.hint}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    topology=topologies(),
    request=requests(),
    seed=st.integers(0, 99),
    lost=st.sets(st.integers(0, 11), max_size=3),
)
def test_binding_to_the_nodes_that_are_there_does_not_depend_on_any_order(
    topology: Topology, request: LayoutRequest, seed: int, lost: set[int]
) -> None:
    shuffle = Random(seed)
    try:
        planned = lay_out(request, topology)
    except CannotPlaceError:
        return
    there = {node.name: None for i, node in enumerate(topology.nodes) if i not in lost}
    nodes = list(topology.nodes)
    shuffle.shuffle(nodes)
    shuffled = replace(topology, nodes=tuple(nodes))
    names = [node.name for node in nodes if node.name in there]

    binding = bound(request, planned, there, topology)

    assert bound(request, planned, dict.fromkeys(names), shuffled) == binding
    if isinstance(binding, str):
        assert binding
        return
    check_ranks(binding.layout, request.world_size)
    assert {slot.node for slot in binding.layout.slots} <= set(there)
    if {slot.node for slot in planned.slots} <= set(there):
        assert not binding.difference.missing_nodes
    # the ranks that it numbers bind to the same layout, whoever asks in whatever order
    slots = list(binding.layout.slots)
    shuffle.shuffle(slots)
    again = bind(request, planned, slots, shuffled)
    assert (again.layout.ranks, again.layout.slots) == (
        binding.layout.ranks,
        binding.layout.slots,
    )
    assert again.difference.sentences == binding.difference.sentences


@settings(max_examples=300, deadline=None, derandomize=True)
@given(topology=topologies(), request=requests())
def test_nothing_else_takes_the_node_while_fsdp_crosses(
    topology: Topology, request: LayoutRequest
) -> None:
    request = replace(request, linear=False, ep=1)
    try:
        layout = lay_out(request, topology)
    except CannotPlaceError:
        return
    scope = {proof.axis: proof.scope for proof in layout.proofs}
    if scope.get("fsdp") in ("domain", "cluster"):
        assert scope.get("dp", "device") != "node"
        assert scope.get("pp", "device") != "node"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(topology=topologies(), request=requests())
def test_proofs_tell_the_truth_about_nodes(topology: Topology, request: LayoutRequest) -> None:
    try:
        layout = lay_out(replace(request, ep=1), topology)
    except CannotPlaceError:
        return
    for proof in layout.proofs:
        spread = [
            len({layout.slots[rank].node for rank in group}) for group in layout.groups(proof.axis)
        ]
        assert proof.nodes_per_group == max(spread)
        assert proof.groups == len(spread)
        assert (proof.scope in ("device", "node")) == (max(spread) == 1)
        assert proof.worst_link != "network" or max(spread) > 1

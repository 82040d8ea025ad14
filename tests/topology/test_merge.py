"""Several sources of one cluster: the better one wins, and differences are shown."""

from dataclasses import replace

import pytest

from parctl.topology.merge import merge
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.synthetic import parse_cluster

UNKNOWN_2 = (("X", "?"), ("?", "X"))
NV18_2 = (("X", "NV18"), ("NV18", "X"))


def gpus(source: str, count: int = 2, **facts: object) -> tuple[Device, ...]:
    empty = {"product": None, "uuid": None, "memory_bytes": None, "numa": None, "pci": None}
    sources = dict.fromkeys(["index", *facts], source)
    return tuple(
        Device(**{**empty, **facts}, index=i, sources=sources)  # type: ignore[arg-type]
        for i in range(count)
    )


def hardware(
    devices: tuple[Device, ...], matrix: tuple[tuple[str, ...], ...], source: str, **rest: object
) -> Hardware:
    values = {"nics": (), "nic_matrix": (), "num_cpus": None, "memory_bytes": None, **rest}
    return Hardware(
        kind="gpu",
        devices=devices,
        matrix=matrix,
        sources={"matrix": source},
        **values,  # type: ignore[arg-type]
    )


def cluster(source: str, *nodes: Node, **rest: object) -> Topology:
    values = {"tiers": (), **rest}
    return Topology(name=source, source=source, nodes=nodes, **values)  # type: ignore[arg-type]


def node(name: str, inside: Hardware, **rest: object) -> Node:
    values = {"domain": None, "tiers": (), "sources": {}, **rest}
    return Node(name=name, hardware=inside, **values)  # type: ignore[arg-type]


K8S = hardware(gpus("k8s-status", product="h100"), UNKNOWN_2, "k8s-status")
SMI = hardware(gpus("nvidia-smi", numa=1), NV18_2, "nvidia-smi topo")


def test_one_topology_is_left_as_it_is() -> None:
    only = cluster("k8s", node("a", K8S))

    assert merge([only]) is only


def test_facts_of_both_are_kept_with_their_sources() -> None:
    merged = merge([cluster("k8s", node("a", K8S)), cluster("smi", node("a", SMI))])
    inside = merged.nodes[0].hardware

    assert inside.matrix == NV18_2
    assert (inside.devices[0].product, inside.devices[0].numa) == ("h100", 1)
    assert inside.devices[0].sources["product"] == "k8s-status"
    assert inside.devices[0].sources["numa"] == "nvidia-smi"
    assert merged.warnings == ()
    assert merged.source == "k8s + smi"


@pytest.mark.parametrize("swap", [False, True])
def test_the_better_source_wins_whatever_the_order(swap: bool) -> None:
    nvml = hardware(gpus("nvml", numa=0), UNKNOWN_2, "nvml")
    parts = [cluster("nvml", node("a", nvml)), cluster("smi", node("a", SMI))]
    merged = merge(parts[::-1] if swap else parts)

    assert [device.numa for device in merged.nodes[0].hardware.devices] == [0, 0]
    assert merged.warnings == (
        "a: gpu 0: numa is 0 (nvml), but 1 (nvidia-smi): the first is used",
        "a: gpu 1: numa is 0 (nvml), but 1 (nvidia-smi): the first is used",
    )


def test_a_person_overrides_the_driver() -> None:
    mine = hardware(tuple(replace(d, sources={}) for d in gpus("", numa=3)), UNKNOWN_2, "file")
    nvml = hardware(gpus("nvml", numa=0), NV18_2, "nvml")
    merged = merge([cluster("nvml", node("a", nvml)), cluster("mine", node("a", mine))])

    assert merged.nodes[0].hardware.devices[0].numa == 3
    assert merged.nodes[0].hardware.matrix == NV18_2


def test_links_on_which_two_differ_are_shown_once() -> None:
    nvml = hardware(gpus("nvml"), (("X", "SYS"), ("SYS", "X")), "nvml")
    merged = merge([cluster("smi", node("a", SMI)), cluster("nvml", node("a", nvml))])

    assert merged.nodes[0].hardware.matrix[0][1] == "SYS"
    assert merged.warnings == (
        "a: 1 links differ, such as gpu 0 to 1: SYS (nvml), but NV18 (nvidia-smi topo): "
        "the first are used",
    )


def test_equal_conflicts_of_many_nodes_are_one_sentence() -> None:
    nvml = hardware(gpus("nvml", count=1, numa=0), (("X",),), "nvml")
    smi = hardware(gpus("nvidia-smi", count=1, numa=1), (("X",),), "nvidia-smi")
    names = [f"n{i}" for i in range(100)]
    merged = merge(
        [
            cluster("nvml", *(node(name, nvml) for name in names)),
            cluster("smi", *(node(name, smi) for name in names)),
        ]
    )

    assert len(merged.warnings) == 1
    assert merged.warnings[0].startswith("n0, n1, n2 and 97 more: gpu 0: numa is 0 (nvml)")
    assert len({id(found.hardware) for found in merged.nodes}) == 1


def test_a_table_of_products_fills_gaps_and_contradicts_nobody() -> None:
    synthetic = parse_cluster("h100:1x2")
    capture = node("node-0", hardware(gpus("nvidia-smi", numa=7), UNKNOWN_2, "nvidia-smi topo"))
    merged = merge([synthetic, cluster("smi", capture)])
    inside = merged.nodes[0].hardware

    assert inside.devices[0].numa == 7
    assert inside.devices[0].product == "h100"
    assert inside.matrix == NV18_2
    assert len(inside.nics) == 2
    assert merged.warnings == ()


def test_what_a_tool_saw_beats_the_table() -> None:
    seen = node("node-0", hardware(gpus("nvidia-smi"), (("X", "SYS"), ("SYS", "X")), "nvidia-smi"))

    assert merge([parse_cluster("h100:1x2"), cluster("smi", seen)]).nodes[0].hardware.matrix == (
        ("X", "SYS"),
        ("SYS", "X"),
    )


def test_devices_are_joined_by_uuid_and_not_by_position() -> None:
    two = tuple(replace(d, uuid=f"GPU-{d.index}") for d in gpus("nvml", numa=0, uuid="u"))
    other = tuple(
        replace(d, index=1 - d.index, uuid=f"GPU-{d.index}", product=f"p{d.index}")
        for d in gpus("k8s-slice", uuid="u", product="p")
    )
    merged = merge(
        [
            cluster("nvml", node("a", hardware(two, NV18_2, "nvml"))),
            cluster("k8s", node("a", hardware(other, UNKNOWN_2, "k8s-slice"))),
        ]
    )

    assert [
        (device.index, device.uuid, device.product) for device in merged.nodes[0].hardware.devices
    ] == [(0, "GPU-0", "p0"), (1, "GPU-1", "p1")]


def test_another_number_of_gpus_is_a_warning() -> None:
    nvml = hardware(gpus("nvml", count=1), (("X",),), "nvml")
    merged = merge([cluster("k8s", node("a", K8S)), cluster("nvml", node("a", nvml))])

    assert len(merged.nodes[0].hardware.devices) == 1
    assert merged.warnings == ("a: 1 GPUs (nvml), but 2 (k8s-status): the first are used",)


def test_a_fault_seen_by_anybody_stays() -> None:
    sick = hardware(
        tuple(replace(d, faults=("node is cordoned",)) for d in gpus("k8s-status")),
        UNKNOWN_2,
        "k8s-status",
    )
    merged = merge([cluster("smi", node("a", SMI)), cluster("k8s", node("a", sick))])

    assert merged.nodes[0].hardware.devices[1].faults == ("node is cordoned",)


def test_memory_that_a_label_rounds_is_no_conflict() -> None:
    exact = hardware(gpus("nvml", memory_bytes=85520809984), NV18_2, "nvml")
    rounded = hardware(gpus("k8s-label", memory_bytes=85899345920), UNKNOWN_2, "k8s-status")
    merged = merge([cluster("k8s", node("a", rounded)), cluster("nvml", node("a", exact))])

    assert merged.nodes[0].hardware.devices[0].memory_bytes == 85520809984
    assert merged.warnings == ()


def test_nics_are_joined_by_name_or_address() -> None:
    def nic(name: str, source: str, **facts: object) -> Nic:
        values = {"speed_gbit_s": None, "numa": None, "pci": None, "rail": None, **facts}
        sources = dict.fromkeys(facts, source)
        return Nic(name=name, sources=sources, **values)  # type: ignore[arg-type]

    seen = replace(
        SMI, nics=(nic("mlx5_0", "smi"), nic("mlx5_1", "smi")), nic_matrix=(("PIX", "?"),) * 2
    )
    known = hardware(
        gpus("sysfs"),
        UNKNOWN_2,
        "sysfs",
        nics=(nic("mlx5_1", "sysfs", speed_gbit_s=400.0), nic("eth0", "sysfs")),
        nic_matrix=(("NODE", "SYS"),) * 2,
    )
    merged = merge([cluster("smi", node("a", seen)), cluster("sysfs", node("a", known))])
    inside = merged.nodes[0].hardware

    # sysfs is the better source, so its NICs come first
    assert [(n.name, n.speed_gbit_s) for n in inside.nics] == [
        ("mlx5_1", 400.0),
        ("eth0", None),
        ("mlx5_0", None),
    ]
    assert inside.nic_matrix == (("NODE", "SYS", "PIX"),) * 2


def test_domains_that_differ_are_shown_and_the_better_one_is_used() -> None:
    clique = node("a", K8S, domain="uuid.7", sources={"domain": "nvml"})
    block = node("a", SMI, domain="nvl-1", sources={"domain": "topograph"})
    merged = merge([cluster("map", block), cluster("nvml", clique)])

    assert merged.nodes[0].domain == "uuid.7"
    assert merged.nodes[0].sources["domain"] == "nvml"
    assert merged.warnings == (
        "a: NVLink domain uuid.7 (nvml), but nvl-1 (topograph): the first is used",
    )


def test_one_source_names_the_fabric() -> None:
    labels = {"tiers": "k8s-label"}
    kueue = {"tiers": "kueue"}
    zones = cluster(
        "k8s",
        node("a", K8S, tiers=("z1",), sources=labels),
        node("b", K8S, tiers=("z1",), sources=labels),
        tiers=("zone",),
    )
    racks = cluster("racks", node("a", SMI, tiers=("r1",), sources=kueue), tiers=("rack",))
    merged = merge([zones, racks])

    assert merged.tiers == ("rack",)
    assert [found.tiers for found in merged.nodes] == [("r1",), ("?",)]
    assert merged.warnings == (
        "fabric tiers of k8s (zone) are not used: those of racks are better known",
    )


def test_nodes_that_only_the_fabric_knows_are_left_out() -> None:
    nothing = hardware((), (), "slurm")
    fabric = cluster(
        "slurm",
        *(node(name, nothing, tiers=("s1",), sources={"tiers": "slurm"}) for name in "abc"),
        tiers=("switch",),
    )
    merged = merge([fabric, cluster("k8s", node("b", K8S), node("a", K8S))])

    assert [found.name for found in merged.nodes] == ["a", "b"]
    assert merged.nodes[0].tiers == ("s1",)
    assert merged.warnings == ("left out, since no source lists their devices: c",)


def test_a_short_name_and_a_full_name_are_one_node() -> None:
    merged = merge(
        [cluster("k8s", node("a.site.org", K8S), node("b", K8S)), cluster("smi", node("a", SMI))]
    )

    assert [found.name for found in merged.nodes] == ["a", "b"]
    assert merged.nodes[0].hardware.matrix == NV18_2


def test_what_is_answered_is_no_longer_unknown() -> None:
    first = cluster("k8s", node("a", K8S), unknown=("links: not told", "NICs of a", "rails"))
    merged = merge([first, cluster("smi", node("a", SMI), unknown=("fabric tiers: none",))])

    assert merged.unknown == ("NICs of a", "rails", "fabric tiers: none")


def test_merging_is_stable() -> None:
    parts = [parse_cluster("h100:4x8"), parse_cluster("h100:4x8")]

    assert merge(parts).nodes == parts[0].nodes


def test_nics_that_were_seen_replace_those_that_a_product_usually_has() -> None:
    usual = parse_cluster("h100:1x2")
    seen = replace(
        SMI,
        nics=(Nic(name="mlx5_0", speed_gbit_s=None, numa=None, pci=None, rail=None),),
        nic_matrix=(("PIX",), ("SYS",)),
        sources={"matrix": "nvidia-smi topo", "nics": "nvidia-smi topo"},
    )
    for sources in (
        [usual, cluster("smi", node("node-0", seen))],
        [cluster("smi", node("node-0", seen)), usual],
    ):
        inside = merge(sources).nodes[0].hardware

        assert [nic.name for nic in inside.nics] == ["mlx5_0"]
        assert inside.nic_matrix == (("PIX",), ("SYS",))
        assert inside.sources["nics"] == "nvidia-smi topo"

"""What is reported as wrong or odd, and what is not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parctl.topology.check.findings import Finding, find_problems
from parctl.topology.discover import read_any
from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.synthetic import parse_cluster

CAPTURES = Path(__file__).resolve().parents[4] / "shared/data/topology"


def node(
    links: Sequence[str],
    products: Sequence[str | None] = (),
    nics: Sequence[str] = (),
    **facts: Any,
) -> Topology:
    """A cluster of one node; `facts` holds a sequence per field of the devices."""
    matrix = tuple(tuple(row.split()) for row in links)
    devices = tuple(
        Device(
            index=i,
            product=products[i] if products else None,
            uuid=None,
            memory_bytes=None,
            pci=None,
            **{"numa": None, **{name: values[i] for name, values in facts.items()}},
        )
        for i in range(len(matrix))
    )
    hardware = Hardware(
        kind="gpu",
        devices=devices,
        matrix=matrix,
        nics=(),
        nic_matrix=tuple(tuple(row.split()) for row in nics),
        num_cpus=None,
        memory_bytes=None,
    )
    return Topology(
        name="t",
        source="test",
        tiers=(),
        nodes=(Node(name="a", hardware=hardware, domain=None, tiers=()),),
    )


def problems(topology: Topology) -> list[tuple[str, bool, tuple[int, ...]]]:
    return [(p.kind, p.fault, p.gpus) for p in find_problems(topology)]


@pytest.mark.parametrize(
    "spec", ["v100:1x8", "v100:1x16", "h100:4x8", "gb200:2x18x4", "mi300x:1x8", "l4:1x8", "cpu:1x4"]
)
def test_clusters_as_their_vendors_build_them_have_no_finding(spec: str) -> None:
    assert find_problems(parse_cluster(spec)) == ()


def test_a_gpu_without_nvlink_among_joined_ones_is_dead() -> None:
    cluster = node(["X NV4 NV4 SYS", "NV4 X NV4 SYS", "NV4 NV4 X SYS", "SYS SYS SYS X"])

    assert problems(cluster) == [("dead-nvlink", True, (3,))]
    assert str(find_problems(cluster)[0]) == "a: gpu 3: no NVLink, while {0-2} are joined"


def test_a_card_beside_a_bridged_pair_is_only_not_bridged() -> None:
    assert problems(node(["X NV4 NODE", "NV4 X NODE", "NODE NODE X"])) == [
        ("no-bridge", False, (2,))
    ]


def test_a_node_of_nvlink_products_without_any_is_dead_all_over() -> None:
    assert problems(node(["X SYS", "SYS X"], ["h100", "h100"])) == [
        ("dead-nvlink", True, (0,)),
        ("dead-nvlink", True, (1,)),
    ]


def test_unknown_links_are_no_finding() -> None:
    assert problems(node(["X ? ?", "? X NV4", "? NV4 X"], ["h100"] * 3)) == []


def test_a_gpu_with_fewer_links_than_its_product_is_a_fault() -> None:
    cluster = node(["X NV18 NV16", "NV18 X NV16", "NV16 NV16 X"], ["h100"] * 3)

    assert problems(cluster) == [("fewer-links", True, (2,))]
    assert find_problems(cluster)[0].message == "gpu 2: 16 of 18 NVLinks are up"


def test_a_gpu_with_fewer_links_than_its_like_is_a_fault() -> None:
    assert problems(node(["X NV18 NV16", "NV18 X NV16", "NV16 NV16 X"])) == [
        ("fewer-links", True, (2,))
    ]


def test_four_gpus_that_share_out_all_their_links_are_sound() -> None:
    row = ["X NV6 NV6 NV6", "NV6 X NV6 NV6", "NV6 NV6 X NV6", "NV6 NV6 NV6 X"]
    assert problems(node(row, ["h100"] * 4)) == []


def test_ends_that_disagree_are_a_fault() -> None:
    cluster = node(["X NV4", "SYS X"])

    assert problems(cluster)[0] == ("asymmetric-link", True, (0, 1))
    assert find_problems(cluster)[0].message == (
        "gpu 0 reaches gpu 1 over NV4, but gpu 1 reaches gpu 0 over SYS"
    )


PAIR = ["X NV4", "NV4 X"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"ecc_errors": [0, 3]}, ("ecc", True, (1,))),
        ({"remapped_rows": [1, 0]}, ("remapped-rows", False, (0,))),
        ({"mig": [True, False]}, ("mig", False, (0,))),
        ({"power_limit_w": [700.0, 500.0]}, ("power-limit", False, (1,))),
        ({"faults": [(), ("fell off the bus",)]}, ("device", True, (1,))),
        ({"cpu_affinity": ["0-7", None], "numa": [0, 1]}, ("blinded-affinity", False, (1,))),
    ],
)
def test_facts_of_single_devices(facts: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert expected in problems(node(PAIR, **facts))


def test_a_numa_node_from_the_table_of_products_hides_nothing() -> None:
    merged = node(PAIR, cpu_affinity=["0-7", None], numa=[0, 1])
    hardware = merged.nodes[0].hardware
    devices = tuple(
        replace(device, sources={**device.sources, "numa": "product"})
        for device in hardware.devices
    )
    told = replace(merged.nodes[0], hardware=replace(hardware, devices=devices))

    assert problems(replace(merged, nodes=(told,))) == []


def test_uneven_numa_nodes_are_said_with_their_gpus() -> None:
    matrix = ["X NODE SYS", "NODE X SYS", "SYS SYS X"]
    assert find_problems(node(matrix, numa=[0, 0, 1])) == (
        Finding(
            kind="uneven-numa",
            fault=False,
            nodes=("a",),
            gpus=(),
            message="uneven NUMA split: {0-1} on NUMA node 0 and {2} on NUMA node 1",
        ),
    )


def test_one_affinity_on_both_sides_of_a_socket_is_blind() -> None:
    blind = node(["X SYS", "SYS X"], cpu_affinity=["0", "0"])
    by_nic = node(PAIR, nics=["PIX", "SYS"], cpu_affinity=["0-63", "0-63"])

    assert ("blinded-affinity", False, (0, 1)) in problems(blind)
    assert ("blinded-affinity", False, (0, 1)) in problems(by_nic)
    assert problems(node(["X SYS", "SYS X"], cpu_affinity=["0-3", "4-7"])) == []


def test_gpus_with_no_near_nic_are_listed_by_distance() -> None:
    matrix = ["X PIX SYS", "PIX X SYS", "SYS SYS X"]
    far = node(matrix, nics=["PXB SYS", "NODE SYS", "SYS SYS"])

    assert [(f.kind, f.gpus, f.message.split("; ")[1]) for f in find_problems(far)] == [
        ("far-nic", (1,), "the nearest is behind another host bridge (NODE)"),
        ("far-nic", (2,), "the nearest is on another NUMA node (SYS)"),
    ]


def test_mixed_products_are_said_inside_a_node_and_across_nodes() -> None:
    assert problems(node(["X SYS", "SYS X"], ["t4", "l4"]))[0] == ("mixed-products", False, ())
    assert str(find_problems(parse_cluster("h100:2x8+l40s:1x4"))[0]) == (
        "2 products in one cluster: h100 on node-0 .. node-1 (2), l40s on node-2"
    )


def test_nodes_and_domains_that_are_smaller_than_most_are_named() -> None:
    cluster = parse_cluster("h100:3x8+h100:1x6")
    racks = parse_cluster("gb200:3x2x4")
    short = replace(racks, nodes=racks.nodes[:-1])

    assert [str(p) for p in find_problems(cluster)] == [
        "node-3: 6 GPUs, where most h100 nodes have 8"
    ]
    assert [str(p) for p in find_problems(short)] == [
        "NVLink domain domain-2: 4 GPUs, where most have 8"
    ]


def test_the_same_fault_on_many_nodes_is_one_finding() -> None:
    cluster = parse_cluster("h100:100x8")
    hardware = cluster.nodes[0].hardware
    first, *rest = hardware.devices
    sick = replace(hardware, devices=(replace(first, ecc_errors=1), *rest))
    nodes = tuple(replace(n, hardware=sick) for n in cluster.nodes)

    assert [str(p) for p in find_problems(replace(cluster, nodes=nodes))] == [
        "node-0 .. node-99 (100): gpu 0: 1 uncorrected ECC error"
    ]


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ("smi/b200_8x_gpu2_nvlink_down_trunc.txt", [("dead-nvlink", True, (2,))]),
        ("smi/pcie_8x_6_2_numa.txt", [("uneven-numa", False, ())]),
        ("smi/azure_nc96v4_container.txt", [("blinded-affinity", False, (0, 1, 2, 3))]),
        (
            "smi/a100_4x_slurmcgroup_partial_affinity.txt",
            [("blinded-affinity", False, (2, 3)), ("far-nic", False, (0, 1, 2, 3))],
        ),
        ("smi/dgxh100_8x_12nic_tab_trunc.txt", []),
        ("smi/gb200_4x_tray.txt", []),
        ("smi/h100_4x_nv6_commalist.txt", []),
    ],
)
def test_real_captures(capture: str, expected: list[tuple[str, bool, tuple[int, ...]]]) -> None:
    path = CAPTURES / capture
    if not path.exists():
        pytest.skip(f"captures are not here: {path.parent}")
    assert problems(read_any(path.read_text(), path.name)) == expected

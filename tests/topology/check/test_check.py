"""`--check`: can TP=N stay on full NVLink, and on which GPUs?"""

from dataclasses import replace
from pathlib import Path

import pytest

from parctl.topology.check.questions import TpAnswer, check_to_json, check_topology
from parctl.topology.discover import discover, read_any
from parctl.topology.merge import merge
from parctl.topology.model import Device, Hardware, Node, Topology
from parctl.topology.synthetic import parse_cluster

ROOT = Path(__file__).resolve().parents[3]


def answers(spec: str) -> dict[int, TpAnswer]:
    return {answer.size: answer for answer in check_topology(parse_cluster(spec)).tp}


def where(answer: TpAnswer) -> list[str]:
    return [str(place) for place in answer.places]


def test_a_dgx_1v_holds_tp_4_twice_and_tp_8_nowhere() -> None:
    tp = answers("v100:1x8")

    assert where(tp[2]) == ["node-0: {0,3} {1-2} {4,7} {5-6} NV2"]
    assert where(tp[4]) == ["node-0: {0-3} {4-7} NV1"]
    assert [tp[n].answer for n in (5, 6, 7, 8)] == ["no"] * 4
    assert tp[8].reason == "the largest full mesh has 4 GPUs: node-0 {0-3}"


def test_every_size_up_to_the_node_is_answered() -> None:
    tp = answers("h100:2x8+l40s:1x4")

    assert list(tp) == [2, 3, 4, 5, 6, 7, 8]
    assert where(tp[3]) == ["node-0 .. node-1 (2): {0-2} {3-5} NV18"]
    assert tp[3].num_groups == 4
    assert where(tp[8]) == ["node-0 .. node-1 (2): {0-7} NV18"]


def test_a_rack_scale_domain_holds_any_size_up_to_its_gpus() -> None:
    tp = answers("gb200:2x18x4")

    assert max(tp) == 72
    assert where(tp[4]) == ["node-0 .. node-35 (36): {0-3} NV18"]
    assert where(tp[9]) == ["domain-0 .. domain-1 (2): any GPUs of a domain NV18"]
    assert [tp[n].num_groups for n in (4, 9, 36, 37, 72)] == [36, 16, 4, 2, 2]


def test_pcie_cards_hold_no_group_at_all() -> None:
    tp = answers("a10g:1x4")

    assert [answer.answer for answer in tp.values()] == ["no", "no", "no"]
    assert tp[2].reason == "no two GPUs are joined by NVLink"


def test_amd_meshes_count() -> None:
    assert where(answers("mi300x:1x8")[8]) == ["node-0: {0-7} XGMI"]


@pytest.mark.parametrize("spec", ["h100:1x1", "cpu:2x4"])
def test_where_there_is_no_pair_of_gpus_there_is_no_question(spec: str) -> None:
    check = check_topology(parse_cluster(spec))
    assert check.tp == () and check.ok


def unknown_links(product: str | None) -> Topology:
    devices = tuple(
        Device(index=i, product=product, uuid=None, memory_bytes=None, numa=None, pci=None)
        for i in range(2)
    )
    hardware = Hardware(
        kind="gpu",
        devices=devices,
        matrix=(("X", "?"), ("?", "X")),
        nics=(),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
    )
    node = Node(name="a", hardware=hardware, domain=None, tiers=())
    return Topology(name="t", source="test", tiers=(), nodes=(node,))


def test_unknown_links_give_an_unknown_answer_unless_the_product_is_known() -> None:
    unknown = check_topology(unknown_links(None)).tp[0]
    by_table = check_topology(unknown_links("h100")).tp[0]

    assert (unknown.answer, unknown.reason) == ("unknown", "the links between the GPUs are unknown")
    assert (by_table.answer, where(by_table)) == ("yes", ["a: {0-1} NV18 (by product)"])


def test_broken_and_sliced_gpus_are_in_no_group() -> None:
    cluster = parse_cluster("h100:1x4")
    hardware = cluster.nodes[0].hardware
    first, second, *rest = hardware.devices
    devices = (replace(first, faults=("lost",)), replace(second, mig=True), *rest)
    node = replace(cluster.nodes[0], hardware=replace(hardware, devices=devices))
    tp = check_topology(replace(cluster, nodes=(node,))).tp

    assert where(tp[0]) == ["node-0: {2-3} NV18"]
    assert [answer.answer for answer in tp[1:]] == ["no", "no"]


def test_a_gpu_without_nvlink_lowers_the_largest_tp_and_is_a_fault() -> None:
    check = check_topology(discover(str(ROOT / "docs/pictures/b200-gpu2-down.yaml")))

    assert check.tp[7 - 2].explanation == "b200-07: {0-1,3-7} NV18"
    assert check.tp[8 - 2].answer == "no"
    assert not check.ok
    assert [f.kind for f in check.findings if f.fault] == ["dead-nvlink", "ecc"]


def test_the_answers_are_plain_values() -> None:
    data = check_to_json(check_topology(parse_cluster("v100:1x8")))

    assert data["ok"] is True
    assert data["tp"][2] == {
        "size": 4,
        "answer": "yes",
        "num_groups": 2,
        "places": [
            {
                "nodes": ["node-0"],
                "gpus": [[0, 1, 2, 3], [4, 5, 6, 7]],
                "domains": [],
                "num_groups": 2,
                "link": "NV1",
                "source": "reported",
            }
        ],
        "reason": None,
    }


def test_a_hundred_thousand_gpus_are_checked_at_once() -> None:
    # equal nodes share one hardware, so this costs as much as one node
    assert check_topology(parse_cluster("h100:16384x8")).tp[6].num_groups == 16384


def test_a_map_of_the_fabric_has_domains_and_no_answers() -> None:
    text = "# b1=nvl-1\nBlockName=b1 Nodes=n[1-2]\nBlockSizes=2\n"
    topology = read_any(text, "topology.conf")

    assert [node.domain for node in topology.nodes] == ["nvl-1", "nvl-1"]
    assert check_topology(topology).tp == ()


def test_domains_of_which_only_one_node_lists_its_devices() -> None:
    text = "# b1=nvl-1\nBlockName=b1 Nodes=node-[0-1]\nBlockSizes=2\n"
    both = merge([read_any(text, "topology.conf"), parse_cluster("gb200:1x4")])

    assert [node.name for node in both.nodes] == ["node-0"]
    assert [answer.answer for answer in check_topology(both).tp] == ["yes"] * 3

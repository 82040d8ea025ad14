"""Topologies as files: what is saved is what is read."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from parctl.errors import UsageError
from parctl.topology.discover import discover
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.store import (
    load_topology,
    save_topology,
    topology_from_json,
    topology_to_json,
)
from parctl.topology.synthetic import parse_cluster

FULL = Topology(
    name="lab",
    source="file lab.json",
    tiers=("rack", "block"),
    nodes=(
        Node(
            name="n1",
            hardware=Hardware(
                kind="gpu",
                devices=(
                    Device(
                        index=3,
                        product="h100",
                        uuid="GPU-1",
                        memory_bytes=5,
                        numa=1,
                        pci="0000:1b:00.0",
                        faults=("lost",),
                        sources={"uuid": "nvml"},
                    ),
                    Device(
                        index=5, product=None, uuid=None, memory_bytes=None, numa=None, pci=None
                    ),
                ),
                matrix=(("X", "?"), ("?", "X")),
                nics=(Nic(name="mlx5_0", speed_gbit_s=400, numa=0, pci=None, rail=2),),
                nic_matrix=(("PIX",), ("SYS",)),
                num_cpus=64,
                memory_bytes=None,
                sources={"matrix": "smi"},
            ),
            domain="rack-3.0",
            tiers=("r1", "b1"),
            sources={"domain": "k8s-label"},
        ),
    ),
    warnings=("a",),
    unknown=("b",),
)


@pytest.mark.parametrize(
    "topology",
    [FULL, *map(parse_cluster, ["v100:1x8", "gb200:2x18x4", "cpu:2x4", "h100:2x8+l40s:1x4"])],
    ids=lambda topology: topology.name,
)
def test_a_round_trip_changes_nothing(topology: Topology, tmp_path: Path) -> None:
    save_topology(topology, tmp_path / "t.json")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(topology_to_json(topology)))

    assert load_topology(tmp_path / "t.json") == topology
    assert load_topology(tmp_path / "t.yaml") == topology
    assert load_topology(tmp_path / "t.json").digest == topology.digest


def test_the_keys_that_others_read() -> None:
    data = topology_to_json(parse_cluster("v100:1x8"))
    node = data["nodes"][0]

    assert {"index", "uuid", "product", "numa", "pci"} <= set(node["gpus"][0])
    assert node["nvlink_groups"] == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert node["nvlink_cliques"] == [
        {"gpus": [0, 1, 2, 3], "links": 1},
        {"gpus": [4, 5, 6, 7], "links": 1},
    ]
    assert node["numa_groups"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(node["nics"]) == 8
    assert {"domains", "tiers", "warnings", "unknown"} <= set(data)


def test_groups_name_devices_by_index() -> None:
    gpus = [{"index": 2, "numa": 0}, {"index": 7, "numa": 1}]
    node = {"name": "n", "kind": "gpu", "gpus": gpus, "links": ["X NV4", "NV4 X"]}
    loaded = topology_from_json({"schema": 1, "name": "n", "source": "file", "nodes": [node]})

    node = topology_to_json(loaded)["nodes"][0]

    assert node["numa_groups"] == [[2], [7]]
    assert node["nvlink_groups"] == [[2, 7]]
    assert node["nvlink_cliques"] == [{"gpus": [2, 7], "links": 4}]


def test_groups_that_an_unknown_fact_might_change_are_null() -> None:
    node = topology_to_json(FULL)["nodes"][0]

    # nobody told how gpu 3 and 5 are joined, nor where gpu 5 sits
    assert (node["nvlink_groups"], node["nvlink_cliques"]) == (None, None)
    assert node["numa_groups"] is None
    assert topology_from_json(topology_to_json(FULL)) == FULL


def test_lists_of_groups_are_read_back_like_null() -> None:
    data = topology_to_json(FULL)
    data["nodes"][0]["nvlink_groups"] = [[3], [5]]

    assert topology_from_json(data) == FULL


def test_domains_list_their_nodes() -> None:
    domains = topology_to_json(parse_cluster("gb200:2x2x4"))["domains"]

    assert domains == [
        {"name": "domain-0", "nodes": ["node-0", "node-1"], "num_devices": 8},
        {"name": "domain-1", "nodes": ["node-2", "node-3"], "num_devices": 8},
    ]


def test_equal_nodes_share_their_hardware_after_loading() -> None:
    data = json.loads(json.dumps(topology_to_json(parse_cluster("h100:3x8+l40s:2x4"))))

    loaded = topology_from_json(data)

    assert len({id(node.hardware) for node in loaded.nodes}) == 2


def test_the_digest_tells_topologies_apart_but_not_copies() -> None:
    cluster = parse_cluster("h100:2x8")
    node = cluster.nodes[0]
    other = replace(cluster, nodes=(replace(node, domain="d"), *cluster.nodes[1:]))

    assert cluster.digest == parse_cluster("h100:2x8").digest
    assert cluster.digest != other.digest
    assert cluster.digest.startswith("sha256:")


def test_a_minimal_file_written_by_hand_leaves_the_rest_unknown() -> None:
    loaded = topology_from_json(
        {
            "schema": 1,
            "name": "mine",
            "source": "me",
            "nodes": [{"name": "a", "kind": "gpu", "gpus": [{"index": 0}, {"index": 1}]}],
        }
    )

    assert loaded.nodes[0].hardware.matrix == (("X", "?"), ("?", "X"))
    assert loaded.nodes[0].hardware.devices[0].product is None


def test_sixteen_thousand_nodes_save_and_load_in_seconds(tmp_path: Path) -> None:
    cluster = parse_cluster("h100:16384x8")
    begin = time.process_time()

    save_topology(cluster, tmp_path / "big.json")
    loaded = load_topology(tmp_path / "big.json")

    # about 2 s on a slow core; the bound catches quadratic work, not a busy machine
    assert time.process_time() - begin < 15
    assert loaded == cluster


def broken(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(topology_to_json(parse_cluster("h100:1x2"))))
    node = data["nodes"][0]
    for key, value in changes.items():
        (node if key in node and key not in ("name", "tiers") else data)[key] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "topology: found a list, expected an object"),
        ({}, "`schema` is missing"),
        (broken(schema=2), "`schema` is 2, this parctl reads schema 1"),
        (broken(schema=True), "`schema` is true or false, expected a whole number"),
        (broken(nodes=[]), "`nodes` is empty"),
        (broken(nodes={}), "`nodes` is an object, expected a list"),
        (broken(nodes=[5]), "topology nodes[0]: found the number 5"),
        (broken(kind="tpu"), "topology nodes[0]: `kind` is `tpu`, expected gpu or cpu"),
        (broken(gpus=[{"index": "0"}]), "topology nodes[0].gpus[0]: `index` is text"),
        (broken(links=["X"]), "`links` has rows of [1] codes, expected 2 rows of 2"),
        (broken(tiers=["rack"]), "`tiers` has 0 values, the topology has 1"),
        (broken(name=None), "`name` is missing, expected text"),
        (broken(sources={"matrix": 1}), "`sources` is an object, expected an object of text"),
        (broken(nodes=broken()["nodes"] * 2), "`node-0` 2 times"),
    ],
)
def test_wrong_files_say_what_and_where(data: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        topology_from_json(data)

    assert message in error.value.message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "a.json:1:2: not JSON"),
        ("a.json", b"\xff\xfe", "not UTF-8 text (byte 0)"),
        ("a.json", b"[" * 100_000, "not JSON: nested too deep"),
        ("a.yaml", b"a: [", "not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_files_that_are_no_json_or_yaml(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UsageError) as error:
        discover(str(tmp_path / name))

    assert message in error.value.message


def test_a_directory_is_no_topology(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()

    with pytest.raises(UsageError, match="cannot be read"):
        discover(str(tmp_path / "d.json"))


def test_fabric_tiers_without_nodes_are_read_back() -> None:
    levels = Topology(
        name="k",
        source="k8s k.yaml",
        tiers=("host", "rack"),
        nodes=(),
        unknown=("nodes: only Kueue's levels are in this file",),
    )

    assert topology_from_json(topology_to_json(levels)) == levels


def test_a_file_that_says_nothing_is_refused() -> None:
    nothing = Topology(name="k", source="f", tiers=(), nodes=())

    with pytest.raises(UsageError, match="`nodes` is empty"):
        topology_from_json(topology_to_json(nothing))

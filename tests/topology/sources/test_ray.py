"""Ray's nodes in the three forms that Ray prints them, and live over its dashboard."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.topology.sources.answering import answering

from parctl.errors import BackendError, UsageError
from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.sources.ray import looks_like, read_text


def state(name: str, gpus: int, **rest: Any) -> dict[str, Any]:
    """One entry of `ray list nodes --detail --format json`."""
    resources = {"CPU": 16.0, "memory": 64e9} | ({"GPU": float(gpus)} if gpus else {})
    return {
        "node_id": f"{name}-0123456789",
        "node_ip": f"10.0.0.{name[-1]}",
        "is_head_node": False,
        "state": "ALIVE",
        "node_name": name,
        "resources_total": resources,
        "labels": {"ray.io/accelerator-type": "H100"} if gpus else {},
    } | rest


def read(value: Any) -> Topology:
    text = json.dumps(value)
    assert looks_like(text)
    return read_text(text, "nodes.json")


def test_the_state_api() -> None:
    topology = read([state("w2", 8), state("w1", 8), state("head0", 0)])

    assert [node.name for node in topology.nodes] == ["w1", "w2"]
    assert topology.num_devices == 16
    assert topology.nodes[0].hardware.devices[7].product == "h100"
    assert topology.nodes[0].hardware.num_cpus == 16
    assert topology.warnings == ("left out, since they have no GPU: head0",)
    assert "links: Ray does not say how the GPUs of a node are joined" in topology.unknown


def test_a_head_without_cpus_is_no_part_of_a_cluster_without_gpus() -> None:
    head = state("head0", 0, resources_total={"memory": 64e9})
    topology = read([state("w2", 0), head, state("w1", 0)])

    assert [node.name for node in topology.nodes] == ["w1", "w2"]
    assert (topology.num_devices, topology.nodes[0].hardware.kind) == (32, "cpu")
    assert topology.warnings == ("left out, since they have no CPU: head0",)
    assert [node.name for node in read([head]).nodes] == ["head0"]


def test_ray_nodes_as_python_gives_them() -> None:
    topology = read(
        [
            {
                "NodeID": "aa",
                "Alive": True,
                "NodeManagerAddress": "10.0.0.1",
                "NodeManagerHostname": "w1",
                "Resources": {"GPU": 4.0, "accelerator_type:L4": 1.0},
                "Labels": {},
            },
            {"NodeID": "bb", "Alive": False, "NodeManagerAddress": "10.0.0.2", "Resources": {}},
        ]
    )

    assert [node.name for node in topology.nodes] == ["w1"]
    assert topology.nodes[0].hardware.devices[0].product == "l4"
    assert topology.warnings == ("1 of 2 Ray nodes are dead",)


def test_our_labels_place_the_nodes() -> None:
    labels = {
        "parctl.dev/node": "gpu-17",
        "parctl.dev/nvlink-domain": "d1",
        "parctl.dev/tier-1": "block-1",
        "parctl.dev/tier-0": "rack-3",
        "parctl.dev/product": "gb200",
    }
    (node,) = read([state("w1", 4, labels=labels)]).nodes

    assert (node.name, node.domain, node.tiers) == ("gpu-17", "d1", ("rack-3", "block-1"))
    assert node.hardware.devices[0].product == "gb200"
    assert node.sources == {"domain": "ray-label", "tiers": "ray-label"}


def test_several_ray_nodes_of_one_host_get_names_of_their_own() -> None:
    nodes = [state("w1", 1, node_id=f"{i}2345678ab") for i in range(2)]

    assert [node.name for node in read(nodes).nodes] == ["w1-02345678", "w1-12345678"]


def test_a_cluster_without_gpus_gets_cpu_slots() -> None:
    (node,) = read([state("w1", 0)]).nodes

    assert (node.hardware.kind, len(node.hardware.devices)) == ("cpu", 16)


DASHBOARD = {
    "result": True,
    "data": {
        "summary": [
            {
                "hostname": "w1",
                "ip": "10.0.0.1",
                "gpus": [
                    {"index": i, "name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{i}",
                     "memoryTotal": 81559}
                    for i in range(2)
                ],
                "raylet": {"nodeId": "w1-0123456789", "state": "ALIVE",
                           "nodeManagerAddress": "10.0.0.1", "resourcesTotal": {"GPU": 2.0}},
            }
        ]
    },
}  # fmt: skip


def test_the_dashboards_own_view_names_the_gpus() -> None:
    (node,) = read(DASHBOARD).nodes

    assert [device.uuid for device in node.hardware.devices] == ["GPU-0", "GPU-1"]
    assert node.hardware.devices[0].memory_bytes == 81559 * 2**20


def test_a_live_cluster_is_asked_for_both_with_its_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    answers = {
        "/api/v0/nodes": {"result": True, "data": {"result": {"result": [state("w1", 2)]}}},
        "/nodes": DASHBOARD,
    }
    with answering(answers) as (address, asked):
        topology = discover(f"ray:{address}")

    assert topology.source == f"ray {address}"
    assert topology.nodes[0].hardware.devices[1].uuid == "GPU-1"
    assert {header for _, header in asked} == {"Bearer secret"}


def test_a_live_cluster_whose_dashboard_shows_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/api/v0/nodes": {"data": {"result": {"result": [state("w1", 2)]}}}}
    with answering(answers) as (address, _):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        assert discover("ray").nodes[0].hardware.devices[1].product == "h100"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_says_what_to_set(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with (
        answering({"/api/v0/nodes": status}) as (address, _),
        pytest.raises(BackendError) as error,
    ):
        discover(f"ray:{address}")

    assert f"answers {status}" in error.value.message
    assert error.value.hint == "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def test_a_dashboard_that_is_gone_is_said() -> None:
    with answering({}) as (address, _):
        pass
    with pytest.raises(BackendError, match="does not answer"):
        discover(f"ray:{address}")


def test_nonsense_is_no_address() -> None:
    with pytest.raises(UsageError, match="is no address of a Ray dashboard"):
        discover("ray:http://host:99999999")


def test_an_empty_list_says_how_to_write_one() -> None:
    with pytest.raises(UsageError, match="no node is listed"):
        read_text('{"result": [], "x": {"node_id": 1, "is_head_node": 1}}', "f")


def test_what_python_prints_of_ray_nodes_is_read() -> None:
    printed = repr(
        [
            {
                "NodeID": "8dcf",
                "Alive": True,
                "NodeManagerAddress": "10.0.0.1",
                "NodeManagerHostname": "gpu-1",
                "Resources": {"CPU": 96.0, "GPU": 8.0, "accelerator_type:H100": 1.0},
                "Labels": {"ray.io/accelerator-type": "H100"},
                "DeathReason": None,
            }
        ]
    )
    assert looks_like(printed)
    node = read_text(printed, "nodes.txt").nodes[0]

    assert (node.name, len(node.hardware.devices)) == ("gpu-1", 8)
    assert node.hardware.devices[0].product == "h100"

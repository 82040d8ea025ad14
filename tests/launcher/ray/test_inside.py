"""What nodes say of themselves, in place of what Ray can count."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.launcher.ray.cluster import RayCluster

from parctl.cli.main import run as parctl
from parctl.launcher.ray.inside import with_insides
from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.sources.ray import RayNode, build
from parctl.topology.store import topology_to_json


def ray_topology(*gpus: int) -> Topology:
    """A cluster as Ray describes it: counts, and no link."""
    nodes = [
        RayNode(
            node_id=f"id-{number}",
            host=f"gpu-{number}",
            address=None,
            alive=True,
            resources={"GPU": count, "CPU": 8},
            labels={},
            gpus=(),
        )
        for number, count in enumerate(gpus)
    ]
    return build(nodes, name="ray", source="ray", cut=None)


def inside(cluster: str) -> Any:
    topology = discover(cluster)
    return topology_to_json(replace(topology, nodes=topology.nodes[:1]))


def test_links_come_from_the_nodes() -> None:
    found = with_insides(
        ray_topology(8, 8), {"gpu-0": inside("h100:1x8"), "gpu-1": inside("a100-pcie:1x8")}
    )

    assert [node.name for node in found.nodes] == ["gpu-0", "gpu-1"]
    assert found.nodes[0].hardware.matrix[0][1].startswith("NV")
    assert [node.hardware.devices[0].product for node in found.nodes] == [
        discover("h100:1x8").nodes[0].hardware.devices[0].product,
        discover("a100-pcie:1x8").nodes[0].hardware.devices[0].product,
    ]
    assert found.unknown == () and found.warnings == ()


def test_a_node_that_counts_otherwise_than_ray_keeps_rays_count() -> None:
    found = with_insides(ray_topology(4), {"gpu-0": inside("h100:1x8")})

    assert len(found.nodes[0].hardware.devices) == 4
    assert found.warnings == (
        "gpu-0: Ray counts 4 gpu devices, the machine has 8 gpu devices; links are not known",
    )


def test_a_node_that_did_not_answer_is_said() -> None:
    found = with_insides(ray_topology(4, 4), {"gpu-0": "RayTaskError: no driver"})

    assert found.warnings == (
        "gpu-0: RayTaskError: no driver; links are not known",
        "gpu-1: it did not answer; links are not known",
    )


def test_a_live_cluster_is_asked_node_by_node(
    cluster: RayCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"ray:{cluster.address}"
    assert parctl(["topology", "--from", source, "--inside", "-o", "json"]) == 0
    shown = capsys.readouterr()

    assert {"node-0", "pair-1"} <= {node["name"] for node in json.loads(shown.out)["nodes"]}
    # this machine has no GPU: every node says so, and Ray's count stands
    for name, count in (("node-0", 8), ("pair-1", 2)):
        assert f"{name}: Ray counts {count} gpu devices, the machine has" in shown.err


def test_it_is_for_ray_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert parctl(["topology", "--from", "h100:2x8", "--inside"]) == 2
    assert "--inside is for the nodes of a Ray cluster" in capsys.readouterr().err

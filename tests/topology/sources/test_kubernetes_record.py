"""Records of the chart's daemon: the inside of nodes, as far as the cluster hands it out."""

import json
from typing import Any

import pytest
from tests.topology.discovery.nodes import gpu, node, reading

from parctl.topology.check.questions import check_topology
from parctl.topology.discovery.objects import config_map, node_topology
from parctl.topology.discovery.record import Record, record_of
from parctl.topology.model import Topology
from parctl.topology.sources.kubernetes import looks_like, read_text

Object = dict[str, Any]


def node_object(name: str, *, gpus: int | None = 2, **parts: Any) -> Object:
    amounts = {"cpu": "60", "memory": "1000Gi"} | (
        {"nvidia.com/gpu": str(gpus)} if gpus is not None else {}
    )
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": name},
        "status": {"allocatable": amounts},
        **parts,
    }


def record_object(name: str, record: Record) -> Object:
    return node_topology(record, node_object(name))


def read(*items: Object) -> Topology:
    return read_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), "dump.json")


def record(num_gpus: int = 2, **facts: Any) -> Record:
    return record_of(reading(node(num_gpus, **facts)), {})


def test_the_inside_of_a_node_comes_from_its_record() -> None:
    found = read(node_object("gpu-1"), record_object("gpu-1", record(domain="c.1")))

    (only,) = found.nodes
    assert only.hardware.matrix == (("X", "NV18"), ("NV18", "X"))
    assert [device.uuid for device in only.hardware.devices] == ["GPU-0", "GPU-1"]
    assert only.hardware.devices[0].sources["uuid"] == "nvml"
    assert only.domain == "c.1"
    assert not any(sentence.startswith("links:") for sentence in found.unknown)


def test_the_host_is_as_large_as_the_cluster_hands_it_out() -> None:
    found = read(node_object("gpu-1"), record_object("gpu-1", record()))

    hardware = found.nodes[0].hardware
    assert (hardware.num_cpus, hardware.memory_bytes) == (60, 1000 * 2**30)
    assert hardware.sources["memory_bytes"] == "k8s-status"


def test_a_record_without_its_node_object_is_a_node() -> None:
    found = read(record_object("gpu-7", record()))

    assert [n.name for n in found.nodes] == ["gpu-7"]
    assert found.nodes[0].hardware.num_cpus == 64


def test_a_config_map_is_a_record_too() -> None:
    pod = {"name": "p", "uid": "u"}
    wrapped = config_map(record(), {}, name="parctl-topology-gpu-1", node="gpu-1", pod=pod)

    found = read(node_object("gpu-1"), wrapped)

    assert found.nodes[0].hardware.matrix[0][1] == "NV18"


def test_gpus_that_are_not_allocatable_are_shown_and_not_used() -> None:
    broken = record(4, gpus=[gpu(0, faults=["GPU is lost"]), gpu(1), gpu(2), gpu(3)])

    found = read(node_object("gpu-1", gpus=2), record_object("gpu-1", broken))

    devices = found.nodes[0].hardware.devices
    assert [bool(device.faults) for device in devices] == [True, False, False, True]
    assert devices[3].faults == ("not handed out: 2 of 4 GPUs are allocatable",)
    assert "gpu-1: 4 GPUs are there (nvml), 2 are allocatable" in found.warnings


def test_slices_are_not_what_the_daemon_sees() -> None:
    amounts = {"nvidia.com/mig-1g.10gb": "7", "cpu": "8", "memory": "64Gi"}
    cut = node_object("gpu-1", gpus=None, status={"allocatable": amounts})

    found = read(cut, record_object("gpu-1", record(1, mig=True)))

    assert len(found.nodes[0].hardware.devices) == 7
    assert all(device.mig for device in found.nodes[0].hardware.devices)


def test_a_cordoned_node_is_not_used_however_whole_it_is() -> None:
    cordoned = node_object("gpu-1", spec={"unschedulable": True})

    found = read(cordoned, record_object("gpu-1", record()))

    assert [d.faults for d in found.nodes[0].hardware.devices] == [("node is cordoned",)] * 2


def test_a_nic_that_is_missing_is_a_warning() -> None:
    whole = record_of(reading(node(nics=("mlx5_0", "mlx5_1"))), {})
    less = record_of(reading(node(nics=("mlx5_1",))), whole)

    found = read(node_object("gpu-1"), record_object("gpu-1", less))

    assert "gpu-1: NIC mlx5_0: not there or down" in found.warnings


def test_check_names_the_fault_of_a_recorded_node() -> None:
    sick = record(2, gpus=[gpu(0), gpu(1, ecc_errors=3)])

    result = check_topology(read(node_object("gpu-1"), record_object("gpu-1", sick)))

    assert not result.ok
    assert "gpu-1: gpu 1: 3 uncorrected ECC errors" in [str(f) for f in result.findings]


def test_a_record_of_a_node_without_gpus_changes_nothing() -> None:
    empty = record_object("gpu-1", {"schema": 1})

    found = read(node_object("gpu-1"), empty)

    assert len(found.nodes[0].hardware.devices) == 2
    assert found.nodes[0].hardware.matrix[0][1] == "?"


@pytest.mark.parametrize(
    "spec",
    [
        {"schema": 1, "gpus": [{"index": "zero"}]},
        {"schema": 1, "gpus": [{"index": 0}], "links": ["X NV18"]},
        {"schema": 1, "gpus": [{"index": 0}, {"index": 0}]},
    ],
)
def test_a_record_that_is_wrong_costs_its_node_only(spec: Object) -> None:
    found = read(
        node_object("gpu-1"),
        record_object("gpu-1", spec),
        node_object("gpu-2"),
        record_object("gpu-2", record()),
    )

    assert found.nodes[0].hardware.matrix[0][1] == "?"
    assert found.nodes[1].hardware.matrix[0][1] == "NV18"
    assert any("record of gpu-1" in sentence for sentence in found.unknown)


def test_a_config_map_of_somebody_else_is_no_record() -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {}}

    assert len(read(node_object("gpu-1"), other).nodes) == 1


def test_a_dump_of_records_alone_is_recognised() -> None:
    assert looks_like(json.dumps(record_object("gpu-1", record())))

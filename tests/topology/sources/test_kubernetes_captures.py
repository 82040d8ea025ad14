"""Kubernetes objects as real clusters have them."""

from pathlib import Path

import pytest

from parctl.topology.model import Topology
from parctl.topology.sources.kubernetes import looks_like, read_text

DATA = Path(__file__).resolve().parents[4] / "shared/data/topology/k8s"


def captured(name: str) -> Topology:
    path = DATA / name
    if not path.exists():
        pytest.skip("the captured Kubernetes objects are not on this machine")
    text = path.read_text()
    assert looks_like(text)
    return read_text(text, name)


def test_captured_h100_labels() -> None:
    found = captured("node-labels-h100-gfd.yaml").nodes[0]

    assert found.name == "node-labels-h100-gfd"
    assert [device.product for device in found.hardware.devices] == ["h100"] * 8


def test_captured_gke_labels() -> None:
    topology = captured("node-labels-gke-topology.yaml")

    assert topology.tiers[0] == "cloud.google.com/gce-topology-host"
    assert topology.nodes[0].tiers == (
        "b881b33e5fd8128f2e8b3ad50506ee87",
        "88fba4b895a44590c026f7c1bf4c1695",
        "6b1ddbbd41cf397b9bcd1086091914e7",
    )


def test_captured_mig_labels() -> None:
    mixed = captured("node-labels-a100-mig-mixed.yaml").nodes[0].hardware.devices
    single = captured("node-labels-a100-mig-single.yaml")

    assert [device.product for device in mixed] == [
        *["a100-pcie-40g MIG 1g.5gb"] * 4,
        *["a100-pcie-40g MIG 2g.10gb"] * 2,
    ]
    assert mixed[0].memory_bytes == 4864 * 2**20
    assert "GPUs of node-labels-a100-mig-single: how many there are" in single.unknown


def test_captured_amd_labels() -> None:
    (device,) = captured("node-labels-amd-mi210.yaml").nodes[0].hardware.devices

    assert (device.product, device.memory_bytes) == ("Instinct_MI210", 64 * 2**30)


def test_captured_annotation_is_read_as_far_as_it_is_whole() -> None:
    topology = captured("node-annotations-hami.yaml")
    (device,) = topology.nodes[0].hardware.devices

    assert topology.nodes[0].name == "416a100"
    assert device.uuid == "GPU-b7c4eb59-dd76-ca5a-8482-56fd796b0a75"
    assert (device.memory_bytes, device.numa) == (40960 * 2**20, 0)
    assert topology.unknown[0] == "GPUs of 416a100 after the first 1: cut"


def test_captured_slices() -> None:
    amd = captured("resourceslice-amd-mi300x-dpx.yaml").nodes[0]
    nvidia = captured("resourceslice-nvidia-aks-mig.yaml").nodes[0]

    assert amd.name == "gpu-operator-2"
    assert amd.hardware.devices[0].pci == "0003:00:01.0"
    assert amd.hardware.devices[0].memory_bytes == 98296 * 2**20
    assert nvidia.name == "aks-migpool-68842551-vmss000001"
    assert nvidia.hardware.devices[0].mig is True


def test_captured_kueue_levels_without_nodes() -> None:
    topology = captured("kueue-sample-queues.yaml")

    assert topology.tiers == (
        "kubernetes.io/hostname",
        "cloud.provider.com/topology-rack",
        "cloud.provider.com/topology-block",
    )
    assert topology.nodes == ()

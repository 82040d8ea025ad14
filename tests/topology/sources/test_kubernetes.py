"""Kubernetes objects: who is believed for which fact."""

import json
from typing import Any

import pytest
import yaml

from parctl.errors import UsageError
from parctl.topology.model import Node, Topology
from parctl.topology.sources.kubernetes import looks_like, read_text, read_texts

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}


def node(
    name: str,
    labels: dict[str, str] | None = None,
    allocatable: dict[str, str] | None = None,
    **rest: Any,
) -> dict[str, Any]:
    status: dict[str, Any] = {"conditions": [{"type": "Ready", "status": "True"}]}
    if allocatable is not None:
        status["allocatable"] = allocatable
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {},
        "status": status,
        **rest,
    }


def gpu_slice(node_name: str, count: int, **spec: Any) -> dict[str, Any]:
    devices = [
        {
            "name": f"gpu-{i}",
            "attributes": {
                "type": {"string": "gpu"},
                "uuid": {"string": f"GPU-{i}"},
                "productName": {"string": "NVIDIA H100 80GB HBM3"},
                "resource.kubernetes.io/pciBusID": {"string": f"0000:{i + 1:x}b:00.0"},
                "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:{i + 1:x}a"},
            },
            "capacity": {"memory": {"value": "81559Mi"}},
        }
        for i in range(count)
    ]
    pool = {"name": node_name, "generation": 1, "resourceSliceCount": 1}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node_name}-gpu"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node_name,
            "pool": pool,
            "devices": devices,
        }
        | spec,
    }


def read(*objects: dict[str, Any]) -> Topology:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    assert looks_like(text)
    return read_text(text, "nodes.json")


def only(*objects: dict[str, Any]) -> Node:
    (found,) = read(*objects).nodes
    return found


def test_allocatable_counts_and_labels_say_what() -> None:
    found = only(node("n1", H100, {"nvidia.com/gpu": "8", "cpu": "112", "memory": "2000Gi"}))
    device = found.hardware.devices[7]

    assert len(found.hardware.devices) == 8
    assert (device.index, device.product, device.memory_bytes) == (7, "h100", 81559 * 2**20)
    assert device.sources == {
        "index": "k8s-status",
        "product": "k8s-label",
        "memory_bytes": "k8s-label",
    }
    assert found.hardware.matrix[0] == ("X", *["?"] * 7)
    assert (found.hardware.num_cpus, found.hardware.memory_bytes) == (112, 2000 * 2**30)


def test_slices_say_which_devices_they_are() -> None:
    found = only(node("n1", {}, {"cpu": "8"}), gpu_slice("n1", 2))

    assert [(d.index, d.uuid, d.pci, d.product) for d in found.hardware.devices] == [
        (0, "GPU-0", "0000:1b:00.0", "h100"),
        (1, "GPU-1", "0000:2b:00.0", "h100"),
    ]
    assert found.hardware.devices[0].mig is False
    assert found.hardware.devices[0].sources["uuid"] == "k8s-slice"


def test_a_v1beta1_slice_has_its_attributes_under_basic() -> None:
    slice_ = gpu_slice("n1", 2) | {"apiVersion": "resource.k8s.io/v1beta1"}
    slice_["spec"]["devices"] = [
        {"name": device["name"], "basic": {k: v for k, v in device.items() if k != "name"}}
        for device in slice_["spec"]["devices"]
    ]

    assert [device.uuid for device in only(slice_).hardware.devices] == ["GPU-0", "GPU-1"]


def test_gpu_and_nic_are_joined_by_their_pcie_root() -> None:
    nics = gpu_slice("n1", 0, driver="dra.net")
    nics["metadata"]["name"] = "n1-net"
    nics["spec"]["devices"] = [
        {
            "name": "gpu1rdma0",
            "attributes": {
                "dra.net/ifName": {"string": "gpu1rdma0"},
                "dra.net/rdma": {"bool": True},
                "dra.net/numaNode": {"int": 1},
                "resource.kubernetes.io/pcieRoot": {"string": "pci0000:2a"},
            },
        },
        {"name": "veth", "attributes": {"dra.net/virtual": {"bool": True}}},
    ]
    found = only(gpu_slice("n1", 2), nics).hardware

    assert [(nic.name, nic.numa) for nic in found.nics] == [("gpu1rdma0", 1)]
    assert found.nic_matrix == (("?",), ("PHB",))


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    old, new = gpu_slice("n1", 8), gpu_slice("n1", 7)
    new["metadata"]["name"] = "newer"
    new["spec"]["pool"] = {"name": "n1", "generation": 2, "resourceSliceCount": 2}
    for objects in ((old, new), (new, old)):
        topology = read(*objects)

        assert topology.num_devices == 7
        assert "n1: 1 of 2 ResourceSlices of pool `n1` (gpu.nvidia.com)" in topology.unknown


def test_a_tainted_device_is_a_fault() -> None:
    slice_ = gpu_slice("n1", 2)
    slice_["spec"]["devices"][1]["taints"] = [{"key": "gpu.nvidia.com/xid", "effect": "NoExecute"}]

    assert [device.faults for device in only(slice_).hardware.devices] == [
        (),
        ("tainted by its driver: gpu.nvidia.com/xid",),
    ]


def test_allocatable_beats_a_list_of_another_length() -> None:
    topology = read(node("n1", H100, {"nvidia.com/gpu": "7"}), gpu_slice("n1", 8))

    assert topology.num_devices == 7
    assert topology.nodes[0].hardware.devices[0].uuid is None
    assert topology.warnings == (
        "n1: 7 GPUs are allocatable (k8s-status), 8 are listed (k8s-slice): which of them can be "
        "used is not known",
    )


def test_labels_without_a_device_plugin_are_no_usable_gpus() -> None:
    labels = {**H100, "nvidia.com/gpu.count": "8"}
    topology = read(node("n1", labels, {"cpu": "8"}))

    assert topology.nodes[0].hardware.devices[0].faults == (
        "allocatable `nvidia.com/gpu` is absent",
    )
    assert "is the device plugin running?" in topology.warnings[0]


def test_gpus_that_are_not_allocatable_are_said() -> None:
    bare = node("n1", H100, {"nvidia.com/gpu": "7"})
    bare["status"]["capacity"] = {"nvidia.com/gpu": "8"}

    assert read(bare).warnings == ("n1: 1 of 8 GPUs are not allocatable",)


def test_time_slicing_does_not_multiply_gpus() -> None:
    labels = {
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED",
        "nvidia.com/gpu.replicas": "4",
    }
    topology = read(node("n1", labels, {"nvidia.com/gpu": "32"}))

    assert topology.num_devices == 8
    assert topology.nodes[0].hardware.devices[0].product == "h100"
    assert topology.warnings == ("n1: every GPU is announced 4 times (shared in time)",)


def test_mixed_mig_gives_slices_and_whole_gpus() -> None:
    labels = {**H100, "nvidia.com/mig-3g.40gb.memory": "40192"}
    allocatable = {"nvidia.com/gpu": "1", "nvidia.com/mig-3g.40gb": "2"}
    devices = only(node("n1", labels, allocatable)).hardware.devices

    assert [(d.product, d.mig) for d in devices] == [
        ("h100", None),
        ("h100 MIG 3g.40gb", True),
        ("h100 MIG 3g.40gb", True),
    ]
    assert devices[1].memory_bytes == 40192 * 2**20


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spec": {"unschedulable": True}}, "node is cordoned"),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, "node is not Ready"),
    ],
)
def test_a_node_that_takes_no_pods_is_not_used(change: dict[str, Any], fault: str) -> None:
    sick = node("n1", H100, {"nvidia.com/gpu": "1"})
    for key, value in change.items():
        sick[key] |= value
    topology = read(sick)

    assert topology.nodes[0].hardware.devices[0].faults == (fault,)
    assert topology.warnings == (f"n1: not used, since the {fault}",)


def test_nodes_without_gpus_are_left_out_beside_nodes_with_gpus() -> None:
    topology = read(node("n2", H100, {"nvidia.com/gpu": "8"}), node("head", {}, {"cpu": "4"}))

    assert [found.name for found in topology.nodes] == ["n2"]
    assert topology.warnings == ("left out, since they have no GPU: head",)


def test_a_cluster_without_gpus_gets_cpu_slots_but_not_on_its_control_plane() -> None:
    control = node("cp", {}, {"cpu": "4"})
    control["spec"]["taints"] = [
        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    ]
    topology = read(control, node("w10", {}, {"cpu": "2500m"}), node("w9", {}, {"cpu": "3"}))

    assert [(n.name, n.hardware.kind, len(n.hardware.devices)) for n in topology.nodes] == [
        ("w9", "cpu", 3),
        ("w10", "cpu", 2),
    ]
    assert topology.nodes[0].hardware.matrix[0] == ("X", "HOST", "HOST")


CLIQUE = "00000000-1111-2222-3333-444444444444.7"


@pytest.mark.parametrize(
    ("labels", "domain", "source"),
    [
        (
            {"nvidia.com/gpu.clique": CLIQUE, "accelerator.topograph.run/domain": "d"},
            CLIQUE,
            "nvidia.com/gpu.clique",
        ),
        (
            {
                "nvidia.com/gpu.clique": "00000000-0000-0000-0000-000000000000.0",
                "accelerator.topograph.run/domain": "d",
            },
            "d",
            "accelerator.topograph.run/domain",
        ),
        (
            {
                "topology.k8s.aws/ultraserver-id": "u",
                "oci.oraclecloud.com/host.gpu_memory_fabric_id": "f",
            },
            "f",
            "oci.oraclecloud.com/host.gpu_memory_fabric_id",
        ),
        (
            {
                "nvidia.com/gpu.product": "NVIDIA-GB200",
                "cloud.google.com/gce-topology-subblock": "s",
            },
            "s",
            "cloud.google.com/gce-topology-subblock",
        ),
        ({**H100, "cloud.google.com/gce-topology-subblock": "s"}, None, None),
        ({"nvidia.com/gpu.clique": ""}, None, None),
    ],
)
def test_which_label_names_the_nvlink_domain(
    labels: dict[str, str], domain: str | None, source: str | None
) -> None:
    found = only(node("n1", labels, {"nvidia.com/gpu": "4"}))

    assert found.domain == domain
    assert found.sources.get("domain") == (f"k8s-label {source}" if source else None)


GKE = {
    "cloud.google.com/gce-topology-block": "b",
    "cloud.google.com/gce-topology-subblock": "s",
    "cloud.google.com/gce-topology-host": "h",
}
EKS = {f"topology.k8s.aws/network-node-layer-{i}": f"l{i}" for i in (1, 2, 3)}
REGION = {
    "topology.kubernetes.io/region": "r",
    "topology.kubernetes.io/zone": "z",
    "kubernetes.io/hostname": "n1",
}


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"fabric.topograph.run/tier-0": "t0", "fabric.topograph.run/tier-1": "t1", **GKE},
         ("t0", "t1")),
        ({**GKE, **EKS, **REGION}, ("h", "s", "b")),
        ({**EKS, **REGION}, ("l3", "l2", "l1")),
        (
            {
                "oci.oraclecloud.com/rdma.hpc_island_id": "i",
                "oci.oraclecloud.com/rdma.network_block_id": "n",
                "oci.oraclecloud.com/rdma.local_block_id": "l",
            },
            ("l", "n", "i"),
        ),
        (
            {"backend.coreweave.cloud/fabric": "f", "backend.coreweave.cloud/leafgroup": "g"},
            ("g", "f"),
        ),
        (REGION, ("n1", "z", "r")),
        ({"kubernetes.io/hostname": "n1"}, ()),
    ],
)  # fmt: skip
def test_which_labels_are_the_tiers(labels: dict[str, str], values: tuple[str, ...]) -> None:
    assert only(node("n1", labels, {"nvidia.com/gpu": "8"})).tiers == values


KUEUE = {
    "apiVersion": "kueue.x-k8s.io/v1beta1",
    "kind": "Topology",
    "metadata": {"name": "default"},
    "spec": {
        "levels": [
            {"nodeLabel": "my/block"},
            {"nodeLabel": "my/rack"},
            {"nodeLabel": "kubernetes.io/hostname"},
        ]
    },
}


def test_the_admins_kueue_levels_beat_every_label() -> None:
    labels = {"my/block": "b1", "my/rack": "r1", **GKE}
    topology = read(node("n1", labels, {"nvidia.com/gpu": "8"}), KUEUE)

    assert topology.tiers == ("kubernetes.io/hostname", "my/rack", "my/block")
    assert topology.nodes[0].tiers == ("n1", "r1", "b1")
    assert topology.nodes[0].sources["tiers"] == "kueue"


def test_kueue_levels_that_no_node_has_are_not_used() -> None:
    assert read(node("n1", GKE, {"nvidia.com/gpu": "8"}), KUEUE).nodes[0].tiers == ("h", "s", "b")


def test_a_node_without_the_label_has_an_unknown_tier() -> None:
    topology = read(
        node("n1", EKS, {"nvidia.com/gpu": "8"}), node("n2", {}, {"nvidia.com/gpu": "8"})
    )

    assert topology.nodes[1].tiers == ("?", "?", "?")
    assert "fabric tiers of n2: a label is absent" in topology.unknown


def test_nodes_slices_and_kueue_may_be_in_three_files() -> None:
    labelled = node("n1", {"my/block": "b1", "my/rack": "r1"}, {"nvidia.com/gpu": "2"})
    texts = [
        (json.dumps(labelled), "nodes.json"),
        (yaml.safe_dump_all([gpu_slice("n1", 2)]), "slices.yaml"),
        (yaml.safe_dump(KUEUE), "kueue.yaml"),
    ]
    topology = read_texts(texts)

    assert topology.nodes[0].tiers == ("n1", "r1", "b1")
    assert topology.nodes[0].hardware.devices[1].uuid == "GPU-1"


def test_equal_nodes_share_their_hardware() -> None:
    topology = read(*(node(f"n{i}", H100, {"nvidia.com/gpu": "8"}) for i in range(3)))

    assert len({id(found.hardware) for found in topology.nodes}) == 1


def test_a_list_that_was_cut_gives_its_whole_nodes() -> None:
    nodes = [node(f"n{i}", H100, {"nvidia.com/gpu": "8"}) for i in range(3)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes})
    topology = read_text(text[: int(len(text) * 0.9)], "cut.json")

    assert [found.name for found in topology.nodes] == ["n0", "n1"]
    assert topology.unknown[0].startswith("the end of cut.json: cut in the middle")


def test_objects_of_other_kinds_are_no_cluster() -> None:
    with pytest.raises(UsageError, match="no Node, no ResourceSlice"):
        read_text("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "pod.yaml")


def test_keys_that_are_no_text_are_no_label() -> None:
    text = (
        "kind: Node\napiVersion: v1\nmetadata: {name: a, labels: {1: 2, null: x}}\nstatus: {3: 4}"
    )

    assert [found.name for found in read_text(text, "odd.yaml").nodes] == ["a"]


def test_a_kueue_topology_that_was_cut_before_its_levels_is_refused() -> None:
    text = "apiVersion: kueue.x-k8s.io/v1beta2\nkind: Topology\nmetadata:\n"

    with pytest.raises(UsageError, match="no levels of a Kueue Topology"):
        read_text(text, "kueue.yaml")


def test_devices_of_an_unknown_kind_are_said() -> None:
    item = gpu_slice("n1", 2)
    item["spec"]["driver"] = "accelerator.example.com"
    for device in item["spec"]["devices"]:
        device["attributes"] = {"model": {"string": "x200"}}
    topology = read_text(yaml.safe_dump(item), "slice.yaml")

    assert topology.nodes[0].hardware.devices == ()
    assert topology.unknown[0] == (
        "n1: kind of 2 devices of driver accelerator.example.com: no attribute says GPU or NIC"
    )

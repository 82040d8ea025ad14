"""Thousands of nodes that are objects and nothing else; kwok says for them that all is well."""

import contextlib
from collections.abc import Iterator

from tests.cluster.api import Object, condition
from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_until
from tests.cluster.node import BLOCK_LABEL, GPU_LABELS, RACK_LABEL

LABEL = "parctl.test/fake"
PATIENCE_S = 120  # kwok says of each node every 50 seconds that it lives; of thousands it is late
NODES_PER_RACK = 16
RACKS_PER_BLOCK = 4


@contextlib.contextmanager
def add_fake_nodes(cluster: Cluster, count: int, *, gpus: int) -> Iterator[dict[str, str]]:
    """Add nodes `fake-00001` ... and return what selects them. They are removed in the end.

    They carry a taint, so that nothing lands on them that does not tolerate everything.
    """
    cluster.controllers.ensure("kwok")
    cluster.control_plane.restart_controller_manager(PATIENCE_S + count // 10)
    path = cluster.api.path("v1", "Node", None)
    names = [f"fake-{number:05}" for number in range(count)]
    try:
        for number, name in enumerate(names):
            cluster.api.request("POST", path, fake_node(name, number, gpus))
        wait_fake_nodes(cluster, count)
        yield {LABEL: "true"}
    finally:
        remove_fake_nodes(cluster)
        cluster.control_plane.restart_controller_manager()


def wait_fake_nodes(cluster: Cluster, count: int) -> None:
    def ready() -> bool:
        nodes = list_fake(cluster)
        return len(nodes) == count and all(condition("Ready")(node) for node in nodes)

    wait_until(ready, seconds=60 + count / 10, what=f"{count} fake nodes ready")


def remove_fake_nodes(cluster: Cluster) -> None:
    def gone() -> bool:
        with contextlib.suppress(TimeoutError):  # thousands take the server a while; ask again
            cluster.api.delete_all("Node", selector=f"{LABEL}=true")
        return not list_fake(cluster)

    wait_until(gone, seconds=300, what="no fake node")


def list_fake(cluster: Cluster) -> list[Object]:
    return cluster.api.list("Node", selector=f"{LABEL}=true")


def fake_node(name: str, number: int, gpus: int) -> Object:
    rack = number // NODES_PER_RACK
    labels = {
        **GPU_LABELS,
        "nvidia.com/gpu.count": str(gpus),
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        BLOCK_LABEL: f"fake-{rack // RACKS_PER_BLOCK}",
        RACK_LABEL: f"fake-{rack}",
        LABEL: "true",
    }
    amounts = {"cpu": "128", "memory": "2000Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [{"key": LABEL, "effect": "NoSchedule"}]},
        "status": {"capacity": amounts, "allocatable": amounts},
    }

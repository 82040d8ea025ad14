"""A Kueue queue for one test: its own quota of GPUs, on nodes whose topology Kueue knows."""

from tests.cluster.cluster import KUEUE, Cluster
from tests.cluster.node import BLOCK_LABEL, RACK_LABEL

HOSTNAME = "kubernetes.io/hostname"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
REQUIRED_TOPOLOGY = "kueue.x-k8s.io/podset-required-topology"


def make_queue(cluster: Cluster, namespace: str, *, gpus: int, name: str = "team") -> None:
    """Make LocalQueue `name` and what is behind it. Nothing but the test's pods is in it."""
    whole = f"{namespace}-{name}"
    flavor_name = "gpus"  # all queues share it, so that each sees what the others use
    levels = [{"nodeLabel": label} for label in (BLOCK_LABEL, RACK_LABEL, HOSTNAME)]
    flavor = {"nodeLabels": {"nvidia.com/gpu.present": "true"}, "topologyName": flavor_name}
    quotas = {"nvidia.com/gpu": str(gpus), "cpu": "100", "memory": "1000Gi"}
    resources = [{"name": key, "nominalQuota": amount} for key, amount in quotas.items()]
    groups = [
        {
            "coveredResources": list(quotas),
            "flavors": [{"name": flavor_name, "resources": resources}],
        }
    ]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    queue = {"namespaceSelector": selector, "resourceGroups": groups}
    for kind, its_name, spec in (
        ("Topology", flavor_name, {"levels": levels}),
        ("ResourceFlavor", flavor_name, flavor),
        ("ClusterQueue", whole, queue),
    ):
        item = {"apiVersion": KUEUE, "kind": kind, "metadata": {"name": its_name}, "spec": spec}
        cluster.api.apply(item)
    local = {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": name}}
    cluster.api.apply({**local, "spec": {"clusterQueue": whole}}, namespace=namespace)

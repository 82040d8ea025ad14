"""The controllers that people add to clusters do here what they do there."""

from collections.abc import Callable, Sequence

import pytest
from tests.cluster.api import Object, condition
from tests.cluster.cluster import KUEUE, Cluster
from tests.cluster.fake_nodes import add_fake_nodes
from tests.cluster.machine import wait_until
from tests.cluster.node import BLOCK_LABEL
from tests.cluster.pods import TOLERATION, pod, pod_spec, python
from tests.cluster.queues import QUEUE_LABEL, REQUIRED_TOPOLOGY, make_queue

pytestmark = pytest.mark.cluster
JOBSET = "jobset.x-k8s.io/v1alpha2"
RAY = "ray.io/v1"
LWS = "leaderworkerset.x-k8s.io/v1"
WAIT_FOR_EVER = python("import time", "time.sleep(600)")


def job_spec(num_pods: int, command: list[str], *, gpus: int = 0) -> Object:
    spec = pod_spec(command, gpus=gpus, tolerations=[TOLERATION])
    spec["containers"][0]["resources"]["requests"] = {"cpu": "10m", "memory": "16Mi"}
    return {
        "completionMode": "Indexed",
        "completions": num_pods,
        "parallelism": num_pods,
        "backoffLimit": 0,
        "template": {"spec": spec},
    }


def job(name: str, num_pods: int, command: list[str], *, gpus: int, **annotations: str) -> Object:
    spec = job_spec(num_pods, command, gpus=gpus)
    spec["template"]["metadata"] = {"annotations": annotations}
    labels = {QUEUE_LABEL: "team"}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def test_a_jobset_runs_to_its_end(cluster: Cluster, namespace: str) -> None:
    cluster.controllers.ensure("jobset")
    template = {"spec": job_spec(2, python("print('done')"))}
    spec = {"replicatedJobs": [{"name": "ranks", "replicas": 1, "template": template}]}
    item = {"apiVersion": JOBSET, "kind": "JobSet", "metadata": {"name": "probe"}, "spec": spec}
    cluster.api.apply(item, namespace=namespace)

    done = condition("Completed")
    ended = cluster.api.wait("JobSet", "probe", done, namespace, JOBSET, seconds=60)

    assert ended["status"]["restarts"] == 0


def test_kueue_holds_a_job_back_until_its_queue_has_quota(cluster: Cluster, namespace: str) -> None:
    cluster.controllers.ensure("kueue")
    make_queue(cluster, namespace, gpus=2)
    first = job("first", 1, WAIT_FOR_EVER, gpus=2)
    cluster.api.apply(first, namespace=namespace)
    cluster.api.wait("Job", "first", active(1), namespace, "batch/v1", seconds=60)

    cluster.api.apply(job("second", 1, WAIT_FOR_EVER, gpus=1), namespace=namespace)
    waiting = workload_of(cluster, namespace, "second")
    held = cluster.api.wait(
        "Workload", waiting, condition("QuotaReserved", "False"), namespace, KUEUE
    )
    said = next(c for c in held["status"]["conditions"] if c["type"] == "QuotaReserved")
    cluster.api.delete("Job", "first", namespace, "batch/v1")

    assert "insufficient" in said["message"]
    cluster.api.wait("Job", "second", active(1), namespace, "batch/v1", seconds=60)


def test_kueue_puts_the_pods_of_a_job_in_one_block(cluster: Cluster, namespace: str) -> None:
    cluster.controllers.ensure("kueue")
    make_queue(cluster, namespace, gpus=6)
    together = {REQUIRED_TOPOLOGY: BLOCK_LABEL}
    cluster.api.apply(job("pair", 2, WAIT_FOR_EVER, gpus=2, **together), namespace=namespace)

    cluster.api.wait("Job", "pair", active(2), namespace, "batch/v1", seconds=60)

    nodes = sorted(node_of(found) for found in cluster.api.list("Pod", namespace))
    assert nodes == ["gpu-1", "gpu-2"]


def test_a_leader_worker_set_starts_a_group_of_pods(cluster: Cluster, namespace: str) -> None:
    cluster.controllers.ensure("lws")
    template = {"spec": {**pod_spec(WAIT_FOR_EVER), "restartPolicy": "Always"}}
    group = {"size": 2, "workerTemplate": template}
    spec = {"replicas": 1, "leaderWorkerTemplate": group}
    item = {"apiVersion": LWS, "kind": "LeaderWorkerSet", "metadata": {"name": "serving"}}
    cluster.api.apply({**item, "spec": spec}, namespace=namespace)

    available = condition("Available")
    cluster.api.wait("LeaderWorkerSet", "serving", available, namespace, LWS, seconds=60)

    names = sorted(found["metadata"]["name"] for found in cluster.api.list("Pod", namespace))
    assert names == ["serving-0", "serving-0-1"]


def test_kuberay_makes_the_cluster_of_a_ray_job(cluster: Cluster, namespace: str) -> None:
    cluster.controllers.ensure("kuberay")
    group = {"rayStartParams": {}, "template": {"spec": pod_spec(WAIT_FOR_EVER)}}
    whole = {"rayVersion": "2.60.0", "headGroupSpec": group}
    spec = {"submissionMode": "HTTPMode", "entrypoint": "true", "rayClusterSpec": whole}
    item = {"apiVersion": RAY, "kind": "RayJob", "metadata": {"name": "probe"}, "spec": spec}
    cluster.api.apply(item, namespace=namespace)

    wait_until(lambda: cluster.api.list("Pod", namespace), seconds=60, what="head pod")

    (head,) = cluster.api.list("Pod", namespace)
    assert head["metadata"]["labels"]["ray.io/node-type"] == "head"
    cluster.api.patch("RayJob", "probe", {"metadata": {"finalizers": None}}, namespace, RAY)


def test_a_hundred_fake_nodes_take_pods(cluster: Cluster, namespace: str) -> None:
    with add_fake_nodes(cluster, 100, gpus=8) as selector:
        wanted: Object = {"nodeSelector": selector, "tolerations": [{"operator": "Exists"}]}
        cluster.api.apply(pod("whole", WAIT_FOR_EVER, gpus=8, **wanted), namespace=namespace)

        running = cluster.api.wait("Pod", "whole", condition("Ready"), namespace, seconds=60)

        assert node_of(running).startswith("fake-")


def active(count: int) -> Callable[[Object], bool]:
    return lambda found: found.get("status", {}).get("ready") == count


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName"))


def workload_of(cluster: Cluster, namespace: str, job_name: str) -> str:
    """The name of the Workload that Kueue made for a Job."""
    uid = cluster.api.get("Job", job_name, namespace, "batch/v1")["metadata"]["uid"]
    selector = f"kueue.x-k8s.io/job-uid={uid}"
    found: Sequence[Object] = []
    for _ in range(100):
        found = cluster.api.list("Workload", namespace, KUEUE, selector=selector)
        if found:
            break
    return str(found[0]["metadata"]["name"])

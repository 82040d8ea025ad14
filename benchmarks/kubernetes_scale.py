"""Thousands of nodes: what parctl adds to a submission, and what its questions cost.

The nodes are objects whose kubelets kwok plays; API server, scheduler and controllers are real. For
each size the same objects are submitted by parctl and by plain `kubectl apply`, in turns, and the
time runs until the last pod is bound to a node. Goal: at most 1.05 times kubectl's. Then so many
runs are made, and `status` and `list` are timed. Requests are counted in the server's audit log.

    python -m benchmarks.kubernetes_scale [--nodes 100 1000 5000] [--rounds 3] [--runs 1000]
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import yaml
from tests.cluster.cluster import Cluster
from tests.cluster.fake_nodes import LABEL, add_fake_nodes, wait_fake_nodes
from tests.launcher.kubernetes.matrix import place, some_cluster
from tests.launcher.kubernetes.real import Here

from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes.backend import KubernetesBackend
from parctl.launcher.launch import prepared_launch

GPUS = 8
REAL_NODES = ["gpu-1", "gpu-2", "gpu-3"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    print(
        f"{'nodes':>6}{'parctl s':>10}{'kubectl s':>11}{'ratio':>7}{'requests':>10}{'KiB sent':>10}"
    )
    with some_cluster() as cluster, cluster.inside():
        cluster.controllers.ensure("jobset")
        for count in options.nodes:
            with add_fake_nodes(cluster, count, gpus=GPUS):
                submissions(cluster, count, options.rounds)
        with place(cluster) as here:
            questions(here, options.runs)


def submissions(cluster: Cluster, count: int, rounds: int) -> None:
    """Print one row: both ways of submitting a run that takes every fake node."""
    seconds: dict[str, list[float]] = {"parctl": [], "kubectl": []}
    requests, size = 0, 0
    for round_ in range(rounds):
        # the first of a round may still meet what is left of the one before
        for side in list(seconds)[:: 1 if round_ % 2 == 0 else -1]:
            wait_fake_nodes(cluster, count)  # one that is late with its heartbeat is left out
            with place(cluster) as here:
                manifests = planned(here, count, f"run-{round_}")
                text = yaml.safe_dump_all([dict(each) for each in manifests.documents])
                size = len(json.dumps(manifests.documents))
                before = audited(cluster)
                start = time.monotonic()
                if side == "parctl":
                    here.ask(partial(submit, manifests))
                else:
                    words = ("apply", "--server-side", "-f", "-")
                    cluster.kubectl(*words, stdin=text, timeout_s=300)
                wait_bound(here, manifests.run_id, count)
                seconds[side].append(time.monotonic() - start)
                if side == "parctl":  # not above: the server's log is long
                    requests = audited(cluster) - before
    ours, theirs = median(seconds["parctl"]), median(seconds["kubectl"])
    print(
        f"{count:>6}{ours:>10.2f}{theirs:>11.2f}{ours / theirs:>7.2f}"
        f"{requests:>10}{size / 1024:>10.0f}",
        flush=True,
    )


def submit(manifests: Manifests, backend: KubernetesBackend) -> None:
    backend.submit(manifests)


def planned(here: Here, count: int, run_id: str) -> Manifests:
    """The objects of a run with one pod on each fake node."""
    kubernetes = {
        "kind": "job",
        "node_selector": {LABEL: "true"},
        "tolerations": [{"key": LABEL, "operator": "Exists"}],
    }
    recipe = here.recipe(
        ["true"],
        f"DP{count * GPUS}",
        kubernetes=kubernetes,
        placement={"exclude": REAL_NODES},
    )
    with prepared_launch(
        str(recipe),
        overrides=[],
        num_devices=None,
        backend="kubernetes",
        run_id=run_id,
        force=False,
        ahead=True,
    ) as prepared:
        backend = prepared.backend
        assert isinstance(backend, KubernetesBackend)
        backend.client.close()
        return prepared.manifests


def wait_bound(here: Here, run_id: str, count: int) -> None:
    """Wait until all pods are made and none is without a node."""
    path = f"/api/v1/namespaces/{here.namespace}/pods?fieldSelector=spec.nodeName%3D&limit=1"
    deadline = time.monotonic() + 600 + count / 5  # a busy machine makes eight pods a second
    while True:
        job = here.cluster.api.find("Job", run_id, here.namespace, "batch/v1")
        status = (job or {}).get("status", {})
        made = status.get("active", 0) + status.get("succeeded", 0)  # kwok ends pods of Jobs soon
        if made >= count and not here.cluster.api.request("GET", path)["items"]:
            return
        assert time.monotonic() < deadline, f"{made} of {count} pods"
        time.sleep(0.1)


def audited(cluster: Cluster) -> int:
    """How many requests of parctl the API server has answered."""
    text = (cluster.machine.logs / "audit.log").read_text(errors="replace")
    return sum('"userAgent":"parctl"' in line for line in text.splitlines())


def questions(here: Here, count: int) -> None:
    """Print what `list` and `status` cost in a namespace of so many runs."""
    recipe = here.recipe(["true"], "DP2", kubernetes={"kind": "job"}, placement={})
    here.launch(recipe, "first")
    job = here.cluster.api.get("Job", "first", here.namespace, "batch/v1")
    labels, notes = job["metadata"]["labels"], job["metadata"].get("annotations", {})
    for number in range(1, count):
        copy_run(here, f"run-{number:05}", labels, notes)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users keep compiled files
    for words in (["list"], ["status", "run-00001"]):
        ask = partial(here.parctl, *words, "-b", "kubernetes")
        ask()  # compiles what was never imported here
        wall, cpu = timed(ask)
        print(f"`{words[0]}` among {count} runs: {wall:.2f} s, {cpu:.2f} CPU s", flush=True)


def copy_run(here: Here, name: str, labels: dict[str, str], notes: dict[str, str]) -> None:
    """Make the workload of one more run, suspended, so that it has no pods."""
    spec = {"containers": [{"name": "main", "image": "none"}], "restartPolicy": "Never"}
    meta = {"name": name, "annotations": notes}
    meta["labels"] = {**labels, "parctl.dev/run": name, "app.kubernetes.io/instance": name}
    item = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta}
    path = here.cluster.api.path("batch/v1", "Job", here.namespace)
    body = {**item, "spec": {"suspend": True, "template": {"spec": spec}}}
    here.cluster.api.request("POST", path, body)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and CPU seconds of child processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu


if __name__ == "__main__":
    main()

"""Thousands of NodeTopology objects: what they weigh, and what listing and laying out costs.

The API server is real, and kwok plays the kubelets: every node has a lease, is ready, and says so
again and again. Each has eight GPUs with UUIDs and eight NICs of its own. CPU seconds of
`kubectl get nodes,nodetopologies -o json` are those of any client that wants them all; parctl may
take two seconds more to list them and lay a job of every GPU out. Both are separate processes,
measured by the kernel.

    python -m benchmarks.kubernetes_records [--nodes 5000] [--rounds 3]
"""

import argparse
import copy
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml
from tests.cluster import programs
from tests.cluster.api import Api, Object
from tests.cluster.cluster import Cluster
from tests.cluster.controllers import define
from tests.cluster.fake_nodes import LABEL, fake_node, remove_fake_nodes, wait_fake_nodes
from tests.helm.chart import one, render
from tests.launcher.kubernetes.matrix import some_cluster

from parctl.topology.discovery.conditions import conditions_of
from parctl.topology.discovery.objects import RECORDS_PATH, node_topology, status_document
from parctl.topology.discovery.reading import Reading
from parctl.topology.discovery.record import record_of
from parctl.topology.store import topology_to_json
from parctl.topology.synthetic import parse_cluster

GPUS = 8
CLIENTS = 12  # that make nodes and records at once
BUDGET_S = 2.0
NOW = "2026-01-01T00:00:00Z"
CONTROLLER_MANAGER = "kube-controller-manager"
DEFINITION = "nodetopologies.parctl.dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with some_cluster() as cluster, cluster.inside():
        apply_definition(cluster)
        try:
            with recorded_nodes(cluster, options.nodes) as size:
                measure(cluster, options.nodes, size, options.rounds)
        finally:
            cluster.kubectl("delete", "crd", DEFINITION, timeout_s=600)  # and every record


def apply_definition(cluster: Cluster) -> None:
    define(cluster.api, [one(render("helm4"), "CustomResourceDefinition")])


def reading(number: int) -> Reading:
    """A node of eight H100 and eight NICs; every device has a UUID of its own."""
    node = copy.deepcopy(topology_to_json(parse_cluster(f"h100:1x{GPUS}"))["nodes"][0])
    for gpu in node["gpus"]:
        gpu |= {
            "uuid": f"GPU-{number:08x}-0000-4000-8000-{gpu['index']:012x}",
            "pci": f"0000:{0x1B + 0x10 * gpu['index']:02x}:00.0",
            "numa": gpu["index"] // 4,
            "cpu_affinity": "0-55,112-167" if gpu["index"] < 4 else "56-111,168-223",
            "mig": False,
            "ecc_errors": 0,
            "remapped_rows": 0,
            "power_limit_w": 700.0,
        }
        facts = [key for key, value in gpu.items() if value not in (None, []) and key != "sources"]
        gpu["sources"] = dict.fromkeys(facts, "nvml")
    return Reading(node=node, warnings=(), faults=(), failure=None)


@contextmanager
def recorded_nodes(cluster: Cluster, count: int) -> Iterator[int]:
    """Nodes that kwok keeps alive, each with its record; yield the bytes of one as it is listed."""
    cluster.controllers.ensure("kwok")
    # it would declare nodes dead of which it hears too late from a machine as small as this one
    cluster.machine.stop(CONTROLLER_MANAGER, signal.SIGKILL)
    shares = [range(start, count, CLIENTS) for start in range(CLIENTS)]
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:  # its threads are born in this network
            sizes = list(pool.map(lambda share: make_records(cluster, share), shares))
        wait_fake_nodes(cluster, count)
        yield max(sizes)
    finally:
        remove_fake_nodes(cluster)
        cluster.heal()


def make_records(cluster: Cluster, numbers: range) -> int:
    """Create these nodes and a record of each; return the bytes of one."""
    api = Api(cluster.kubeconfig)
    nodes = api.path("v1", "Node", None)
    size = 0
    for number in numbers:
        name = f"fake-{number:05}"
        node = api.request("POST", nodes, fake_node(name, number, GPUS))
        read = reading(number)
        made = record_of(read, {})
        api.request("POST", RECORDS_PATH, node_topology(made, node))
        conditions = conditions_of(read, (), (), NOW)
        status = {"status": status_document(made, conditions, NOW)}
        path = f"{RECORDS_PATH}/{name}"
        whole = api.request("PATCH", f"{path}/status", status, "application/merge-patch+json")
        size = len(json.dumps(whole, separators=(",", ":")))
    api.close()
    return size


def measure(cluster: Cluster, nodes: int, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "wide.yaml"
        recipe.write_text(yaml.safe_dump(wide_recipe(nodes)))
        kubectl = [programs.path("kubectl"), f"--kubeconfig={cluster.kubeconfig}"]
        listing = [*kubectl, "get", "nodes,nodetopologies", "-l", "", "-o", "json"]
        planning = [sys.executable, "-m", "parctl", "plan", str(recipe), "-o", "json"]
        planning += ["--cluster", "kubernetes"]
        showing = [sys.executable, "-m", "parctl", "topology", "--from", "kubernetes", "-o", "json"]
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
        seconds: dict[str, list[float]] = {"kubectl": [], "list": [], "list and lay out": []}
        for _ in range(rounds):
            seconds["kubectl"].append(cpu_seconds(listing))
            seconds["list"].append(cpu_seconds(showing))
            seconds["list and lay out"].append(cpu_seconds(planning))
    print(f"{nodes} records of {size:,} bytes each")
    theirs = median(seconds["kubectl"])
    for name, taken in seconds.items():
        more = median(taken) - theirs
        print(f"{name:>18}: {median(taken):6.2f} CPU s  {more:+.2f} beside kubectl")
    verdict = "within" if median(seconds["list and lay out"]) - theirs <= BUDGET_S else "beyond"
    print(f"{verdict} the budget of {BUDGET_S:g} s")


def wide_recipe(nodes: int) -> Object:
    """A script on every GPU of the fake nodes."""
    return {
        "version": 1,
        "name": "wide",
        "task": "script",
        "parallelism": f"DP{nodes}+TP{GPUS}",
        "script": {"command": ["true"]},
        "placement": {"exclude": ["gpu-1", "gpu-2", "gpu-3"]},
        "launch": {"kubernetes": {"tolerations": [{"key": LABEL, "operator": "Exists"}]}},
    }


def cpu_seconds(words: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()

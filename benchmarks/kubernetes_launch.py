"""From `apply` to the first collective: parctl beside the manifests that people write by hand.

Four sides take turns in one run on the test cluster, so that other work on the machine hits all:

    parctl jobset     the script under parctl's agent, as it launches by itself
    parctl job        the same with `kind: job`
    torchrun job      an Indexed Job + headless Service whose pods run `torchrun`
    torchrun jobset   the same torchrun under a JobSet

Each time runs from the first request to the API server until the last rank has finished its first
all-reduce, by the clock of this machine, which pods share. Goal: faster than both by hand.

    python -m benchmarks.kubernetes_launch [--rounds 5]
"""

import argparse
import time
from statistics import median

from tests.cluster.api import Object
from tests.cluster.cluster import Cluster
from tests.cluster.pods import TOLERATION, headless_service, pod_spec
from tests.launcher.kubernetes.matrix import place, some_cluster
from tests.launcher.kubernetes.real import Here

JOBSET = "jobset.x-k8s.io/v1alpha2"
SIDES = ("parctl jobset", "parctl job", "torchrun job", "torchrun jobset")
MARK = """
import datetime, os, time
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=300))
dist.all_reduce(torch.ones(1))
print("mark", repr(time.time()), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def by_hand(here: Here, name: str, *, jobset: bool) -> None:
    """Apply what the documentation shows: every pod runs torchrun and meets at pod 0."""
    leader = f"{name}-ranks-0-0.{name}" if jobset else f"{name}-0.{name}"
    torchrun = (
        "torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-id=1 "
        f"--rdzv-endpoint={leader}:29500 --no-python python -c"
    )
    command = ["sh", "-c", f'{torchrun} "$0"', MARK]
    spec: Object = pod_spec(command, gpus=2, tolerations=[TOLERATION])
    if not jobset:
        spec["subdomain"] = name
        here.cluster.api.apply(headless_service(name, {"bench": name}), namespace=here.namespace)
    job: Object = {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimit": 0,
        "template": {"metadata": {"labels": {"bench": name}}, "spec": spec},
    }
    item: Object = {"apiVersion": "batch/v1", "kind": "Job", "spec": job}
    if jobset:
        group = {"name": "ranks", "replicas": 1, "template": {"spec": job}}
        network = {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name}
        spec_of_set = {"replicatedJobs": [group], "network": network}
        item = {"apiVersion": JOBSET, "kind": "JobSet", "spec": spec_of_set}
    here.cluster.api.apply({**item, "metadata": {"name": name}}, namespace=here.namespace)


def by_parctl(here: Here, name: str, *, jobset: bool) -> None:
    kind = "jobset" if jobset else "job"
    recipe = here.recipe(["python3", "-c", MARK], kubernetes={"kind": kind}, placement={})
    here.launch(recipe, name)


def measure(here: Here, side: str, name: str) -> float:
    """Seconds from the first request to the last rank's mark."""
    kind = {"jobset": side.endswith("jobset")}
    start = time.time()
    (by_parctl if side.startswith("parctl") else by_hand)(here, name, **kind)
    marks: list[float] = []
    deadline = time.time() + 300
    while len(marks) < 4:
        assert time.time() < deadline, f"{side}: {marks}"
        time.sleep(0.5)
        marks = marks_of(here)
    return max(marks) - start


def marks_of(here: Here) -> list[float]:
    found = []
    for pod in here.cluster.api.list("Pod", here.namespace):
        if pod["status"].get("phase") in ("Running", "Succeeded"):
            text = here.cluster.api.log(pod["metadata"]["name"], here.namespace)
            lines = [line.partition("mark ")[2] for line in text.splitlines()]
            found += [float(line.split()[0]) for line in lines if line]
    return found


def compare(cluster: Cluster, rounds: int) -> None:
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for round_ in range(rounds):
        for number, side in enumerate(SIDES):
            with place(cluster) as here:
                times[side].append(measure(here, side, f"bench-{round_}-{number}"))
    best_by_hand = min(median(times[side]) for side in SIDES if side.startswith("torchrun"))
    print(f"{'side':<18}{'median s':>10}{'best s':>9}{'of best by hand':>17}")
    for side in SIDES:
        middle = median(times[side])
        print(f"{side:<18}{middle:>10.2f}{min(times[side]):>9.2f}{middle / best_by_hand:>17.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with some_cluster() as cluster, cluster.inside():
        cluster.controllers.ensure("jobset")
        compare(cluster, options.rounds)


if __name__ == "__main__":
    main()

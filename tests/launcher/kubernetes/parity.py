"""The loss of a training run on the cluster beside the loss of the same run on this machine."""

import json
import math
from collections.abc import Mapping

from tests.cluster.queues import make_queue
from tests.launcher.kubernetes.real import MOUNT, Here

# Model -> layout on two nodes: of two ranks each, or of four.
EIGHT = "DP2+TP2+PP2"
RUNS: Mapping[str, str] = {
    "tiny-llama": "TP2+SP+FSDP2",
    "tiny-gpt": EIGHT,
    "tiny-moe": "DP2+TP2+EP2",
}
SHAPES = ("job", "jobset", "kueue", "rayjob")
SMALL = {
    "train.steps": 3,
    "train.seq_len": 32,
    "train.global_batch": 8,
    "train.micro_batch": 2,
    "train.validate_every": 0,
    "train.log_every": 1,
}
# The same sums in the same order; gloo adds two numbers alike on one machine and between pods.
TOLERANCE = 1e-6
PATIENCE_S = 600  # Ray on three nodes of a machine that has other things to do


def losses(here: Here, run_id: str, backend: str) -> list[float]:
    shown = here.parctl("metrics", run_id, "-b", backend, "-o", "json")
    assert shown.returncode == 0, shown.stderr
    return [row["loss"] for row in json.loads(shown.stdout)]


def settings(model: str) -> list[str]:
    values = {**SMALL, "parallelism": RUNS[model]}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def run_here(here: Here, model: str) -> list[float]:
    """Train on this machine."""
    words = [*settings(model), "--run-id", f"local-{model}", "-b", "local", "--follow"]
    done = here.parctl("launch", model, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(here, f"local-{model}", "local")


def run_on_cluster(here: Here, model: str, shape: str) -> list[float]:
    """Train on two nodes: as a Job, a JobSet, a JobSet in a queue, or a RayJob."""
    run_id = f"{shape}-{model}"
    if not here.cluster.api.find("PersistentVolumeClaim", "shared", here.namespace):
        here.cluster.claim(here.namespace, "shared")
    kubernetes = {
        "kind": "jobset" if shape == "kueue" else shape,
        "cpu": "100m",
        "volumes": {"shared": {"mount": MOUNT, "claim": "shared"}},
    }
    words = ["--set", f"launch.kubernetes={json.dumps(kubernetes)}"]
    if RUNS[model] == EIGHT:
        for name in ("gpu-1", "gpu-2"):
            here.cluster.nodes[name].set_gpus(4)
    if shape == "rayjob":
        here.cluster.controllers.ensure("kuberay")
    if shape == "kueue":
        here.cluster.controllers.ensure("kueue")
        make_queue(here.cluster, here.namespace, gpus=8)
        words += ["--set", "launch.queue=team"]
    words += ["--set", f"checkpoint.dir={MOUNT}/{run_id}", "--set", "placement={exclude: [gpu-3]}"]
    words += [*settings(model), "--run-id", run_id, "-b", "kubernetes", "--follow"]
    done = here.parctl("launch", model, *words, timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = {rank.node for rank in here.status(run_id).ranks}
    assert nodes == {"gpu-1", "gpu-2"}
    return losses(here, run_id, "kubernetes")


def equal(ours: list[float], wanted: list[float]) -> bool:
    return len(ours) == len(wanted) == SMALL["train.steps"] and all(
        math.isclose(one, other, rel_tol=TOLERANCE) for one, other in zip(ours, wanted, strict=True)
    )

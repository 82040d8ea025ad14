"""The whole launch path without a cluster: plan, gate, manifests, placement, a failure, goodput.

Nothing is submitted and nothing is contacted. Manifests are those that a launch would send, made by
the back ends themselves; a node is lost on paper (`parctl.planner.node_loss`), and failures are
arithmetic (`parctl.planner.goodput`).
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import DoesNotFitError, ParctlError, UsageError
from parctl.planner.fit import refuse_misfit
from parctl.planner.goodput import Failures, job_failures
from parctl.planner.make import make_plan
from parctl.planner.node_loss import NodeLoss, lose_node
from parctl.planner.plan import Plan
from parctl.planner.states import REGIMES
from parctl.recipes.parameters import count_parameters
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology

Documents = Sequence[Mapping[str, Any]]
BACKENDS = ("kubernetes", "ray", "local")
RUN_ID = "simulated-000000"
# in place of what a recipe need not name until it is launched
IMAGE = "registry.example/parctl"
SHARED = "s3://example/checkpoints"
# assumed where nobody says better: a node writes so fast to shared storage, and a job is back so
# soon after a failure (noticed, pods placed, torch imported, checkpoint read)
STORAGE_BYTES_S = 1e9
RESTART_S = 300.0
# etcd keeps no object larger than this (its default --max-request-bytes)
LARGEST_OBJECT = 1_572_864


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What one back end would be sent."""

    backend: str
    objects: Mapping[str, int]  # kind -> how many
    num_bytes: int  # of all of them, as JSON
    largest_bytes: int
    package_bytes: int  # of files that are sent beside them, before they are packed
    pods: int  # that the cluster would make of them; 0: it makes none
    asks: tuple[str, ...]  # what a launch would want to know first, in sentences
    refusal: str | None  # why it would not be sent at all

    @property
    def too_large(self) -> bool:
        return self.backend == "kubernetes" and self.largest_bytes > LARGEST_OBJECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Goodput by how often the job saves."""

    failures: Failures
    step_time_s: float | None
    best_s: float  # Daly's interval
    best_steps: int | None
    best_goodput: float
    recipe_steps: int | None  # the recipe's own interval; None: it saves at the end only
    recipe_goodput: float | None
    assumed: tuple[str, ...]  # what was not told, in sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    plan: Plan
    misfit: DoesNotFitError | None
    rendered: Sequence[Rendered]
    loss: NodeLoss | None
    saving: Saving | None
    seconds: Mapping[str, float]  # that the parts of the simulation took


def simulate(
    recipe: Recipe,
    topology: Topology,
    *,
    backend: str | None = None,
    fail_node: tuple[str, int] | None = None,
    mtbf_hours: float | None = None,
    checkpoint_s: float | None = None,
    restart_s: float | None = None,
) -> Simulation:
    """Take a recipe through a launch on a cluster that need not exist.

    `backend`: only this one renders. `fail_node`: a node and the step at which it is lost.
    `mtbf_hours`: of one node. Raises what planning raises; what a back end refuses is told.
    """
    took: dict[str, float] = {}
    began = time.monotonic()

    def done(part: str) -> None:
        nonlocal began
        now = time.monotonic()
        took[part], began = now - began, now

    chosen = backend or recipe.launch.backend
    if chosen is not None and chosen not in BACKENDS:
        raise UsageError(f"there is no back end `{chosen}`", hint=f"one of {', '.join(BACKENDS)}")
    plan = make_plan(recipe, topology, backend=chosen or BACKENDS[0])
    done("plan")
    misfit = None
    try:
        refuse_misfit(plan)
    except DoesNotFitError as error:
        misfit = error
    rendered = [render_on(name, plan, topology) for name in ([chosen] if chosen else BACKENDS)]
    done("manifests")
    loss = None
    if fail_node is not None:
        loss = lose_node(recipe, plan, topology, *fail_node)
        done("node loss")
    saving = None
    if mtbf_hours is not None:
        saving = _saving(plan, mtbf_hours, checkpoint_s, restart_s)
        done("goodput")
    return Simulation(
        plan=plan, misfit=misfit, rendered=rendered, loss=loss, saving=saving, seconds=took
    )


def render_on(backend: str, plan: Plan, topology: Topology) -> Rendered:
    """Render a plan for a back end and count what comes out.

    A shared folder for checkpoints and an image are supplied where the recipe names none: `asks`
    says so.
    """
    asks, refusal = [], None
    documents: Documents | None = None
    packages = 0
    try:
        documents, packages = _render(backend, plan, topology)
    except ParctlError as error:
        refusal = error.message
        checkpoint = plan.recipe.checkpoint
        if checkpoint is not None and checkpoint.dir is None and backend != "local":
            shared = replace(checkpoint, dir=SHARED)
            told = replace(plan, recipe=replace(plan.recipe, checkpoint=shared))
            try:
                documents, packages = _render(backend, told, topology)
            except ParctlError as second:
                refusal = second.message
            else:
                asks.append(refusal)
                refusal = None
    if documents is None:
        return Rendered(
            backend=backend,
            objects={},
            num_bytes=0,
            largest_bytes=0,
            package_bytes=0,
            pods=0,
            asks=(),
            refusal=refusal,
        )
    if backend == "kubernetes" and plan.recipe.launch.image is None:
        asks.append("launch.image is not set: pods need one with Python, torch and parctl")
    sizes = [len(json.dumps(document, separators=(",", ":"))) for document in documents]
    return Rendered(
        backend=backend,
        objects=Counter(str(document.get("kind", "document")) for document in documents),
        num_bytes=sum(sizes),
        largest_bytes=max(sizes, default=0),
        package_bytes=packages,
        pods=sum(pods_of(document) for document in documents),
        asks=tuple(asks),
        refusal=None,
    )


def pods_of(document: Mapping[str, Any]) -> int:
    """How many pods a cluster makes of an object."""
    spec = document.get("spec", {})
    match document.get("kind"):
        case "Pod":
            return 1
        case "Job":
            return int(spec.get("parallelism", 1))
        case "JobSet":
            return sum(
                int(job.get("replicas", 1)) * pods_of({"kind": "Job"} | job["template"])
                for job in spec["replicatedJobs"]
            )
        case "LeaderWorkerSet":
            return int(spec.get("replicas", 1)) * int(spec["leaderWorkerTemplate"].get("size", 1))
    return 0


def read_failure(text: str, topology: Topology) -> tuple[str, int]:
    """Read `N@STEP`, where N is a node's name or its number.

    >>> read_failure("3@1000", parse_cluster("h100:4x8"))
    ('node-3', 1000)
    """
    where, _, step = text.rpartition("@")
    names = [node.name for node in topology.nodes]
    if not where or not step.isdecimal():
        raise UsageError(
            f"--fail-node {text}: expected NODE@STEP", hint=f"for example `{names[-1]}@1000`"
        )
    if where in names:
        return where, int(step)
    if where.isdecimal() and int(where) < len(names):
        return names[int(where)], int(step)
    raise UsageError(
        f"--fail-node {text}: no node `{where}`",
        hint=f"a number from 0 to {len(names) - 1:,}, or a name such as {names[0]}",
    )


def _render(backend: str, plan: Plan, topology: Topology) -> tuple[Documents, int]:
    """Documents, and the bytes of what is sent beside them."""
    if backend == "kubernetes":
        from parctl.launcher.kubernetes.render import Target, render

        target = Target(namespace="default", topology=topology, image=IMAGE)
        return render(plan, RUN_ID, target).documents, 0
    if backend == "ray":
        from parctl.launcher.ray.manifest import ray_manifest

        manifest = ray_manifest(plan, RUN_ID, storage=None)
        files = [content for package in manifest.packages for content in package.files.values()]
        return tuple(manifest.documents()), sum(map(len, files))
    if backend == "local":
        from parctl.launcher.local_manifest import local_document

        return (local_document(plan, RUN_ID),), 0
    raise AssertionError(backend)


def _saving(
    plan: Plan, mtbf_hours: float, checkpoint_s: float | None, restart_s: float | None
) -> Saving:
    nodes = plan.layout.num_nodes
    if plan.recipe.task not in ("train", "script"):
        raise UsageError(
            f"recipe {plan.recipe.name} has task: {plan.recipe.task}: it saves nothing",
            hint="--mtbf-hours is for jobs that go on from what they saved",
        )
    assumed = []
    if checkpoint_s is None:
        state = saved_bytes(plan)
        if state is None:
            raise UsageError(
                "how long a save takes is not known: parctl does not know the program's state",
                hint="say it with --checkpoint-s",
            )
        checkpoint_s = state / nodes / STORAGE_BYTES_S
        assumed.append(
            f"a save takes {checkpoint_s:.3g} s: {state / 1e9:,.4g} GB, and every node writes "
            f"{STORAGE_BYTES_S / 1e9:g} GB/s (--checkpoint-s says better)"
        )
    if restart_s is None:
        restart_s = RESTART_S
        assumed.append(f"steps go on {RESTART_S:g} s after a failure (--restart-s says better)")
    failures = job_failures(
        node_mtbf_hours=mtbf_hours, num_nodes=nodes, checkpoint_s=checkpoint_s, restart_s=restart_s
    )
    step = plan.time.get("step_time_s")
    best, best_steps = failures.daly_s, None
    if step is not None:
        best_steps = max(1, round(best / step))
        best = best_steps * step
    checkpoint = plan.recipe.checkpoint
    every = checkpoint.every if checkpoint else 0
    if step is None:
        assumed.append("the step time is not predicted here, so intervals are in seconds only")
    return Saving(
        failures=failures,
        step_time_s=step,
        best_s=best,
        best_steps=best_steps,
        best_goodput=failures.goodput(best),
        recipe_steps=every or None,
        recipe_goodput=failures.goodput(every * step) if every and step is not None else None,
        assumed=tuple(assumed),
    )


def saved_bytes(plan: Plan) -> int | None:
    """Bytes of a checkpoint: weights and optimizer state, once each. None: not known."""
    model, train = plan.recipe.model, plan.recipe.train
    if model is None or train is None:
        return None
    regime = REGIMES[train.precision]
    return count_parameters(model).total * (regime.weight + regime.optimizer)

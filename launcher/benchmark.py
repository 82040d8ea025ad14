"""`parctl bench`: measure collectives and products where a job would run, as a run like any other.

The run is a `task: script` with the degrees of the job's plan, so its ranks sit where the job's
would, in the order of the mesh, on whatever back end. Its program prints measurements, which are
read from the log of rank 0; nothing else has to come back from the cluster.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import RunFailedError, UsageError
from parctl.launcher.backend import Backend
from parctl.launcher.run_id import new_run_id
from parctl.launcher.waiting import outcome_error, wait_for
from parctl.planner.devices import narrowed, survey
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.planner.time.calibrate import calibrate
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.compute import layer_products
from parctl.planner.time.estimate import slowest
from parctl.planner.time.planned import planned_job
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import Recipe, ScriptSpec
from parctl.topology.model import Topology

PREFIX = "parctl-bench "  # of the lines that the program prints
PROGRAM = "parctl.runtime.benchmark.program"
TIMEOUT_S = 1800.0
# by kind of device: bytes of the largest collective, FLOPs of the largest product, s of each
LIMITS = {"gpu": (256 * 2**20, 2e13, 0.2), "cpu": (4 * 2**20, 1e9, 0.05)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    plan: Plan  # of the run that measured
    run_id: str
    calibration: Calibration


def bench_plan(
    recipe: Recipe, topology: Topology, *, backend: str, max_bytes: int | None = None
) -> Plan:
    """Plan the job, and from it the run that measures its groups and products.

    Raises what planning raises; UsageError for a recipe without a model to take products from.
    """
    job = make_plan(recipe, topology, backend=backend)
    if job.recipe.model is None or job.recipe.train is None:
        raise UsageError(
            f"recipe {recipe.name} has task: {recipe.task}",
            hint="`parctl bench` measures what a `task: train` would exchange and multiply",
        )
    kind = str(job.topology["kind"])
    largest, most_flops, seconds = LIMITS[kind]
    layout = job.layout
    measured = {
        "axes": dict(layout.axes),
        "expert_axes": None if layout.expert_axes is None else dict(layout.expert_axes),
        "products": product_shapes(job, topology),
        "max_bytes": max_bytes or largest,
        "most_flops": most_flops,
        "seconds": seconds,
    }
    python = sys.executable if backend == "local" else "python3"
    script = Recipe(
        name=f"{recipe.name[:26]}-bench",
        task="script",
        model=None,
        parallelism=job.recipe.parallelism,
        train=None,
        data=None,
        checkpoint=None,
        script=ScriptSpec(
            command=(python, "-m", PROGRAM, "--job", json.dumps(measured)), env={}, workdir=None
        ),
        launch=replace(recipe.launch, retries=0, timeout_s=TIMEOUT_S),
        placement=recipe.placement,
        source=recipe.source,
        notes=(),
    )
    return make_plan(script, topology, backend=backend)


def product_shapes(job: Plan, topology: Topology) -> list[list[int]]:
    """`[M, K, N]` of the different products of the job's layers on one rank."""
    model = job.recipe.model
    assert model is not None
    described = planned_job(job, topology)
    kinds = {is_sparse(model, index): index for index in range(model.num_layers)}
    shapes = {
        (max(1, round(m)), max(1, round(k)), max(1, round(n)))
        for index in kinds.values()
        for m, k, n, _ in layer_products(described, index)
    }
    shapes.add((described.tokens, model.dim, max(1, model.vocab_size // described.degrees.tp)))
    return [list(shape) for shape in sorted(shapes)]


def run_benchmark(backend: Backend, plan: Plan, topology: Topology) -> Benchmark:
    """Run a plan of `bench_plan`, wait for it and fit what it printed."""
    run_id = new_run_id(plan.recipe.name)
    backend.submit(backend.render(plan, run_id))
    try:
        status = wait_for(backend, run_id, timeout_s=TIMEOUT_S)
    except BaseException:
        backend.cancel(run_id)
        raise
    error = outcome_error(status)
    if error is not None:
        raise error
    lines = [
        line.text for line in backend.logs(run_id, rank=0, since=None, tail=None, follow=False)
    ]
    found = list(measurements(lines))
    if not found:
        raise RunFailedError(
            f"run `{run_id}` ended without a measurement",
            hint=f"`parctl logs {run_id}` shows what it said",
        )
    devices = narrowed(survey(topology, strict_node=False), topology, plan.layout)
    calibration = calibrate(found, plan.layout, topology, slowest(devices), made_unix=time.time())
    return Benchmark(plan=plan, run_id=run_id, calibration=calibration)


def measurements(lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The measurements among the lines of a log."""
    for line in lines:
        _, found, text = line.partition(PREFIX)
        if found:
            data = json.loads(text)
            if "seconds" in data:
                yield data

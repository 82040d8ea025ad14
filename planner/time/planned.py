"""What the time model sees of a plan: its job, and how long each of its stages takes.

A plan holds the sums only. Whoever shows or measures more (a chart of the schedule with its real
times, the shapes of the products) describes the job anew, from the plan and its cluster.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from parctl.planner.degrees import Degrees
from parctl.planner.devices import narrowed, survey
from parctl.planner.plan import Plan
from parctl.planner.schedules import Action
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.constants import FITTED
from parctl.planner.time.estimate import fabric_of, slowest
from parctl.planner.time.job import Job, job_of
from parctl.planner.time.pipeline import StageTime
from parctl.planner.time.step import step_time
from parctl.recipes.spec import AXES
from parctl.topology.model import Topology
from parctl.topology.products import product_named


def planned_job(plan: Plan, topology: Topology) -> Job:
    """Return the job of a plan of `task: train`.

    Its shapes do not depend on the type of number; where the time model does not know it, or does
    not know the devices, they stand as bf16 and as CPUs, and nothing is to be predicted from them.
    """
    recipe, spec = plan.recipe, plan.recipe.parallelism
    assert recipe.train is not None
    devices = narrowed(
        survey(topology, strict_node=spec.strict_node, allow_pcie_tp=spec.allow_pcie_tp),
        topology,
        plan.layout,
    )
    product = slowest(devices) or product_named("cpu")
    degrees = Degrees(
        **{axis: getattr(spec, axis) or 1 for axis in AXES}, ep=spec.ep or 1, etp=spec.etp or 1
    )
    fabric = fabric_of(plan.layout, devices, product)
    job = job_of(recipe, degrees, plan.stages, product, fabric)
    if job is None:
        known = replace(recipe, train=replace(recipe.train, precision="bf16"))
        job = job_of(known, degrees, plan.stages, product, fabric)
    assert job is not None
    return job


def action_times(
    plan: Plan, topology: Topology, calibration: Calibration | None = None
) -> tuple[Callable[[Action], float], float]:
    """Seconds of every action of the schedule, and of the way between two pipeline ranks.

    Of a plan whose step time is predicted, and as it was predicted.
    """
    assert plan.time["step_time_s"] is not None
    job, constants = planned_job(plan, topology), FITTED
    if calibration is not None:
        constants = calibration.constants(job.product)
        job = replace(job, fabric=calibration.fabric(job.fabric))
    seen: list[tuple[Sequence[StageTime], float]] = []

    def look(_: Job, stages: Sequence[StageTime], exchange: float) -> float:
        seen.append((stages, exchange))
        return 0.0

    step_time(job, constants, wait=look)
    stages, exchange = seen[0]

    def seconds(action: Action) -> float:
        stage = stages[action.stage]
        match action.kind:
            case "F":
                return stage.forward
            case "I":
                return stage.inputs
            case "W":
                return stage.weights
        return stage.inputs + stage.weights

    return seconds, exchange

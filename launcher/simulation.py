"""The whole launch path without a cluster: plan, gate, manifests, placement, a failure, goodput.

Nothing is submitted and nothing is contacted. Manifests are those that a launch would send, made by
the back ends themselves; a node is lost on paper (`parctl.planner.node_loss`), and failures are
arithmetic (`parctl.planner.goodput`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parctl.errors import DoesNotFitError, UsageError
from parctl.launcher.rendered import BACKENDS, Rendered, render_on
from parctl.planner.fit import refuse_misfit
from parctl.planner.goodput import Failures, job_failures
from parctl.planner.make import make_plan
from parctl.planner.node_loss import NodeLoss, lose_node
from parctl.planner.plan import Plan
from parctl.planner.states import REGIMES
from parctl.recipes.parameters import count_parameters
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology

# assumed where nobody says better: a node writes so fast to shared storage, and a job is back so
# soon after a failure (noticed, pods placed, torch imported, checkpoint read)
STORAGE_BYTES_S = 1e9
RESTART_S = 300.0


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

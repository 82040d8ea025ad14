"""How a simulated launch looks in a terminal, and as a document."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from parctl.cli.plan_view import groups_table, headline, time_lines, verdict
from parctl.launcher.rendered import LARGEST_OBJECT, Rendered
from parctl.launcher.simulation import Saving, Simulation
from parctl.planner.node_loss import NodeLoss
from parctl.planner.plan import Plan
from parctl.planner.sizes import size_text
from parctl.recipes.frozen import to_json
from parctl.topology.names import few
from parctl.topology.placement.request import product_text

if TYPE_CHECKING:
    from rich.console import Console


def show_simulation(found: Simulation, console: "Console") -> None:
    """Print it part by part: gate, placement, objects, a lost node, goodput."""

    def say(lines: Iterator[str]) -> None:
        for line in lines:
            console.print(line, markup=False, soft_wrap=not console.is_terminal)

    plan = found.plan
    say(iter([headline(plan)]))
    say(verdict(plan))
    if found.misfit is not None:
        say(iter([f"GATE: `parctl launch` refuses it (exit {found.misfit.exit_code})."]))
    say(time_lines(plan))
    console.print()
    console.print(groups_table(plan, console.width))
    console.print()
    console.print(objects_table(found.rendered))
    say(object_lines(found.rendered))
    if found.loss is not None:
        console.print()
        say(loss_lines(found.loss, plan))
    if found.saving is not None:
        console.print()
        say(saving_lines(found.saving, plan))
    console.print()
    took = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in found.seconds.items())
    say(iter([f"Simulated in {sum(found.seconds.values()):.2f} s: {took}."]))


def objects_table(rendered: Sequence[Rendered]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in ("BACK END", "OBJECTS", "PODS", "BYTES", "LARGEST"):
        table.add_column(column, overflow="fold")
    for each in rendered:
        if each.refusal is not None:
            table.add_row(each.backend, "refused, see below")
            continue
        kinds = ", ".join(f"{count} {kind}" for kind, count in each.objects.items())
        table.add_row(
            each.backend,
            kinds,
            f"{each.pods:,}" if each.pods else "-",
            size_text(each.num_bytes)
            + (f" + {size_text(each.package_bytes)} of packages" if each.package_bytes else ""),
            size_text(each.largest_bytes),
        )
    return table


def object_lines(rendered: Sequence[Rendered]) -> Iterator[str]:
    for each in rendered:
        if each.refusal is not None:
            yield f"{each.backend} refuses: {each.refusal}"
        for sentence in each.asks:
            yield f"{each.backend} asks: {sentence}"
        if each.too_large:
            yield (
                f"{each.backend}: an object of {size_text(each.largest_bytes)} is larger than the "
                f"{size_text(LARGEST_OBJECT)} that etcd keeps"
            )


def loss_lines(loss: NodeLoss, plan: Plan) -> Iterator[str]:
    """Say what a lost node takes with it, and how the job goes on."""
    world, devices = plan.layout.world_size, len(loss.ranks)
    ranks = (
        f"ranks {loss.ranks[0]} to {loss.ranks[-1]}"
        if loss.ranks[-1] - loss.ranks[0] == devices - 1
        else f"ranks {few([str(rank) for rank in loss.ranks])}"
    )
    yield f"NODE LOSS: {loss.node} at step {loss.step:,} takes {ranks} with it."
    sizes = {**(plan.layout.expert_axes or {}), **plan.layout.axes}
    broken = ", ".join(
        f"{count:,} of {world // sizes[axis]:,} {axis} groups"
        for axis, count in loss.broken.items()
    )
    yield f"  Broken: {broken}; all {world:,} ranks stop, since every collective waits for them."
    step = plan.time.get("step_time_s")
    cost = ""
    if step is not None:
        hours = loss.lost_steps * step * world / 3600
        cost = f" = {duration_text(loss.lost_steps * step)}, {hours:,.0f} GPU-hours"
    if loss.checkpoint_step:
        saved = f"the checkpoint of step {loss.checkpoint_step:,}"
    else:
        saved = "the beginning, since nothing was saved yet"
    yield f"  Lost: {loss.lost_steps:,} steps{cost}; all ranks start again from {saved}."
    retries = plan.recipe.launch.retries
    if retries:
        losses = f"{retries} such loss{'es' * (retries > 1)}"
        yield f"  launch.retries = {retries}: the run survives {losses}."
    else:
        yield "  launch.retries = 0: the run would fail here instead; `--set launch.retries=3`."
    if loss.rebound is not None:
        difference = loss.rebound.difference
        yield "  Goes on with the same degrees, laid out anew:"
        for sentence in difference.sentences:
            yield f"    - {sentence}"
    else:
        for refusal in loss.refusals:
            yield f"  Not with the same ranks: {refusal}"
        if loss.replanned is not None:
            layout = loss.replanned.layout
            yield (
                f"  Goes on with fewer: {product_text(layout.axes)} ranks on {layout.num_nodes:,} "
                "nodes, planned anew."
            )
        else:
            yield f"  Waits until {loss.node} or another node is there."
        yield "  A spare node would take over: `--set placement.spares=1` keeps one free."


def duration_text(seconds: float) -> str:
    """Write a time for people, with three digits.

    >>> duration_text(4.2), duration_text(600), duration_text(86400)
    ('4.2 s', '10 minutes', '24 hours')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} minutes"
    return f"{seconds / 3600:,.3g} hours" if seconds < 3.6e6 else f"{seconds / 86400:,.0f} days"


def saving_lines(saving: Saving, plan: Plan) -> Iterator[str]:
    """Say how often the job fails and should save, and what is left."""
    failures = saving.failures
    nodes = plan.layout.num_nodes
    who = f"one of {nodes:,} nodes" if nodes > 1 else "the node"
    yield f"GOODPUT: {who} fails every {duration_text(failures.mtbf_s)}."
    every = duration_text(saving.best_s)
    if saving.best_steps is not None:
        every += f", {saving.best_steps:,} step{'s' * (saving.best_steps != 1)}"
    yield f"  Best: save every {every} (Daly): {saving.best_goodput:.1%} of the time is progress."
    if saving.recipe_goodput is not None:
        yield (
            f"  The recipe saves every {saving.recipe_steps:,} steps: {saving.recipe_goodput:.1%}."
        )
    elif saving.recipe_steps is None:
        yield "  The recipe saves at its end only: checkpoint.every = 0."
    for sentence in saving.assumed:
        yield f"  Assumed: {sentence}."


def simulation_to_json(found: Simulation) -> dict[str, Any]:
    plan, loss, saving = found.plan, found.loss, found.saving
    return {
        "recipe": plan.recipe.name,
        "plan_hash": plan.hash,
        "ranks": plan.layout.world_size,
        "nodes": plan.layout.num_nodes,
        "axes": dict(plan.layout.axes),
        "fits": plan.memory.get("fits"),
        "step_time_s": plan.time.get("step_time_s"),
        "proofs": to_json(plan.layout.proofs),
        "manifests": [to_json(each) | {"too_large": each.too_large} for each in found.rendered],
        "node_loss": None if loss is None else _loss_to_json(loss, plan),
        "goodput": None
        if saving is None
        else to_json(saving)
        | {"young_s": saving.failures.young_s, "daly_s": saving.failures.daly_s},
        "seconds": dict(found.seconds),
    }


def _loss_to_json(loss: NodeLoss, plan: Plan) -> dict[str, Any]:
    step, binding, replanned = plan.time.get("step_time_s"), loss.rebound, loss.replanned
    return {
        "node": loss.node,
        "step": loss.step,
        "ranks": list(loss.ranks),
        "broken": dict(loss.broken),
        "checkpoint_step": loss.checkpoint_step,
        "lost_steps": loss.lost_steps,
        "lost_s": None if step is None else loss.lost_steps * step,
        "restarted_ranks": plan.layout.world_size,
        "outcome": loss.outcome,
        "difference": None if binding is None else to_json(binding.difference),
        "replanned": None
        if replanned is None
        else {"axes": dict(replanned.layout.axes), "nodes": replanned.layout.num_nodes},
        "refusals": list(loss.refusals),
    }

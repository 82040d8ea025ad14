"""A plan as one HTML page that needs nothing else: no script, no font, no address.

It can be mailed or kept with a run. It follows the reader's choice of light or dark.
"""

from collections.abc import Iterator

from parctl.planner.budget import Budget, budget_of, count_text
from parctl.planner.page.cluster import cluster_section
from parctl.planner.page.grid import grid_section
from parctl.planner.page.memory import memory_section
from parctl.planner.page.parts import bullets, section, table, tile
from parctl.planner.page.step import schedule_section, step_section
from parctl.planner.page.style import STYLE
from parctl.planner.plan import Plan
from parctl.planner.sizes import distinct_size_texts, size_text
from parctl.planner.time.calibration import Calibration
from parctl.topology.model import Topology
from parctl.topology.picture.drawing import escaped
from parctl.topology.placement.request import product_text


def plan_to_html(plan: Plan, topology: Topology, calibration: Calibration | None = None) -> str:
    """Write the page. `topology` and `calibration` are those that the plan was made with.

    Equal plans give equal text.
    """
    axes = product_text(plan.layout.axes)
    title = f"{plan.recipe.name}: {axes}"
    nodes = plan.layout.num_nodes
    parts = [
        f"<h1>{escaped(plan.recipe.name)}</h1>",
        f'<p class="dim">{escaped(axes)} ranks on {nodes:,} node{"s" * (nodes != 1)} of '
        f"{escaped(plan.topology['source'])}</p>",
        f'<div class="tiles">{"".join(tiles(plan))}</div>',
        memory_section(plan),
        step_section(plan),
        schedule_section(plan, topology, calibration),
        cluster_section(plan, topology),
        grid_section(plan),
        proofs_section(plan),
        section("Why", bullets(plan.layout.explain)) if plan.layout.explain else "",
        f"<footer>parctl {escaped(plan.parctl_version)}, plan <code>{escaped(plan.hash)}</code>, "
        f"recipe <code>{escaped(plan.recipe.source)}</code></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def tiles(plan: Plan) -> Iterator[str]:
    """The numbers that are asked for first."""
    memory, time = plan.memory, plan.time
    if memory.get("fits") is not None:
        needs, room = distinct_size_texts(memory["total_bytes"], memory["usable_bytes"])
        fits = memory["fits"]
        yield tile(
            "fits" if fits else "does not fit",
            f"needs {needs} of {room} usable",
            "good" if fits else "bad",
        )
    elif "total_bytes" in memory:
        yield tile(size_text(memory["total_bytes"]), "needed per rank")
    if time.get("step_time_s") is not None:
        yield tile(f"{time['step_time_s']:.3g} s", "per step")
        yield tile(f"{time['tokens_per_s_per_gpu']:,.4g}", "tokens/s per GPU")
        if time.get("mfu") is not None:
            yield tile(f"{time['mfu']:.1%}", "MFU, attention counted causal")
    if "per_token_s" in time.get("inference", {}):
        inference = time["inference"]
        yield tile(f"{inference['first_token_s'] * 1e3:,.3g} ms", "first token, one request")
        yield tile(f"{inference['per_token_s'] * 1e3:,.3g} ms", "each further token")
        yield tile(f"{inference['full']['tokens_per_s']:,.4g}", "tokens/s with all requests")
    if "budget" in time:  # of the tokens that were asked for
        yield _budget_tile(Budget(**time["budget"]))
    elif (budget := budget_of(plan)) is not None:
        yield _budget_tile(budget)
    if time.get("tokens_per_step"):
        count = time["micro_batches_per_step"]
        each = f"{count:,} micro-batch{'es' * (count != 1)} per rank"
        yield tile(f"{time['tokens_per_step']:,}", f"tokens per step, {each}")


def _budget_tile(budget: Budget) -> str:
    took = f"{budget.days:.3g} days" if budget.days >= 2 else f"{budget.seconds / 3600:.3g} hours"
    cost = "" if budget.cost is None else f", at a cost of {budget.cost:,.0f}"
    words = f"for {count_text(budget.tokens)} tokens: {budget.device_hours:,.0f} GPU-hours{cost}"
    return tile(took, words)


def proofs_section(plan: Plan) -> str:
    sent = plan.time.get("bytes_per_step") or {}
    rows = [
        (
            proof.axis,
            f"{proof.size:,}",
            f"{proof.groups:,}",
            proof.worst_link,
            "?" if proof.bandwidth is None else f"{proof.bandwidth:g}",
            proof.scope,
            f"{proof.nodes_per_group:,}",
            size_text(sent[proof.axis]) if proof.axis in sent else "-",
            proof.reason,
        )
        for proof in plan.layout.proofs
        if proof.size > 1 or proof.axis in plan.layout.axes
    ]
    head = (
        "axis",
        "size",
        "groups",
        "worst link",
        "GB/s",
        "scope",
        "nodes",
        "sent per step",
        "proof",
    )
    return section("What each axis crosses", table(head, rows, numbers=(1, 2, 4, 6, 7)))

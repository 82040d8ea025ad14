"""Memory of every pipeline stage as a stacked bar, with a mark where the device ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from parctl.planner.page.parts import bar, legend, paragraph, section, table
from parctl.planner.plan import Plan
from parctl.planner.sizes import size_text
from parctl.topology.picture.drawing import escaped

MOST_STAGES = 24
# of a stage, beside its terms in bytes
FACTS = ("stage", "layers", "parameters", "micro_batches", "block_bytes", "total")


def memory_section(plan: Plan) -> str:
    memory = plan.memory
    stages = memory.get("stages")
    if not stages:
        return section("Memory", paragraph(memory.get("reason", "not estimated"), "dim"))
    terms = [
        term for term in stages[0] if term not in FACTS and any(stage[term] for stage in stages)
    ]
    shown = shown_stages(stages, memory["worst_stage"])
    usable = memory["usable_bytes"]
    scale = max(usable or 0, memory["total_bytes"]) * 1.04
    bars = "".join(
        f"<span>{escaped(_name(stage, memory['worst_stage'], len(stages)))}</span>"
        + bar(
            [
                (number, share / scale, f"{term}: {size_text(share)}")
                for number, term in enumerate(terms)
                if (share := counted(stage, term))
            ],
            None if usable is None else usable / scale,
        )
        + f"<span>{size_text(stage['total'])}</span>"
        for stage in shown
    )
    head = ["stage", "layers", *terms, "total per rank"]
    rows = [
        [
            str(stage["stage"]),
            str(stage["layers"]),
            *(size_text(stage[term]) if stage[term] else "-" for term in terms),
            size_text(stage["total"]),
        ]
        for stage in shown
    ]
    left_out = len(stages) - len(shown)
    notes = [paragraph(f"and {left_out:,} stages between them", "dim")] if left_out else []
    return section(
        "Memory per rank, by pipeline stage",
        paragraph(verdict(memory), "dim"),
        f'<div class="bars">{bars}</div>',
        legend(enumerate(terms)),
        *notes,
        "<p></p>",
        table(head, rows, numbers=range(1, len(head))),
    )


def verdict(memory: Mapping[str, Any]) -> str:
    """What the mark in the bars is."""
    if memory["usable_bytes"] is None:
        return "The memory of the devices is not known, so there is no verdict."
    state = f" State: {memory['regime']}." if "regime" in memory else ""
    return (
        f"Dashed: {size_text(memory['usable_bytes'])}, {memory['usable_fraction']:.0%} of a "
        f"device's {size_text(memory['device_bytes'])}.{state}"
    )


def counted(stage: Mapping[str, Any], term: str) -> float:
    """What a term adds to the total: of `working` and `logits` only the larger one does."""
    value = float(stage[term])
    if term in ("working", "logits") and "working" in stage:
        other = float(stage["logits" if term == "working" else "working"])
        return value if value > other or (value == other and term == "working") else 0.0
    return value


def shown_stages(stages: Sequence[Mapping[str, Any]], worst: int) -> list[Mapping[str, Any]]:
    """All of few stages; of many the ends and the worst."""
    if len(stages) <= MOST_STAGES:
        return list(stages)
    half = MOST_STAGES // 2
    wanted = {*range(half), *range(len(stages) - half, len(stages)), worst}
    return [stages[number] for number in sorted(wanted)]


def _name(stage: Mapping[str, Any], worst: int, count: int) -> str:
    return f"stage {stage['stage']}{' (worst)' if stage['stage'] == worst and count > 1 else ''}"

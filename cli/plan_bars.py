"""Bars in plain ASCII: how full the devices of every stage are, and what a step is spent on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parctl.planner.plan import Plan
from parctl.planner.sizes import size_text

WIDTH = 50  # characters for the memory of a device
# letters of the terms, in the order in which they fill the bar
LETTERS = {
    "weights": "W", "gradients": "G", "optimizer": "O", "gathered": "C", "kv_cache": "K",
    "activations": "A", "working": "R", "logits": "L", "buffers": "B",
}  # fmt: skip
WORDS = {"gathered": "copies gathered", "working": "recomputed", "kv_cache": "keys and values"}
# which axes a part of the step waits for
AXES = {"tensor": ("tp",), "context": ("cp",), "experts": ("ep",), "data": ("fsdp", "dp", "edp")}


def memory_bars(stages: Sequence[Mapping[str, Any]], memory: Mapping[str, Any]) -> Iterator[str]:
    """One bar per stage, as long as the device; `|` marks what is usable of it."""
    device, usable = memory.get("device_bytes"), memory.get("usable_bytes")
    if not device or not usable:
        return
    used = [term for term in LETTERS if any(stage.get(term) for stage in stages)]
    names = ", ".join(f"{LETTERS[term]} {WORDS.get(term, term)}" for term in used)
    yield f"Memory of a device by stage ({names}, . free, | usable):"
    number = max(len(str(stage["stage"])) for stage in stages)
    for stage in stages:
        share = stage["total"] / usable
        yield (
            f"  {stage['stage']:>{number}}  [{memory_bar(stage, device, usable)}] "
            f"{size_text(stage['total'])}, {share:.0%} of what is usable"
        )


def memory_bar(stage: Mapping[str, Any], device: int, usable: int) -> str:
    """Draw one stage.

    >>> memory_bar({"weights": 30, "buffers": 20, "total": 50}, 100, 90)
    'WWWWWWWWWWWWWWWBBBBBBBBBB....................|.....'
    """
    # of what is made again and the logits, the larger one is there at the peak
    smaller = min(("working", "logits"), key=lambda term: stage.get(term) or 0)
    bar, filled = "", 0
    for term, letter in LETTERS.items():
        if term == smaller:
            continue
        filled += stage.get(term) or 0
        bar += letter * (round(filled / device * WIDTH) - len(bar))
    room = round(usable / device * WIDTH)
    bar = bar.ljust(max(WIDTH, len(bar)), ".")
    shown = bar[:room] + "|" + bar[room:]
    return shown if len(shown) <= 2 * WIDTH else shown[: 2 * WIDTH] + ">"


def step_bars(plan: Plan) -> Iterator[str]:
    """One bar per part of a step, with the axes and links that it waits for."""
    parts, step = plan.time.get("step_parts_s"), plan.time.get("step_time_s")
    if not parts or not step:
        return
    yield "A step is spent on:"
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        share = seconds / step
        if share < 0.002:
            continue
        bar = "#" * max(1, round(share * WIDTH))
        yield f"  {name:<10} {seconds:>8.3g} s  {share:>4.0%}  {bar}{_links(plan, name)}"


def _links(plan: Plan, part: str) -> str:
    told = [
        f"{proof.axis} over {proof.worst_link}"
        + ("" if proof.bandwidth is None else f" at {proof.bandwidth:g} GB/s")
        for proof in plan.layout.proofs
        if proof.axis in AXES.get(part, ()) and proof.size > 1
    ]
    return f" {', '.join(told)}" if told else ""

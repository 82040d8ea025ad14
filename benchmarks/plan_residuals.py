"""Every published run with its error and what it is likely to come from, as a Markdown table.

A cause is a guess by rule, from what a row says of itself; where no rule applies and the error is
beyond what two measurements of one configuration differ by, it says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.published_runs import Run

SMALL = 0.08  # two runs of one published configuration differ by as much


class Predicted(Protocol):
    @property
    def run(self) -> Run: ...
    @property
    def step_time_s(self) -> float: ...
    @property
    def peak_mem_gb(self) -> float: ...
    @property
    def error(self) -> float | None: ...


def write_residuals(path: Path, predictions: Sequence[Predicted], how: str) -> None:
    """Write all rows with a measured speed, the largest error first. `how`: which constants."""
    rows = [item for item in predictions if item.error is not None]
    rows.sort(key=lambda item: -abs(item.error or 0.0))
    lines = [
        "# Residuals of the time model",
        "",
        f"Written by `benchmarks/plan_accuracy.py --residuals`; {how}.",
        "Seconds per step. What an error is likely to come from is a guess, made by rule",
        "(`benchmarks/plan_residuals.py`).",
        "",
        "| run | GPU | measured | predicted | error | likely cause |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.run.id} | {item.run.gpu} | {item.run.step_time_s:.3g} | {item.step_time_s:.3g} | "
        f"{item.error:+.0%} | {cause(item)} |"
        for item in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cause(item: Predicted) -> str:
    """What an error is likely to come from."""
    run, error = item.run, item.error or 0.0
    job = run.job
    if abs(error) <= SMALL:
        return "as far as runs of one configuration differ"
    nearly_full = item.peak_mem_gb * 1e9 > 0.8 * (job.product.memory_bytes or 0)
    over_network = job.degrees.ep > job.fabric.island
    rules = (
        (run.family == "gpt-oss" and error < 0,
         "attention with sinks and windows has no tuned kernel there; experts 2,880 wide leave "
         "tiles of the matrix units empty"),
        (run.sparse and over_network and error > 0,
         "exchanges of experts over the network are hidden better than in most runs"),
        (run.sparse and over_network,
         "exchanges of experts over the network are hidden worse than in most runs"),
        (run.sparse,
         "software: one configuration differs by up to 1.9 times between two releases"),
        ("paxml" in run.id, "JAX, whose compiler places and overlaps exchanges otherwise"),
        (job.degrees.cp > 1 and job.seq_len > 131072 and error < 0,
         "a ring of very long sequences: its parts are unfused products beside exchanges"),
        ("405b" in run.id and "titan" in run.id, "the micro-batch is not published"),
        (run.family == "bloom" and error < 0,
         "other shapes of the same size in the same notes are a quarter faster"),
        (job.attention == "plain" and job.micro_batch > 1 and error > 0,
         "small products of older libraries gain more from a larger micro-batch than is counted"),
        (nearly_full and error < 0,
         "memory is nearly full: the allocator frees and asks again, which stalls the device"),
        (not run.says_recompute, "what is recomputed is not published"),
        (job.arithmetic == "fp4", "fp4 is counted as twice fp8"),
        (job.trained_share < 1, "adapters: the rest of the optimizer and its exchanges are gone"),
        (job.tensor_overlap and job.degrees.tp > 1 and error > 0,
         "tensor exchanges are hidden better than in most runs"),
    )  # fmt: skip
    return next((text for holds, text in rules if holds), "not explained")

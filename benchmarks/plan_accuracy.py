"""How far the planner's predictions are from published training runs.

Every row of FILE (YAML: a list of runs with `model`, `hardware`, `parallelism`, `measured`) is
predicted. Printed are the errors of step time by class, source and GPU, of peak memory, and the
runs that ran out of memory but are called a fit; beside them what simple guesses reach. A row that
says too little is listed with the reason. `--jsonl` writes one line per row.

`--cross` fits the constants once more for every family of models, without its rows, and predicts
those: that is what to expect for a model that nobody has published yet. `--fit` prints constants
fitted to all rows.

    python benchmarks/plan_accuracy.py --runs published_runs.yaml [--jsonl OUT] [--cross] [--fit]
        [--residuals OUT]
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, not with -m

from benchmarks import time_fit
from benchmarks.plan_residuals import write_residuals
from benchmarks.published_memory import peak_memory
from benchmarks.published_runs import CannotPredict, Run, read_run

from parctl.planner.flops import model_flops_per_token
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.pipeline import even_waiting, waiting
from parctl.planner.time.step import Waiting, step_time

GOALS = {"dense": (0.06, 0.20), "moe": (0.10, 0.20)}  # median and 90th percentile
WORST = 15  # rows that are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    run: Run
    step_time_s: float
    parts: Mapping[str, float]
    peak_mem_gb: float
    fits: bool | None

    @property
    def tokens_per_s_per_gpu(self) -> float:
        job = self.run.job
        return job.tokens_per_step / self.step_time_s / job.fabric.num_devices

    @property
    def error(self) -> float | None:
        """Of the step time, relative; None where nothing was measured."""
        measured = self.run.step_time_s
        return None if measured is None else self.step_time_s / measured - 1

    @property
    def memory_error(self) -> float | None:
        measured = self.run.peak_mem_gb
        return None if measured is None else self.peak_mem_gb / measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--jsonl", type=Path)
    parser.add_argument("--cross", action="store_true", help="predict families left out of the fit")
    parser.add_argument("--fit", action="store_true", help="print constants fitted to all rows")
    parser.add_argument(
        "--residuals", type=Path, help="write every row's error and its likely cause"
    )
    given = parser.parse_args()
    rows = yaml.load(given.runs.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    predictions, refused = predict(rows)
    if given.jsonl:
        write(given.jsonl, predictions, refused)
    report("Shipped constants (fitted to published runs; these may be among them)", predictions)
    baselines(predictions)
    memory_report(predictions)
    for name, reason in refused.items():
        print(f"not predicted: {name}: {reason}")
    runs = [item.run for item in predictions if item.run.step_time_s is not None]
    if given.fit:
        print_constants(time_fit.fit(runs))
    if given.cross:
        apart = cross(runs)
        if given.residuals:
            write_residuals(given.residuals, apart, "constants fitted without the run's family")
    elif given.residuals:
        write_residuals(given.residuals, predictions, "constants fitted to all runs")


def predict(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Prediction], dict[str, str]]:
    """Predict every row. Also return the rows that cannot be, with the reason."""
    predictions, refused = [], {}
    for place, row in enumerate(rows):
        name = str(row.get("id", f"row {place}"))
        try:
            predictions.append(predicted(read_run(row), FITTED))
        except CannotPredict as error:
            refused[name] = str(error)
    return predictions, refused


def predicted(run: Run, constants: Constants, *, wait: Waiting = waiting) -> Prediction:
    time = step_time(run.job, constants, wait=wait)
    memory = peak_memory(run.job, says_recompute=run.says_recompute)
    return Prediction(
        run=run,
        step_time_s=time.total,
        parts=asdict(time),
        peak_mem_gb=memory.peak_bytes / 1e9,
        fits=memory.fits,
    )


def write(path: Path, predictions: Sequence[Prediction], refused: Mapping[str, str]) -> None:
    lines = [
        {
            "id": item.run.id,
            "step_time_s": item.step_time_s,
            "tokens_per_s_per_gpu": item.tokens_per_s_per_gpu,
            "peak_mem_gb": item.peak_mem_gb,
            "fits": item.fits,
            "parts_s": item.parts,
        }
        for item in predictions
    ]
    nothing = dict.fromkeys(("step_time_s", "tokens_per_s_per_gpu", "peak_mem_gb", "fits"))
    lines += [{"id": name, **nothing, "reason": reason} for name, reason in refused.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(title: str, predictions: Sequence[Prediction]) -> None:
    """Print errors by class, family, source and GPU, and the worst rows."""
    print(f"{title}: step time, relative error")
    groups: dict[str, list[float]] = defaultdict(list)
    for item in predictions:
        if item.error is None:
            continue
        kind = "moe" if item.run.sparse else "dense"
        keys = (kind, f"family {item.run.family}", item.run.source[:44], f"{item.run.gpu}, {kind}")
        for key in keys:
            groups[key].append(item.error)
    print(f"  {'':46} rows   bias median    p90  worst")
    for key in sorted(groups, key=lambda key: (key not in GOALS, key)):
        print(f"  {key:46}{spread(groups[key])}{goal(key, groups[key])}")
    measured = [item for item in predictions if item.error is not None]
    print(f"  the {WORST} worst rows, with the shares that were predicted:")
    for item in sorted(measured, key=lambda item: -abs(item.error or 0.0))[:WORST]:
        shares = ", ".join(
            f"{name} {part / item.step_time_s:.0%}"
            for name, part in item.parts.items()
            if part > 0.03 * item.step_time_s
        )
        print(f"    {item.error:+.0%}  {item.run.id}: {shares}")
    print()


def spread(errors: Sequence[float]) -> str:
    size = sorted(abs(error) for error in errors)
    return (
        f"{len(size):5} {median(errors):+7.1%} {median(size):6.1%} "
        f"{quantile(size, 0.9):6.1%} {size[-1]:6.1%}"
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def goal(key: str, errors: Sequence[float]) -> str:
    if key not in GOALS:
        return ""
    size = sorted(abs(error) for error in errors)
    middle, tail = GOALS[key]
    met = median(size) <= middle and quantile(size, 0.9) <= tail
    return f"  {'meets' if met else 'MISSES'} {middle:.0%} and {tail:.0%}"


def baselines(predictions: Sequence[Prediction]) -> None:
    """Print what one efficiency for all, or one per GPU and precision, would reach.

    Each is the median of the rows that it is judged by, so it is flattered.
    """
    efficiencies: dict[tuple[str, ...], list[float]] = defaultdict(list)
    rows = [item for item in predictions if item.error is not None]
    ideals = {item.run.id: ideal(item.run) for item in rows}
    for item in rows:
        assert item.run.step_time_s is not None
        reached = ideals[item.run.id] / item.run.step_time_s
        for key in ((), (item.run.gpu, item.run.job.arithmetic)):
            efficiencies[key].append(reached)
    print("Baselines: model FLOPs over (peak x efficiency), relative error")
    for name, keyed in (("one efficiency", False), ("by GPU and precision", True)):
        for kind in GOALS:
            errors = []
            for item in rows:
                if item.run.sparse != (kind == "moe"):
                    continue
                assert item.run.step_time_s is not None
                key = (item.run.gpu, item.run.job.arithmetic) if keyed else ()
                guess = ideals[item.run.id] / median(efficiencies[key])
                errors.append(guess / item.run.step_time_s - 1)
            if errors:
                print(f"  {name + ', ' + kind:46}{spread(errors)}")
    print()


def ideal(run: Run) -> float:
    """Seconds at the bf16 peak."""
    job = run.job
    assert job.product.bf16_flops is not None
    flops = model_flops_per_token(job.model, job.seq_len) * job.tokens_per_step
    return flops / job.product.bf16_flops / job.fabric.num_devices


def memory_report(predictions: Sequence[Prediction]) -> None:
    errors = [item.memory_error for item in predictions if item.memory_error is not None]
    print("Peak memory, relative error")
    if errors:
        print(f"  {'all':46}{spread(errors)}")
    failed = [item for item in predictions if not item.run.fits]
    false_fits = [item.run.id for item in failed if item.fits]
    print(f"  out of memory: {len(failed)} runs, called a fit: {', '.join(false_fits) or 'none'}")
    refused = [item.run.id for item in predictions if item.run.fits and item.fits is False]
    print(f"  ran, but called no fit: {len(refused)} of {len(predictions) - len(failed)}")
    for name in refused:
        print(f"    {name}")
    print()


def print_constants(constants: Constants) -> None:
    print("Fitted to all rows:")
    for field in fields(Constants):
        low, high = field.metadata["low"], field.metadata["high"]
        value = getattr(constants, field.name)
        print(
            f"  {field.name:24} {value:9.3g}  in [{low:g}, {high:g}]  {field.metadata['meaning']}"
        )
    print()


def cross(runs: Sequence[Run]) -> list[Prediction]:
    """Predict every family by constants that were fitted without it."""
    fits = time_fit.left_out(runs)
    predictions = [predicted(run, fits[run.family], wait=even_waiting) for run in runs]
    report("Families left out of the fit", predictions)
    print("Constants, and how far they move when a family is left out:")
    for field in fields(Constants):
        values = [getattr(constants, field.name) for constants in fits.values()]
        own = getattr(FITTED, field.name)
        print(f"  {field.name:24} {own:9.3g}  {min(values):9.3g} to {max(values):9.3g}")
    return predictions


if __name__ == "__main__":
    main()

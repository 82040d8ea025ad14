"""What following the planner would have cost, on published runs of one model in several ways.

Runs of FILE (as in `plan_accuracy.py`) are grouped by model, sequence, GPU, number of GPUs and
precision. In every group with three configurations or more the planner picks the one that it
predicts to be fastest per token, from what it knows without that family of models (`--cross`), and
its measured speed is held against the fastest that was published. The regret is how much slower it
was; 5% is the goal, and a larger one is printed with what was predicted for both.

    python benchmarks/plan_regret.py --runs published_runs.yaml [--cross]
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, not with -m

from benchmarks import time_fit
from benchmarks.published_runs import CannotPredict, Run, read_run

from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.step import step_time

GOAL = 0.05
FEWEST = 3  # configurations of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One configuration: seconds per token and GPU, measured and predicted."""

    run: Run
    measured: float
    predicted: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cross", action="store_true", help="constants without the family")
    given = parser.parse_args()
    rows = yaml.load(given.runs.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    runs = []
    for row in rows:
        try:
            run = read_run(row)
        except CannotPredict:
            continue
        if run.step_time_s is not None and run.fits:
            runs.append(run)
    fits = time_fit.left_out(runs) if given.cross else {}
    regrets = []
    for name, group in sorted(groups_of(runs, fits).items()):
        best = min(group, key=lambda item: item.measured)
        pick = min(group, key=lambda item: item.predicted)
        regret = pick.measured / best.measured - 1
        regrets.append(regret)
        print(f"{regret:6.1%}  {len(group):2} of {name}: picks {told(pick.run)}")
        if regret > GOAL:
            ratios = best.predicted / pick.predicted, best.measured / pick.measured
            print(f"        best was {told(best.run)}")
            print("        predicted {:.2f}, measured {:.2f} of the pick's time".format(*ratios))
    within = sum(regret <= GOAL for regret in regrets)
    print(
        f"{len(regrets)} groups: {within} within {GOAL:.0%}, median {median(regrets):.1%}, "
        f"worst {max(regrets):.1%}"
    )


def groups_of(runs: Sequence[Run], fits: dict[str, Constants]) -> dict[str, list[Judged]]:
    """Groups that are large enough, each configuration once: the fastest of its repetitions."""
    found: dict[str, dict[str, Judged]] = defaultdict(dict)
    for run in runs:
        job = run.job
        assert run.step_time_s is not None
        tokens = job.tokens_per_step / job.fabric.num_devices
        constants = fits.get(run.family, FITTED)
        item = Judged(
            run=run,
            measured=run.step_time_s / tokens,
            predicted=step_time(job, constants).total / tokens,
        )
        name = (
            f"{job.model.name}, {job.seq_len} tokens, {job.fabric.num_devices} x {run.gpu}, "
            f"{job.arithmetic}"
        )
        group, key = found[name], told(run)
        if key not in group or item.measured < group[key].measured:
            group[key] = item
    return {name: list(group.values()) for name, group in found.items() if len(group) >= FEWEST}


def told(run: Run) -> str:
    """A configuration in words."""
    job = run.job
    sizes = {
        "tp": job.degrees.tp,
        "pp": job.degrees.pp,
        "v": job.virtual_stages,
        "cp": job.degrees.cp,
        "ep": job.degrees.ep,
    }
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    again = job.repeated
    parts += [f"ZeRO-{job.zero_stage}", f"micro-batch {job.micro_batch}"]
    parts += [f"recompute {again.products:g}/{again.attention:g}/{again.elements:g}"]
    parts += ["overlapped"] if job.tensor_overlap and job.degrees.tp > 1 else []
    return " ".join(parts)


if __name__ == "__main__":
    main()

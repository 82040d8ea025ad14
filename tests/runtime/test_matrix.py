"""A sample of the parity matrix, another one with every commit, and every shipped recipe.

`PARCTL_MATRIX_SEED` draws a given sample again; `make matrix-runtime` runs all of the matrix.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.runtime.harness import describe_failure, read_metrics, run_on_crew
from tests.runtime.matrix import Chosen, all_cases, products, run_cases, sample, shipped_cases

from parctl.errors import RunFailedError
from parctl.launcher.trials import Trial
from parctl.planner.plan import Plan
from parctl.recipes.spec import Precision

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 12
# read here, because every test starts from a clean environment
GIVEN_SEED = os.environ.get("PARCTL_MATRIX_SEED")


def seed_of_today() -> str:
    """Return the seed that is asked for, else the commit, else a constant."""
    if GIVEN_SEED:
        return GIVEN_SEED
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    )
    return head.stdout.strip() or "0"


class Standing:
    """Trials on ranks that stay."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._number = directory, 0

    def run(self, plan: Plan) -> Trial:
        began = time.monotonic()
        self._number += 1
        run_dir = self._directory / str(self._number)
        codes = run_on_crew(plan, run_dir, timeout_s=120)
        if any(codes):
            raise RunFailedError(describe_failure(run_dir, codes))
        return Trial(metrics=read_metrics(run_dir), seconds=time.monotonic() - began)


def run_matrix(capsys: pytest.CaptureFixture[str], directory: Path, chosen: Chosen) -> None:
    """Every case must be equal."""
    outcomes = run_cases(Standing(directory), directory, chosen)
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(f"\nmatrix: {printed.splitlines()[-1:]}")
    assert outcomes["equal"] == len(chosen), printed


def test_a_sample_of_the_matrix_equals_one_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp64")
    every = [(case, precision) for precision in precisions for case in all_cases()]
    run_matrix(capsys, tmp_path, sample(every, SAMPLE, seed_of_today()))


def test_every_shipped_recipe_equals_one_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_matrix(capsys, tmp_path, [(case, "fp64") for case in shipped_cases()])


def test_the_matrix_is_a_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.runtime.matrix", "--only", "op2", "--sample", "1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases in" in done.stdout and "1 equal" in done.stdout


def test_the_matrix_has_every_product_of_at_most_eight_ranks() -> None:
    # 2-rank data axes: 4 x (3 x 8 x 3 products - 2 x 7 x 2 of 16 ranks); hsdp: 1 + 2 + 7 + 2
    assert len(list(products())) == 4 * (72 - 28) + 12
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))

"""A sample of the parity matrix, another one with every commit, and every shipped recipe.

`PARCTL_MATRIX_SEED` draws a given sample again; `make matrix-runtime` runs all of the matrix.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.matrix import all_cases, products

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


def run_matrix(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.matrix", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    with capsys.disabled():
        print(f"\nmatrix {' '.join(options)}: {done.stdout.splitlines()[-1:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sample_of_the_matrix_equals_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--sample", str(SAMPLE), "--seed", seed_of_today())
    run_matrix(capsys, *options, "--precision", "fp64,fp32,bf16")


def test_every_shipped_recipe_equals_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 refused with reason" in run_matrix(capsys, "--shipped")


def test_the_matrix_has_every_product_of_at_most_eight_ranks() -> None:
    # 2-rank data axes: 4 x (3 x 8 x 3 products - 2 x 7 x 2 of 16 ranks); hsdp: 1 + 2 + 7 + 2
    assert len(list(products())) == 4 * (72 - 28) + 12
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))

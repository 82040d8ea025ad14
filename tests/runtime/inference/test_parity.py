"""A sample of the inference matrix, another one with every commit.

`PARCTL_MATRIX_SEED` draws a given sample again; `make matrix-inference` runs all of the matrix.
"""

from pathlib import Path

import pytest
from tests.runtime.inference.conftest import Reference
from tests.runtime.inference.matrix import run_case, sample
from tests.runtime.test_matrix import seed_of_today

CASES = sample(6, seed_of_today())


@pytest.mark.parametrize("number", range(len(CASES)))  # names would differ between workers
def test_a_form_says_what_transformers_says(
    number: int, reference: Reference, tmp_path: Path
) -> None:
    folder, expected = reference(CASES[number].model)
    faults = run_case(CASES[number], folder, tmp_path, expected)
    assert not faults, CASES[number].name

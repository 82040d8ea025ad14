"""A sample of the inference matrix, another one with every commit.

`PARCTL_MATRIX_SEED` draws a given sample again; `make matrix-inference` runs all of the matrix.
"""

from pathlib import Path

from tests.runtime.inference.conftest import Reference
from tests.runtime.inference.matrix import run_case, sample
from tests.runtime.test_matrix import seed_of_today

SAMPLE = 7


def test_a_sample_of_forms_says_what_transformers_says(
    reference: Reference, tmp_path: Path
) -> None:
    faults = {}
    for case in sample(SAMPLE, seed_of_today()):
        folder, expected = reference(case.model)
        faults[case.name] = run_case(case, folder, tmp_path / case.name, expected)
    assert not any(faults.values()), faults

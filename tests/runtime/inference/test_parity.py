"""A sample of the inference matrix, another one with every commit.

`PARCTL_MATRIX_SEED` draws a given sample again; `make matrix-inference` runs all of the matrix.
"""

from pathlib import Path

import pytest
import torch
from tests.runtime.inference.conftest import Reference
from tests.runtime.inference.matrix import Case, run_case, sample
from tests.runtime.test_matrix import seed_of_today

CASES = sample(6, seed_of_today())


@pytest.mark.parametrize("number", range(len(CASES)))  # names would differ between workers
def test_a_form_says_what_transformers_says(
    number: int, reference: Reference, tmp_path: Path
) -> None:
    found = run_case(CASES[number], reference(CASES[number].model), tmp_path)
    assert not found.faults, CASES[number].name


def test_float32_parts_from_float64_only_where_two_tokens_are_almost_equal(
    reference: Reference, tmp_path: Path
) -> None:
    case = Case(model="llama", form="tp2")
    assert not run_case(case, reference("llama"), tmp_path, torch.float32).faults


@pytest.mark.parametrize("form", ["tp2", "pp2", "ring2", "ulysses2"])
def test_a_window_shorter_than_the_prompt_moves_as_that_of_transformers(
    form: str, reference: Reference, tmp_path: Path
) -> None:
    case = Case(model="mistral", form=form)  # prompts of up to 48 tokens, a window of 10
    assert not run_case(case, reference("mistral"), tmp_path).faults


@pytest.mark.parametrize("form", ["pp2", "ring2"])
def test_layers_with_a_window_and_without_go_together(
    form: str, reference: Reference, tmp_path: Path
) -> None:
    assert not run_case(Case(model="qwen2", form=form), reference("qwen2"), tmp_path).faults

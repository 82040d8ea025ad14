"""What docs/planning.md shows is what the program prints."""

import doctest
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.planner.infer import AUTO_FORMS
from parctl.planner.time.constants import FITTED, Constants

DOCS = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")


def test_the_example_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command, *expected = DOCS.split("```text\n")[1].split("```")[0].splitlines()
    assert run(command.removeprefix("$ parctl ").split()) == 0
    out = re.sub("sha256:[0-9a-f]+", "sha256:...", capsys.readouterr().out)
    printed = [line.rstrip() for line in out.splitlines()]
    missing = [line for line in expected if line != "..." and line not in printed]
    assert not missing


def test_the_forms_of_auto_are_named() -> None:
    forms = ["+".join(form).upper().replace("TP", "TP+SP") for form in AUTO_FORMS]
    assert f"the first of {', '.join(f'`{form}`' for form in forms)}" in DOCS


@pytest.mark.parametrize("name", ["degrees", "devices", "plan", "sizes", "stages"])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    module = import_module(f"parctl.planner.{name}")
    results = doctest.testmod(module)
    assert results.failed == 0


def test_every_fitted_constant_is_listed_with_its_value_and_interval() -> None:
    for field in fields(Constants):
        value, data = getattr(FITTED, field.name), field.metadata
        row = f"| `{field.name}` | {value:.3g} | {data['low']:g} to {data['high']:g} |"
        assert row in DOCS, field.name

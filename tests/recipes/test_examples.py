"""The examples in docstrings and docs are true."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from parctl.recipes.loader import load_recipe
from parctl.recipes.shorthand import read_form

MODULES = ("faults", "json_schema", "loader", "parallelism", "parameters", "presets", "problems",
           "shorthand", "yaml_source", "build")  # fmt: skip
DOCS = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    module = import_module(f"parctl.recipes.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_yaml_in_the_docs_is_a_recipe_or_part_of_one(block: str, tmp_path: Path) -> None:
    part = yaml.safe_load(block) or {}
    whole = {"version": 1, "model": "llama-3-8b", "parallelism": "TP2"}
    path = tmp_path / "r.yaml"
    path.write_text(block if "version" in part else yaml.safe_dump({**whole, **part}))
    load_recipe(str(path))


def test_the_terms_in_the_docs_mean_the_mapping_beside_them() -> None:
    rows = re.findall(r"^\| (`[A-Za-z].*?) \|.*\| `(\{.*?\})` \|$", DOCS, re.MULTILINE)
    assert len(rows) == 13
    for terms, mapping in rows:
        first = re.findall(r"`([^`]+)`", terms)[0]
        form = read_form(first)
        assert not form.faults
        assert dict(form.values) == yaml.safe_load(mapping), first

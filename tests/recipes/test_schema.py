"""The schema, its JSON form and the generated reference agree with the specs and the docs."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from parctl.cli.main import run
from parctl.recipes import (
    kubernetes_schema,
    kubernetes_spec,
    launch_schema,
    model_schema,
    placement_schema,
    schema,
    spec,
)
from parctl.recipes.json_schema import form_pattern, recipe_json_schema
from parctl.recipes.reference import write_reference
from parctl.recipes.shipped import shipped_recipes

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize(
    ("fields", "value", "only_written", "only_derived"),
    [
        (schema.RecipeFields, spec.Recipe, {"version"}, {"source", "notes"}),
        (schema.TrainFields, spec.TrainSpec, {"activation_checkpointing"}, set()),
        (schema.OptimizerFields, spec.OptimizerSpec, set(), set()),
        (schema.DataFields, spec.DataSpec, set(), set()),
        (schema.CheckpointFields, spec.CheckpointSpec, set(), set()),
        (schema.ScriptFields, spec.ScriptSpec, {"axes"}, set()),
        (launch_schema.SecretFields, spec.SecretSpec, set(), set()),
        (launch_schema.LaunchFields, spec.LaunchSpec, set(), set()),
        (kubernetes_schema.KubernetesFields, kubernetes_spec.KubernetesSpec, set(), set()),
        (kubernetes_schema.VolumeFields, kubernetes_spec.VolumeSpec, set(), set()),
        (kubernetes_schema.TolerationFields, kubernetes_spec.TolerationSpec, set(), set()),
        (placement_schema.PlacementFields, spec.PlacementSpec, set(), set()),
        (
            schema.ParallelismFields,
            spec.ParallelismSpec,
            {"form", "schedule_file", "expert_load_file"},
            {"text", "schedule_table", "expert_load"},
        ),
        (model_schema.ModelFields, spec.ModelSpec, {"preset", "hf"}, set()),
        (model_schema.MoeFields, spec.MoeSpec, set(), set()),
        (model_schema.MlaFields, spec.MlaSpec, set(), set()),
        (model_schema.VisionFields, spec.VisionSpec, set(), set()),
    ],
)
def test_what_people_write_has_the_names_of_what_code_reads(
    fields: Any, value: Any, only_written: set[str], only_derived: set[str]
) -> None:
    written = set(fields.model_fields)
    derived = {field.name for field in dataclasses.fields(value)}
    assert written - derived == only_written
    assert derived - written == only_derived


def test_every_field_says_what_it_means_and_has_an_example() -> None:
    for module in (schema, model_schema, launch_schema, kubernetes_schema):
        for name, fields in vars(module).items():
            if name.endswith("Fields") and name != "Fields":
                for key, info in fields.model_fields.items():
                    assert info.description and info.examples, f"{name}.{key}"


def test_the_schema_is_valid_draft_2020_12() -> None:
    document = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(document)
    json.dumps(document)


@pytest.mark.parametrize("shipped", shipped_recipes(), ids=lambda shipped: shipped.name)
def test_the_schema_accepts_every_shipped_recipe(shipped: Any) -> None:
    jsonschema.Draft202012Validator(recipe_json_schema()).validate(
        yaml.safe_load(shipped.path.read_text())
    )


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"LLaMA-70B": "TP+SP+FSDP"}, True),
        ({"LLaMA-70B": "TP+XX"}, False),
        ({"LLaMA-70B": 8}, False),
        ({"a": "TP", "b": "TP"}, False),
        ({"version": 1, "model": {"hf": "x"}, "parallelism": {"tp": "auto", "sp": True}}, True),
        ({"version": 1, "model": "x", "parallelism": {"tp": "many"}}, False),
        ({"version": 1, "model": "x", "parallelism": {"form": "TP8", "order": ["tp"]}}, True),
        ({"version": 1, "model": "x", "parallelism": "auto", "data": {"train": "a"}}, True),
        ({"version": 1, "task": "script", "script": {"command": ["a"], "env": {"A": 7}}}, True),
    ],
)
def test_the_schema_knows_lines_and_shorthands(document: Any, valid: bool) -> None:
    assert jsonschema.Draft202012Validator(recipe_json_schema()).is_valid(document) is valid


@pytest.mark.parametrize(
    ("form", "matches"),
    [
        ("TP8+SP+FSDP16", True), ("tp + sp", True), ("Auto", True), ("HSDP2x4", True),
        ("ZERO28", True), ("PP4@interleaved-1f1b:2", True), ("CP4@ulysses", True), ("OP2", True),
        ("TP0", False), ("OP", False), ("HSDP2", False), ("ZERO4", False), ("TP8+", False),
        ("PP4@x", False), ("SP2", False),
    ],
)  # fmt: skip
def test_the_pattern_of_a_form_is_the_grammar(form: str, matches: bool) -> None:
    assert bool(re.search(form_pattern(), form)) is matches


def test_parctl_schema_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_json_schema()


def test_the_field_reference_in_the_docs_is_up_to_date() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text == write_reference(text), "run: python -m parctl.recipes.reference docs/recipes.md"

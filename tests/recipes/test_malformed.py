"""Malformed recipes: every problem at once with line, column and hint, exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml
from tests.recipes.malformed import GOOD, MALFORMED, Malformed

from parctl.cli.main import run
from parctl.errors import RecipeError
from parctl.recipes.json_schema import recipe_json_schema
from parctl.recipes.loader import load_recipe

every_case = pytest.mark.parametrize("case", MALFORMED, ids=[case.name for case in MALFORMED])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_that_is_spoilt_is_good(folder: Path) -> None:
    Path("good.yaml").write_text(GOOD)
    assert load_recipe("good.yaml").name == "mine"


@every_case
def test_every_problem_is_found_with_line_column_and_hint(case: Malformed, folder: Path) -> None:
    Path("r.yaml").write_bytes(case.text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    problems = caught.value.problems
    assert tuple((item.line, item.column, item.path) for item in problems) == case.problems
    assert case.says in problems[0].message
    assert problems[0].hint is not None and case.hint in problems[0].hint
    assert all(item.hint and item.file == "r.yaml" for item in problems)
    assert caught.value.exit_code == 2


@every_case
def test_validate_prints_them_and_exits_2(
    case: Malformed, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_bytes(case.text)
    assert run(["validate", "r.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line, column, _ = case.problems[0]
    assert printed.err.startswith(f"error: r.yaml:{line}:{column}")
    assert printed.err.count("hint: ") == len(case.problems)
    assert "Traceback" not in printed.err


def test_validate_reports_all_files_and_goes_on_after_a_bad_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.yaml").write_text(GOOD)
    for case in MALFORMED[:2]:
        Path(f"{case.name}.yaml").write_bytes(case.text)
    names = [f"{case.name}.yaml" for case in MALFORMED[:2]]
    assert run(["validate", names[0], "good.yaml", names[1]]) == 2
    printed = capsys.readouterr()
    assert printed.out == "good.yaml: ok: tiny-llama, TP2+SP+FSDP2\n"
    assert all(f"{name}:8:10 train.steps" in printed.err for name in names)


def test_validate_looks_for_prompts_where_ranks_run_here(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "version: 1\ntask: generate\nmodel: tiny-llama\nparallelism: DP1\n"
    Path("r.yaml").write_text(f"{text}generate: {{prompts: p.txt}}\n")
    assert run(["validate", "r.yaml", "tiny-llama"]) == 2
    told = capsys.readouterr()
    assert "tiny-llama: ok" in told.out
    assert f"r.yaml: generate.prompts = {folder / 'p.txt'}: No such file" in told.err
    assert "hint: a relative path begins at the recipe's folder" in told.err
    Path("p.txt").write_text("\n")
    assert run(["validate", "r.yaml"]) == 2
    assert "p.txt holds no prompt" in capsys.readouterr().err
    Path("p.txt").write_text("one\n")
    assert run(["validate", "r.yaml"]) == 0
    Path("p.txt").unlink()
    monkeypatch.setenv("PARCTL_BACKEND", "kubernetes")  # the file may lie there
    assert run(["validate", "r.yaml"]) == 0


def test_validate_as_json_names_every_problem(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(GOOD.replace("steps: 10", "steps: ten\n  lr: 1"))
    assert run(["validate", "-o", "json", "r.yaml", "tiny-llama"]) == 2
    bad, good = json.loads(capsys.readouterr().out)
    assert [problem["path"] for problem in bad["problems"]] == ["train.steps", "train.lr"]
    assert (bad["ok"], good["ok"], good["model"]) == (False, True, "tiny-llama")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("lama-70b", "did you mean `llama-70b`?"),
        ("recipes/tiny_llama.yaml", "a recipe `tiny-llama` ships with parctl"),
        ("llama-2-7b", "`llama-2-7b: TP+SP+FSDP`"),
        ("TP8+SP", "`llama-3-8b: TP8+SP`"),
        ("", "parctl recipes list"),
        (".", "name a file"),
        ("/dev/null", "stdin"),
        ("x" * 5000, "shipped recipes are"),
        ("nul\0byte", "shipped recipes are"),
        ("a: \ud800", "UTF-8"),
    ],
)
def test_what_is_no_recipe_gets_a_hint(source: str, hint: str, folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    (problem,) = caught.value.problems
    assert problem.hint is not None and hint in problem.hint
    str(problem).encode()  # it can be printed


def test_a_folder_names_a_recipe_inside_it(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "a.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match="found a folder") as caught:
        load_recipe("mine")
    assert caught.value.problems[0].hint == "name a file in it: `mine/a.yaml`"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(folder: Path) -> None:
    Path("r.yaml").write_text(GOOD)
    Path("r.yaml").chmod(0)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load_recipe("r.yaml")


def test_one_reading_shows_problems_of_every_step(folder: Path) -> None:
    text = GOOD.replace("steps: 10", "steps: ten").replace("TP2", "TP3+XP").replace("32", "33")
    Path("r.yaml").write_text(text + "name: twice\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", ["launch.retries=-1"])
    assert [(item.line, item.path) for item in caught.value.problems] == [
        (4, "parallelism.tp"),  # across objects: 8 heads
        (4, "parallelism"),  # shorthand
        (6, "train.seq_len"),  # across objects: 128 / 3
        (7, "train.global_batch"),  # across objects: 33 / 2
        (8, "train.steps"),  # schema
        (9, ""),  # YAML: name twice
        (1, "launch.retries"),  # --set
    ]


def test_a_bad_value_does_not_cause_false_alarms(folder: Path) -> None:
    text = GOOD.replace("TP2+SP+FSDP2", "{tp: many, sp: true}").replace(
        "seq_len: 128", "seq_len: x"
    )
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    found = [item.path for item in caught.value.problems]
    assert found == ["parallelism.tp", "train.seq_len"]


class Core(yaml.SafeLoader):
    """Reads `yes` as text, as YAML 1.2, editors and we do; PyYAML follows 1.1."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # PyYAML types it so
        first: [rule for rule in rules if first in "tf" or not rule[0].endswith(":bool")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# What a schema can see: types, keys, bounds and the grammar of a form.
SEEN_BY_SCHEMA = [
    case for case in MALFORMED
    if case.name in {
        "text-for-number", "quoted-number", "fraction-for-count", "true-for-number",
        "yes-for-true", "list-for-mapping", "mapping-for-text", "command-as-text",
        "whole-file-is-a-list", "whole-file-is-text", "unknown-key", "unknown-top-key",
        "no-version", "version-2", "zero", "negative", "huge", "unknown-term", "zero-degree",
        "huge-degree", "empty-term", "bad-schedule", "number-for-form", "bad-line",
        "bad-variable-name",
    }
]  # fmt: skip


@pytest.mark.parametrize("case", SEEN_BY_SCHEMA, ids=[case.name for case in SEEN_BY_SCHEMA])
def test_the_json_schema_refuses_what_it_can_see(case: Malformed) -> None:
    document = yaml.load(case.text, Core)
    validator = jsonschema.Draft202012Validator(recipe_json_schema())
    assert not validator.is_valid(document)
    assert validator.is_valid(yaml.load(GOOD, Core))


@pytest.mark.parametrize("name", ["binary", "bomb", "tab"])
def test_the_program_itself_exits_2_without_traceback(name: str, folder: Path) -> None:
    case = next(case for case in MALFORMED if case.name == name)
    Path("r.yaml").write_bytes(case.text)
    done = subprocess.run(
        [sys.executable, "-m", "parctl", "validate", "r.yaml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: r.yaml:1:" if name != "tab" else "error: r.yaml:8:1")
    assert "hint: " in done.stderr and "Traceback" not in done.stderr

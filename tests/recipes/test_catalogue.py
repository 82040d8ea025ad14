"""`parctl recipes list|show|init`."""

import json
import re
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.recipes.corpus import corpus_files
from parctl.recipes.shipped import FOLDER


def test_list_names_every_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list", "-o", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {path.stem for path in FOLDER.glob("*.yaml")}
    assert rows["llama-70b"]["parallelism"] == "TP+SP+FSDP"


def test_list_models_gives_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list", "--models"]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("llama-3-70b")
    )
    assert line.split()[:4] == ["llama-3-70b", "llama", "70.6", "B"]
    assert run(["recipes", "list", "--models", "-o", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["llama-3-70b"]["parameters"] == 70_553_706_496


def test_a_list_of_80_columns_shows_every_recipe_as_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["recipes", "list"]) == 0
    out = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "deepseek-v3: DP64+TP2+SP+PP8@interleaved-1f1b:4+EP64" in out
    assert "llama-3.1-405b: TP8+SP+PP16+CP16+FSDP8" in out


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "tiny-llama"]) == 0
    assert capsys.readouterr().out == (FOLDER / "tiny-llama.yaml").read_text()


def test_init_makes_a_file_that_validates_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "init", "tiny-llama", "--to", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    assert run(["validate", "mine.yaml"]) == 0
    (tmp_path / "mine.yaml").write_text("precious")
    assert run(["recipes", "init", "tiny-llama", "--to", "mine.yaml"]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    assert run(["recipes", "init", "tiny-llama", "--to", "no/such/folder.yaml"]) == 2


def test_an_unknown_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "tiny-lama"]) == 2
    assert "hint: did you mean `tiny-llama`?" in capsys.readouterr().err


def test_the_shipped_text_is_listed_in_order() -> None:
    files = corpus_files("corpus://guide")
    assert files == sorted(files) and all(path.suffix == ".md" for path in files)

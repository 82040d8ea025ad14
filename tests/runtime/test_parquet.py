"""Rows of parquet files are documents, and faults name file and row.

pyarrow starts threads, so files are made and read in forks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.plans import LLAMA, plan

from parctl.errors import UsageError
from parctl.runtime.data.check import refuse_bad_data
from parctl.runtime.data.documents import read_documents

LINES = [f"Line {i} is number {i}." for i in range(500)]


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    from pyarrow import parquet, table

    parquet.write_table(table(columns), path, row_group_size=100)


def documents(path: Path, text_key: str) -> list[str] | str:
    data = plan(path, {}).recipe.data
    assert data
    spec = replace(data, text_key=text_key)
    try:
        refuse_bad_data(spec, LLAMA)
        return list(read_documents(path, spec))
    except UsageError as error:
        return error.message


def test_every_row_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    run_ranks(write, 1, tmp_path / "write", path, {"body": LINES, "number": list(range(500))})
    assert run_ranks(documents, 1, tmp_path / "read", path, "body") == [LINES]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("text", "no column `text`, found: body, number"),
        ("number", "column `number` holds int64, expected string"),
        ("body", "row 2 has no text under `body`"),
    ],
)
def test_a_wrong_column_or_row_is_named(column: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    run_ranks(write, 1, tmp_path / "write", path, {"body": ["one", None], "number": [1, 2]})
    assert run_ranks(documents, 1, tmp_path / "read", path, column) == [f"{path}: {said}"]


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("text")
    (said,) = run_ranks(documents, 1, tmp_path / "read", path, "text")
    assert said.startswith(f"{path}: not parquet: ")


def test_training_reads_the_same_tokens_as_from_jsonl(tmp_path: Path) -> None:
    path, lines = tmp_path / "rows.parquet", tmp_path / "rows.jsonl"
    run_ranks(write, 1, tmp_path / "write", path, {"text": LINES})
    lines.write_text("".join(f'{{"text": "{line}"}}\n' for line in LINES))
    first = train_to_end(plan(path, {"dp": 2}, train={"steps": 2}), tmp_path / "parquet")
    second = train_to_end(plan(lines, {"dp": 2}, train={"steps": 2}), tmp_path / "jsonl")
    assert [record["loss"] for record in first] == [record["loss"] for record in second]

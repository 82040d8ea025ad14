"""Schedules as tables: by hand where small, whole and workable everywhere, and as fast as known."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from parctl.errors import UsageError
from parctl.planner.bubble import timeline
from parctl.planner.degrees import Degrees
from parctl.planner.exchanges import with_exchanges
from parctl.planner.schedule_rules import check_schedule
from parctl.planner.schedules import (
    Kind,
    Table,
    action_table,
    forward_table,
    most_held,
    stage_ranks,
)
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import ParallelismSpec

UNIT: dict[Kind, float] = {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}
PIPELINES = {
    "LAYER{}": 1,
    "PP{}@gpipe": 1,
    "PP{}": 1,
    "PP{}@interleaved-1f1b:2": 2,
    "PP{}@interleaved-1f1b:3": 3,
    "PP{}@zero-bubble": 1,
    "PP{}@zero-bubble:2": 2,
    "PP{}@zbv": 2,
    "PP{}@dualpipev": 2,
}


def spec(form: str) -> ParallelismSpec:
    return load_recipe(f"llama-3-70b: {form}").parallelism


def rows(table: Table) -> list[str]:
    return [" ".join(map(str, row)) for row in table]


def test_small_tables_by_hand() -> None:
    assert rows(action_table(spec("LAYER2"), 2, 2)) == ["0F0 0B0 0F1 0B1", "1F0 1B0 1F1 1B1"]
    assert rows(action_table(spec("PP2@gpipe"), 2, 2)) == ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"]
    assert rows(action_table(spec("PP2"), 2, 3)) == [
        "0F0 0F1 0B0 0F2 0B1 0B2",
        "1F0 1B0 1F1 1B1 1F2 1B2",
    ]
    assert rows(action_table(spec("PP2@zero-bubble"), 2, 2)) == [
        "0F0 0F1 0I0 0W0 0I1 0W1",
        "1F0 1I0 1F1 1I1 1W0 1W1",
    ]
    assert rows(action_table(spec("PP2@interleaved-1f1b:2"), 2, 2)) == [
        "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1",
        "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1",
    ]
    assert rows(forward_table(spec("PP2@zbv"), 2, 2)) == ["0F0 0F1 3F0 3F1", "1F0 2F0 1F1 2F1"]


@pytest.mark.parametrize("form", PIPELINES)
def test_every_table_is_whole_and_can_be_worked_through(form: str) -> None:
    for pp, groups in product((2, 3, 4, 8), (2, 3)):
        count = pp * groups
        pipeline = spec(form.format(pp))
        ranks = stage_ranks(pipeline, pp)
        assert len(ranks) == pp * PIPELINES[form]
        table = action_table(pipeline, pp, count)
        for kinds in ("F", "BI", "BW"):
            actions = [a for row in table for a in row if a.kind in kinds]
            assert len(actions) == len(set(actions)) == count * len(ranks)
        assert all(ranks[a.stage] == rank for rank, row in enumerate(table) for a in row)
        with_exchanges(table, len(ranks), ranks.__getitem__)
        evaluation = forward_table(pipeline, pp, count)
        assert sum(map(len, evaluation)) == count * len(ranks)
        with_exchanges(evaluation, len(ranks), ranks.__getitem__)


def test_two_ranks_post_what_they_exchange_in_the_same_order() -> None:
    pipeline = spec("PP4@dualpipev")
    ranks = stage_ranks(pipeline, 4)
    steps = with_exchanges(action_table(pipeline, 4, 8), 8, ranks.__getitem__)
    for left, right in product(range(4), range(4)):
        if left == right:
            continue

        def seen(rank: int, peer: int) -> list[tuple[str, bool, int]]:
            return [
                (step[1].split()[1], step[1].startswith("send") == (rank < peer), step[2])
                for step in steps[rank]
                if len(step) == 4 and step[3] == peer
            ]

        assert seen(left, right) == seen(right, left)


IDLE: dict[str, Callable[[int, int], float]] = {
    "LAYER{}": lambda p, m: (p - 1) / p,
    "PP{}@gpipe": lambda p, m: (p - 1) / (m + p - 1),
    "PP{}": lambda p, m: (p - 1) / (m + p - 1),
    "PP{}@interleaved-1f1b:2": lambda p, m: (p - 1) / (2 * m + p - 1),
    "PP{}@zero-bubble": lambda p, m: (p - 1) / (3 * m + p - 1),
    "PP{}@zero-bubble:2": lambda p, m: (p - 1) / (6 * m + p - 1),
    "PP{}@zbv": lambda p, m: (p - 1) / (6 * m + p - 1),
    "PP{}@dualpipev": lambda p, m: (p - 1) / (6 * m + p - 1),
}


@pytest.mark.parametrize("form", IDLE)
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_idle_shares_are_those_of_the_papers(form: str, pp: int) -> None:
    """2104.04473, 2401.10241 and 2405.15362, with equal times of F, I and W."""
    pipeline = spec(form.format(pp))
    for count in (2 * pp, 4 * pp):
        table = action_table(pipeline, pp, count)
        found = timeline(table, pp * PIPELINES[form], UNIT).idle_share
        assert found == pytest.approx(IDLE[form](pp, count), abs=1e-12), count


def test_memory_at_the_peak() -> None:
    """In forwards held: 1f1b pp - rank; split schedules pp on every rank; gpipe all."""
    assert [most_held(row) for row in action_table(spec("PP4"), 4, 8)] == [4, 3, 2, 1]
    assert [most_held(row) for row in action_table(spec("PP4@zero-bubble"), 4, 8)] == [4] * 4
    assert [most_held(row) for row in action_table(spec("PP4@zbv"), 4, 8)] == [8] * 4  # of 2 halves
    assert [most_held(row) for row in action_table(spec("PP4@gpipe"), 4, 8)] == [8] * 4


def test_exchanges_cost_time_only_between_ranks() -> None:
    """Two stages on two ranks: forward, exchange, forward, backward, exchange, backward."""
    table = action_table(spec("PP2"), 2, 1)
    assert timeline(table, 2, UNIT, exchange=0.5).duration == 1 + 0.5 + 1 + 2 + 0.5 + 2


def check(form: str, batch: int) -> None:
    recipe = load_recipe(f"llama-3-8b: {form}", [f"train.global_batch={batch}"])
    assert recipe.train
    recipe = replace(recipe, train=replace(recipe.train, micro_batch=1))
    check_schedule(recipe, Degrees(pp=recipe.parallelism.pp or 1))


def test_micro_batches_that_a_schedule_cannot_take_are_refused_with_arithmetic() -> None:
    with pytest.raises(UsageError, match=r"\(6\) .* = 6 micro-batches, expected a multiple of pp"):
        check("PP4@interleaved-1f1b:2", 6)
    with pytest.raises(UsageError, match=r"= 4 micro-batches, expected at least 2 x pp \(4\) = 8"):
        check("PP4@dualpipev", 4)
    for form in ("PP4", "PP4@gpipe", "PP4@zero-bubble:2", "PP4@zbv", "LAYER4"):
        check(form, 3)


def own_schedule(tmp_path: Path, text: str, **options: Any) -> Any:
    (tmp_path / "mine.csv").write_text(text)
    lines = [f"  {key}: {value}" for key, value in options.items()]
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\ntask: train\nmodel: tiny-llama\n"
        "train: {global_batch: 2, micro_batch: 1, seq_len: 64}\n"
        "parallelism:\n  pp: auto\n  schedule_file: mine.csv\n" + "\n".join(lines)
    )
    return load_recipe(str(tmp_path / "recipe.yaml"))


def test_a_schedule_file_becomes_rows_of_the_plan(tmp_path: Path) -> None:
    recipe = own_schedule(tmp_path, "0F0,0F1,,0B0,0B1\n,1F0,1B0,1F1,1I1,1W1\n")
    assert (recipe.parallelism.pp, recipe.parallelism.virtual_stages) == (2, 1)
    assert rows(action_table(recipe.parallelism, 2, 2)) == [
        "0F0 0F1 0B0 0B1",
        "1F0 1B0 1F1 1I1 1W1",
    ]
    check_schedule(recipe, Degrees(pp=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n", "found `0X0` in row 1"),
        ("0F0,0B0\n0F1,0B1\n", "stage 0 is in row 1 and in row 2"),
        ("0F0,0B0\n1F0\n", "B or I of micro-batch 0 on stage 1 is missing"),
        ("0F0,0B0,0B0\n1F0,1B0\n", "B or I of micro-batch 0 on stage 0 stands 2 times"),
        ("0F0,0B0\n2F0,2B0\n", "found stages 0, 2 in 2 rows"),
        ("\n", "the file has no actions"),
    ],
)
def test_a_faulty_schedule_file_is_refused_where_the_recipe_names_it(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        own_schedule(tmp_path, text)
    assert message in str(caught.value)
    assert "schedule_file" in str(caught.value)


def test_a_schedule_file_that_stands_still_or_does_not_match_the_batch_is_refused(
    tmp_path: Path,
) -> None:
    stuck = own_schedule(tmp_path, "0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n")
    with pytest.raises(UsageError, match="stands still: rank 0 at 0B0, rank 1 at 1F1"):
        check_schedule(stuck, Degrees(pp=2))
    short = own_schedule(tmp_path, "0F0,0B0\n1F0,1B0\n")
    with pytest.raises(UsageError, match=r"= 2 micro-batches, but .* schedules 1"):
        check_schedule(short, Degrees(pp=2))

"""What a search says of what it found can be used and is true."""

import pytest

from parctl.errors import UsageError
from parctl.planner.make import make_plan
from parctl.planner.search.choice import choice_of
from parctl.planner.search.run import read_keep, search
from parctl.recipes.loader import load_recipe
from parctl.runtime.supported import refuse_unbuilt
from parctl.topology.synthetic import parse_cluster

CASES = [
    ("llama-3-8b: FSDP", "h100:2x8", ["train.global_batch=64"]),
    ("mixtral-8x7b: FSDP", "h100:4x8", ["train.global_batch=64"]),
    ("gpt-2: DP", "a100:1x4", ["train.global_batch=64"]),
    ("llama-3-8b: FSDP", "h100:2x8", ["train.global_batch=8", "train.seq_len=131072",
                                      "model.max_seq_len=131072"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "cluster", "overrides"), CASES)
def test_what_it_prints_gives_a_plan_of_that_time_and_memory(
    line: str, cluster: str, overrides: list[str]
) -> None:
    recipe, topology = load_recipe(line, overrides), parse_cluster(cluster)
    found = search(recipe, topology, keep={}, top=4)
    assert found.ranked
    for item in (*found.ranked, *(form.best for form in found.forms if form.best)):
        options = item.choice.options(recipe)
        plan = make_plan(load_recipe(line, [*overrides, *options]), topology)
        assert choice_of(plan.recipe) == item.choice
        assert plan.memory["fits"] is True
        assert plan.memory["total_bytes"] == item.memory.worst.total
        # the layout may find links that are better than those of the probe, not worse
        assert plan.time["step_time_s"] == pytest.approx(item.seconds, rel=0.02)
        experts = (plan.layout.expert_axes or {}).get("ep", 1)
        refuse_unbuilt(plan.recipe, {**plan.layout.axes, "ep": experts})


def test_reasons_name_the_part_that_is_worse() -> None:
    recipe, topology = load_recipe("llama-3-8b: FSDP"), parse_cluster("h100:2x8")
    found = search(recipe, topology, keep={}, top=2)
    (tensor,) = (form for form in found.forms if form.axes == "TP")
    assert "slower: exchanges of tp (+" in found.form_text(tensor)
    assert found.ranked == tuple(sorted(found.ranked, key=lambda item: item.ranked_seconds))


def test_what_does_not_fit_says_by_how_much() -> None:
    recipe = load_recipe("llama-3-70b: FSDP", ["train.global_batch=8"])
    found = search(recipe, parse_cluster("h100:1x8"), keep={})
    assert found.best is None
    assert {form.best for form in found.forms} == {None}
    assert found.form_text(found.forms[0]).startswith("does not fit: at least ")


def test_at_most_so_many_devices_are_used() -> None:
    recipe = load_recipe("llama-3-8b: FSDP", ["train.global_batch=64"])
    found = search(recipe, parse_cluster("h100:4x8"), keep={}, max_devices=16, top=3)
    assert [item.choice.degrees.world_size for item in found.ranked] == [16, 16, 16]


def test_time_that_cannot_be_predicted_cannot_be_ranked() -> None:
    with pytest.raises(UsageError, match="nothing to rank by: the devices are CPUs"):
        search(load_recipe("tiny-llama"), parse_cluster("cpu:1x4"), keep={})
    with pytest.raises(UsageError, match="no degrees to search for"):
        search(load_recipe("tiny-llama-generate"), parse_cluster("h100:1x8"), keep={})


def test_keep_is_read_with_short_names() -> None:
    read = read_keep(["tp=8", "zero=0", "schedule=1f1b", "v=2", "recompute=full"])
    assert read == {
        "tp": 8,
        "zero_stage": 0,
        "schedule": "1f1b",
        "virtual_stages": 2,
        "recompute": "full",
    }


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("tq=8", "did you mean `--keep tp=...`?"),
        ("tp", "as in|did you mean"),
        ("tp=eight", "a whole number"),
        ("schedule=fast", "one of gpipe"),
        ("tp=0", "a whole number from 1 on"),
    ],
)
def test_a_keep_that_says_nothing_is_refused(word: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_keep([word])
    assert any(part in str(caught.value.hint) for part in hint.split("|"))

"""The gate before a launch."""

from dataclasses import replace

import pytest

from parctl.errors import DoesNotFitError
from parctl.planner.fit import Change, devices_needed, refuse_misfit, smallest_changes
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def plan(line: str, cluster: str, *overrides: str) -> Plan:
    return make_plan(load_recipe(line, overrides), parse_cluster(cluster))


def smallest_change(made: Plan) -> Change | None:
    return next(iter(smallest_changes(made, most=1)), None)


def test_what_fits_passes() -> None:
    refuse_misfit(plan("llama-3-8b: FSDP", "h100:1x8"))


def test_a_misfit_is_refused_with_the_change_that_fits() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        refuse_misfit(plan("llama-3-8b: DP", "h100:1x8"))
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(
        "llama-3-8b does not fit: a rank of pipeline stage 0 needs 176 GB, a device has 77.0 GB"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("`--set parallelism=FSDP8` fits")


@pytest.mark.parametrize(
    ("line", "cluster", "overrides", "options"),
    [
        # activations alone are too much: only speed is lost
        ("llama-3-8b: FSDP8", "h100:1x8", ["train.micro_batch=4"], ("train.recompute=full",)),
        (
            "llama-3-8b: FSDP8",
            "h100:1x8",
            ["train.micro_batch=4", "train.recompute=full"],
            ("train.micro_batch=2",),
        ),
        # the state is too much
        ("llama-3-8b: DP8", "h100:1x8", [], ("parallelism=FSDP8",)),
        # both
        (
            "llama-3-8b: DP8",
            "h100:1x8",
            ["train.micro_batch=4"],
            ("train.recompute=full", "parallelism=FSDP8"),
        ),
    ],
)
def test_the_mildest_change_is_named(
    line: str, cluster: str, overrides: list[str], options: tuple[str, ...]
) -> None:
    change = smallest_change(plan(line, cluster, *overrides))
    assert change is not None
    assert change.options == options


@pytest.mark.parametrize(
    ("line", "cluster"),
    [
        ("llama-3-8b: DP", "h100:1x8"),
        ("llama-3-70b: HSDP", "h100:16x8"),
        ("llama-3.1-405b: TP8+SP+FSDP", "h100:64x8"),
        ("llama-3-8b: ZERO1", "h100:1x8"),
        ("mixtral-8x7b: DP+EP8", "h100:8x8"),
    ],
)
def test_the_named_changes_really_fit(line: str, cluster: str) -> None:
    changes = smallest_changes(plan(line, cluster))
    assert changes and len({change.kind for change in changes}) == len(changes)
    for change in changes:
        assert plan(line, cluster, *change.options).memory["fits"] is True


@pytest.mark.parametrize(
    ("line", "cluster", "overrides", "options"),
    [
        # with less memory to find room for, auto and pp would come out otherwise
        (
            "llama-3-8b: PP+FSDP",
            "h100:2x8",
            ["train.micro_batch=2", "train.recompute=none"],
            ("train.recompute=selective", "parallelism=PP4+FSDP4"),
        ),
    ],
)
def test_degrees_that_memory_decided_are_stated_too(
    line: str, cluster: str, overrides: list[str], options: tuple[str, ...]
) -> None:
    made = plan(line, cluster, *overrides)
    change = smallest_change(made)
    assert change is not None
    assert change.options == options
    changed = plan(line, cluster, *overrides, *change.options)
    assert changed.memory["fits"] is True
    assert changed.layout.axes == made.layout.axes


def test_settings_beside_a_form_are_kept() -> None:
    settings = ["parallelism.strict_node=true", "parallelism.order=[dp, pp, fsdp, cp, tp]"]
    made = plan("llama-3-8b: DP8", "h100:1x8", *settings)
    change = smallest_change(made)
    assert change is not None
    assert change.text == (
        "--set 'parallelism={form: FSDP8, strict_node: true, order: [dp, pp, fsdp, cp, tp]}'"
    )
    changed = plan("llama-3-8b: DP8", "h100:1x8", *change.options)
    assert changed.memory["fits"] is True
    assert changed.recipe.parallelism.strict_node


def test_a_near_miss_is_told_with_digits_that_differ() -> None:
    made = plan("llama-3-8b: DP", "h100:1x8")
    near = {"fits": False, "total_bytes": 126_909_000_000, "usable_bytes": 126_901_000_000}
    with pytest.raises(DoesNotFitError, match=r"needs 126\.91 GB, a device has 126\.90 GB"):
        refuse_misfit(replace(made, memory={**made.memory, **near}))


def test_no_change_breaks_the_hard_rule() -> None:
    # tp 8 would fit, but a DGX-1V has full meshes of 4
    made = plan("llama-3-8b: TP+FSDP", "v100:2x8")
    assert made.memory["fits"] is False
    assert smallest_change(made) is None


def test_no_change_is_named_when_none_helps() -> None:
    assert smallest_change(plan("llama-3-70b: DP", "h100:1x1", "train.global_batch=1")) is None


def test_where_nothing_helps_the_number_of_devices_is_told() -> None:
    made = plan("llama-3-70b: FSDP", "h100:1x8", "train.recompute=full")
    assert smallest_changes(made) == []
    assert devices_needed(made) == 32
    enough = plan("llama-3-70b: FSDP", "h100:4x8", "train.recompute=full")
    assert enough.memory["fits"] is True
    with pytest.raises(DoesNotFitError) as caught:
        refuse_misfit(made)
    assert "32 devices would do" in str(caught.value.hint)


def test_a_change_keeps_what_the_schedule_asks_of_the_batch() -> None:
    # twice the stages would leave 2 micro-batches, no multiple of 4, to interleaved-1f1b
    line = "llama-3-70b: TP8+PP2@interleaved-1f1b+DP4"
    overrides = ["train.global_batch=8", "train.seq_len=4096"]
    made = plan(line, "h100:8x8", *overrides)
    assert made.memory["fits"] is False
    for change in smallest_changes(made):
        assert plan(line, "h100:8x8", *overrides, *change.options).memory["fits"] is True


def test_unknown_memory_passes() -> None:
    made = plan("llama-3-8b: DP", "h100:1x8")
    refuse_misfit(replace(made, memory={**made.memory, "fits": None}))

"""The search finds exactly what looking at every choice finds."""

import pytest
from tests.planner.search.cases import costs

from parctl.planner.gradients import with_grad_sync
from parctl.planner.memory import estimate_memory
from parctl.planner.search.best_first import Search
from parctl.planner.search.costs import Costs, with_sync
from parctl.planner.search.found import Candidate, pareto
from parctl.planner.search.space import Kept, choice

SPACES: list[tuple[str, str, list[str], Kept]] = [
    ("llama-3-8b: FSDP", "h100:1x8", ["train.global_batch=8"], {"cp": 1}),
    ("llama-3-8b: FSDP", "a100-40g:2x4", ["train.global_batch=16"], {"micro_batch": 1}),
    (
        "llama-3-8b: FSDP",
        "h100:2x8",
        ["train.global_batch=32", "train.seq_len=32768"],
        {"pp": 2, "recompute": "full"},
    ),
    (
        "mixtral-8x7b: FSDP",
        "h100:4x8",
        ["train.global_batch=32"],
        {"cp": 1, "tp": 2, "micro_batch": 1, "recompute": "none"},
    ),
    ("gpt-2: DP", "a100:1x4", ["train.global_batch=16"], {"recompute": "none"}),
]


def every_candidate(costs: Costs) -> list[Candidate]:
    """Price every choice by the functions that a plan is priced by."""
    found = []
    devices = costs.devices
    for one in costs.space.all():
        recipe, _ = with_grad_sync(one.put_into(costs.space.recipe), one.degrees, devices)
        memory = estimate_memory(
            recipe, one.degrees, device_bytes=devices.memory_bytes, kind=devices.kind
        )
        if one.zero_stage == 2 and recipe.parallelism.grad_sync == "last":
            continue  # this is ZeRO-1 by another name
        if memory.fits:
            time = costs.time(one, recipe)
            found.append(Candidate(choice=one, recipe=recipe, time=time, memory=memory))
    return found


@pytest.mark.parametrize(("line", "cluster", "overrides", "keep"), SPACES)
def test_the_fastest_are_those_of_the_whole_space(
    line: str, cluster: str, overrides: list[str], keep: Kept
) -> None:
    priced = costs(line, cluster, *overrides, keep=keep)
    everything = every_candidate(priced)
    found = Search(costs=priced, top=6).run()
    wanted = sorted(item.ranked_seconds for item in everything)[:6]
    assert [item.ranked_seconds for item in found.ranked] == pytest.approx(wanted, rel=1e-9)
    # the best of every set of model axes, too
    for form in found.forms:
        own = [item for item in everything if item.choice.model_axes == form.axes]
        assert (form.best is None) == (not own)
        if form.best is not None:
            least = min(item.ranked_seconds for item in own)
            assert form.best.ranked_seconds == pytest.approx(least, rel=1e-9)
    # and nothing of the whole space is faster and smaller than the front, as far as that goes
    last = found.front[-1]
    whole = [item for item in pareto(everything) if item.seconds <= found.ranked[0].seconds]
    for item in whole:
        assert any(
            own.seconds <= item.seconds * 1.0001
            and own.memory.worst.total <= item.memory.worst.total * 1.0001
            for own in found.front
        ), item.text
    assert last.memory.worst.total <= found.ranked[0].memory.worst.total


def test_bounds_never_exceed_what_they_bound() -> None:
    priced = costs("llama-3-8b: FSDP", "h100:2x8", "train.global_batch=32", keep={"tp": 2})
    space = priced.space
    checked = 0
    for unit in space.units():
        least = priced.unit_bound(unit)
        for shape in space.shapes(unit):
            for flow in space.flows(shape):
                bound = priced.flow_bound(shape, flow)
                shaped = priced.shape_bound(shape, flow.recompute)
                assert least <= shaped * (1 + 1e-9) and shaped <= bound * (1 + 1e-9)
                for split in list(space.splits(shape))[::3]:
                    chosen = choice(shape, flow, split)
                    recipe = with_sync(chosen.put_into(space.recipe), "last")
                    lower = priced.least_seconds(shape, flow, split, "last")
                    assert bound <= lower * (1 + 1e-9)
                    assert lower <= priced.time(chosen, recipe).total * (1 + 1e-9)
                    checked += 1
    assert checked > 500


def test_little_of_a_large_space_is_looked_at() -> None:
    priced = costs("llama-3.1-405b: FSDP", "h100:128x8", "train.global_batch=512")
    search = Search(costs=priced, top=1)
    found = search.run(every_form=False, front=False)
    assert found.best is not None
    assert search.looked_at < 20_000 < sum(1 for _ in priced.space.all())


def test_kept_fields_are_kept() -> None:
    keep: Kept = {"tp": 4, "schedule": "1f1b", "recompute": "selective", "zero_stage": 1}
    priced = costs("llama-3-8b: FSDP", "h100:2x8", "train.global_batch=64", keep=keep)
    for item in Search(costs=priced, top=5).run().ranked:
        assert {name: getattr(item.choice, name) for name in keep} == keep

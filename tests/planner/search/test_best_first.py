"""The search finds exactly what looking at every choice finds."""

import pytest
from tests.planner.search.cases import costs

from parctl.planner.memory import estimate_memory
from parctl.planner.gradients import with_grad_sync
from parctl.planner.search.best_first import Search
from parctl.planner.search.costs import Costs
from parctl.planner.search.found import Candidate, pareto
from parctl.planner.search.space import Kept

SPACES: list[tuple[str, str, list[str], Kept]] = [
    ("llama-3-8b: FSDP", "h100:1x8", ["train.global_batch=16"], {}),
    ("llama-3-8b: FSDP", "a100-40g:2x4", ["train.global_batch=16", "train.seq_len=4096"], {}),
    ("llama-3-8b: FSDP", "h100:2x8", ["train.global_batch=32", "train.seq_len=32768"], {"pp": 2}),
    ("mixtral-8x7b: FSDP", "h100:4x8", ["train.global_batch=64"], {"cp": 1, "micro_batch": 1}),
    ("gpt-2: DP", "a100:1x4", ["train.global_batch=16"], {"recompute": "none"}),
]


def every_candidate(costs: Costs) -> list[Candidate]:
    """Price every choice by the functions that a plan is priced by."""
    found = []
    devices = costs.devices
    for choice in costs.space.all():
        recipe, _ = with_grad_sync(choice.put_into(costs.space.recipe), choice.degrees, devices)
        memory = estimate_memory(
            recipe, choice.degrees, device_bytes=devices.memory_bytes, kind=devices.kind
        )
        if memory.fits:
            time = costs.time(choice, recipe)
            found.append(Candidate(choice=choice, recipe=recipe, time=time, memory=memory))
    return found


@pytest.mark.parametrize(("line", "cluster", "overrides", "keep"), SPACES)
def test_the_first_ones_are_those_of_the_whole_space(
    line: str, cluster: str, overrides: list[str], keep: Kept
) -> None:
    priced = costs(line, cluster, *overrides, keep=keep)
    everything = every_candidate(priced)
    wanted = sorted(item.ranked_seconds for item in everything)[:6]
    search = Search(costs=priced, top=6)
    found = search.run()
    # what is ZeRO-1 under another name is in the whole space and not in the search
    assert [item.ranked_seconds for item in found.ranked][0] == pytest.approx(wanted[0], rel=1e-9)
    assert all(
        any(item.ranked_seconds == pytest.approx(other, rel=1e-9) for other in wanted)
        for item in found.ranked[:2]
    )
    assert search.looked_at < 40_000

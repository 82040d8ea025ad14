"""Layers on pipeline stages."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parctl.planner.stages import balance, pipeline_rank, split_layers
from parctl.recipes.presets import model_preset


def test_126_layers_on_16_stages_are_lighter_at_the_ends() -> None:
    sizes = [len(stage) for stage in split_layers(model_preset("llama-3.1-405b"), 16)]
    assert sizes == [7, *[8] * 14, 7]


def test_96_layers_on_8_stages_are_even() -> None:
    stages = split_layers(model_preset("gpt-3-175b"), 8)
    assert stages[0] == tuple(range(12))
    assert stages[7] == tuple(range(84, 96))


def test_a_large_vocabulary_takes_a_layer_off_the_ends() -> None:
    # 128,256 x 8,192 is 1.23 layers of Llama 70B: 21 and 19 + 1.23 beat 20 + 1.23
    assert [len(stage) for stage in split_layers(model_preset("llama-3-70b"), 4)] == [
        19,
        21,
        21,
        19,
    ]


def test_61_layers_on_16_stages_leave_room_for_the_head() -> None:
    # 129,280 x 7,168 is 1.6 active layers of DeepSeek-V3: no stage is worth more than 4
    sizes = [len(stage) for stage in split_layers(model_preset("deepseek-v3"), 16)]
    assert sizes == [3, *[4] * 14, 2]


def test_one_stage_holds_everything() -> None:
    assert split_layers(model_preset("llama-3-8b"), 1) == (tuple(range(32)),)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_no_deal_has_a_lighter_heaviest_stage(
    costs: list[int], num_stages: int, first: int, last: int
) -> None:
    num_stages = min(num_stages, len(costs))

    def heaviest(ends: tuple[int, ...]) -> int:
        cuts = [0, *ends, len(costs)]
        sums = [sum(costs[a:b]) for a, b in pairwise(cuts)]

        sums[-1] += last
        return max(sums)

    best = min(heaviest(cuts) for cuts in combinations(range(1, len(costs)), num_stages - 1))
    sizes = balance(tuple(map(float, costs)), num_stages, first=first, last=last)
    assert sum(sizes) == len(costs) and min(sizes) >= 1 and len(sizes) == num_stages
    ends = tuple(sum(sizes[: index + 1]) for index in range(num_stages - 1))
    assert heaviest(ends) == best


@pytest.mark.parametrize(
    ("schedule", "ranks"),
    [
        ("interleaved-1f1b", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("zbv", [0, 1, 2, 3, 3, 2, 1, 0]),
        ("dualpipev", [0, 1, 2, 3, 3, 2, 1, 0]),
    ],
)
def test_virtual_stages_run_on_these_ranks(schedule: str, ranks: list[int]) -> None:
    assert [pipeline_rank(stage, 4, schedule) for stage in range(8)] == ranks  # type: ignore[arg-type]

"""The closed forms of ZeRO, by hand and against its paper."""

import pytest

from parctl.planner.degrees import Degrees
from parctl.planner.shards import Shard, head_shard, layer_shard
from parctl.planner.states import REGIMES, Regime, gathered_bytes, state_bytes
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import count_parameters

THOUSAND = Shard(dense=1000, experts=0)


@pytest.mark.parametrize(
    ("zero_stage", "weights", "gradients", "optimizer"),
    [(0, 4000, 4000, 8000), (1, 1000, 4000, 2000), (2, 1000, 1000, 2000), (3, 1000, 1000, 2000)],
)
def test_1000_parameters_over_4_ranks(
    zero_stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    state = state_bytes(
        THOUSAND, REGIMES["bf16"], zero_stage, Degrees(fsdp=4), whole_gradients=zero_stage < 2
    )
    assert (state.weights, state.gradients, state.optimizer) == (weights, gradients, optimizer)


@pytest.mark.parametrize(
    ("zero_stage", "gigabytes"), [(0, 120), (1, 31.40625), (2, 16.640625), (3, 1.875)]
)
def test_figure_1_of_the_zero_paper(zero_stage: int, gigabytes: float) -> None:
    # 1910.02054: 7.5 billion parameters, 64 ranks: 120, 31.4, 16.6, 1.9 GB for 2 + 2 + 12 bytes,
    # a copy in the compute type, gradients, and weights and moments of the optimizer
    regime = Regime(weight=4, gradient=2, optimizer=8, compute=2)
    shard, degrees = Shard(dense=7_500_000_000, experts=0), Degrees(fsdp=64)
    state = state_bytes(shard, regime, zero_stage, degrees, whole_gradients=zero_stage < 2)
    copy = 0 if zero_stage == 3 else regime.compute * shard.total
    in_stage_3 = regime.compute * shard.total // 64  # of which the runtime holds two layers, whole
    assert state.total + copy + (in_stage_3 if zero_stage == 3 else 0) == gigabytes * 1e9


def test_replicas_do_not_share_and_context_ranks_do() -> None:
    regime = REGIMES["fp32"]
    for degrees, weights in ((Degrees(dp=2, fsdp=4), 1000), (Degrees(fsdp=4, cp=2), 500)):
        assert state_bytes(THOUSAND, regime, 3, degrees, whole_gradients=False).weights == weights


def test_experts_are_shared_by_what_ep_leaves() -> None:
    shard = Shard(dense=100, experts=800)
    state = state_bytes(shard, REGIMES["fp32"], 3, Degrees(fsdp=8, ep=4), whole_gradients=False)
    assert state.weights == 4 * (13 + 400)  # 100 / 8 rounded up, 800 / (8 / 4)


def test_fp64_doubles_everything() -> None:
    for regime, total in ((REGIMES["fp64"], 32_000), (REGIMES["fp32"], 16_000)):
        state = state_bytes(THOUSAND, regime, 0, Degrees(), whole_gradients=True)
        assert state.total == total


@pytest.mark.parametrize(
    ("zero_stage", "degrees", "crossing", "expected"),
    [
        (3, Degrees(fsdp=4), 4, 100 * (2 * 2 + 2 + 4)),  # two layers gathered, one gradient
        (3, Degrees(fsdp=4), 2, 100 * (2 * 2 + 2 + 2)),  # which crosses in bf16
        (3, Degrees(tp=4), 4, 100 * (2 * 2 + 2 + 4)),  # one rank: bf16 is still a copy
        (2, Degrees(fsdp=4), 4, 1000 * 2 + 100 * (2 + 4)),
        (0, Degrees(dp=4), 4, 1000 * 2),  # DDP's copy in bf16
        (0, Degrees(tp=4), 4, 1000 * 2),
    ],
)
def test_gathered_copies_by_hand(
    zero_stage: int, degrees: Degrees, crossing: int, expected: int
) -> None:
    unit = Shard(dense=100, experts=0)
    regime = REGIMES["bf16"]
    found = gathered_bytes(THOUSAND, unit, regime, zero_stage, degrees, crossing=crossing)
    assert found == expected


def test_tensor_parallelism_alone_in_fp32_copies_nothing() -> None:
    for stage in (0, 3):
        regime = REGIMES["fp32"]
        assert gathered_bytes(THOUSAND, THOUSAND, regime, stage, Degrees(tp=4), crossing=4) == 0


def test_a_copy_of_the_tied_table_has_a_gradient_and_no_moments() -> None:
    gpt = load_recipe("gpt3-175b").model
    assert gpt is not None and gpt.tied_embeddings
    shard = head_shard(gpt, count_parameters(gpt), Degrees(pp=8))
    assert shard.copied == gpt.vocab_size * gpt.dim == shard.dense - 2 * gpt.dim
    state = state_bytes(shard, REGIMES["fp32"], 0, Degrees(pp=8), whole_gradients=True)
    assert state.weights == state.gradients == 4 * shard.dense
    assert state.optimizer == 8 * 2 * gpt.dim
    assert head_shard(gpt, count_parameters(gpt), Degrees()).copied == 0


def test_balance_biases_have_neither_gradient_nor_moments() -> None:
    deepseek = load_recipe("deepseek-v3").model
    assert deepseek is not None and deepseek.moe is not None
    layers = count_parameters(deepseek).layers
    assert layer_shard(deepseek, layers[0], Degrees()).fixed == 0  # dense
    shard = layer_shard(deepseek, layers[-1], Degrees())
    assert shard.fixed == 256
    state = state_bytes(shard, REGIMES["fp32"], 0, Degrees(), whole_gradients=True)
    assert state.weights - state.gradients == 4 * 256
    assert state.optimizer == 2 * state.gradients

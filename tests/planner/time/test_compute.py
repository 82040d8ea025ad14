"""Work of a layer: what is multiplied, what passes memory, what is done again."""

from dataclasses import replace

import pytest
from tests.planner.time.jobs import job

from parctl.planner.degrees import Degrees
from parctl.planner.flops import matmul_parameters
from parctl.planner.time import compute
from parctl.planner.time.constants import FITTED
from parctl.planner.time.job import ALL, STOPPED, Repeated
from parctl.planner.time.rates import held_share, rates
from parctl.recipes.presets import model_preset
from parctl.topology.products import find_product, product_named


def test_the_products_of_all_layers_and_the_head_are_the_models_matmul_parameters() -> None:
    one = job()
    products = 32 * sum(
        rows * columns * count for _, rows, columns, count in compute.layer_products(one, 0)
    )
    head = one.model.dim * one.model.vocab_size
    norms = (2 * 32 + 1) * one.model.dim
    assert products + head + norms == matmul_parameters(one.model)


def test_experts_multiply_as_many_rows_as_are_sent_to_them() -> None:
    mixtral = job(model=model_preset("mixtral-8x7b"), degrees=Degrees(fsdp=4, ep=4))
    products = list(compute.layer_products(mixtral, 0))
    # 4096 tokens to 2 of 8 experts, of which a rank holds 2: as many rows come as go
    assert products[-2:] == [(4096.0, 4096, 2 * 14336, 2), (4096.0, 14336, 4096, 2)]


def test_tensor_parallel_ranks_share_the_products() -> None:
    def work(tp: int) -> float:
        split = job(degrees=Degrees(tp=tp))
        return sum(a * b * c * n for a, b, c, n in compute.layer_products(split, 0))

    assert work(8) == work(1) / 8


def test_causal_attention_looks_at_half_of_the_sequence_and_a_window_at_less() -> None:
    assert compute.context_of(job(), 0) == 2048
    assert compute.context_of(job(windows=(128, None)), 0) == 128
    assert compute.context_of(job(windows=(128, None)), 1) == 2048


def test_scores_in_memory_cost_more_than_fused_ones() -> None:
    speed = rates(job(), FITTED)
    plain = compute.attention_time(job(attention="plain"), speed, 0)
    fused = compute.attention_time(job(), speed, 0)
    first = compute.attention_time(job(attention="first"), speed, 0)
    assert fused[0] < first[0] < plain[0]
    assert first[0] == pytest.approx(fused[0] / 0.55)


def test_narrow_heads_lose_to_exponentials() -> None:
    def per_flop(head_dim: int) -> float:
        narrow = job(model=replace(job().model, head_dim=head_dim))
        return compute.attention_time(narrow, rates(narrow, FITTED), 0)[0] / head_dim

    assert per_flop(64) / per_flop(128) == pytest.approx(4 / 3)


def test_full_recomputation_repeats_the_forward_pass() -> None:
    passes = compute.layer(job(repeated=ALL), FITTED, 0)
    assert passes.again == pytest.approx(passes.forward)
    assert compute.layer(job(), FITTED, 0).again == 0.0
    half = compute.layer(job(repeated=Repeated(0.5, 0.5, 0.5)), FITTED, 0)
    assert half.again == pytest.approx(passes.forward / 2)


def test_a_checkpoint_stops_before_the_last_product() -> None:
    whole = compute.layer(job(repeated=ALL), FITTED, 0)
    stopped = compute.layer(job(repeated=STOPPED), FITTED, 0)
    # without the down projection: 4096 x 14336 of 218 million parameters
    left = 1 - 4096 * 14336 / 218_103_808
    assert 0.9 * left < stopped.again / whole.again < 1.1 * left


def test_frozen_weights_have_no_gradient() -> None:
    assert compute.layer(job(trained_share=0.0), FITTED, 0).weights == 0.0


def test_float8_makes_products_faster_but_not_twice() -> None:
    bf16, fp8 = compute.layer(job(), FITTED, 0), compute.layer(job(arithmetic="fp8"), FITTED, 0)
    assert 1.0 < bf16.forward / fp8.forward < 2.0


def test_experts_wait_for_their_host_unless_the_step_is_a_graph() -> None:
    sparse = job(model=model_preset("mixtral-8x7b"), degrees=Degrees(fsdp=4, ep=4))
    assert compute.expert_host(sparse, FITTED) == FITTED.expert_host
    assert compute.expert_host(replace(sparse, graphs=True), FITTED) == 0.0
    rack = replace(sparse, fabric=replace(sparse.fabric, island=72))
    assert compute.expert_host(rack, FITTED) == FITTED.expert_host_rack


def test_a_board_of_fewer_watts_holds_less_of_its_peak() -> None:
    h100, h20, l40s = (product_named(name) for name in ("h100", "h20", "l40s"))
    assert held_share(h100, FITTED) == held_share(l40s, FITTED) == 1.0
    share = held_share(replace(h100, watts=500.0), FITTED)
    assert share == pytest.approx((500 / 700) ** FITTED.power)
    # a peak that was cut on purpose leaves power to spare, which does not lift it
    assert held_share(h20, FITTED) == pytest.approx(1.2**FITTED.power)


def test_a_device_without_float8_multiplies_in_bf16() -> None:
    a100 = find_product("a100-80g")
    assert a100 is not None
    speed = rates(job(product=a100, arithmetic="fp8"), FITTED)
    assert speed.products == speed.plain

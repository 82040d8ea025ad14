"""Times of tokens: what bounds them, worked out by hand, and how they move with the load."""

from dataclasses import replace

import pytest

from parctl.planner.degrees import Degrees
from parctl.planner.inference_time import (
    HOST_S,
    MEMORY,
    PRODUCTS,
    REDUCE_S,
    Setting,
    decode_s,
    prefill_s,
    under_load,
)
from parctl.planner.time.job import Fabric
from parctl.recipes.presets import model_preset
from parctl.topology.products import find_product

FABRIC = Fabric(fast=450e9, slow=50e9, island=8, num_devices=8)


def setting(model: str = "llama-3-8b", *, chunk: int = 8192, **degrees: int) -> Setting:
    product = find_product("h100")
    assert product is not None
    return Setting(
        model=model_preset(model),
        degrees=Degrees(**degrees),
        product=product,
        fabric=FABRIC,
        weight=2.0,
        kv=2.0,
        chunk=chunk,
    )


def test_one_token_alone_streams_the_weights_once() -> None:
    """8.03e9 parameters less the embedding's 0.525e9, 2 bytes, at 3.35 TB/s x the share."""
    streamed = 2 * (8_030_261_248 - 128_256 * 4096) / (3.35e12 * MEMORY)
    # 100 tokens of context: 2 x 8 x 128 x 2 bytes x 32 layers x 100
    context = 100 * 131_072 / (3.35e12 * MEMORY)
    assert decode_s(setting(), 1, 100) == pytest.approx(streamed + context + 32 * HOST_S, rel=1e-3)


def test_a_batch_costs_little_more_until_its_contexts_are_as_large_as_the_weights() -> None:
    alone = decode_s(setting(), 1, 1000)
    assert decode_s(setting(), 8, 1000) < 1.1 * alone
    # 64 x 2,000 x 131,072 bytes are 16.8 GB, the weights 15
    assert 1.8 < decode_s(setting(), 64, 2000) / alone < 2.4


def test_a_prompt_is_bound_by_its_products() -> None:
    """2 x 6.98e9 x 8,000 FLOP in the layers, and scores of half the context on average."""
    products = 2 * 6.979e9 * 8000 / (989e12 * PRODUCTS)
    found = prefill_s(setting(), 8000)
    assert products < found < 1.35 * products


def test_chunks_cost_little_more_than_the_whole() -> None:
    assert prefill_s(setting(chunk=1024), 8192) == pytest.approx(
        prefill_s(setting(), 8192), rel=0.1
    )


def test_tp_divides_the_work_and_adds_two_reductions_a_layer() -> None:
    one, eight = decode_s(setting(), 1, 100), decode_s(setting(tp=8), 1, 100)
    work = one - 32 * HOST_S
    assert eight == pytest.approx(work / 8 + 32 * (HOST_S + 2 * REDUCE_S), rel=0.05)


def test_stages_share_a_prompts_chunks_and_do_not_speed_up_a_token() -> None:
    one, two = setting(chunk=512), setting(chunk=512, pp=2)
    assert prefill_s(two, 8192) == pytest.approx(prefill_s(one, 8192) * 17 / 32, rel=0.1)
    assert decode_s(two, 1, 100) > decode_s(one, 1, 100)


def test_context_ranks_share_the_reading_and_exchange_results_only() -> None:
    """16 of them, one per node of 8 devices: each layer gathers once over the slow links."""
    split = replace(setting(tp=8, cp=16), fabric=replace(FABRIC, num_devices=128))
    alone = setting(tp=8)
    kv = 2 * 128 * 2 * 32 / (3.35e12 * MEMORY)  # of a token: one head of 128 per rank, 32 layers
    for many in (1, 4):
        rows = 4 * many * 4 * 129 * 15 / 50e9  # float32, 4 heads, 128 wide and a weight
        gathers = 32 * (3 * REDUCE_S + rows)
        read = many * 900_000 * kv
        wanted = decode_s(alone, many, 0) + read / 16 + gathers
        assert decode_s(split, many, 900_000) == pytest.approx(wanted, rel=1e-3)


def test_experts_are_read_as_far_as_they_are_chosen() -> None:
    """Mixtral: 2 of 8 experts for one token, nearly all for 32."""
    mixtral = setting("mixtral-8x7b")
    assert 2.5 < decode_s(mixtral, 32, 10) / decode_s(mixtral, 1, 10) < 4


def test_more_requests_than_memory_holds_wait() -> None:
    one = setting(tp=2)
    free = under_load(one, concurrency=50, prompt=1000, output=200, most_running=100)
    full = under_load(one, concurrency=100, prompt=1000, output=200, most_running=100)
    over = under_load(one, concurrency=200, prompt=1000, output=200, most_running=100)
    assert free.first_token_s < 2 * prefill_s(one, 1000)
    assert free.tokens_per_s < full.tokens_per_s == over.tokens_per_s
    assert over.per_token_s == full.per_token_s
    # the 100 that wait leave at tokens_per_s / 200 requests a second
    waiting = over.first_token_s - full.first_token_s
    assert waiting == pytest.approx(100 / (full.tokens_per_s / 200))

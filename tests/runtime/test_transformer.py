"""The model's arithmetic, checked against formulas written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from tests.runtime.plans import GPT, LLAMA
from torch import Tensor

from parctl.recipes.parameters import num_parameters
from parctl.recipes.spec import ModelSpec
from parctl.runtime.execution.recompute import canonical_name
from parctl.runtime.model.attention import Attention
from parctl.runtime.model.dropout import Dropout
from parctl.runtime.model.initialize import fill, normal_block
from parctl.runtime.model.rope import frequencies, llama, rotate, rotation
from parctl.runtime.model.transformer import Block, Transformer


def model_of(spec: ModelSpec) -> Transformer:
    model = Transformer(spec).double()
    fill(dict(model.named_parameters()), num_layers=spec.num_layers, seed=1)
    return model


@pytest.mark.parametrize(
    "spec",
    [
        LLAMA,
        GPT,
        replace(LLAMA, tied_embeddings=True),
        replace(LLAMA, qkv_bias=True),
        replace(GPT, tied_embeddings=False, activation="relu"),
    ],
    ids=["llama", "gpt", "tied", "qkv bias", "untied gpt"],
)
def test_the_model_has_as_many_parameters_as_its_shape_says(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = Transformer(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(spec)


@pytest.mark.parametrize("spec", [LLAMA, GPT], ids=["llama", "gpt"])
def test_a_token_sees_no_later_token(spec: ModelSpec) -> None:
    model = model_of(spec)
    tokens = torch.arange(16).reshape(1, 16)
    changed = tokens.clone()
    changed[0, 9] = 200
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.equal(before[0, 9:], after[0, 9:])


def test_rotation_turns_by_position_times_frequency() -> None:
    """Head of 4: planes (0, 2) and (1, 3), frequencies 1 and 10000^(-1/2) = 0.01."""
    spec = replace(LLAMA, head_dim=4)
    cos, sin = rotation(spec, torch.arange(3), torch.float64)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(1, 3, 1, 4)
    turned = rotate(x, cos, sin)[0, 2, 0].tolist()
    assert turned == pytest.approx([math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)])


def test_rotated_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    cos, sin = rotation(LLAMA, torch.arange(10), torch.float64)
    q = rotate(query.expand(1, 10, 1, 8), cos, sin)[0, :, 0]
    k = rotate(key.expand(1, 10, 1, 8), cos, sin)[0, :, 0]
    assert float(q[3] @ k[1]) == pytest.approx(float(q[9] @ k[7]))


def test_partial_rotation_leaves_the_rest() -> None:
    spec = replace(LLAMA, rope_fraction=0.5)
    cos, sin = rotation(spec, torch.arange(4), torch.float64)
    x = torch.randn(1, 4, 2, 8, dtype=torch.float64)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert not torch.equal(turned[:, 1:, :, :4], x[:, 1:, :, :4])


def test_llama_31_scaling_keeps_fast_waves_and_stretches_slow_ones() -> None:
    """More than 4 periods in 8192 positions: kept. Fewer than 1: divided by 8. 2.5: half way."""
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 8192.0,
    }
    periods = torch.tensor([5.0, 0.5, 2.5], dtype=torch.float64)
    plain = periods * 2 * math.pi / 8192
    ratio = (llama(plain, scaling) / plain).tolist()
    assert ratio == pytest.approx([1.0, 1 / 8, (1 + 1 / 8) / 2])
    assert frequencies(replace(LLAMA, rope_scaling=scaling)).dtype == torch.float64


def test_grouped_heads_equal_full_heads_with_repeated_weights() -> None:
    grouped = Attention(LLAMA).double()
    full = Attention(replace(LLAMA, num_kv_heads=4)).double()
    with torch.no_grad():
        full.wq.weight.copy_(grouped.wq.weight)
        full.wo.weight.copy_(grouped.wo.weight)
        for ours, theirs in ((full.wk, grouped.wk), (full.wv, grouped.wv)):
            heads = theirs.weight.reshape(2, 8, 32).repeat_interleave(2, dim=0)
            ours.weight.copy_(heads.reshape(32, 32))
    x = torch.randn(2, 16, 32, dtype=torch.float64)
    assert torch.allclose(grouped(x, None), full(x, None), rtol=1e-12)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(replace(LLAMA, num_kv_heads=4)).double()
    q, k, v = torch.randn(3, 1, 5, 4, 8, dtype=torch.float64)
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) / math.sqrt(8)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    expected: Tensor = torch.einsum("bnqk,bknh->bqnh", weights, v)
    assert torch.allclose(attention.attend(q, k, v), expected, rtol=1e-10)


def test_first_weights_have_their_standard_deviations() -> None:
    model = model_of(replace(LLAMA, dim=128, ffn_dim=256))
    assert float(model.get_parameter("embedding.weight").detach().std()) == pytest.approx(
        0.02, rel=0.02
    )
    block = model.blocks["0"]
    assert isinstance(block, Block)
    assert block.feed_forward is not None
    assert float(block.feed_forward.w_down.weight.detach().std()) == pytest.approx(
        0.02 / 2, rel=0.02
    )  # 1/sqrt(2 x 2 layers)
    assert torch.equal(
        model.get_parameter("final_norm.weight"), torch.ones(128, dtype=torch.float64)
    )


def test_first_weights_follow_from_seed_name_and_rows() -> None:
    assert torch.equal(normal_block("1:a", 64, 8, 4), normal_block("1:a", 64, 8, 4))
    assert not torch.equal(normal_block("1:a", 64, 8, 4), normal_block("1:b", 64, 8, 4))
    assert not torch.equal(normal_block("1:a", 64, 8, 4), normal_block("1:a", 0, 8, 4))


def test_dropout_of_a_shared_activation_is_equal_and_of_own_parts_is_not() -> None:
    """Two TP ranks with equal generators, one after the other."""
    x = torch.ones(4, 100)

    def drop(tp_rank: int | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        layer = Dropout(0.5).train()
        layer.tp_rank = tp_rank
        return layer(x), torch.rand(3)

    (shared_0, _), (shared_1, _) = drop(None), drop(None)
    (own_0, next_0), (own_1, next_1) = drop(0), drop(1)
    assert torch.equal(shared_0, shared_1)
    assert not torch.equal(own_0, own_1)
    assert torch.equal(next_0, next_1)  # the shared generator stays in step
    assert 150 < int((own_0 == 0).sum()) < 250
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_names_in_checkpoints_have_no_wrappers() -> None:
    name = "blocks.0._checkpoint_wrapped_module.attention.wq.weight"
    assert canonical_name(name) == "blocks.0.attention.wq.weight"

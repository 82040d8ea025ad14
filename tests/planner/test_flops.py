"""Model FLOPs per token against published numbers."""

from dataclasses import replace

import pytest

from parctl.planner.flops import flops_convention, matmul_parameters, model_flops_per_token
from parctl.recipes.presets import model_preset


@pytest.mark.parametrize(
    ("seq_len", "causal", "gigaflops"),
    [(8192, True, 51.5), (8192, False, 57.9), (262144, True, 251), (262144, False, 457)],
)
def test_llama_8b_as_published(seq_len: int, causal: bool, gigaflops: float) -> None:
    model = replace(model_preset("llama-3-8b"), causal=causal)
    assert model_flops_per_token(model, seq_len) / 1e9 == pytest.approx(gigaflops, rel=2e-3)


def test_gpt3_agrees_with_the_megatron_formula() -> None:
    # 2104.04473 without recompute: 72 L h^2 (1 + s/6h + V/12Lh) per token, attention in full
    layers, hidden, seq_len, vocabulary = 96, 12288, 2048, 50257
    published = (
        72 * layers * hidden**2
        * (1 + seq_len / (6 * hidden) + vocabulary / (12 * layers * hidden))
    )  # fmt: skip
    model = replace(model_preset("gpt-3-175b"), causal=False)
    assert model_flops_per_token(model, seq_len) == pytest.approx(published, rel=1e-3)


def test_a_tied_head_is_multiplied_with_once() -> None:
    tied = replace(model_preset("llama-3-8b"), tied_embeddings=True)
    assert matmul_parameters(tied) == matmul_parameters(model_preset("llama-3-8b"))


def test_a_sparse_model_counts_the_experts_that_a_token_uses() -> None:
    # Mixtral 8x7B: 12.9 billion active of 46.7, less the 131 million of the input embedding
    assert matmul_parameters(model_preset("mixtral-8x7b")) == pytest.approx(12.75e9, rel=2e-3)


def test_the_convention_is_named() -> None:
    model = model_preset("llama-3-8b")
    assert "causal attention counted half" in flops_convention(model)
    assert "in full" in flops_convention(replace(model, causal=False))

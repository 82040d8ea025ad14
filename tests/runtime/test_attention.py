"""Attention against formulas written out by hand, and against documents run one by one."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.harness import train_to_end
from tests.runtime.plans import GPT, LLAMA, plan
from torch import Tensor

from parctl.recipes.parameters import num_parameters
from parctl.recipes.spec import MlaSpec, ModelSpec
from parctl.runtime.model.attention import Attention, LocalKernel
from parctl.runtime.model.initialize import fill
from parctl.runtime.model.latent_attention import LatentAttention
from parctl.runtime.model.rope import rotation
from parctl.runtime.model.transformer import Transformer

MLA = replace(
    LLAMA,
    num_kv_heads=4,
    mla=MlaSpec(
        q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5
    ),
)
assert MLA.mla is not None
PLAIN_QUERIES = replace(MLA, mla=replace(MLA.mla, q_lora_rank=None))
MODELS = {
    "llama": LLAMA,
    "qk norm": replace(LLAMA, qk_norm=True),
    "mla": MLA,
    "mla, plain queries": PLAIN_QUERIES,
    "not causal": replace(LLAMA, causal=False),
}


def model_of(spec: ModelSpec) -> Transformer:
    model = Transformer(spec).double()
    fill(dict(model.named_parameters()), num_layers=spec.num_layers, seed=1)
    return model


def random_weights(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)


def mix(q_BSNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, *, causal: bool = True) -> Tensor:
    scores = torch.einsum("bqnh,bknh->bnqk", q_BSNH, k_BSNH) / math.sqrt(q_BSNH.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return torch.einsum("bnqk,bknh->bqnh", scores.softmax(dim=-1), v_BSNH)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x_BSNR: Tensor) -> Tensor:
    """Rotate by complex products, theta 10,000."""
    half = x_BSNR.shape[-1] // 2
    angles = torch.outer(
        torch.arange(x_BSNR.shape[1], dtype=torch.float64),
        10000.0 ** (-torch.arange(half, dtype=torch.float64) / half),
    ).unsqueeze(1)
    plane = torch.complex(x_BSNR[..., :half], x_BSNR[..., half:]) * torch.exp(1j * angles)
    return torch.cat((plane.real, plane.imag), dim=-1)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_the_model_has_as_many_parameters_as_its_shape_says(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = Transformer(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(spec)


def test_queries_and_keys_are_normalised_per_head_before_they_are_rotated() -> None:
    spec = replace(LLAMA, qk_norm=True, num_kv_heads=4)
    attention = Attention(spec).double()
    random_weights(attention)
    w = dict(attention.named_parameters())
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    q, k, v = ((x @ w[f"{name}.weight"].T).view(2, 6, 4, 8) for name in ("wq", "wk", "wv"))
    q, k = turn(rms(q, w["q_norm.weight"])), turn(rms(k, w["k_norm.weight"]))
    expected = mix(q, k, v).flatten(2) @ w["wo.weight"].T
    found = attention(x, rotation(spec, torch.arange(6), torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", [MLA, PLAIN_QUERIES], ids=["latent queries", "plain queries"])
def test_latent_attention_is_attention_with_keys_and_values_from_one_latent(
    spec: ModelSpec,
) -> None:
    attention = LatentAttention(spec).double()
    random_weights(attention)
    w = dict(attention.named_parameters())
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    if "wq.weight" in w:
        q = x @ w["wq.weight"].T
    else:
        q = rms(x @ w["wq_down.weight"].T, w["q_norm.weight"]) @ w["wq_up.weight"].T
    q = q.view(2, 6, 4, 10)
    down = x @ w["wkv_down.weight"].T
    up = (rms(down[..., :10], w["kv_norm.weight"]) @ w["wkv_up.weight"].T).view(2, 6, 4, 11)
    shared = turn(down[..., 10:].unsqueeze(2))
    heads = []
    for head in range(4):
        query = torch.cat((q[:, :, [head], :6], turn(q[:, :, [head], 6:])), dim=-1)
        key = torch.cat((up[:, :, [head], :6], shared), dim=-1)
        heads.append(mix(query, key, up[:, :, [head], 6:]))
    expected = torch.cat(heads, dim=2).flatten(2) @ w["wo.weight"].T
    found = attention(x, rotation(spec, torch.arange(6), torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_without_a_causal_mask_every_token_sees_every_other() -> None:
    q, k, v = torch.randn(3, 1, 5, 4, 8, dtype=torch.float64)
    found = LocalKernel(causal=False)(q, k, v, None, dropout=0.0)
    torch.testing.assert_close(found, mix(q, k, v, causal=False), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_documents_under_a_mask_are_as_if_each_were_alone(spec: ModelSpec) -> None:
    """Rotary positions count distances only, so a document may begin anywhere."""
    model = model_of(spec)
    tokens = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 5 + [1] * 1 + [2] * 6])
    together = model(tokens, documents=documents)
    alone = [model(tokens[:, first:last]) for first, last in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-10, atol=1e-12)


SPLITS: dict[str, tuple[ModelSpec, dict[str, int], dict[str, Any]]] = {
    "qk norm tp2+sp": (MODELS["qk norm"], {"tp": 2}, {"sp": True}),
    "qk norm tp4 with 2 kv heads": (MODELS["qk norm"], {"tp": 4}, {}),
    "mla fsdp2": (MLA, {"fsdp": 2}, {}),
    "mla tp2": (MLA, {"tp": 2}, {}),
    "mla tp2+sp x fsdp2, selective": (
        MLA,
        {"fsdp": 2, "tp": 2},
        {"sp": True, "train": {"recompute": "selective"}},
    ),
    "mla, plain queries tp2+sp": (PLAIN_QUERIES, {"tp": 2}, {"sp": True}),
    "mla pp2": (MLA, {"pp": 2}, {}),
    "not causal tp2+sp": (MODELS["not causal"], {"tp": 2}, {"sp": True}),
}


@pytest.mark.parametrize("case", SPLITS)
def test_every_split_equals_one_process(case: str, text: Path, tmp_path: Path) -> None:
    spec, axes, options = SPLITS[case]
    metrics = train_to_end(plan(text, axes, model=spec, **options), tmp_path / "split")
    expected = train_to_end(plan(text, {}, model=spec), tmp_path / "one")
    for ours, one in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(one[key], rel=1e-10), (ours["step"], key)


def test_learned_positions_run_on_over_borders() -> None:
    """They belong to places in the sequence: a second document does not begin at position 0."""
    model = model_of(GPT)
    tokens = torch.randint(256, (1, 8), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 4 + [1] * 4])
    together = model(tokens, documents=documents)
    torch.testing.assert_close(together[:, :4], model(tokens[:, :4]), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together[:, 4:], model(tokens[:, 4:]), rtol=1e-3)

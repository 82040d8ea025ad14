"""Packed weights give the products of plain ones, and take no memory beside them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from tests.runtime.plans import LLAMA

from parctl.runtime.inference.packed import pack, weight_bytes
from parctl.runtime.model import initialize
from parctl.runtime.model.product import AVAILABLE
from parctl.runtime.model.transformer import Transformer

WIDE = replace(LLAMA, dim=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_dim=512)


def compare(tied: bool) -> tuple[float, int, int, int]:
    """The largest difference of logits; bytes before, after, and of parameters alone."""
    spec = replace(WIDE, tied_embeddings=tied)
    model = Transformer(spec).eval().requires_grad_(False)
    initialize.fill(dict(model.named_parameters()), num_layers=spec.num_layers, seed=0)
    tokens = torch.arange(12).view(1, 12)
    before, expected = weight_bytes(model), model(tokens)
    pack(model)
    difference = float((model(tokens) - expected).abs().max())
    plain = sum(parameter.nbytes for parameter in model.parameters())
    return difference, before, weight_bytes(model), plain


@pytest.mark.skipif(not AVAILABLE, reason="torch was built without oneDNN")
@pytest.mark.parametrize("tied", [False, True])
def test_packing_changes_where_weights_are_and_not_what_they_give(
    tied: bool, tmp_path: Path
) -> None:
    ((difference, before, after, plain),) = run_ranks(compare, 1, tmp_path, tied)
    assert difference < 1e-5
    assert after == before
    # two layers of 4 x 256 x 256 and 3 x 256 x 512; the head of 256 rows when it is no embedding
    packed = 2 * (4 * 256 * 256 + 3 * 256 * 512) + (0 if tied else 256 * 256)
    assert plain == before - 4 * packed

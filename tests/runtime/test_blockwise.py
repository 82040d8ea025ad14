"""Attention block by block, merged, is attention to all keys at once, forward and backward."""

import math
from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from torch import Tensor

from parctl.runtime.model import blockwise

SCALE = 0.3


def inputs(num_keys: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, 3, num_keys, 8, dtype=torch.float64).unbind()
    return q, k.requires_grad_(), v.requires_grad_(), torch.randn(2, 3, 6, 8, dtype=torch.float64)


def by_hand(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bnqh,bnlh->bnql", q, k) * SCALE
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    return torch.einsum("bnql,bnlh->bnqh", scores.softmax(dim=-1), v)


def some_visible() -> Tensor:
    """Query 2 sees nothing of the second half of the keys, every query sees key 0."""
    visible = torch.rand(2, 1, 6, 12, generator=torch.Generator().manual_seed(1)) > 0.4
    visible[..., 2, 6:] = False
    visible[..., 0] = True
    return visible


@pytest.mark.parametrize("masked", [False, True])
def test_two_merged_blocks_are_one(masked: bool, tmp_path: Path) -> None:
    run_ranks(merge_two, 1, tmp_path, masked)  # a process that ran backward can fork no more ranks


def merge_two(masked: bool) -> None:
    q, k, v, gradient = inputs()
    visible = some_visible() if masked else None
    expected = by_hand(q, k, v, visible)
    expected_gradients = torch.autograd.grad(expected, (q, k, v), gradient)
    q, k, v = q.detach(), k.detach(), v.detach()
    halves = [
        (k[:, :, half], v[:, :, half], None if visible is None else visible[..., half])
        for half in (slice(0, 6), slice(6, 12))
    ]
    merged = [
        blockwise.forward(q, kh, vh, scale=SCALE, causal=False, visible=seen)
        for kh, vh, seen in halves
    ]
    (out, lse), (more_out, more_lse) = merged
    blockwise.merge(out, lse, more_out, more_lse)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    parts = [
        blockwise.backward(gradient, q, kh, vh, out, lse, scale=SCALE, causal=False, visible=seen)
        for kh, vh, seen in halves
    ]
    found = (
        parts[0][0] + parts[1][0],
        torch.cat((parts[0][1], parts[1][1]), dim=2),
        torch.cat((parts[0][2], parts[1][2]), dim=2),
    )
    for ours, theirs in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_query_that_sees_no_key_gets_nothing() -> None:
    q, k, v, _ = (x.detach() for x in inputs())
    visible = some_visible()[..., 6:]
    out, lse = blockwise.forward(
        q, k[:, :, 6:], v[:, :, 6:], scale=SCALE, causal=False, visible=visible
    )
    assert out[:, :, 2].eq(0).all()
    assert lse[:, :, 2].eq(-math.inf).all()
    assert lse[:, :, 1].isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_plain_matmuls_equal_the_fused_kernel(causal: bool) -> None:
    """Plain matmuls serve float64 on CUDA; here both can run."""
    q, k, v, gradient = (x.detach() for x in inputs(num_keys=6))
    fused = blockwise.forward(q, k, v, scale=SCALE, causal=causal, visible=None)
    plain = blockwise.plain_forward(q, k, v, SCALE, causal, None)
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    fused_gradients = blockwise.backward(
        gradient, q, k, v, *fused, scale=SCALE, causal=causal, visible=None
    )
    plain_gradients = blockwise.plain_backward(gradient, q, k, v, *plain, SCALE, causal, None)
    for ours, theirs in zip(plain_gradients, fused_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)

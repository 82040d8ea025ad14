"""Products of many heads weigh values as the definition says, forward and backward."""

from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from torch.nn import functional as F

from parctl.runtime.model.attention import LocalKernel
from parctl.runtime.model.short_attention import LONGEST, QUERIES, is_faster


def errors(
    causal: bool, scale: float | None, heads: tuple[int, int], num_tokens: int
) -> dict[str, list[float]]:
    """Relative errors of out, dq, dk and dv in bfloat16, ours and torch's."""
    torch.manual_seed(0)
    shapes = [(2, num_tokens, number, 16) for number in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    gradient = torch.randn(shapes[0]).bfloat16()
    found = {}
    for name, dtype in (("ours", torch.bfloat16), ("exact", torch.float64)):
        own = [x.to(dtype).requires_grad_() for x in inputs]
        q, k, v = own
        out = LocalKernel(causal=causal, scale=scale)(q, k, v, None, dropout=0.0)
        found[name] = [out, *torch.autograd.grad(out, own, gradient.to(dtype))]
    own = [x.clone().requires_grad_() for x in inputs]
    q, k, v = (x.repeat_interleave(heads[0] // x.shape[2], dim=2).transpose(1, 2) for x in own)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)
    found["torch"] = [out, *torch.autograd.grad(out, own, gradient)]
    return {
        name: [
            float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())
            for ours, exact in zip(found[name], found["exact"], strict=True)
        ]
        for name in ("ours", "torch")
    }


@pytest.mark.parametrize("num_tokens", [24, 2 * QUERIES, 2 * QUERIES + 44])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
@pytest.mark.parametrize(("causal", "scale"), [(True, None), (False, None), (False, 1.0)])
def test_values_and_gradients_are_as_near_as_those_of_the_fused_kernel(
    causal: bool, scale: float | None, heads: tuple[int, int], num_tokens: int, tmp_path: Path
) -> None:
    """bfloat16 keeps 8 bits, 0.4%; sums of such roundings stay within 1.5%."""
    (found,) = run_ranks(errors, 1, tmp_path, causal, scale, heads, num_tokens)
    assert max(found["ours"]) < 0.015
    assert max(found["ours"]) < 4 * max(found["torch"])


def choices() -> dict[str, bool]:
    short = torch.zeros(1, 1, LONGEST, 8, dtype=torch.bfloat16)
    long = torch.zeros(1, 1, LONGEST + 1, 8, dtype=torch.bfloat16)
    return {
        "short": is_faster(short, short),
        "long": is_faster(long, long),
        "float32": is_faster(short.float(), short.float()),
    }


def test_it_is_taken_where_it_was_measured_to_be_faster(tmp_path: Path) -> None:
    (found,) = run_ranks(choices, 1, tmp_path)
    assert found == {"short": True, "long": False, "float32": False}

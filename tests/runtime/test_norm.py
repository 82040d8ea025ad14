"""RMSNorm by parts on CPUs: torch's own results and gradients, and what is kept for them."""

import pytest
import torch
from tests.planner.live_bytes import LiveBytes
from torch import Tensor
from torch.nn import functional as F

from parctl.runtime.model import parts
from parctl.runtime.model.norm import RmsNorm

ROWS, DIM, EPS = 10, 48, 1e-5


def made(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[RmsNorm, Tensor, Tensor]:
    torch.manual_seed(0)
    module = RmsNorm(shape[-1], EPS)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    return module.to(dtype), x, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 3, 10, 99], ids=lambda count: f"{count} rows at once")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_give_what_torch_gives(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(parts, "CACHED_ELEMENTS", rows * DIM)
    module, x, gradient = made(dtype, (2, ROWS // 2, DIM))
    wanted = F.rms_norm(x, (DIM,), module.weight, EPS)
    found = module(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)
    inputs = (x, module.weight)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient)
    )


def test_a_head_of_a_tensor_that_lies_otherwise_in_memory_is_normalised_too() -> None:
    module, x, gradient = made(torch.float64, (3, 4, 5, DIM))
    turned, wanted = x.transpose(1, 2), F.rms_norm(x, (DIM,), module.weight, EPS)
    found = module(turned).transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    (dx,) = torch.autograd.grad(found, x, gradient)
    torch.testing.assert_close(dx, torch.autograd.grad(wanted, x, gradient)[0])


def test_a_number_per_row_is_kept_beside_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CACHED_ELEMENTS", DIM)
    module, x, _ = made(torch.bfloat16, (ROWS, DIM))
    with LiveBytes([x, module.weight]) as live:
        y = module(x)
        kept = live.now
    assert kept == y.nbytes + 4 * ROWS

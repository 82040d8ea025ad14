"""oneDNN's products are as exact as float32 is, gradients too, and used where they are faster."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from torch import Tensor
from torch.nn import functional as F

from parctl.runtime.model.product import AVAILABLE, product

Outcome = tuple[Tensor, ...]


def run(
    multiply: Callable[[Tensor, Tensor, Tensor], Tensor],
    dtype: torch.dtype,
    shape: tuple[int, ...],
    features: int,
) -> Outcome:
    """Return the product and its gradients for random factors of size 1."""
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((*shape, 192), (features, 192), (features,))
    )
    out = multiply(x, weight, bias)
    out.backward(  # type: ignore[no-untyped-call]
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    )
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    return out.detach(), x.grad, weight.grad, bias.grad


def outcomes(shape: tuple[int, ...], features: int) -> tuple[Outcome, Outcome]:
    return (
        run(product, torch.float32, shape, features),
        run(F.linear, torch.float64, shape, features),
    )


@pytest.mark.parametrize(
    ("shape", "features"), [((4, 32), 160), ((128,), 160), ((8, 64), 1000)], ids=str
)
def test_float32_products_are_exact_to_float32(
    shape: tuple[int, ...], features: int, tmp_path: Path
) -> None:
    ((ours, exact),) = run_ranks(outcomes, 1, tmp_path, shape, features)
    for value, expected in zip(ours, exact, strict=True):
        # up to 1,000 terms of size 1, each rounded to 6e-8: bfloat16 would be off by 1e-1
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-4)
        assert value.dtype == torch.float32
        assert value.is_contiguous()


def kernel(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    x = torch.ones(*shape, 192, dtype=dtype, requires_grad=True)
    made = product(x, torch.ones(160, 192, dtype=dtype), torch.ones(160, dtype=dtype))
    assert made.grad_fn is not None
    return made.grad_fn.name()


@pytest.mark.skipif(not AVAILABLE, reason="torch was built without oneDNN")
@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (torch.float32, (4, 32), "ProductBackward"),
        (torch.float32, (2,), "AddmmBackward0"),  # small: its overhead would show
        (torch.float64, (4, 32), "ViewBackward0"),  # torch's own, of three dims
        (torch.bfloat16, (128,), "AddmmBackward0"),
    ],
    ids=str,
)
def test_the_faster_kernel_is_chosen(
    dtype: torch.dtype, shape: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    assert run_ranks(kernel, 1, tmp_path, dtype, shape) == [expected]


def is_view(shape: tuple[int, ...]) -> bool:
    x = torch.ones(*shape, 192, requires_grad=True)
    return product(x, torch.ones(160, 192))._is_view()


def test_a_product_is_no_view(tmp_path: Path) -> None:
    """FSDP warns at every launch of a wrapped module that returns one."""
    assert run_ranks(is_view, 1, tmp_path, (4, 32)) == [False]

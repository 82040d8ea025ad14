"""The loss by parts of the logits: torch's own number and gradient, in less memory."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.planner.live_bytes import LiveBytes
from tests.runtime.harness import run_ranks
from torch import Tensor
from torch.nn import functional as F

from parctl.runtime.model import parts
from parctl.runtime.model.loss import IGNORED, CrossEntropy

TOKENS, VOCABULARY = 10, 13


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of which one token's are huge, and targets of which some do not count."""
    torch.manual_seed(0)
    logits_TV = 3 * torch.randn(TOKENS, VOCABULARY, dtype=dtype)
    logits_TV[4] *= 1e4
    targets_T = torch.randint(VOCABULARY, (TOKENS,))
    targets_T[[1, 9]] = IGNORED
    return logits_TV, targets_T


def by_torch(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).requires_grad_()
    total = F.cross_entropy(wide, targets_T, reduction="sum", ignore_index=IGNORED)
    (3 * total).backward()  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    return total.detach(), wide.grad.to(logits_TV.dtype)


def by_parts(
    logits_TV: Tensor, targets_T: Tensor, first: int = 0, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    logits_TV = logits_TV.clone().requires_grad_()
    total: Tensor = CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_TV, targets_T, first, group
    )
    (3 * total).backward()  # type: ignore[no-untyped-call]
    assert logits_TV.grad is not None
    return total.detach(), logits_TV.grad


@pytest.mark.parametrize("tokens", [1, 4, 10, 99], ids=lambda count: f"{count} tokens at once")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_give_what_torch_gives(
    monkeypatch: pytest.MonkeyPatch, tokens: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(parts, "CACHED_ELEMENTS", tokens * VOCABULARY + 1)
    logits_TV, targets_T = sample(dtype)
    found, wanted = by_parts(logits_TV, targets_T), by_torch(logits_TV, targets_T)
    assert found[0].dtype == wanted[0].dtype
    assert found[1].dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_no_target_that_counts_gives_nothing() -> None:
    logits_TV, targets_T = sample(torch.float32)
    total, gradient_TV = by_parts(logits_TV, torch.full_like(targets_T, IGNORED))
    assert total == 0
    assert not gradient_TV.any()


def split_and_whole() -> list[tuple[Tensor, Tensor]]:
    """This rank's part of the vocabulary, and all of it, on every rank."""
    dist.init_process_group("gloo")
    parts.CACHED_ELEMENTS = 3 * VOCABULARY
    logits_TV, targets_T = sample(torch.float64)
    begin, end = ((0, 7), (7, VOCABULARY))[dist.get_rank()]
    total, gradient_TV = by_parts(logits_TV[:, begin:end], targets_T, begin, dist.group.WORLD)
    wanted, whole_TV = by_torch(logits_TV, targets_T)
    dist.destroy_process_group()
    return [(total, wanted), (gradient_TV, whole_TV[:, begin:end])]


def test_a_split_vocabulary_gives_the_same(tmp_path: Path) -> None:
    for rank in run_ranks(split_and_whole, 2, tmp_path):
        for found, wanted in rank:
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_only_a_part_is_ever_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole at the peak: the gradient. Twice a part: one is freed after the next is made."""
    tokens, vocabulary, part = 256, 1000, 8
    monkeypatch.setattr(parts, "CACHED_ELEMENTS", part * vocabulary)
    logits_TV = torch.zeros(tokens, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    targets_T = torch.zeros(tokens, dtype=torch.int64)
    with LiveBytes([logits_TV, targets_T]) as live:
        total: Tensor = CrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits_TV, targets_T, 0, None
        )
        after_forward = live.now
        total.backward()  # type: ignore[no-untyped-call]
    assert after_forward < 40 * tokens  # a few numbers per token
    few = 80 * tokens + 2 * 4 * part * vocabulary
    assert 2 * tokens * vocabulary < live.peak < 2 * tokens * vocabulary + few

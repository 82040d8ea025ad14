"""The ring by itself: what it computes, what it sends, and how work is dealt out."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.runtime.harness import run_ranks
from torch import Tensor

from parctl.runtime.model.attention import LocalKernel
from parctl.runtime.model.sequence import SequencePart
from parctl.runtime.parallel import ring_attention
from parctl.runtime.parallel.ring_attention import EVERY, RingKernel, Round, plan_round

CPU = torch.device("cpu")


def part(index: int, count: int) -> SequencePart:
    return SequencePart(index=index, count=count, zigzag=True)


def test_zigzag_gives_every_rank_a_chunk_of_each_end() -> None:
    found = [part(rank, 3).positions(4, CPU).tolist() for rank in range(3)]
    assert found == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
    contiguous = SequencePart(index=1, count=3, zigzag=False)
    assert contiguous.positions(4, CPU).tolist() == [4, 5, 6, 7]


def test_causal_work_is_equal_in_every_round() -> None:
    """Pairs of query and key that are computed: 8 x 8 / 2 in the first round, 32 in the others."""
    for rank in range(4):
        for source in set(range(4)) - {rank}:
            todo = plan_round(rank, source, 8, causal=True)
            num_queries = len(range(8)[todo.queries])
            assert num_queries * len(range(8)[todo.keys]) == 32
            assert not todo.causal
    assert plan_round(1, 1, 8, causal=True) == Round(queries=EVERY, keys=EVERY, causal=True)
    assert plan_round(1, 0, 8, causal=False) == Round(queries=EVERY, keys=EVERY, causal=False)


def test_what_a_round_leaves_out_is_what_causality_hides() -> None:
    for rank in range(4):
        for source in range(4):
            todo = plan_round(rank, source, 8, causal=True)
            q_S, k_S = part(rank, 4).positions(8, CPU), part(source, 4).positions(8, CPU)
            seen = q_S.unsqueeze(1) >= k_S
            if source == rank:
                assert torch.equal(seen, torch.ones(8, 8).tril().bool())
                continue
            computed = torch.zeros(8, 8, dtype=torch.bool)
            computed[todo.queries, todo.keys] = True
            assert torch.equal(seen, computed), (rank, source)


def ring_and_local(count: int, value_dim: int, causal: bool) -> list[int]:
    """Compare with one device, in every rank. Returns the elements that each exchange sent."""
    dist.init_process_group("gloo")
    sent: list[int] = []
    exchange = dist.batch_isend_irecv

    def counted(operations: list[Any]) -> Any:
        sent.extend(o.tensor.numel() for o in operations if o.op is dist.isend)
        return exchange(operations)

    dist.batch_isend_irecv = counted  # type: ignore[assignment]
    torch.manual_seed(0)
    num_tokens = 8
    shapes = ((4, 6), (2, 6), (2, value_dim))  # heads, width of q, k, v
    q, k, v = whole = [
        torch.randn(2, num_tokens, *shape, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [3, 3, 3, 3, 3, 3, 3, 3]])
    local = LocalKernel(causal=causal)
    expected = local(q, k, v, local.mask(documents), dropout=0.0)
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, whole, upstream)

    own = part(dist.get_rank(), count)
    positions = own.positions(num_tokens // count, CPU)
    q, k, v = parts = [x.detach()[:, positions].requires_grad_() for x in whole]
    group = dist.group.WORLD
    assert group is not None
    ring = RingKernel(group, own, causal=causal)
    found = ring(q, k, v, ring.mask(documents), dropout=0.0)
    gradients = torch.autograd.grad(found, parts, upstream[:, positions])

    def same(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs[:, positions], rtol=1e-11, atol=1e-12)

    same(found, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        same(ours, theirs)
    dist.barrier()  # a rank that leaves closes its connections
    return sent


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("value_dim", [6, 4])
def test_a_ring_equals_one_device_and_sends_only_heads_that_exist(
    causal: bool, value_dim: int, tmp_path: Path
) -> None:
    """Of 2 sequences with 4 tokens here, 2 KV heads and 6 + value_dim elements each."""
    once = 2 * 4 * 2 * (6 + value_dim)
    for sent in run_ranks(ring_and_local, 2, tmp_path, 2, value_dim, causal):
        assert sent == [once] + [once] + [once] * 2  # forward; backward: k and v, twice their sums


def test_torch_knows_shapes_without_running(tmp_path: Path) -> None:
    """As `torch.compile` asks."""
    q, k = torch.empty(2, 8, 4, 6, device="meta"), torch.empty(2, 8, 2, 6, device="meta")
    out, lse = ring_attention.ring_attention(q, k, k[..., :5], None, True, "none")
    assert (out.shape, lse.shape) == ((2, 8, 4, 5), (2, 4, 8))

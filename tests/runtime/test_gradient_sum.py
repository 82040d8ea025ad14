"""Gradients that cross in bfloat16 and are added up in float32 give torch's own numbers."""

from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests.runtime.exchanges import count_exchanges
from tests.runtime.harness import read_metrics, run_ranks
from tests.runtime.moe_models import moe_model
from tests.runtime.plans import plan

from parctl.planner.plan import Plan
from parctl.runtime.parallel import data_parallel
from parctl.runtime.parallel.gradient_sum import GradientSum
from parctl.runtime.worker import TermSignal, run_plan

UNITS = 4  # two layers, embedding, final norm with head
WRAPPED = UNITS + 1  # the whole model's own unit holds nothing


def sum_shares(shard: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's shard of the sum, and the same from all terms, in float32."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    exchange = GradientSum(torch.bfloat16)
    found = torch.zeros(0)
    for _ in range(2):  # the turns of `allocate` begin again
        sent = exchange.allocate([size * shard], dtype=torch.float32, device=torch.device("cpu"))
        total = exchange.allocate([shard], dtype=torch.float32, device=torch.device("cpu"))
        assert (sent.dtype, total.dtype) == (torch.bfloat16, torch.float32)
        sent.copy_(terms(rank, size * shard))
        group = dist.group.WORLD
        assert group is not None
        exchange(total, sent, group, dist.ReduceOp.SUM)
        found = total
    expected = torch.zeros(shard)
    for other in range(size):
        expected += terms(other, size * shard).chunk(size)[rank].float()
    dist.destroy_process_group()
    return found, expected


def terms(rank: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(length, generator=generator).bfloat16()


@pytest.mark.parametrize("shard", [1, 5, 300_000])
def test_every_rank_gets_the_float32_sum_of_its_shard(shard: int, tmp_path: Path) -> None:
    for found, expected in run_ranks(sum_shares, 3, tmp_path, shard):
        assert torch.equal(found, expected)
        if shard > 100:
            assert not torch.equal(found, expected.bfloat16().float())


def train_with(made: Plan, run_dir: Path, torchs_own: bool) -> int:
    """Run a plan on this rank. Returns how many units add up by `GradientSum`."""
    with mock.patch.object(data_parallel, "GradientSum", wraps=GradientSum) as units:
        if torchs_own:
            data_parallel.sums_on_arrival = lambda *_: False
        run_plan(made, run_dir, TermSignal())
    return units.call_count


BF16 = {"precision": "bf16", "steps": 3}
FORMS: dict[str, tuple[dict[str, int], dict[str, Any], int]] = {
    "zero3": ({"fsdp": 2}, {}, WRAPPED),
    "zero2": ({"fsdp": 2}, {"zero_stage": 2}, WRAPPED),
    "hsdp": ({"dp": 2, "fsdp": 2}, {}, WRAPPED),
    "zero3 x tp2+sp": ({"fsdp": 2, "tp": 2}, {"sp": True}, WRAPPED),
    "experts over the same ranks": ({"fsdp": 2}, {"model": moe_model()}, WRAPPED),
    # sharded over fewer ranks than the rest of their block: torch takes no other way there
    "experts elsewhere": ({"fsdp": 4}, {"model": moe_model(), "spec": {"ep": 2}}, 2),
    # added up in float32 before they cross
    "zero3 x pp2": ({"pp": 2, "fsdp": 2}, {"spec": {"schedule": "zero-bubble"}}, 0),
    "zero1": ({"fsdp": 2}, {"zero_stage": 1}, 0),
    "zero3, last": ({"fsdp": 2}, {"spec": {"grad_sync": "last"}}, 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_training_in_bfloat16_gives_the_numbers_of_torchs_own_reduce_scatter(
    form: str, text: Path, tmp_path: Path
) -> None:
    axes, options, units = FORMS[form]
    made = plan(text, axes, train=BF16, **options)
    found = []
    for torchs_own in (False, True):
        run_dir = tmp_path / f"torch-{torchs_own}"
        counts = run_ranks(train_with, prod(axes.values()), run_dir, made, run_dir, torchs_own)
        assert counts == [0 if torchs_own else units] * prod(axes.values())
        found.append([(line["loss"], line["grad_norm"]) for line in read_metrics(run_dir)])
    if prod(axes.values()) == 2:
        assert found[0] == found[1]
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_exchanges_of_a_step_in_bfloat16(text: Path, tmp_path: Path) -> None:
    made = plan(text, {"fsdp": 2}, train={**BF16, "micro_batch": 4})
    counts = run_ranks(count_exchanges, 2, tmp_path, made, tmp_path)
    assert counts == [{"AG": 2 * UNITS - 2, "A2A": UNITS}] * 2

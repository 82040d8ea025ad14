"""FSDP's exchanges on CPUs, in shared memory and by sockets, give torch's own numbers."""

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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from parctl.planner.plan import Plan
from parctl.runtime.parallel import shared_memory
from parctl.runtime.parallel.shard_exchanges import GradientSum
from parctl.runtime.worker import TermSignal, run_plan

UNITS = 4  # two layers, embedding, final norm with head
WRAPPED = UNITS + 1  # the whole model's own unit holds nothing


def sum_shares(shard: int, in_memory: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's shard of the sum, and the same from all terms, in float32."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    if in_memory:
        shared_memory.connect(mesh)
    exchange = GradientSum(torch.bfloat16)
    found = torch.zeros(0)
    for _ in range(2):  # the turns of `allocate` begin again
        sent = exchange.allocate([size * shard], dtype=torch.float32, device=torch.device("cpu"))
        total = exchange.allocate([shard], dtype=torch.float32, device=torch.device("cpu"))
        assert (sent.dtype, total.dtype) == (torch.bfloat16, torch.float32)
        sent.copy_(terms(rank, size * shard))
        exchange(total, sent, mesh.get_group(), dist.ReduceOp.SUM)
        found = total
    expected = torch.zeros(shard)
    for other in range(size):
        expected += terms(other, size * shard).chunk(size)[rank].float()
    dist.destroy_process_group()
    return found, expected


def terms(rank: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(length, generator=generator).bfloat16()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("shard", [1, 5, 300_000, 8_000_001])  # the last in pieces
def test_every_rank_gets_the_float32_sum_of_its_shard(
    shard: int, in_memory: bool, tmp_path: Path
) -> None:
    for found, expected in run_ranks(sum_shares, 3, tmp_path, shard, in_memory):
        assert torch.equal(found, expected)
        if shard > 100:
            assert not torch.equal(found, expected.bfloat16().float())


def train_with(made: Plan, run_dir: Path, way: str) -> int:
    """Run a plan on this rank. Returns how many units exchange by way of this module."""
    own = FSDPModule.set_custom_reduce_scatter
    with mock.patch.object(FSDPModule, "set_custom_reduce_scatter", autospec=True) as units:
        if way == "torch":
            mock.patch.object(FSDPModule, "set_custom_all_gather").start()
        else:
            units.side_effect = own
        if way == "sockets":
            mock.patch.object(shared_memory, "connect").start()
        run_plan(made, run_dir, TermSignal())
    return units.call_count


BF16, FP32 = {"precision": "bf16", "steps": 3}, {"precision": "fp32", "steps": 3}
FORMS: dict[str, tuple[dict[str, int], dict[str, Any], int]] = {
    "zero3": ({"fsdp": 2}, {}, WRAPPED),
    "zero3, float32": ({"fsdp": 2}, {"train": FP32}, WRAPPED),
    "zero2": ({"fsdp": 2}, {"zero_stage": 2}, WRAPPED),
    "hsdp": ({"dp": 2, "fsdp": 2}, {}, WRAPPED),
    "zero3 x tp2+sp": ({"fsdp": 2, "tp": 2}, {"sp": True}, WRAPPED),
    "experts over the same ranks": ({"fsdp": 2}, {"model": moe_model()}, WRAPPED),
    # sharded over fewer ranks than the rest of their block: torch takes no other way there
    "experts elsewhere": ({"fsdp": 4}, {"model": moe_model(), "spec": {"ep": 2}}, 2),
    # added up in float32 before they cross; a stage has a layer, and embedding or head
    "zero3 x pp2": ({"pp": 2, "fsdp": 2}, {"spec": {"schedule": "zero-bubble"}}, 3),
    "zero1": ({"fsdp": 2}, {"zero_stage": 1}, WRAPPED),
    "zero3, last": ({"fsdp": 2}, {"spec": {"grad_sync": "last"}}, WRAPPED),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_training_gives_the_numbers_of_torchs_own_exchanges(
    form: str, text: Path, tmp_path: Path
) -> None:
    axes, options, units = FORMS[form]
    made = plan(text, axes, **{"train": BF16, **options})
    size, found = prod(axes.values()), []
    for way in ("memory", "sockets", "torch"):
        run_dir = tmp_path / way
        counts = run_ranks(train_with, size, run_dir, made, run_dir, way)
        assert counts == [units] * size
        found.append([(line["loss"], line["grad_norm"]) for line in read_metrics(run_dir)])
    *ours, torchs = found
    for numbers in ours:
        if size == 2:
            assert numbers == torchs
        for own, theirs in zip(numbers, torchs, strict=True):
            assert own == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_exchanges_of_a_step_in_bfloat16(in_memory: bool, text: Path, tmp_path: Path) -> None:
    made = plan(text, {"fsdp": 2}, train={**BF16, "micro_batch": 4})
    counts = run_ranks(count, 2, tmp_path, made, tmp_path, in_memory)
    reduces = "RS" if in_memory else "A2A"
    assert counts == [{"AG": 2 * UNITS - 2, reduces: UNITS}] * 2


def count(made: Plan, run_dir: Path, in_memory: bool) -> dict[str, int]:
    if not in_memory:
        mock.patch.object(shared_memory, "connect").start()
    return count_exchanges(made, run_dir)

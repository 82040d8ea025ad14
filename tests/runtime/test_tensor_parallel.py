"""What tensor parallelism splits is split, on every rank. Its exchanges: `test_exchanges.py`."""

import os
from pathlib import Path

import torch.distributed as dist
from tests.runtime.harness import run_ranks
from tests.runtime.plans import plan

from parctl.planner.plan import Plan
from parctl.runtime.model.linear import local
from parctl.runtime.optimizer import MOMENTS
from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
from parctl.runtime.training import prepare


def state_bytes(made: Plan, run_dir: Path) -> int:
    """Bytes of this rank's parameters and optimizer moments."""
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    training = prepare(made, mesh, run_dir, run="x", attempt=1, leader=os.environ["RANK"] == "0")
    total = 0
    for parameter in training.model.parameters().values():
        moments = [training.optimizer.state[parameter][name] for name in MOMENTS]
        total += sum(local(tensor).nbytes for tensor in (parameter, *moments))
    dist.destroy_process_group()
    return total


def test_a_rank_holds_its_share_of_the_state_only(text: Path, tmp_path: Path) -> None:
    """Everything but the norms (5 x 32 numbers) is split over tp, everything over fsdp."""
    matrices = 2 * 256 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    made = plan(text, {"fsdp": 2, "tp": 2}, train={"precision": "fp32"})
    got = run_ranks(state_bytes, 4, tmp_path, made, tmp_path)
    assert got == [3 * 4 * (matrices // 4 + 5 * 32 // 2)] * 4

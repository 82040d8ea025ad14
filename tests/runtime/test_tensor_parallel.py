"""Each form makes exactly the exchanges that its papers say, counted in one step."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.runtime.harness import run_ranks
from tests.runtime.plans import GPT, plan
from torch.utils._python_dispatch import TorchDispatchMode

from parctl.planner.plan import Plan
from parctl.runtime.mesh import build_mesh, choose_device, join_world
from parctl.runtime.trainer import accumulate_gradients
from parctl.runtime.training import prepare

KINDS = {
    "all_reduce": "AR",
    "allreduce_": "AR",
    "all_gather_into_tensor": "AG",
    "_allgather_base_": "AG",
    "reduce_scatter_tensor": "RS",
    "_reduce_scatter_base_": "RS",
}


class ExchangeCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the process groups."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name != "wait_tensor":
            self.counts[KINDS.get(name, name)] += 1
        return func(*args, **(kwargs or {}))


def count_exchanges(made: Plan, run_dir: Path) -> dict[str, int]:
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    leader = os.environ["RANK"] == "0"
    training = prepare(made, mesh, run_dir, run="x", attempt=1, leader=leader)
    with ExchangeCounter() as counter:
        accumulate_gradients(training, 1)
    dist.destroy_process_group()
    return dict(counter.counts)


LAYERS = 2
FORMS: dict[str, tuple[dict[str, int], dict[str, Any], dict[str, int]]] = {
    # a layer: 2 reduces forward, 2 copies backward; embedding 1; head 1; loss 2
    "tp2": ({"tp": 2}, {}, {"AR": 4 * LAYERS + 4}),
    # a layer: 2 gathers and 2 scatters forward, mirrored backward; embedding 1 + 1; head 1 + 1;
    # all-reduces: loss 2, gradients of the norms 1
    "tp2+sp": ({"tp": 2}, {"sp": True}, {"AG": 4 * LAYERS + 2, "RS": 4 * LAYERS + 2, "AR": 3}),
    # per unit (layers, embedding, head): gathered forward and backward (not the head), scattered
    "fsdp2": ({"fsdp": 2}, {}, {"AG": 2 * (LAYERS + 1) + 1, "RS": LAYERS + 2}),
    # parameters stay gathered until the backward pass
    "zero2 of 2": ({"fsdp": 2}, {"zero_stage": 2}, {"AG": LAYERS + 2, "RS": LAYERS + 2}),
    "ddp2": ({"dp": 2}, {}, {"AR": LAYERS + 2}),
    # learned positions are tied to nothing: 1 unit for embedding, positions, norm and head
    "gpt ddp2": ({"dp": 2}, {"model": GPT}, {"AR": LAYERS + 1}),
}


@pytest.mark.parametrize("form", FORMS)
def test_exchanges_of_one_step_are_the_textbooks(form: str, text: Path, tmp_path: Path) -> None:
    axes, options, expected = FORMS[form]
    train = {"micro_batch": 8 if "tp" in axes else 4}  # one micro-batch
    made = plan(text, axes, train=train, **options)
    counts = run_ranks(count_exchanges, 2, tmp_path, made, tmp_path)
    assert counts == [expected, expected]


def test_replicas_exchange_gradients_once_however_many_micro_batches(
    text: Path, tmp_path: Path
) -> None:
    made = plan(text, {"dp": 2}, train={"micro_batch": 1})  # four micro-batches
    assert run_ranks(count_exchanges, 2, tmp_path, made, tmp_path)[0] == {"AR": LAYERS + 2}


def state_bytes(made: Plan, run_dir: Path) -> int:
    """Bytes of this rank's parameters and optimizer moments."""
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    training = prepare(made, mesh, run_dir, run="x", attempt=1, leader=os.environ["RANK"] == "0")
    total = 0
    for parameter in training.model.parameters().values():
        moments = [training.optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")]
        total += sum(tensor.to_local().nbytes for tensor in (parameter, *moments))
    dist.destroy_process_group()
    return total


def test_a_rank_holds_its_share_of_the_state_only(text: Path, tmp_path: Path) -> None:
    """Everything but the norms (5 x 32 numbers) is split over tp, everything over fsdp."""
    matrices = 2 * 256 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    made = plan(text, {"fsdp": 2, "tp": 2}, train={"precision": "fp32"})
    got = run_ranks(state_bytes, 4, tmp_path, made, tmp_path)
    assert got == [3 * 4 * (matrices // 4 + 5 * 32 // 2)] * 4

"""Each form makes exactly the exchanges that its papers say, counted in one step.

AR all-reduce, AG all-gather, RS reduce-scatter, A2A all-to-all; m micro-batches.
"""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.exchanges import count_exchanges
from tests.runtime.harness import run_ranks
from tests.runtime.plans import GPT, LLAMA, plan

from parctl.runtime.parallel import shared_memory

LAYERS = 2
UNITS = LAYERS + 2  # layers, embedding, final norm with head
FREED = LAYERS  # gathered again for the backward pass: not the head, nor a table of lookups
PARALLEL = replace(LLAMA, parallel_blocks=True)

Form = tuple[dict[str, int], dict[str, Any], dict[str, int]]
ONE_MICRO_BATCH: dict[str, Form] = {
    # a layer: 2 reduces forward, 2 copies backward; embedding 1; head 1; loss 2
    "tp2": ({"tp": 2}, {}, {"AR": 4 * LAYERS + 4}),
    # a layer: 2 gathers and 2 scatters forward, mirrored backward; embedding 1 + 1; head 1 + 1;
    # all-reduces: loss 2, gradients of the norms 1
    "tp2+sp": ({"tp": 2}, {"sp": True}, {"AG": 4 * LAYERS + 2, "RS": 4 * LAYERS + 2, "AR": 3}),
    # run again, a layer reduces after attention; it ends before it would after the MLP
    "tp2, full": ({"tp": 2}, {"recompute": "full"}, {"AR": 5 * LAYERS + 4}),
    # and gathers its input first
    "tp2, partitioned": (
        {"tp": 2},
        {"recompute": "partitioned"},
        {"AR": 5 * LAYERS + 4, "AG": LAYERS},
    ),
    # sums over tp are kept, gathered tokens are gathered again
    "tp2, selective": ({"tp": 2}, {"recompute": "selective"}, {"AR": 4 * LAYERS + 4}),
    "tp2+sp, selective": (
        {"tp": 2},
        {"sp": True, "recompute": "selective"},
        {"AG": 6 * LAYERS + 2, "RS": 4 * LAYERS + 2, "AR": 3},
    ),
    # one reduce forward, one copy backward
    "op2": ({"operator": 2}, {"model": PARALLEL}, {"AR": 2 * LAYERS}),
    "fsdp2": ({"fsdp": 2}, {}, {"AG": UNITS + FREED, "RS": UNITS}),
    "fsdp2, reshard always": ({"fsdp": 2}, {"spec": {"reshard": "always"}}, {"AG": 7, "RS": 4}),
    "fsdp2, prefetch 2": (
        {"fsdp": 2},
        {"spec": {"prefetch": 2}},
        {"AG": UNITS + FREED, "RS": UNITS},
    ),
    # what a layer run again needs is there already
    "fsdp2, full": ({"fsdp": 2}, {"recompute": "full"}, {"AG": UNITS + FREED, "RS": UNITS}),
    # all gradients together in shared memory, a unit at a time through sockets
    "ddp2": ({"dp": 2}, {}, {"AR": 1}),
    "ddp2 by gloo": ({"dp": 2}, {}, {"AR": UNITS}),
    # a tied head: 1 unit for embedding, positions, norm and head
    "gpt ddp2 by gloo": ({"dp": 2}, {"model": GPT}, {"AR": LAYERS + 1}),
}
# torch prefetches from the micro-batch before where each ends in a reduction: one gather too many
FOUR_MICRO_BATCHES: dict[str, Form] = {
    "ddp2": ({"dp": 2}, {}, {"AR": 1}),
    "ddp2 by gloo": ({"dp": 2}, {}, {"AR": UNITS}),
    "ddp2, each": ({"dp": 2}, {"spec": {"grad_sync": "each"}}, {"AR": 4 * UNITS}),
    "zero1": ({"fsdp": 2}, {"zero_stage": 1}, {"AG": UNITS, "RS": UNITS}),
    "zero2": ({"fsdp": 2}, {"zero_stage": 2}, {"AG": UNITS + 1, "RS": 4 * UNITS}),
    "zero3": ({"fsdp": 2}, {}, {"AG": 4 * (UNITS + FREED) + 1, "RS": 4 * UNITS}),
    "zero3, last": (
        {"fsdp": 2},
        {"spec": {"grad_sync": "last"}},
        {"AG": 4 * (UNITS + FREED), "RS": UNITS},
    ),
    "zero3, never freed": (
        {"fsdp": 2},
        {"spec": {"reshard": "never"}},
        {"AG": UNITS + 1, "RS": 4 * UNITS},
    ),
    # 2 micro-batches on each of 4 ranks; replicas of shards exchange once
    "hsdp2x2": (
        {"dp": 2, "fsdp": 2},
        {},
        {"AG": 2 * (UNITS + FREED) + 1, "RS": 2 * UNITS, "AR": UNITS},
    ),
}


def counted(form: Form, micro_batch: int, text: Path, run_dir: Path) -> list[dict[str, int]]:
    axes, options, _ = form
    options = dict(options)
    recompute = options.pop("recompute", "none")
    train = {"micro_batch": micro_batch, "recompute": recompute}
    made = plan(text, axes, train=train, **options)
    return run_ranks(count_exchanges, prod(axes.values()), run_dir, made, run_dir)


@pytest.fixture(autouse=True)
def memory_or_sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "by gloo" in request.node.name:
        monkeypatch.setenv(shared_memory.SWITCH, "0")


@pytest.mark.parametrize("name", ONE_MICRO_BATCH)
def test_exchanges_of_one_micro_batch(name: str, text: Path, tmp_path: Path) -> None:
    form = ONE_MICRO_BATCH[name]
    data_ranks = form[0].get("dp", 1) * form[0].get("fsdp", 1)
    assert counted(form, 8 // data_ranks, text, tmp_path) == [form[2]] * 2


@pytest.mark.parametrize("name", FOUR_MICRO_BATCHES)
def test_exchanges_of_a_step_with_accumulation(name: str, text: Path, tmp_path: Path) -> None:
    form = FOUR_MICRO_BATCHES[name]
    assert counted(form, 1, text, tmp_path) == [form[2]] * prod(form[0].values())

"""Count what one step sends through the process groups, and how often its host waits."""

import os
import sys
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from parctl.planner.plan import Plan
from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
from parctl.runtime.trainer import accumulate_gradients
from parctl.runtime.training import prepare

KINDS = {
    "all_reduce": "AR",
    "allreduce_": "AR",
    "all_gather": "AG",
    "all_gather_into_tensor": "AG",
    "_allgather_base_": "AG",
    "reduce_scatter": "RS",
    "reduce_scatter_tensor": "RS",
    "_reduce_scatter_base_": "RS",
    "all_to_all_single": "A2A",
    "alltoall_base_": "A2A",
}


class ExchangeCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the process groups."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        ours = namespace == "parctl" and name in KINDS
        if ours or (namespace in ("c10d", "_c10d_functional") and name != "wait_tensor"):
            self.counts[KINDS.get(name, name)] += 1
        return func(*args, **(kwargs or {}))


WAITS = {"tolist", "item", "nonzero", "cpu", "__bool__", "__int__", "__float__", "__index__"}


class WaitCounter(TorchFunctionMode):
    """Counts what a host would wait for, if the tensors were on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = sys._getframe(1).f_code.co_filename  # meshes are tensors of the host
        waits = getattr(func, "__name__", "") in WAITS
        self.count += waits and not caller.endswith("device_mesh.py")
        return func(*args, **(kwargs or {}))


def count_exchanges(made: Plan, run_dir: Path) -> dict[str, int]:
    """Run the passes of one step on this rank. To be called on every rank of the plan."""
    counter = ExchangeCounter()
    run_step(made, run_dir, counter)
    return dict(counter.counts)


def count_waits(made: Plan, run_dir: Path) -> int:
    """The same; return how often the host waited."""
    counter = WaitCounter()
    run_step(made, run_dir, counter)
    return counter.count


def run_step(made: Plan, run_dir: Path, counter: AbstractContextManager[Any]) -> None:
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    leader = os.environ["RANK"] == "0"
    training = prepare(made, mesh, run_dir, run="x", attempt=1, leader=leader)
    with counter:
        accumulate_gradients(training, 1)
    dist.destroy_process_group()

"""Idle share of every pipeline schedule, beside what its bubble is in theory.

Real processes execute the runtime's schedules over gloo; the stages are stand-ins that sleep a
fixed time in forward, input-gradient and weight-gradient, so that ranks on few cores do not slow
each other down. A rank is busy while it sleeps; the idle share is 1 - (busy time of all ranks) /
(ranks x duration of the step). In theory it follows from the same table (`planner.bubble`), which
the tests hold against the papers' formulas. Best of several steps, because other work on the
machine only adds. Goal: a step takes at most 1.10 of its time in theory.

    python benchmarks/schedules.py [--milliseconds 30] [--steps 3] [--pp 2 4]
"""

import argparse
import os
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parctl.launcher.port import hold_port
from parctl.planner.bubble import timeline
from parctl.planner.schedules import Kind, action_table, stage_ranks
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import ModelSpec, ParallelismSpec, TrainSpec
from parctl.runtime.data.batches import MicroBatch
from parctl.runtime.model.linear import Linear
from parctl.runtime.model.transformer import Part
from parctl.runtime.parallel.mesh import RankMesh, build_mesh, join_world
from parctl.runtime.parallel.parallelize import ParallelModel
from parctl.runtime.parallel.pipeline import Pipeline
from parctl.topology.layout import Layout, Slot

FORMS = ("LAYER{}", "PP{}@gpipe", "PP{}", "PP{}@interleaved-1f1b:2", "PP{}@zero-bubble",
         "PP{}@zero-bubble:2", "PP{}@zbv", "PP{}@dualpipev")  # fmt: skip
MICRO_BATCHES = (4, 8, 16)
WIDTH = 8


class Clock:
    """Sleeps, and counts for how long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.busy = seconds, 0.0

    def sleep(self) -> None:
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.busy += time.perf_counter() - start


class Pause(torch.autograd.Function):
    """Nothing but time, spent forward, backward or both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, forward: bool) -> Tensor:
        ctx.clock = clock
        if forward:
            clock.sleep()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.sleep()
        return gradients[0], None, None


class StandInLinear(Linear):
    """Sleeps forward and in either half of the backward pass."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(WIDTH, WIDTH, bias=False)
        self.clock = clock

    def forward(self, input: Tensor) -> Tensor:
        x = Pause.apply(input, self.clock, True)  # type: ignore[no-untyped-call]
        weight = Pause.apply(self.weight, self.clock, False)  # type: ignore[no-untyped-call]
        return self.multiply(x, weight)


class StandIn(nn.Module):
    """A stage as `runtime.parallel.pipeline` sees it."""

    stream_shards, mtp, num_logits = 1, (), WIDTH

    def __init__(self, model: ModelSpec, part: Part, clock: Clock) -> None:
        super().__init__()
        self.model, self.part = model, part
        self.layer = StandInLinear(clock)

    def num_tokens(self, tokens: Tensor) -> int:
        return tokens.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.part.first:
            x = torch.zeros(*x.shape, WIDTH, requires_grad=torch.is_grad_enabled())
        out: Tensor = self.layer(x)
        return out


def measure(
    form: str, pp: int, count: int, mesh: RankMesh, *, seconds: float, steps: int
) -> tuple[float, float]:
    """Return the idle share and the duration of the best step, the same on every rank."""
    spec, model, train = load(form, pp, count)
    clock = Clock(seconds / spec.virtual_stages)
    ranks = stage_ranks(spec, pp)
    stages: list[Any] = [
        StandIn(model, Part(layers=(), first=stage == 0, last=stage == len(ranks) - 1), clock)
        for stage, rank in enumerate(ranks)
        if rank == mesh.coordinates["pp"]
    ]
    own = {str(index): stage.layer.weight for index, stage in enumerate(stages)}
    parallel = ParallelModel(
        stages=tuple(stages), mesh=mesh, own=own, partial_over_tp=frozenset(), tied=None
    )
    pipeline = Pipeline(parallel, spec, train)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    batches = [MicroBatch(tokens=tokens, targets=tokens)] * count
    found = []
    for step in range(steps):
        clock.busy = 0.0
        dist.barrier()
        start = time.perf_counter()
        pipeline.train(batches, step=step, num_tokens=4 * count)
        duration = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(duration, op=dist.ReduceOp.MAX)
        busy = torch.tensor(clock.busy, dtype=torch.float64)
        dist.all_reduce(busy)
        found.append((float(duration), 1 - float(busy) / (pp * float(duration))))
    duration_s, idle = min(found)
    return idle, duration_s


def load(form: str, pp: int, count: int) -> tuple[ParallelismSpec, ModelSpec, TrainSpec]:
    recipe = load_recipe(f"llama-3-8b: {form.format(pp)}")
    assert recipe.model and recipe.train
    model = replace(recipe.model, dim=WIDTH, vocab_size=WIDTH)
    train = replace(recipe.train, micro_batch=1, global_batch=count, precision="fp32")
    return recipe.parallelism, model, train


def run_rank(rank: int, pp: int, port: int, seconds: float, steps: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo"
    )
    slots = tuple(
        Slot(rank=index, node="here", node_rank=0, local_rank=index, gpu=index)
        for index in range(pp)
    )
    layout = Layout(
        axes={"pp": pp}, expert_axes=None, ranks=tuple(range(pp)), slots=slots, proofs=(),
        explain=(),
    )  # fmt: skip
    device = torch.device("cpu")
    join_world(layout, device)
    mesh = build_mesh(layout, device, wrap_alone=False)
    for form in FORMS:
        for count in MICRO_BATCHES:
            if "dualpipev" in form and count < 2 * pp:
                continue
            idle, duration = measure(form, pp, count, mesh, seconds=seconds, steps=steps)
            if rank == 0:
                report(form, pp, count, idle, duration, seconds)
    dist.barrier()
    dist.destroy_process_group()


def report(form: str, pp: int, count: int, idle: float, duration: float, seconds: float) -> None:
    spec, _, _ = load(form, pp, count)
    unit = seconds / spec.virtual_stages
    costs: dict[Kind, float] = {"F": unit, "I": unit, "W": unit, "B": 2 * unit}
    theory = timeline(action_table(spec, pp, count), pp * spec.virtual_stages, costs)
    print(
        f"{form.format(pp):<24}{count:>4}{theory.idle_share:>10.1%}{idle:>10.1%}"
        f"{theory.duration:>10.3f}{duration:>10.3f}{duration / theory.duration:>8.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--milliseconds", type=float, default=30.0, help="of F, I and W each")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--pp", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    columns = f"{'idle: theory':>14}{'measured':>10}{'s: theory':>10}{'measured':>10}{'ratio':>8}"
    print(f"{'schedule':<24}{'m':>4}{columns}", flush=True)
    for pp in arguments.pp:
        with hold_port("127.0.0.1") as held:
            port = held.getsockname()[1]
            pids = []
            for rank in range(pp):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        seconds = arguments.milliseconds / 1000
                        run_rank(rank, pp, port, seconds, arguments.steps)
                        code = 0
                    except Exception:
                        traceback.print_exc()
                    finally:
                        sys.stdout.flush()
                        os._exit(code)
                pids.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(codes):
            raise SystemExit(f"ranks of pp {pp} ended with {codes}")


if __name__ == "__main__":
    main()

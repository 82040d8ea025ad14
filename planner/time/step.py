"""Seconds of one optimizer step: compute, exposed exchanges, bubble, data-parallel tail, optimizer.

step = micro-batches x what the slowest pipeline rank takes for one, with its exchanges
       + waiting for other pipeline ranks + data exchanges once per step + optimizer,
       longer by a small share per doubling of the nodes
"""

from dataclasses import dataclass, fields
from math import log2

from parctl.planner.time import exchanges
from parctl.planner.time.compute import head, layer
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.job import Job
from parctl.planner.time.pipeline import StageTime, even_waiting, rank_of, waiting
from parctl.recipes.parameters import LayerCount, count_parameters, is_sparse


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one step, apart by what they are spent on. `total` is their sum."""

    compute: float  # of the slowest pipeline rank
    tensor: float  # exchanges that nothing hides, by axis
    context: float
    experts: float
    data: float
    bubble: float  # the slowest rank waits for others
    optimizer: float
    stragglers: float  # and collisions, of many nodes

    @property
    def total(self) -> float:
        return sum(float(getattr(self, part.name)) for part in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one micro-batch in one layer."""

    compute: float
    tensor: float
    context: float
    experts: float
    data: float
    stage: StageTime  # the same seconds by pass

    @property
    def total(self) -> float:
        return self.stage.total


def step_time(job: Job, constants: Constants = FITTED, *, simulate: bool = True) -> StepTime:
    """Predict one optimizer step.

    `simulate`: work through the pipeline's schedule; without, take the closed form of its bubble.
    """
    count = count_parameters(job.model)
    kinds: dict[tuple[bool, int | None], LayerTime] = {}

    def time_of(index: int) -> LayerTime:
        kind = (is_sparse(job.model, index), job.windows[index % len(job.windows)])
        if kind not in kinds:
            kinds[kind] = _layer_time(job, constants, index, count.layers[index])
        return kinds[kind]

    stages = [[time_of(index) for index in layers] for layers in job.stages]
    top = _head_time(job, constants)
    stages[-1].append(top)
    for _ in range(job.model.num_mtp_layers):  # a layer and the head once more (2412.19437)
        stages[-1] += [time_of(job.model.num_layers - 1), top]
    ranks: list[list[LayerTime]] = [[] for _ in range(job.degrees.pp)]
    for number, times in enumerate(stages):
        ranks[rank_of(job, number)] += times
    own = max(ranks, key=lambda times: sum(item.total for item in times))
    passes = [_together(times) for times in stages]
    sent = exchanges.boundary(job, constants)
    bubble = (waiting if simulate else even_waiting)(job, passes, sent)
    m = job.num_micro_batches
    parts = {
        name: m * sum(getattr(item, name) for item in own)
        for name in ("compute", "tensor", "context", "experts", "data")
    }
    compute = sum(item.compute for item in own)
    parts["data"] += exchanges.data_tail(job, constants, count, compute)
    parts["bubble"] = bubble
    parts["optimizer"] = exchanges.optimizer(job, constants, count)
    doublings = log2(max(1.0, job.fabric.num_devices / 8))
    stragglers = sum(parts.values()) * constants.jitter * doublings
    return StepTime(**parts, stragglers=stragglers)


def _layer_time(job: Job, constants: Constants, index: int, count: LayerCount) -> LayerTime:
    passes = layer(job, constants, index)
    again = job.repeated.products
    tensor = exchanges.tensor(job, constants)
    context = exchanges.context(job, constants)
    experts = exchanges.experts(job, constants, index)
    forward, backward = 0.0, 0.0
    if job.gathers_each:
        forward, backward = exchanges.gathered(job, constants, count, passes)
    once = tensor + context + experts
    return LayerTime(
        compute=passes.forward + passes.backward,
        tensor=tensor * (2 + again),
        context=context * (3 + again),  # backward carries gradients around the ring, too
        experts=experts * (2 + again),
        data=forward + backward,
        stage=StageTime(
            forward=passes.forward + once + forward,
            inputs=passes.again + passes.inputs + once * (1 + again) + context + backward,
            weights=passes.weights,
        ),
    )


def _head_time(job: Job, constants: Constants) -> LayerTime:
    passes = head(job, constants)
    return LayerTime(
        compute=passes.forward + passes.backward,
        tensor=0.0,
        context=0.0,
        experts=0.0,
        data=0.0,
        stage=StageTime(forward=passes.forward, inputs=passes.inputs, weights=passes.weights),
    )


def _together(times: list[LayerTime]) -> StageTime:
    return StageTime(
        forward=sum(item.stage.forward for item in times),
        inputs=sum(item.stage.inputs for item in times),
        weights=sum(item.stage.weights for item in times),
    )

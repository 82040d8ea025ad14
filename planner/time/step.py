"""Seconds of one optimizer step: compute, exposed exchanges, bubble, data-parallel tail, optimizer.

step = micro-batches x what the slowest pipeline rank takes for one, with its exchanges
       + waiting for other pipeline ranks + data exchanges once per step + optimizer,
       longer by a small share per doubling of the nodes
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import log2
from operator import add

from parctl.planner.time import exchanges
from parctl.planner.time.compute import head, layer
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.job import Job
from parctl.planner.time.pipeline import StageTime, ranks_of, waiting
from parctl.recipes.parameters import LayerCount, ModelCount, count_parameters, is_sparse


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


_Kind = tuple[bool, int | None]  # has experts, attention window
Waiting = Callable[[Job, Sequence[StageTime], float], float]


def step_time(
    job: Job,
    constants: Constants = FITTED,
    *,
    wait: Waiting = waiting,
    count: ModelCount | None = None,
) -> StepTime:
    """Predict one optimizer step.

    `wait`: how the pipeline's bubble is found. By default its schedule is worked through; closed
    forms (`parctl.planner.time.pipeline`) are cheaper. `count`: of the model, where it is known.
    """
    count = count or count_parameters(job.model)
    kinds = _kinds(job)
    times = [layer_time(job, constants, index, count.layers[index]) for index in kinds.values()]
    times.append(head_time(job, constants))
    mixes = _mixes(job, kinds)
    ranks = [(0,) * len(times)] * job.degrees.pp
    for rank, mix in zip(ranks_of(job), mixes, strict=True):
        ranks[rank] = tuple(map(add, ranks[rank], mix))
    own = max(set(ranks), key=lambda mix: _sum(times, mix, "total"))
    passes = {mix: _together(times, mix) for mix in set(mixes)}
    m = job.num_micro_batches
    parts = {
        name: m * _sum(times, own, name)
        for name in ("compute", "tensor", "context", "experts", "data")
    }
    held = exchanges.heaviest(job, count)
    parts["data"] += exchanges.data_tail(job, constants, held, parts["compute"] / m)
    parts["bubble"] = wait(job, [passes[mix] for mix in mixes], exchanges.boundary(job, constants))
    parts["optimizer"] = exchanges.optimizer(job, constants, held)
    doublings = log2(max(1.0, job.fabric.num_devices / 8))
    stragglers = sum(parts.values()) * constants.jitter * doublings
    return StepTime(**parts, stragglers=stragglers)


def layer_time(job: Job, constants: Constants, index: int, count: LayerCount) -> LayerTime:
    """Layer `index` of the model."""
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


def head_time(job: Job, constants: Constants) -> LayerTime:
    """The final norm, the head and the loss."""
    passes = head(job, constants)
    return LayerTime(
        compute=passes.forward + passes.backward,
        tensor=0.0,
        context=0.0,
        experts=0.0,
        data=0.0,
        stage=StageTime(forward=passes.forward, inputs=passes.inputs, weights=passes.weights),
    )


def _kind(job: Job, index: int) -> _Kind:
    """Layers of one kind take equally long."""
    return is_sparse(job.model, index), job.windows[index % len(job.windows)]


def _kinds(job: Job) -> dict[_Kind, int]:
    """The first layer of every kind, in the order of the model."""
    if job.model.moe is None and len(job.windows) == 1:
        return {_kind(job, 0): 0}
    found: dict[_Kind, int] = {}
    for index in range(job.model.num_layers):
        found.setdefault(_kind(job, index), index)
    return found


def _mixes(job: Job, kinds: Mapping[_Kind, int]) -> list[tuple[int, ...]]:
    """Of every stage, how many layers of each kind it has, and how many heads."""
    if len(kinds) == 1:
        mixes = [[len(layers), 0] for layers in job.stages]
    else:
        places = {kind: place for place, kind in enumerate(kinds)}
        mixes = [[0] * (len(kinds) + 1) for _ in job.stages]
        for mix, layers in zip(mixes, job.stages, strict=True):
            for index in layers:
                mix[places[_kind(job, index)]] += 1
    mixes[-1][-1] = 1
    if extra := job.model.num_mtp_layers:  # each a layer and the head once more (2412.19437)
        last = list(kinds).index(_kind(job, job.model.num_layers - 1))
        mixes[-1][last] += extra
        mixes[-1][-1] += extra
    return [tuple(mix) for mix in mixes]


def _sum(times: Sequence[LayerTime], mix: Sequence[int], name: str) -> float:
    return sum(n * float(getattr(time, name)) for n, time in zip(mix, times, strict=True))


def _together(times: Sequence[LayerTime], mix: Sequence[int]) -> StageTime:
    total = StageTime(forward=0.0, inputs=0.0, weights=0.0)
    for number, time in zip(mix, times, strict=True):
        total += time.stage.times(number)
    return total

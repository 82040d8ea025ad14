"""Seconds of one optimizer step: compute, exposed exchanges, bubble, data-parallel tail, optimizer.

step = micro-batches x what the slowest pipeline rank takes for one, with its exchanges
       + waiting for other pipeline ranks + data exchanges once per step + optimizer,
       longer by a small share per doubling of the nodes
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import log2

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


_Kind = tuple[bool, int | None] | None  # has experts, attention window; None: the head
HEAD = None
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
    stages = [_kinds(job, layers) for layers in job.stages]
    stages[-1][HEAD] = 1 + job.model.num_mtp_layers
    if job.model.num_mtp_layers:  # each a layer and the head once more (2412.19437)
        stages[-1] += {_kind(job, job.model.num_layers - 1): job.model.num_mtp_layers}
    times: dict[_Kind, LayerTime] = {HEAD: head_time(job, constants)}
    plain = job.model.moe is None and len(job.windows) == 1
    for index, layer_count in enumerate(count.layers[:1] if plain else count.layers):
        if (kind := _kind(job, index)) not in times:
            times[kind] = layer_time(job, constants, index, layer_count)
    ranks: list[Counter[_Kind]] = [Counter() for _ in range(job.degrees.pp)]
    for rank, kinds in zip(ranks_of(job), stages, strict=True):
        ranks[rank] += kinds
    own = max(ranks, key=lambda kinds: sum(n * times[kind].total for kind, n in kinds.items()))
    passes = [_together(times, kinds) for kinds in stages]
    m = job.num_micro_batches
    parts = {
        name: m * sum(n * float(getattr(times[kind], name)) for kind, n in own.items())
        for name in ("compute", "tensor", "context", "experts", "data")
    }
    parts["data"] += exchanges.data_tail(job, constants, count, parts["compute"] / m)
    parts["bubble"] = wait(job, passes, exchanges.boundary(job, constants))
    parts["optimizer"] = exchanges.optimizer(job, constants, count)
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


def _kinds(job: Job, layers: Sequence[int]) -> Counter[_Kind]:
    if job.model.moe is None and len(job.windows) == 1:
        return Counter({_kind(job, 0): len(layers)})
    return Counter(_kind(job, index) for index in layers)


def _together(times: Mapping[_Kind, LayerTime], kinds: Counter[_Kind]) -> StageTime:
    return StageTime(
        forward=sum(n * times[kind].stage.forward for kind, n in kinds.items()),
        inputs=sum(n * times[kind].stage.inputs for kind, n in kinds.items()),
        weights=sum(n * times[kind].stage.weights for kind, n in kinds.items()),
    )

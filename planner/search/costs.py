"""What a choice costs, in seconds and bytes, and how little it can cost at least.

Bounds grow along the tree of `parctl.planner.search.space` and never exceed what a choice in the
branch really takes, so a branch whose bound is beyond what was found can be left out:

    Unit    arithmetic and exchanges of all layers, spread evenly over all devices
    Shape   the same for this many data ranks and stages, whole layers on a stage; with recompute
    Flow    with uneven stages and the least the schedule waits; nothing of data axes
    Choice  everything, with the least the schedule waits
    final   the schedule worked through
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import log2
from typing import Any, Literal

from parctl.planner.devices import Devices
from parctl.planner.memory import Held, Memory, Sharing, held_by_stage, memory_of
from parctl.planner.search.choice import Choice
from parctl.planner.search.space import Flow, Shape, Space, Split, Unit, choice
from parctl.planner.stages import pipeline_rank, split_layers
from parctl.planner.states import REGIMES
from parctl.planner.time import exchanges
from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Fabric, Job, job_of
from parctl.planner.time.pipeline import StageTime, least_duration, least_waiting
from parctl.planner.time.step import StepTime, head_time, layer_time, step_time
from parctl.recipes.parameters import ModelCount, count_parameters, is_sparse
from parctl.recipes.spec import Recipe, Recompute
from parctl.topology.products import Product

Sync = Literal["each", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a cluster is: what times are computed from."""

    product: Product
    fabric: Fabric  # `num_devices` is set by every choice
    constants: Constants


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Prices the choices of one space at the pace of one cluster."""

    space: Space
    pace: Pace

    @cached_property
    def _held(self) -> dict[tuple[Shape, Flow], tuple[Held, ...]]:
        return {}

    @cached_property
    def _stages(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        return {}

    @cached_property
    def _times(self) -> dict[tuple[Unit, Recompute], tuple[StageTime, StageTime, StageTime]]:
        return {}

    @cached_property
    def _base(self) -> list[Any]:
        """The flow that was priced last; its job without shards, that job's time, what it holds."""
        return []

    @property
    def _reshards(self) -> bool:
        return self.space.recipe.parallelism.reshard != "never"

    @cached_property
    def _count(self) -> ModelCount:
        return count_parameters(self.space.model)

    @cached_property
    def _is_sparse(self) -> list[bool]:
        model = self.space.model
        return [is_sparse(model, layer) for layer in range(model.num_layers)]

    @property
    def constants(self) -> Constants:
        return self.pace.constants

    @property
    def devices(self) -> Devices:
        return self.space.devices

    def unit_bound(self, unit: Unit) -> float:
        """All devices at work all the time."""
        share = self.space.usable(unit.tp) / (unit.tp * unit.cp)
        layers, head = self._seconds(unit, "none")
        return self._batches(unit) * (layers + head) / share

    def shape_bound(self, shape: Shape, recompute: Recompute) -> float:
        """As if stages were even but for whole layers, and nobody waited."""
        layers, head = self._seconds(shape.unit, recompute)
        slowest = (layers + head) / shape.pp
        if self.space.model.moe is None:  # all layers are alike, and some stage has the most
            number = self.space.model.num_layers
            slowest = max(slowest, layers * (-(-number // shape.pp) / number))
        return self._batches(shape.unit) / shape.data * slowest * self._jitter(shape)

    def flow_bound(self, shape: Shape, flow: Flow) -> float:
        dense, sparse, head = self._layer_times(shape.unit, flow.recompute)
        dealt = self._dealt(shape.pp * flow.virtual_stages)
        alike: dict[tuple[int, int], StageTime] = {}
        totals, stages = [0.0] * shape.pp, []
        for layers in dealt:
            with_experts = sum(map(self._is_sparse.__getitem__, layers))
            key = (len(layers) - with_experts, with_experts)
            if key not in alike:
                alike[key] = dense.times(key[0]) + sparse.times(key[1])
            stages.append(alike[key])
        stages[-1] += head
        for number, stage in enumerate(stages):
            totals[pipeline_rank(number, shape.pp, flow.schedule)] += stage.total
        count = round(self._batches(shape.unit) / shape.data)
        return least_duration(flow.schedule, count, totals, stages, 0.0) * self._jitter(shape)

    def least_seconds(self, shape: Shape, flow: Flow, split: Split, sync: Sync) -> float:
        """Of a choice; `sync`: when gradients are exchanged."""
        if self._base[:1] != [(shape, flow)]:
            alone = self._job(choice(shape, flow, Split(shape.data, 1, 0)))
            time = step_time(alone, self.constants, wait=least_waiting, count=self._count)
            held = exchanges.heaviest(alone, self._count)
            self._base[:] = [(shape, flow), alone, time, held]
        _, alone, time, held = self._base
        job = replace(
            alone,
            degrees=choice(shape, flow, split).degrees,
            zero_stage=split.zero_stage,
            gathers_each=split.zero_stage == 3 and self._reshards,
            scatters_each=sync == "each",
        )
        if job.gathers_each:  # which every layer waits for
            return step_time(job, self.constants, wait=least_waiting, count=self._count).total
        own: float = time.compute + time.tensor + time.context + time.experts + time.bubble
        passes = time.compute / job.num_micro_batches
        own += exchanges.data_tail(job, self.constants, held, passes)
        own += exchanges.optimizer(job, self.constants, held)
        return own * self._jitter(shape)

    def time(self, chosen: Choice, recipe: Recipe) -> StepTime:
        return step_time(self._job_of(recipe, chosen), self.constants, count=self._count)

    def least_memory(self, shape: Shape, flow: Flow) -> Memory:
        """With the state shared among all data ranks, gradients scattered at once."""
        data = shape.data
        shared = data > 1 or self.space.shares_along_cp(shape)
        split = Split(1, data, 3) if shared else Split(data, 1, 0)
        return self._memory(shape, flow, split, whole_gradients=not shared)

    def memory(self, shape: Shape, flow: Flow, split: Split) -> tuple[Sync, Memory]:
        """When gradients are exchanged, settled as a plan settles it, and the memory with it."""
        several = self._batches(shape.unit) > shape.data
        found = self._memory(shape, flow, split, whole_gradients=several)
        if split.zero_stage < 2 or (several and found.fits):
            return "last", found
        if not several:
            return "each", found
        return "each", self._memory(shape, flow, split, whole_gradients=False)

    def _memory(self, shape: Shape, flow: Flow, split: Split, *, whole_gradients: bool) -> Memory:
        train = self.space.recipe.train
        assert train is not None
        key, chosen = (shape, flow), choice(shape, flow, split)
        if key not in self._held:
            self._held.clear()  # the search asks for one flow after the other
            self._held[key] = held_by_stage(
                chosen.put_into(self.space.recipe),
                chosen.degrees,
                stages=self._dealt(shape.pp * flow.virtual_stages),
                kind=self.devices.kind,
                count=self._count,
                heaviest=True,
            )
        sharing = Sharing(
            zero_stage=split.zero_stage,
            whole_gradients=whole_gradients,
            offload_optimizer=train.offload_optimizer,
        )
        return memory_of(
            self._held[key],
            sharing,
            REGIMES[train.precision],
            chosen.degrees,
            device_bytes=self.devices.memory_bytes,
            kind=self.devices.kind,
        )

    def _job(self, chosen: Choice) -> Job:
        return self._job_of(with_sync(chosen.put_into(self.space.recipe), "last"), chosen)

    def _job_of(self, recipe: Recipe, chosen: Choice) -> Job:
        degrees = chosen.degrees
        stages = self._dealt(degrees.pp * chosen.virtual_stages)
        fabric = replace(self.pace.fabric, num_devices=degrees.world_size)
        job = job_of(recipe, degrees, stages, self.pace.product, fabric)
        assert job is not None, "a precision that the model of time does not know"
        return job

    def _dealt(self, num_stages: int) -> tuple[tuple[int, ...], ...]:
        if num_stages not in self._stages:
            self._stages[num_stages] = split_layers(self.space.model, num_stages)
        return self._stages[num_stages]

    def _seconds(self, unit: Unit, recompute: Recompute) -> tuple[float, float]:
        """Of one micro-batch through all layers and back, and through the head."""
        dense, sparse, head = self._layer_times(unit, recompute)
        with_experts = sum(self._is_sparse)
        layers = dense.total * (len(self._is_sparse) - with_experts) + sparse.total * with_experts
        return layers, head.total

    def _layer_times(
        self, unit: Unit, recompute: Recompute
    ) -> tuple[StageTime, StageTime, StageTime]:
        """A layer without and with experts, and the head; exchanges of data axes left out."""
        key = (unit, recompute)
        if key not in self._times:
            flow = Flow(recompute, "1f1b", 1)
            job = self._job(choice(Shape(unit, 1, 1), flow, Split(1, 1, 0)))
            count = self._count
            kinds = []
            for sparse in (False, True):
                alike = [i for i, found in enumerate(self._is_sparse) if found == sparse]
                kinds.append(
                    layer_time(job, self.constants, alike[0], count.layers[alike[0]]).stage
                    if alike
                    else StageTime(forward=0.0, inputs=0.0, weights=0.0)
                )
            head = head_time(job, self.constants).stage.times(1 + job.model.num_mtp_layers)
            self._times[key] = (kinds[0], kinds[1], head)
        return self._times[key]

    def _batches(self, unit: Unit) -> float:
        train = self.space.recipe.train
        assert train is not None
        return train.global_batch / unit.micro_batch

    def _jitter(self, shape: Shape) -> float:
        devices = shape.unit.tp * shape.unit.cp * shape.pp * shape.data
        return 1 + self.constants.jitter * log2(max(1.0, devices / 8))


def with_sync(recipe: Recipe, sync: Sync) -> Recipe:
    """Settle when gradients are exchanged."""
    parallelism = replace(recipe.parallelism, grad_sync=sync)
    return replace(recipe, parallelism=parallelism)

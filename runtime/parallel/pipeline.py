"""Pipeline parallelism: a rank works through its row of the schedule's table.

    F   take the stream from the stage before, run the stage, hand the stream on
    B   take the stream's gradient from the stage behind, run back, hand the input's gradient on
    I W the same in two halves (`runtime.parallel.weight_gradients`)

What the table says and how its exchanges are ordered is pure arithmetic (`planner.schedules`,
`planner.exchanges`), so this module only executes. torch.distributed.pipelining does not execute
it, because its stages do not know which micro-batch they run (which seeds dropout), exchange
gradients over the data axes once per step only, and split a backward pass at a high price
(`runtime.parallel.weight_gradients`).

The stream is `[B, S, D]`, of this rank's tokens under SP. Sends are never waited for before a step
ends, so a rank that computes never stands still for a slow receiver.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from parctl.planner.exchanges import Exchange, Step, with_exchanges
from parctl.planner.schedules import Action, action_table, forward_table, stage_ranks
from parctl.recipes.spec import ParallelismSpec, TrainSpec
from parctl.runtime.data.batches import MicroBatch
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel import data_parallel, weight_gradients
from parctl.runtime.parallel.parallelize import ParallelModel
from parctl.runtime.parallel.passes import loss_sum, run_stage, seed_dropout
from parctl.runtime.parallel.weight_gradients import Pending, WeightGradients

Place = tuple[int, str, int]  # stage, "F" or "B", micro-batch


@dataclass(slots=True, kw_only=True)
class Flow:
    """What is on its way in one step."""

    batches: Sequence[MicroBatch]
    total: Tensor  # loss sum so far
    arrived: dict[Place, tuple[Tensor, dist.Work | None]] = field(default_factory=dict)
    leaving: dict[Place, Tensor] = field(default_factory=dict)
    sent: list[tuple[Tensor, dist.Work]] = field(default_factory=list)  # kept until they are gone
    inputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by stage and micro-batch
    roots: dict[tuple[int, int], Tensor | GradientEdge] = field(default_factory=dict)
    pending: dict[tuple[int, int], Pending] = field(default_factory=dict)
    backwards: dict[int, int] = field(default_factory=dict)  # finished ones of each stage


class Pipeline:
    """The passes of a model whose stages lie on several ranks."""

    def __init__(
        self, model: ParallelModel, parallelism: ParallelismSpec, train: TrainSpec
    ) -> None:
        mesh = model.mesh
        pp = mesh.axis("pp")
        assert pp is not None
        self._mesh, self._train, self._tied = mesh, train, model.tied
        self._group, self._rank = pp.get_group(), mesh.coordinates["pp"]
        ranks = stage_ranks(parallelism, pp.size())
        own = [stage for stage, rank in enumerate(ranks) if rank == self._rank]
        self._stages = dict(zip(own, model.stages, strict=True))
        self._last = len(ranks) - 1
        self._dtype = data_parallel.COMPUTE_TYPES.get(
            train.precision, next(iter(model.own.values())).dtype
        )

        @cache
        def steps(count: int, forward_only: bool) -> tuple[Step, ...]:
            make = forward_table if forward_only else action_table
            table = make(parallelism, pp.size(), count)
            return with_exchanges(table, len(ranks), ranks.__getitem__)[self._rank]

        self._steps: Callable[[int, bool], tuple[Step, ...]] = steps
        count = train.global_batch // (train.micro_batch * mesh.data_size)
        self._weights: dict[int, WeightGradients] = {}
        if any(isinstance(step, Action) and step.kind == "I" for step in steps(count, False)):
            self._weights = {index: WeightGradients(stage) for index, stage in self._stages.items()}

    def train(self, batches: Sequence[MicroBatch], *, step: int, num_tokens: int) -> Tensor:
        flow = self._begin(batches)
        for item in self._steps(len(batches), False):
            if isinstance(item, Exchange):
                self._exchange(flow, item)
                continue
            match item.kind:
                case "F":
                    seed_dropout(
                        self._train.seed, step, item.micro_batch, self._mesh.token_rank, item.stage
                    )
                    self._forward(flow, item, num_tokens)
                case "W":
                    self._weight(flow, item)
                case _:
                    self._backward(flow, item)
        self._end(flow)
        return flow.total

    def evaluate(self, batches: Sequence[MicroBatch]) -> Tensor:
        flow = self._begin(batches)
        with torch.no_grad():
            for item in self._steps(len(batches), True):
                if isinstance(item, Exchange):
                    self._exchange(flow, item)
                else:
                    self._forward(flow, item, 1)
        self._end(flow)
        for stage in self._stages.values():
            data_parallel.free_gathered(stage)
        return flow.total

    def _begin(self, batches: Sequence[MicroBatch]) -> Flow:
        if self._tied is not None:
            self._tied.refresh()
        total = torch.zeros((), dtype=torch.float64, device=self._mesh.device)
        return Flow(batches=batches, total=total)

    def _end(self, flow: Flow) -> None:
        for _, work in flow.sent:
            work.wait()
        assert not (flow.arrived or flow.leaving or flow.inputs or flow.roots or flow.pending)

    def _exchange(self, flow: Flow, exchange: Exchange) -> None:
        stage, kind, index, peer = exchange
        verb, direction = kind.split()
        place = (stage, direction, index)
        if verb == "send":
            tensor = flow.leaving.pop(place)
            work = dist.isend(
                tensor, group=self._group, group_dst=peer, tag=self._tag(stage, direction)
            )
            assert work is not None
            flow.sent = [item for item in flow.sent if not item[1].is_completed()]
            flow.sent.append((tensor, work))
        else:
            tensor = self._empty_stream(self._stages[stage], flow.batches[index])
            sender = stage - 1 if direction == "F" else stage + 1
            work = dist.irecv(
                tensor, group=self._group, group_src=peer, tag=self._tag(sender, direction)
            )
            flow.arrived[place] = (tensor, work)

    def _tag(self, sender: int, direction: str) -> int:
        return 2 * sender + (direction == "B")

    def _empty_stream(self, stage: Transformer, batch: MicroBatch) -> Tensor:
        num_rows, num_tokens = len(batch.tokens), stage.num_tokens(batch.tokens)
        shape = (num_rows, num_tokens // stage.stream_shards, stage.model.dim)
        return torch.empty(shape, dtype=self._dtype, device=self._mesh.device)

    def _take(self, flow: Flow, place: Place) -> Tensor:
        tensor, work = flow.arrived.pop(place)
        if work is not None:
            work.wait()
        return tensor

    def _hand_on(self, flow: Flow, place: Place, target: int, tensor: Tensor) -> None:
        """Give what a stage made to `target`: on this rank at once, else with its send."""
        assert tensor.dtype == self._dtype, (tensor.dtype, self._dtype)
        _, direction, index = place
        if target in self._stages:
            flow.arrived[target, direction, index] = (tensor, None)
        else:
            flow.leaving[place] = tensor.contiguous()

    def _forward(self, flow: Flow, action: Action, num_tokens: int) -> None:
        index, key = action.micro_batch, (action.stage, action.micro_batch)
        stage, batch = self._stages[action.stage], flow.batches[index]
        training = torch.is_grad_enabled()
        if action.stage == 0:
            x = batch.tokens
        else:
            x = self._take(flow, (action.stage, "F", index)).requires_grad_(training)
            if training:
                flow.inputs[key] = x
        out = run_stage(stage, x, batch)
        if action.stage == self._last:
            loss = loss_sum(stage, out, batch, self._mesh) / num_tokens
            flow.total += loss.detach()
            if training:
                flow.roots[key] = loss
            return
        if training:
            flow.roots[key] = get_gradient_edge(out)  # not `out`, whose memory may go
        self._hand_on(flow, (action.stage, "F", index), action.stage + 1, out.detach())

    def _backward(self, flow: Flow, action: Action) -> None:
        index, key = action.micro_batch, (action.stage, action.micro_batch)
        stage, weights = self._stages[action.stage], self._weights.get(action.stage)
        gradient = None
        if action.stage != self._last:
            gradient = self._take(flow, (action.stage, "B", index))
        if weights is not None:
            weight_gradients.hold_exchange(stage)
        else:
            data_parallel.set_gradient_exchange(stage, self._mesh, last=self._is_last(flow, action))
        torch.autograd.backward([flow.roots.pop(key)], [gradient])  # type: ignore[arg-type]
        if action.stage > 0:
            x = flow.inputs.pop(key)
            assert x.grad is not None
            self._hand_on(flow, (action.stage, "B", index), action.stage - 1, x.grad)
        if weights is not None:
            flow.pending[key] = weights.take()
            if action.kind == "B":
                self._weight(flow, action)

    def _weight(self, flow: Flow, action: Action) -> None:
        weight_gradients.finish(flow.pending.pop((action.stage, action.micro_batch)))
        stage = self._stages[action.stage]
        weight_gradients.exchange(stage, self._mesh, last=self._is_last(flow, action))

    def _is_last(self, flow: Flow, action: Action) -> bool:
        """Count a finished backward pass of a stage, and say whether it is the step's last."""
        done = flow.backwards.get(action.stage, 0) + 1
        flow.backwards[action.stage] = done
        return done == len(flow.batches)

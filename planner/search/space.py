"""What the search may choose from: every combination that the runtime can build on a cluster.

The space is a tree, so that whole branches can be left out by their bounds:

    Unit    tp, cp, ep, etp, micro-batch   what one layer costs
    Shape   and pp, number of data ranks   what a rank computes in a step
    Flow    recompute, schedule, v         how it computes that, and what it keeps
    Split   dp, fsdp, ZeRO stage           how the data ranks share the state

Rules of the space beside those of the runtime: tp splits whole NVLink meshes; cp is a power of two;
the micro-batch is a power of two up to 32, or the recipe's own; no pipeline stage has 15% more
layers than the mean; HSDP shards as ZeRO-3 does, over 1, 4, 16 or 64 meshes and not beside ep. Not
in it is what something else in it always beats: GPipe (1F1B waits as long and keeps less), and
micro-batches that cp divides (two sequences on two ranks are better one on each). `keep` fixes any
field of a choice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

from parctl.planner.devices import Devices
from parctl.planner.rules import MOST_UNEVEN, divisors, sp_divides, tensor_candidates
from parctl.planner.search.choice import RECOMPUTES, Choice
from parctl.recipes.spec import ModelSpec, Recipe, Recompute, Schedule

MOST_MICRO_BATCH = 32
MOST_VIRTUAL_STAGES = 8
USUAL = ("none", "selective", "full")  # partitioned recompute only where it is asked for
Kept = Mapping[str, int | str]


class Unit(NamedTuple):
    tp: int
    cp: int
    cp_kind: Literal["ring", "ulysses"]
    ep: int
    etp: int
    micro_batch: int


class Shape(NamedTuple):
    unit: Unit
    pp: int
    data: int  # ranks that read different sequences


class Flow(NamedTuple):
    recompute: Recompute
    schedule: Schedule
    virtual_stages: int


class Split(NamedTuple):
    dp: int
    fsdp: int
    zero_stage: Literal[0, 1, 2, 3]


def choice(shape: Shape, flow: Flow, split: Split) -> Choice:
    unit = shape.unit
    return Choice(
        tp=unit.tp,
        cp=unit.cp,
        pp=shape.pp,
        dp=split.dp,
        fsdp=split.fsdp,
        ep=unit.ep,
        etp=unit.etp,
        zero_stage=split.zero_stage,
        cp_kind=unit.cp_kind,
        schedule=flow.schedule,
        virtual_stages=flow.virtual_stages,
        micro_batch=unit.micro_batch,
        recompute=flow.recompute,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    recipe: Recipe  # its own degrees, micro-batch and recompute play no part
    devices: Devices
    largest_tp: int  # that the hard rule allows
    max_devices: int | None  # use no more; None: all there are
    keep: Kept

    @property
    def model(self) -> ModelSpec:
        assert self.recipe.model is not None
        return self.recipe.model

    def all(self) -> Iterator[Choice]:
        """Every choice, one by one; thousands to millions."""
        for unit in self.units():
            for shape in self.shapes(unit):
                for flow in self.flows(shape):
                    for split in self.splits(shape):
                        yield choice(shape, flow, split)

    def usable(self, tp: int) -> int:
        """Devices that tp groups can fill."""
        most = self.devices.usable(tp)
        return most if self.max_devices is None else min(most, self.max_devices // tp * tp)

    def units(self) -> Iterator[Unit]:
        train = self.recipe.train
        assert train is not None
        powers = {2**power for power in range(MOST_MICRO_BATCH.bit_length())}
        sizes = sorted(powers | {train.micro_batch, int(self.keep.get("micro_batch", 1))})
        for tp in self._tensor_degrees():
            for cp, kind in self._context_degrees(tp):
                for size in sizes:
                    if train.global_batch % size or not self._keeps("micro_batch", size):
                        continue
                    if gcd(size, cp) > 1 and "cp" not in self.keep:
                        continue
                    if train.precision == "fp8" and not self._float8_divides(tp, cp, size):
                        continue
                    for ep, etp in self._expert_degrees(tp):
                        yield Unit(tp, cp, kind, ep, etp, size)

    def shapes(self, unit: Unit) -> Iterator[Shape]:
        train, layers = self.recipe.train, self.model.num_layers
        assert train is not None
        left = self.usable(unit.tp) // (unit.tp * unit.cp)
        sequences = divisors(train.global_batch // unit.micro_batch)
        for pp in range(1, min(left, layers) + 1):
            if not self._keeps("pp", pp) or -(-layers // pp) * pp > MOST_UNEVEN * layers:
                continue
            for data in sequences:
                if pp * data > left:
                    break
                if data * unit.cp % unit.ep == 0:
                    yield Shape(unit, pp, data)

    def flows(self, shape: Shape) -> Iterator[Flow]:
        for recompute in self.recomputes():
            for schedule, virtual in self.schedules(shape):
                yield Flow(recompute, schedule, virtual)

    def shares_along_cp(self, shape: Shape) -> bool:
        """Whether a lone data rank can shard its state over cp.

        FSDP has to be left open then, and must find no more devices than these.
        """
        cp, devices = shape.unit.cp, shape.unit.tp * shape.unit.cp * shape.pp * shape.data
        return cp > 1 and shape.data == 1 and devices == self.devices.usable(shape.unit.tp)

    def recomputes(self) -> list[Recompute]:
        """From the one that keeps most activations to the one that keeps least."""
        kept = self.keep.get("recompute")
        return [mode for mode in RECOMPUTES if kept == mode or (kept is None and mode in USUAL)]

    def splits(self, shape: Shape) -> Iterator[Split]:
        data, ep = shape.data, shape.unit.ep
        if self._keeps("zero_stage", 0) and self._keeps("fsdp", 1) and self._keeps("dp", data):
            yield Split(data, 1, 0)
        if data == 1 and not self.shares_along_cp(shape):
            return
        for fsdp in divisors(data):
            if fsdp < data and (ep > 1 or fsdp not in self._islands(shape)):
                continue
            if not (self._keeps("fsdp", fsdp) and self._keeps("dp", data // fsdp)):
                continue
            if not self._experts_divide(shape, fsdp):
                continue
            for stage in (1, 2, 3) if fsdp == data else (3,):
                if self._keeps("zero_stage", stage):
                    yield Split(data // fsdp, fsdp, stage)

    def _islands(self, shape: Shape) -> tuple[int, ...]:
        """Sizes of shards beside replicas: what an NVLink mesh, or 4, 16 or 64 of them hold."""
        if fsdp := self.keep.get("fsdp"):
            return (int(fsdp),)
        inside = max(2, self.devices.largest_island // (shape.unit.tp * shape.unit.cp))
        return tuple(inside * meshes for meshes in (1, 4, 16, 64))

    def _keeps(self, field: str, value: int | str) -> bool:
        return self.keep.get(field, value) == value

    def _tensor_degrees(self) -> list[int]:
        most = min(self.largest_tp, self.usable(1))
        allowed = tensor_candidates(self.model, self.devices.largest_island, most)
        return [
            tp
            for tp in (1, *allowed)
            if self._keeps("tp", tp) and (tp == 1 or sp_divides(self.recipe, tp))
        ]

    def _context_degrees(self, tp: int) -> Iterator[tuple[int, Literal["ring", "ulysses"]]]:
        train, model = self.recipe.train, self.model
        assert train is not None
        if self._keeps("cp", 1):
            yield 1, "ring"
        cp, most = 2, self.usable(tp) // tp
        while cp <= most and model.vision is None and not model.num_encoder_layers:
            heads, keys = model.num_heads // tp, max(1, model.num_kv_heads // tp)
            keys = heads if model.mla is not None else keys
            if self._keeps("cp", cp):
                ring = train.seq_len % (2 * cp * tp) == 0 and not model.dropout
                if ring and self._keeps("cp_kind", "ring"):
                    yield cp, "ring"
                swaps = train.seq_len % (cp * tp) == 0 and heads % cp == 0
                swaps = swaps and (keys % cp == 0 or cp % keys == 0)
                if swaps and self._keeps("cp_kind", "ulysses"):
                    yield cp, "ulysses"
            cp *= 2

    def _expert_degrees(self, tp: int) -> Iterator[tuple[int, int]]:
        moe = self.model.moe
        if moe is None:
            yield 1, 1
            return
        shared = moe.num_shared_experts * moe.expert_ffn_dim
        if shared % tp:
            return
        for ep in divisors(moe.num_experts):
            if ep > self.usable(1) or not self._keeps("ep", ep):
                continue
            if ep == 1:
                if moe.expert_ffn_dim % tp == 0:
                    yield 1, 1
                continue
            for etp in sorted({1, tp}):
                if moe.expert_ffn_dim % etp == 0 and self._keeps("etp", etp):
                    yield ep, etp

    def _experts_divide(self, shape: Shape, fsdp: int) -> bool:
        """Whether the ranks that shard an expert get equal parts of it."""
        if self.model.moe is None:
            return True
        shards = fsdp * shape.unit.cp // gcd(shape.unit.ep, fsdp * shape.unit.cp)
        return self.model.dim % shards == 0

    def schedules(self, shape: Shape) -> Iterator[tuple[Schedule, int]]:
        pp, layers = shape.pp, self.model.num_layers
        train = self.recipe.train
        assert train is not None
        if pp == 1:
            if self._keeps("virtual_stages", 1):
                yield "1f1b", 1
            return
        count = train.global_batch // (shape.unit.micro_batch * shape.data)
        found: list[tuple[Schedule, int]] = [("1f1b", 1)]
        if self.keep.get("schedule") == "gpipe":
            found.append(("gpipe", 1))
        if count % pp == 0:
            found += [("interleaved-1f1b", v) for v in range(2, MOST_VIRTUAL_STAGES + 1)]
        if train.precision != "fp8":  # whose products make both gradients at once
            found += [("zero-bubble", v) for v in range(1, MOST_VIRTUAL_STAGES + 1)]
            found.append(("zbv", 2))
            if count >= 2 * pp:
                found.append(("dualpipev", 2))
        for schedule, virtual in found:
            stages = pp * virtual
            if -(-layers // stages) * stages > MOST_UNEVEN * layers or stages > layers:
                continue
            if self._keeps("schedule", schedule) and self._keeps("virtual_stages", virtual):
                yield schedule, virtual

    def _float8_divides(self, tp: int, cp: int, micro_batch: int) -> bool:
        model, train = self.model, self.recipe.train
        assert train is not None
        widths = (
            model.dim,
            model.ffn_dim // tp,
            model.head_dim * model.num_heads // tp,
            model.head_dim * max(1, model.num_kv_heads // tp),
            micro_batch * train.seq_len // cp,
        )
        return all(width % 16 == 0 for width in widths)

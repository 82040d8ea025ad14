"""Seconds of one optimizer step: compute, exposed exchanges, bubble, data-parallel tail, optimizer.

    step = (micro-batches of the slowest stage + filling and draining) x scale
           + exposed data exchanges + optimizer

Exchanges that a layer waits for (tensor, expert, context) count with the share that is not hidden
behind compute. ZeRO-3 gathers every layer for every micro-batch: the layer takes as long as the
slower of computing and gathering. Other data exchanges follow the last micro-batch, hidden in part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from parctl.planner.stages import pipeline_rank
from parctl.planner.time.compute import BYTES, Passes, head, layer, rates
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.job import Job
from parctl.planner.time.links import Group, group
from parctl.recipes.parameters import LayerCount, ModelCount, count_parameters, is_sparse

GRADIENT = 4.0  # bytes on its way: float32
OPTIMIZER_BYTES = 32.0  # per parameter: moments, master weight and gradient read, written, cast


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
    scale: float  # stragglers and jitter of many nodes

    @property
    def total(self) -> float:
        return (
            self.compute
            + self.tensor
            + self.context
            + self.experts
            + self.data
            + self.bubble
            + self.optimizer
            + self.scale
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one micro-batch in one layer."""

    compute: float
    tensor: float
    context: float
    experts: float
    gathered: float  # beyond all that: waiting for ZeRO-3's gathering and scattering

    @property
    def total(self) -> float:
        return self.compute + self.tensor + self.context + self.experts + self.gathered


def step_time(job: Job, constants: Constants = FITTED) -> StepTime:
    """Predict one optimizer step."""
    count = count_parameters(job.model)
    kinds: dict[tuple[bool, int | None], LayerTime] = {}

    def time_of(index: int) -> LayerTime:
        kind = (is_sparse(job.model, index), job.windows[index % len(job.windows)])
        if kind not in kinds:
            kinds[kind] = _layer_time(job, constants, index, count.layers[index])
        return kinds[kind]

    pp, m = job.degrees.pp, job.num_micro_batches
    ranks: list[list[LayerTime]] = [[] for _ in range(pp)]
    for number, layers in enumerate(job.stages):
        schedule = "zbv" if job.schedule in ("zbv", "dualpipev") else "1f1b"
        rank = pipeline_rank(number, pp, schedule)  # type: ignore[arg-type]
        ranks[rank] += [time_of(index) for index in layers]
        if number == len(job.stages) - 1:
            ranks[rank].append(_head_time(job, constants, count))
    totals = [sum(item.total for item in times) for times in ranks]
    slowest = max(range(pp), key=lambda rank: totals[rank])
    own = ranks[slowest]
    waiting = sum(totals) - totals[slowest]
    bubble = waiting * bubble_share(job) + _boundaries(job, constants)
    optimizer = _optimizer(job, constants, count)
    data = _data_tail(job, constants, count, own) + m * sum(item.gathered for item in own)
    parts = {
        name: m * sum(getattr(item, name) for item in own)
        for name in ("compute", "tensor", "context", "experts")
    }
    before = sum(parts.values()) + bubble + data + optimizer
    nodes = max(1.0, job.fabric.num_devices / 8)
    return StepTime(
        **parts,
        bubble=bubble,
        data=data,
        optimizer=optimizer,
        scale=before * constants.jitter * log2(nodes),
    )


def bubble_share(job: Job) -> float:
    """How much of the other stages' micro-batch time the slowest one waits."""
    match job.schedule:
        case "zbv":
            return 0.0
        case "zero-bubble" | "dualpipev" | "dualpipe":
            return 1 / 3 / job.virtual_stages
        case _:
            return 1 / job.virtual_stages


def _layer_time(job: Job, constants: Constants, index: int, count: LayerCount) -> LayerTime:
    passes = layer(job, constants, index)
    repeats = job.repeated.products
    compute = passes.forward + passes.backward
    tensor = _tensor(job, constants) * (2 + repeats)
    context = _context(job, constants) * (3 + repeats)
    experts = _experts(job, constants, index) * (2 + repeats)
    gathered = 0.0
    if job.gathers_each:
        gathered = _gathered(job, constants, count, passes)
    return LayerTime(
        compute=compute, tensor=tensor, context=context, experts=experts, gathered=gathered
    )


def _head_time(job: Job, constants: Constants, count: ModelCount) -> LayerTime:
    passes = head(job, constants)
    return LayerTime(
        compute=passes.forward + passes.backward,
        tensor=0.0,
        context=0.0,
        experts=0.0,
        gathered=0.0,
    )


def _tensor(job: Job, constants: Constants) -> float:
    """Exposed exchanges of one pass: two pairs of gather and scatter, or two all-reduces."""
    tp = job.degrees.tp
    if tp == 1:
        return 0.0
    links = group(job.fabric, constants, size=tp, stride=1)
    num_bytes = BYTES * job.tokens * job.model.dim
    exchange = 2 * links.all_reduce(num_bytes)
    return exchange * (constants.tp_exposed if job.tensor_overlap else 1.0)


def _context(job: Job, constants: Constants) -> float:
    """Exposed exchange of keys and values once around the ring."""
    cp = job.degrees.cp
    if cp == 1:
        return 0.0
    links = group(job.fabric, constants, size=cp, stride=job.degrees.tp)
    heads = max(1.0, job.model.num_kv_heads / job.degrees.tp)
    num_bytes = BYTES * job.tokens * 2 * heads * job.model.head_dim
    # a rank computes on one part of the keys while it receives the next
    return (cp - 1) * links.send(num_bytes) * constants.dp_exposed


def _experts(job: Job, constants: Constants, index: int) -> float:
    """Exposed dispatch and combine of one pass."""
    moe, ep = job.model.moe, job.degrees.ep
    if moe is None or ep == 1 or not is_sparse(job.model, index):
        return 0.0
    links = group(job.fabric, constants, size=ep, stride=job.degrees.tp)
    rows = BYTES * job.tokens / job.degrees.tp * job.model.dim
    shown = 0.0 if job.schedule == "dualpipe" else constants.ep_exposed
    return 2 * links.dispatch(rows, moe.top_k) * shown


def _data_group(job: Job, constants: Constants, *, experts: bool) -> Group:
    degrees = job.degrees
    size = degrees.num_data_ranks * degrees.cp
    if experts:
        stride = degrees.tp * degrees.ep
        return group(job.fabric, constants, size=max(1, size // degrees.ep), stride=max(1, stride))
    return group(job.fabric, constants, size=size, stride=degrees.tp)


def _gathered(
    job: Job, constants: Constants, count: LayerCount, passes: Passes
) -> float:
    """What ZeRO-3's exchanges of a layer take beyond its compute, for one micro-batch."""
    degrees = job.degrees
    whole = _data_group(job, constants, experts=False)
    weights = (count.attention + count.mlp) / degrees.tp + count.replicated + count.router
    experts = count.experts / degrees.ep / degrees.etp
    apart = _data_group(job, constants, experts=True)

    def exchange(per_parameter: float) -> float:
        return whole.gather(per_parameter * weights) + apart.gather(per_parameter * experts)

    gather = exchange(job.gathered_bytes)
    scatter = exchange(GRADIENT * job.trained_share) if job.scatters_each else 0.0
    return _shown(job, constants, gather, passes.forward) + _shown(
        job, constants, gather + scatter, passes.backward
    )


def _shown(job: Job, constants: Constants, exchange: float, beside: float) -> float:
    """How much longer an exchange makes the work that runs beside it."""
    if not job.data_overlap:
        return exchange
    return max(0.0, exchange - beside) + min(exchange, beside) * constants.dp_exposed


def _data_tail(
    job: Job, constants: Constants, count: ModelCount, one: Sequence[LayerTime]
) -> float:
    """Exposed exchange of gradients and weights that layers do not wait for one by one.

    Gradients go while the last micro-batch's backward pass makes them, weights come while the next
    step's first forward pass needs them.
    """
    dense, experts = _heaviest(job, count)
    links = _data_group(job, constants, experts=False)
    expert_links = _data_group(job, constants, experts=True)

    def exchange(per_parameter: float) -> float:
        share = per_parameter * job.trained_share
        return links.gather(share * dense) + expert_links.gather(share * experts)

    compute = sum(item.compute for item in one)
    shown = 0.0
    if not (job.gathers_each and job.scatters_each):
        reduced = exchange(GRADIENT if job.zero_stage else 2 * GRADIENT)
        times = job.num_micro_batches if job.scatters_each else 1
        shown += _shown(job, constants, reduced, compute * 2 / 3) * times
    if job.zero_stage and not job.gathers_each:
        shown += _shown(job, constants, exchange(job.gathered_bytes), compute / 3)
    return shown


def _optimizer(job: Job, constants: Constants, count: ModelCount) -> float:
    dense, experts = _heaviest(job, count)
    degrees = job.degrees
    ranks = degrees.num_data_ranks * degrees.cp if job.zero_stage else 1
    expert_ranks = max(1, ranks // degrees.ep) if job.zero_stage else 1
    own = (dense / ranks + experts / expert_ranks) * job.trained_share
    return own * OPTIMIZER_BYTES / rates(job, constants).memory


def _heaviest(job: Job, count: ModelCount) -> tuple[float, float]:
    """Parameters of the heaviest pipeline rank on one tp rank: dense, and of experts."""
    degrees = job.degrees
    per_rank: Sequence[int] = [
        sum(len(layers) for number, layers in enumerate(job.stages) if number % degrees.pp == rank)
        for rank in range(degrees.pp)
    ]
    share = max(per_rank) / len(count.layers)
    dense = sum(item.attention + item.mlp for item in count.layers) / degrees.tp
    dense += sum(item.replicated + item.router for item in count.layers)
    experts = sum(item.experts for item in count.layers) / degrees.ep / degrees.etp
    edges = (count.embedding + count.head) / degrees.tp / min(2, degrees.pp)
    return dense * share + edges, experts * share


def _boundaries(job: Job, constants: Constants) -> float:
    """Sending activations between stages, as far as a rank waits for it."""
    pp = job.degrees.pp
    if pp == 1:
        return 0.0
    stride = job.fabric.num_devices // pp
    links = group(job.fabric, constants, size=pp, stride=stride)
    num_bytes = BYTES * job.tokens * job.model.dim / (job.degrees.tp if job.sp else 1)
    return 2 * links.send(num_bytes) * (pp - 1 + job.num_micro_batches * job.virtual_stages * 0.5)

"""Seconds that a rank waits for exchanges, axis by axis, and for its optimizer.

    tensor    two gather and scatter pairs (or all-reduces) in each pass of a layer
    context   keys and values once around the ring, beside attention
    experts   rows to their experts and back in each pass
    data      ZeRO-3 gathers a layer while another one computes, for every micro-batch; what is
              exchanged once per step runs beside the last backward and the first forward pass;
              shards of replicas (HSDP) are summed over the replicas, too

An exchange that runs beside work makes it longer by what does not fit beside it, and by the share
`dp_exposed` of the rest: both use the device's memory and some of its processors.
"""

from collections import Counter

from parctl.planner.time.compute import BYTES, Passes
from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Job
from parctl.planner.time.links import Group, group
from parctl.planner.time.pipeline import ranks_of
from parctl.planner.time.rates import rates
from parctl.recipes.parameters import LayerCount, ModelCount, is_sparse

GRADIENT = 4.0  # bytes on its way: float32
OPTIMIZER_BYTES = 32.0  # per parameter: moments, master weight and gradient read, written, cast


def tensor(job: Job, constants: Constants) -> float:
    """Exposed tensor-parallel exchanges of one pass of one layer."""
    tp = job.degrees.tp
    if tp == 1:
        return 0.0
    links = group(job.fabric, constants, size=tp, stride=1)
    exchange = 2 * links.all_reduce(BYTES * job.tokens * job.model.dim)
    return exchange * (constants.tp_exposed if job.tensor_overlap else 1.0)


def context(job: Job, constants: Constants) -> float:
    """Exposed exchange of one pass of attention over a split sequence.

    ring: keys and values once around; a rank computes on one part while it receives the next.
    ulysses: queries, keys, values and results change owners, and attention waits (2309.14509).
    """
    cp = job.degrees.cp
    if cp == 1:
        return 0.0
    links = group(job.fabric, constants, size=cp, stride=job.degrees.tp)
    model, tp = job.model, job.degrees.tp
    per_head = BYTES * job.tokens * model.head_dim
    keys = max(1.0, model.num_kv_heads / tp)
    if job.cp_kind == "ulysses":
        heads = 2 * model.num_heads / tp + 2 * keys
        return links.gather(per_head * heads)  # as many bytes leave a rank as in a gather of it
    return (cp - 1) * links.send(per_head * 2 * keys) * constants.dp_exposed


def experts(job: Job, constants: Constants, index: int) -> float:
    """Exposed dispatch and combine of one pass of layer `index`."""
    moe, ep = job.model.moe, job.degrees.ep
    if moe is None or ep == 1 or not is_sparse(job.model, index):
        return 0.0
    links = group(job.fabric, constants, size=ep, stride=job.degrees.tp)
    rows = BYTES * job.tokens / job.degrees.tp * job.model.dim
    # DualPipe was made to run one micro-batch's exchanges beside another's products (2412.19437)
    shown = 0.0 if job.schedule == "dualpipe" else constants.ep_exposed
    return 2 * links.dispatch(rows, moe.top_k) * shown


def gathered(
    job: Job, constants: Constants, count: LayerCount, passes: Passes
) -> tuple[float, float]:
    """What ZeRO-3's exchanges of a layer add to its forward and backward pass."""
    degrees = job.degrees
    whole, replicas = _data_group(job, constants), _replicas(job, constants)
    weights = (count.attention + count.mlp) / degrees.tp + count.replicated + count.router
    own = count.experts / degrees.ep / degrees.etp
    apart = _expert_data_group(job, constants)

    def exchange(per_parameter: float) -> float:
        return whole.gather(per_parameter * weights) + apart.gather(per_parameter * own)

    gather = exchange(job.gathered_bytes)
    scatter = 0.0
    if job.scatters_each:
        share = GRADIENT * job.trained_share
        scatter = exchange(share) + replicas.all_reduce(share * weights / whole.size)
    return (
        _beside(job, constants, gather, passes.forward),
        _beside(job, constants, gather + scatter, passes.backward),
    )


def data_tail(job: Job, constants: Constants, held: tuple[float, float], compute: float) -> float:
    """Exposed exchange of gradients and weights that layers do not wait for one by one.

    Gradients go while the last micro-batch's backward pass makes them, weights come while the next
    step's first forward pass needs them; both passes together take `compute` seconds. `held`: as
    `heaviest` says.
    """
    dense, own = held
    whole, apart = _data_group(job, constants), _expert_data_group(job, constants)
    replicas = _replicas(job, constants)

    def exchange(per_parameter: float) -> float:
        share = per_parameter * job.trained_share
        return whole.gather(share * dense) + apart.gather(share * own)

    shown = 0.0
    if not (job.gathers_each and job.scatters_each):
        reduced = exchange(GRADIENT if job.zero_stage else 2 * GRADIENT)
        reduced += replicas.all_reduce(GRADIENT * job.trained_share * dense / whole.size)
        times = job.num_micro_batches if job.scatters_each else 1
        shown += _beside(job, constants, reduced, compute * 2 / 3) * times
    if job.zero_stage and not job.gathers_each:
        shown += _beside(job, constants, exchange(job.gathered_bytes), compute / 3)
    return shown


def boundary(job: Job, constants: Constants) -> float:
    """Seconds to send a micro-batch's activations, or their gradients, to the next stage."""
    pp = job.degrees.pp
    if pp == 1:
        return 0.0
    links = group(job.fabric, constants, size=pp, stride=job.fabric.num_devices // pp)
    num_bytes = BYTES * job.tokens * job.model.dim / (job.degrees.tp if job.sp else 1)
    return links.send(num_bytes)


def optimizer(job: Job, constants: Constants, held: tuple[float, float]) -> float:
    """Seconds to update what a rank keeps moments of: reads and writes, at memory's rate."""
    dense, own = held
    degrees = job.degrees
    ranks = degrees.fsdp * degrees.cp if job.zero_stage else 1
    expert_ranks = max(1, ranks // degrees.ep) if job.zero_stage else 1
    updated = (dense / ranks + own / expert_ranks) * job.trained_share
    return updated * OPTIMIZER_BYTES / rates(job, constants).memory


def heaviest(job: Job, count: ModelCount) -> tuple[float, float]:
    """Parameters of the heaviest pipeline rank on one tp rank: dense, and of experts."""
    degrees = job.degrees
    layers = [0] * degrees.pp
    for rank, stage in zip(ranks_of(job), job.stages, strict=True):
        layers[rank] += len(stage)
    share = max(layers) / len(count.layers)
    dense, own = 0.0, 0.0
    alike = {id(item): item for item in count.layers}  # equal layers share one object
    for key, number in Counter(map(id, count.layers)).items():
        item = alike[key]
        dense += number * ((item.attention + item.mlp) / degrees.tp + item.replicated + item.router)
        own += number * item.experts / degrees.ep / degrees.etp
    edges = (count.embedding + count.head) / degrees.tp / min(2, degrees.pp)
    return dense * share + edges, own * share


def _beside(job: Job, constants: Constants, exchange: float, work: float) -> float:
    """How much longer an exchange makes the work that runs beside it."""
    if not job.data_overlap:
        return exchange
    return max(0.0, exchange - work) + min(exchange, work) * constants.dp_exposed


def _data_group(job: Job, constants: Constants) -> Group:
    """Ranks that shard what every data rank holds, or without shards those that copy it."""
    degrees = job.degrees
    size = degrees.fsdp * degrees.cp * (1 if job.zero_stage else degrees.dp)
    return group(job.fabric, constants, size=size, stride=degrees.tp)


def _replicas(job: Job, constants: Constants) -> Group:
    """Ranks that hold the same shard."""
    degrees = job.degrees
    size = degrees.dp if job.zero_stage else 1
    stride = degrees.tp * degrees.cp * degrees.fsdp
    return group(job.fabric, constants, size=size, stride=stride)


def _expert_data_group(job: Job, constants: Constants) -> Group:
    degrees = job.degrees
    size = max(1, degrees.num_data_ranks * degrees.cp // degrees.ep)
    return group(job.fabric, constants, size=size, stride=degrees.tp * degrees.ep)

"""Peak memory of published runs: the formulas of the papers, for the stacks that made the runs.

`parctl.planner.memory` counts what parctl's own runtime keeps. Other stacks keep other things, and
published figures are theirs. Per rank, for the worst pipeline rank:

    Megatron (ZeRO 0 or 1)    2 weights + 4 gradients + 12 master and moments (/ data ranks)
    FSDP, ZeRO-3              16 / data ranks, and two layers gathered beside one layer's gradients
    adapters (LoRA)           2 weights, the rest on what is trained

    activations of a layer    2205.05198, table 2, with the MLP as wide as it is; recomputed ones
                              leave their input, and one layer's whole set while it is made again
    logits                    bf16, and float32 twice for the loss
    pipeline                  rank i holds min(m, p - i) micro-batches of its layers; interleaved
                              (1 + (p - 1) / (p v)) times what one stage of all layers would
    beside all                CUDA context, NCCL, workspace: planner.memory's allowance
"""

from dataclasses import dataclass, replace

from parctl.planner.memory import GPU_BUFFER_BYTES
from parctl.planner.shards import Shard, largest_unit, stage_shard
from parctl.planner.staged_memory import USABLE_FRACTION
from parctl.planner.time.job import ALL, Job
from parctl.planner.time.pipeline import ranks_of
from parctl.recipes.parameters import count_parameters, is_sparse

FP32_LOGITS = 2 + 4 + 4  # bytes per logit: bf16, float32 for the loss, its gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    peak_bytes: float
    device_bytes: int | None

    @property
    def fits(self) -> bool | None:
        if self.device_bytes is None:
            return None
        return self.peak_bytes <= self.device_bytes * USABLE_FRACTION


def peak_memory(job: Job, *, says_recompute: bool) -> PeakMemory:
    """Of the worst pipeline rank, in bytes.

    A run that does not say what it recomputes is taken to recompute all where it must.
    """
    found = PeakMemory(
        peak_bytes=max(_rank_bytes(job, rank) for rank in range(job.degrees.pp)),
        device_bytes=job.product.memory_bytes,
    )
    if found.fits is False and not says_recompute:
        return peak_memory(replace(job, repeated=ALL), says_recompute=True)
    return found


def _rank_bytes(job: Job, rank: int) -> float:
    model, degrees, count = job.model, job.degrees, count_parameters(job.model)
    stages = [number for number, owner in enumerate(ranks_of(job)) if owner == rank]
    layers = [layer for number in stages for layer in job.stages[number]]
    first, last = 0 in stages, len(job.stages) - 1 in stages
    shard = stage_shard(model, count, layers, degrees, first=first, last=last)
    unit = largest_unit(model, count, layers, degrees, first=first, last=last)
    alive = _in_flight(job, rank)
    whole = max(layer_bytes(job, layer) for layer in layers)
    kept = sum(kept_bytes(job, layer) for layer in layers) * alive
    working = whole - kept_bytes(job, layers[0])
    logits = FP32_LOGITS * job.tokens * model.vocab_size / degrees.tp if last else 0.0
    return state_bytes(job, shard, unit) + kept + max(working, logits) + GPU_BUFFER_BYTES


def state_bytes(job: Job, shard: Shard, unit: Shard) -> float:
    """Weights, gradients and optimizer state of one rank, and what ZeRO-3 gathers."""
    degrees = job.degrees
    data = degrees.num_data_ranks * degrees.cp
    apart = max(1, data // degrees.ep)
    sharded = shard.dense / data + shard.experts / apart
    trained = job.trained_share
    if job.zero_stage == 3:
        gathered = 2 if job.gathers_each else shard.total / unit.total
        return (4 + 12 * trained) * sharded + unit.total * (2 * gathered + 4 * trained)
    moments = 12 * (sharded if job.zero_stage else shard.total)
    gradients = 4 * (sharded if job.zero_stage == 2 else shard.total)
    return 2 * shard.total + trained * (gradients + moments)


def layer_bytes(job: Job, layer: int) -> float:
    """Everything that a layer keeps for its backward pass, of one micro-batch."""
    model, tp = job.model, job.degrees.tp
    outside = (8.0 if model.activation == "swiglu" else 10.0) * model.dim
    heads = 2.0 * (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tp
    per_width = 6.0 if model.activation == "swiglu" else 4.0
    if is_sparse(model, layer):
        assert model.moe is not None
        moe = model.moe
        width = moe.expert_ffn_dim * (moe.top_k + moe.num_shared_experts) / tp
        heads += 4.0 * moe.top_k * model.dim / tp  # rows as experts take them, as they come back
    else:
        width = model.ffn_dim / tp
    scores = 0.0
    if job.attention == "plain" and job.repeated.attention == 0:
        scores = 5.0 * model.num_heads * job.seq_len / tp
    return job.tokens * (outside / (tp if job.sp else 1) + heads + per_width * width + scores)


def kept_bytes(job: Job, layer: int) -> float:
    """What of it waits for the backward pass; the rest is computed again."""
    whole = layer_bytes(job, layer)
    inputs = 2.0 * job.tokens * job.model.dim / (job.degrees.tp if job.sp else 1)
    return whole + (inputs - whole) * max(job.repeated.products, job.repeated.elements * 0.5)


def _in_flight(job: Job, rank: int) -> float:
    """Micro-batches whose activations a pipeline rank holds at once."""
    pp, m, v = job.degrees.pp, job.num_micro_batches, job.virtual_stages
    if v > 1:
        return min(float(m), pp * (1 + (pp - 1) / (pp * v)))
    return float(min(m, pp - rank))

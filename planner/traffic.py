"""Bytes that one rank sends per step on each axis, by the textbook volume of each collective.

T tokens per micro-batch and rank, e bytes per element, m micro-batches, P parameters of the rank,
n ranks in the group, t = tp::

    tp    layers m 8 (n-1)/n e T h             all-reduce twice forward, twice backward; with sp
                                               the same bytes by gather and scatter
    dp    2 (n-1)/n 4 P                        all-reduce of fp32 gradients, once
    fsdp  m (n-1)/n (2 e + 4) P                gather forward and backward, scatter gradients
          (n-1)/n (e + 4) P                    stages 1 and 2: once
    cp    layers m 3 (n-1) e 2 k d T / t       ring: keys and values forward, they and their
                                               gradients backward
          layers m 8 (n-1)/n e T h / t         ulysses: four all-to-all forward, four backward
    operator  layers m 4 (n-1)/n e T h         all-reduce once forward, once backward
    pp    m v 2 e T h / t with sp              activations forward, their gradients backward
    ep    layers m 4 (n-1)/n e T top_k h etp / t  dispatch and combine, forward and backward
    edp   as fsdp or dp                        experts: their P counts here and not there

The layout engine weighs the axes by these numbers; they are no prediction of time.
"""

from collections.abc import Sequence

from parctl.planner import shards, states
from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.shards import Shard
from parctl.recipes.parameters import count_parameters, is_sparse
from parctl.recipes.spec import Recipe


def bytes_per_step(
    recipe: Recipe, degrees: Degrees, stages: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Return the traffic of the busiest stage for every axis with more than one rank."""
    model, train, spec = recipe.model, recipe.train, recipe.parallelism
    assert model is not None and train is not None
    element = states.REGIMES[train.precision].compute
    count = num_micro_batches(recipe, degrees)
    layers = spec.virtual_stages * max(len(stage) for stage in stages)
    sparse = spec.virtual_stages * max(
        sum(is_sparse(model, layer) for layer in stage) for stage in stages
    )
    tokens = train.micro_batch * train.seq_len // degrees.cp
    hidden = element * tokens * model.dim
    outside = hidden / degrees.tp if spec.sp else hidden
    if spec.cp_kind == "ring":
        heads = max(1.0, model.num_kv_heads / degrees.tp)
        context = 3 * element * 2 * heads * model.head_dim * tokens * degrees.cp
    else:
        context = 8 * hidden / degrees.tp
    # tp ranks share a micro-batch's rows, but for those that split an expert: they send the same
    rows = hidden * degrees.etp / degrees.tp
    held = _heaviest(recipe, degrees, stages)
    volumes = {
        "tp": 8 * hidden * layers * count,
        "cp": context * layers * count,
        "operator": 4 * outside * layers * count,
        "ep": 4 * rows * (model.moe.top_k if model.moe else 0) * sparse * count,
        **_data_volumes(recipe, degrees, held),
    }
    sizes = {axis: degrees.of(axis) for axis in ("tp", "cp", "operator", "ep", "dp", "fsdp")}
    if degrees.ep > 1:
        sizes["edp"] = degrees.num_data_ranks * degrees.cp // degrees.ep
    traffic = {axis: volumes[axis] * (size - 1) / size for axis, size in sizes.items() if size > 1}
    if degrees.pp > 1:
        traffic["pp"] = 2.0 * outside * spec.virtual_stages * count
    return traffic


def _data_volumes(recipe: Recipe, degrees: Degrees, held: Shard) -> dict[str, float]:
    """Volume of weights and gradients on the data axes; experts apart when ep moves them."""
    spec, train = recipe.parallelism, recipe.train
    assert train is not None
    regime = states.REGIMES[train.precision]
    micro_batches = num_micro_batches(recipe, degrees)
    gathers = 2 * micro_batches if spec.zero_stage >= 3 else 1
    scatters = 1 if spec.reduces_once else micro_batches
    per_parameter = gathers * regime.compute + scatters * regime.gradient
    dense = held.dense if degrees.ep > 1 else held.total
    replicas = 2.0 * regime.gradient / (degrees.fsdp if spec.zero_stage else 1)
    return {
        "dp": replicas * dense,
        "fsdp": float(per_parameter * dense),
        "edp": held.experts * (per_parameter if spec.zero_stage else replicas),
    }


def _heaviest(recipe: Recipe, degrees: Degrees, stages: Sequence[Sequence[int]]) -> Shard:
    """What a rank of the stage with most parameters holds."""
    model = recipe.model
    assert model is not None
    count = count_parameters(model)
    held = (
        shards.stage_shard(
            model, count, layers, degrees, first=index == 0, last=index == len(stages) - 1
        )
        for index, layers in enumerate(stages)
    )
    heaviest = max(held, key=lambda shard: shard.total)
    turns = recipe.parallelism.virtual_stages
    return Shard(dense=heaviest.dense * turns, experts=heaviest.experts * turns)

"""Parameters of one rank of a pipeline stage, before the data axes shard them.

The one idea: `parctl.recipes.parameters` counts a model apart by what parallelism does to each
part, and here every part is divided by its own degree.

    attention, mlp                  / tp   (key and value projections stay whole when there are
                                           fewer KV heads than tp ranks)
                                    operator parallelism: the larger of the two only
    routed experts                  / (ep x etp), without ep / tp
    embedding, head                 / tp by vocabulary, on the first and the last stage (both hold
                                           the table when it is tied)
    norms, routers, row biases,
    learned positions               whole on every tp rank
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parctl.planner.degrees import Degrees
from parctl.recipes.parameters import LayerCount, ModelCount
from parctl.recipes.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank holds. The two parts are sharded over different data ranks."""

    dense: int
    experts: int
    copied: int = 0  # of `dense`: a second copy of the tied table, which the first stage updates
    fixed: int = 0  # of `dense`: routers' balance biases, which no gradient moves

    @property
    def total(self) -> int:
        return self.dense + self.experts

    def times(self, number: int) -> "Shard":
        return Shard(
            dense=self.dense * number,
            experts=self.experts * number,
            copied=self.copied * number,
            fixed=self.fixed * number,
        )

    def __add__(self, other: "Shard") -> "Shard":
        return Shard(
            dense=self.dense + other.dense,
            experts=self.experts + other.experts,
            copied=self.copied + other.copied,
            fixed=self.fixed + other.fixed,
        )


def layer_shard(model: ModelSpec, layer: LayerCount, degrees: Degrees) -> Shard:
    """One rank's part of one layer."""
    tp = degrees.tp
    keys_values = 0 if model.mla is not None else _key_value_parameters(model)
    if model.num_encoder_layers and layer.attention > _attention_width(model):
        keys_values *= 2  # self-attention and cross-attention
    whole = 0 if model.num_kv_heads % tp == 0 else keys_values
    attention = ceil_div(layer.attention - whole, tp) + whole
    branches = (attention, ceil_div(layer.mlp, tp))
    dense = max(branches) if degrees.operator > 1 else sum(branches)
    dense += layer.router + layer.replicated
    owners = degrees.ep * degrees.etp if degrees.ep > 1 else tp
    return Shard(
        dense=dense, experts=ceil_div(layer.experts, owners), fixed=_balance_biases(model, layer)
    )


def embedding_shard(model: ModelSpec, count: ModelCount, degrees: Degrees) -> Shard:
    """What one rank of the first stage holds before its layers."""
    table = count.embedding if model.vision is not None else _table(model, degrees)
    return Shard(dense=table + count.positions, experts=0)


def head_shard(model: ModelSpec, count: ModelCount, degrees: Degrees) -> Shard:
    """What one rank of the last stage holds after its layers: final norm, head, MTP modules.

    A tied head costs nothing where the embedding is on the same stage, and a copy of the table
    where it is not.
    """
    tied = model.tied_embeddings and model.vision is None
    if model.vision is not None:
        head = count.head
    else:
        head = 0 if tied and degrees.pp == 1 else _table(model, degrees)
    shard = Shard(dense=count.final_norm + head, experts=0, copied=head if tied else 0)
    if model.num_mtp_layers:
        if degrees.pp > 1 and not tied:  # a copy of the embedding, which the modules read
            table = _table(model, degrees)
            shard += Shard(dense=table, experts=0, copied=table)
        # a module is a layer, and a projection and norms that every tp rank holds whole
        module = count.mtp // model.num_mtp_layers
        layer = count.layers[-1]
        part = layer_shard(model, layer, degrees)
        whole = Shard(dense=module - layer.total, experts=0)
        for _ in range(model.num_mtp_layers):
            shard = shard + part + whole
    return shard


def stage_shard(
    model: ModelSpec,
    count: ModelCount,
    layers: Sequence[int],
    degrees: Degrees,
    *,
    first: bool,
    last: bool,
) -> Shard:
    """All that one rank of a stage holds. Encoder layers live on the first stage."""
    shard = Shard(dense=0, experts=0)
    if first:
        shard += embedding_shard(model, count, degrees)
        for encoder_layer in count.encoder:
            shard += layer_shard(model, encoder_layer, degrees)
    for alike, number in _alike(count, layers):
        shard += layer_shard(model, alike, degrees).times(number)
    if last:
        shard += head_shard(model, count, degrees)
    return shard


def largest_unit(
    model: ModelSpec,
    count: ModelCount,
    layers: Sequence[int],
    degrees: Degrees,
    *,
    first: bool,
    last: bool,
) -> Shard:
    """The largest unit that FSDP gathers at once: a layer, the embedding or the head."""
    units = [layer_shard(model, alike, degrees) for alike, _ in _alike(count, layers)]
    if first:
        units.append(embedding_shard(model, count, degrees))
    if last:
        units.append(head_shard(model, count, degrees))
    return max(units, key=lambda shard: shard.total)


def _alike(count: ModelCount, layers: Sequence[int]) -> list[tuple[LayerCount, int]]:
    """Layers and how many are as each: equal ones share one object."""
    found = {id(count.layers[layer]): count.layers[layer] for layer in layers}
    numbers = Counter(id(count.layers[layer]) for layer in layers)
    return [(found[key], number) for key, number in numbers.items()]


def ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _table(model: ModelSpec, degrees: Degrees) -> int:
    return ceil_div(model.vocab_size, degrees.tp) * model.dim


def _balance_biases(model: ModelSpec, layer: LayerCount) -> int:
    """Of a router of sigmoids: one per expert, moved by load and not by gradients (2408.15664)."""
    moe = model.moe
    sparse = moe is not None and layer.router > 0
    return moe.num_experts if moe is not None and sparse and moe.router == "sigmoid" else 0


def _key_value_parameters(model: ModelSpec) -> int:
    width = 2 * model.num_kv_heads * model.head_dim
    return width * (model.dim + (1 if model.bias or model.qkv_bias else 0))


def _attention_width(model: ModelSpec) -> int:
    """Split attention parameters of a layer without cross-attention."""
    queries = model.num_heads * model.head_dim
    split = 2 * model.dim * queries + _key_value_parameters(model)
    return split + (queries if model.bias or model.qkv_bias else 0)

"""Shrink a recipe until a laptop trains it beside one process, and keep what parallelism touches.

Kept are the kinds of things: norms, activation, positions, biases, tied embeddings, MLA, routing,
recomputation, schedule. Kept in kind are the ratios that decide how something is split: grouped
heads, key/value heads fewer than tp, layers that stages do not divide, experts per rank, shared
experts, groups of experts. Everything else becomes as small as it can be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm, prod
from pathlib import Path

from parctl.planner.fold import Folded, resized
from parctl.recipes.corpus import STRIPES
from parctl.recipes.spec import (
    AXES,
    MlaSpec,
    ModelSpec,
    MoeSpec,
    OptimizerSpec,
    ParallelismSpec,
    Precision,
    Recipe,
    TrainSpec,
)

STEPS = 4
HEAD_DIM = 8
SEQ_LEN = 16
MICRO_BATCHES = 2  # per rank and step where nothing asks for more: gradients accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A small recipe per part, with the one-process recipe that trains as it has to."""

    parallel: Recipe
    one_process: Recipe
    folded: Folded


def shrink(
    recipe: Recipe, parts: Sequence[Folded], *, precision: Precision, text: Path
) -> list[Shrunk]:
    """Shrink `recipe` for every part. All parts have one model; `text` is what they train on."""
    assert recipe.model and recipe.train and recipe.data and recipe.checkpoint
    sizes = _largest([part.parallelism for part in parts])
    model = shrink_model(recipe.model, recipe.parallelism, sizes)
    shrunk = []
    for part in parts:
        train = _shrink_train(recipe.train, model, part.parallelism, sizes, precision)
        small = replace(
            recipe,
            model=model,
            train=train,
            parallelism=part.parallelism,
            data=replace(
                recipe.data,
                train=(str(text) if model.vision is None else STRIPES,),
                validation=(),
                validation_fraction=0.2,
                format="text",
                tokenizer="byte",
                end_token=None,
            ),
            checkpoint=replace(recipe.checkpoint, dir=None, every=0, at_end=False),
            launch=replace(
                recipe.launch, backend="local", retries=0, env={}, secrets={}, stop_grace_s=5.0
            ),
        )
        shrunk.append(Shrunk(parallel=small, one_process=_one_process(small), folded=part))
    return shrunk


def _largest(parts: Sequence[ParallelismSpec]) -> dict[str, int]:
    """The largest degree of every axis over the parts; `stages` counts virtual ones too."""
    names = (*AXES, "ep", "etp")
    sizes = {name: max(getattr(part, name) for part in parts) for name in names}
    sizes["stages"] = max(part.pp * part.virtual_stages for part in parts if part.pp)
    sizes["data"] = max((part.dp or 1) * (part.fsdp or 1) for part in parts)
    sizes["ulysses"] = max((part.cp or 1) if part.cp_kind == "ulysses" else 1 for part in parts)
    return sizes


def shrink_model(model: ModelSpec, given: ParallelismSpec, sizes: Mapping[str, int]) -> ModelSpec:
    """Shrink a model for degrees `sizes`; `given` is the full parallelism that it stands for."""
    tp, ulysses = sizes["tp"], sizes["ulysses"]
    grouped = 1 if model.num_heads == model.num_kv_heads else 2
    few = model.num_kv_heads < (given.tp or 1) * (given.cp or 1 if ulysses > 1 else 1)
    kv_heads = 1 if few and grouped > 1 else max(2, tp * ulysses)
    heads = lcm(kv_heads * grouped, tp * ulysses)
    dim = heads * HEAD_DIM
    if model.num_heads * model.head_dim != model.dim:
        dim += HEAD_DIM  # heads that are wider, or narrower, than dim / num_heads
    vision = None
    if model.vision is not None:
        vision = replace(model.vision, image_size=8, patch_size=2, num_classes=10)
    seq_len = _seq_len(given, sizes) if vision is None else 4 * 4 + 1  # patches, class token
    return replace(
        model,
        num_layers=_num_layers(model, given, sizes["stages"]),
        num_encoder_layers=min(model.num_encoder_layers, 2),
        num_mtp_layers=min(model.num_mtp_layers, 1),
        dim=dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        ffn_dim=24 * tp,
        vocab_size=256 if model.vocab_size % (given.tp or 1) == 0 else 257,
        max_seq_len=seq_len,
        rope_scaling=None
        if model.rope_scaling is None
        else {**model.rope_scaling, "original_max_seq_len": float(seq_len)},
        dropout=0.0,  # draws differ from layout to layout
        mla=None if model.mla is None else _shrink_mla(model.mla),
        moe=None if model.moe is None else _shrink_moe(model.moe, sizes),
        vision=vision,
    )


def _num_layers(model: ModelSpec, given: ParallelismSpec, stages: int) -> int:
    """As few as show every kind of layer; one more where stages do not divide them in full size."""
    least = 2
    if model.moe is not None:
        least = min(model.moe.num_dense_layers, 1) + max(2, model.moe.layer_period)
    layers = max(least, stages)
    uneven = model.num_layers % ((given.pp or 1) * given.virtual_stages) != 0
    return layers + 1 if uneven and layers % stages == 0 else layers


def _shrink_mla(mla: MlaSpec) -> MlaSpec:
    return replace(
        mla,
        q_lora_rank=None if mla.q_lora_rank is None else 12,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8 if mla.v_head_dim == mla.qk_nope_head_dim else 6,
    )


def _shrink_moe(moe: MoeSpec, sizes: Mapping[str, int]) -> MoeSpec:
    """Two experts per rank where there are several, groups of experts in pairs."""
    top_k = min(moe.top_k, 2)
    groups = min(moe.num_groups, 2)
    experts = sizes["ep"] * min(2, max(1, moe.num_experts // sizes["ep"]))
    experts = max(experts, 2 * groups, 4 if moe.num_experts >= 4 else moe.num_experts)
    return replace(
        moe,
        num_experts=lcm(experts, sizes["ep"]),
        top_k=top_k,
        expert_ffn_dim=16 * max(sizes["etp"], sizes["tp"]),
        num_shared_experts=min(moe.num_shared_experts, 1),
        num_dense_layers=min(moe.num_dense_layers, 1),
        num_groups=groups,
        top_k_groups=min(moe.top_k_groups, max(1, groups - 1)),
    )


def _seq_len(given: ParallelismSpec, sizes: Mapping[str, int]) -> int:
    """Long enough for zigzag halves of tp x cp parts, two tokens each at least."""
    return lcm(SEQ_LEN, 2 * sizes["cp"] * sizes["tp"])


def _shrink_train(
    train: TrainSpec,
    model: ModelSpec,
    parallelism: ParallelismSpec,
    sizes: Mapping[str, int],
    precision: Precision,
) -> TrainSpec:
    pipeline = 2 * sizes["pp"] if sizes["pp"] > 1 else 1
    return replace(
        train,
        seq_len=model.max_seq_len,
        global_batch=sizes["data"] * lcm(pipeline, MICRO_BATCHES),
        micro_batch=1,
        steps=STEPS,
        precision=precision,
        compile=False,
        validate_every=STEPS // 2,
        validate_batches=1,
        log_every=1,
        comm_timeout_s=60.0,
        optimizer=_eager(train.optimizer, precision),
    )


def _eager(optimizer: OptimizerSpec, precision: Precision) -> OptimizerSpec:
    """Let four steps move the weights: a warm-up of thousands would leave every step the first.

    They move less where rounding shows: Adam carries it into whole steps of small gradients, and a
    norm that leaps to ten times its size in one step multiplies what the arithmetic made of it.
    """
    lr = 1e-2 if precision == "fp64" else 1e-3
    return replace(optimizer, lr=lr, min_lr=lr / 10, warmup_steps=2)


def _one_process(recipe: Recipe) -> Recipe:
    """Undo every split and every saving of memory.

    Routing balances over a micro-batch, so with experts it is what all data ranks hold together.
    """
    train, spec = recipe.train, recipe.parallelism
    assert train and recipe.model
    alone = replace(
        resized(spec, {}),
        text="DP1",
        sp=False,
        layer=False,
        schedule="1f1b",
        virtual_stages=1,
        zero_stage=0,
        cp_kind="ring",
    )
    union = train.micro_batch * prod((spec.dp or 1, spec.fsdp or 1))
    return replace(
        recipe,
        parallelism=alone,
        train=replace(
            train,
            micro_batch=union if recipe.model.moe else train.global_batch,
            recompute="none",
            recompute_layers=(),
            offload_activations=False,
            offload_optimizer=False,
            streams=1,
        ),
    )

"""Small plans made by hand: a tiny model, any axes, an identity or permuted layout."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from parctl.planner.plan import Plan
from parctl.planner.stages import split_layers
from parctl.recipes.spec import (
    AXES,
    CheckpointSpec,
    DataSpec,
    LaunchSpec,
    ModelSpec,
    OptimizerSpec,
    ParallelismSpec,
    Recipe,
    TrainSpec,
)
from parctl.topology.layout import Layout, Slot
from parctl.topology.placement.experts import expert_axes

LLAMA = ModelSpec(
    name="test-llama",
    family="llama",
    num_layers=2,
    dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    vocab_size=256,
    max_seq_len=32,
    norm="rmsnorm",
    norm_eps=1e-5,
    activation="swiglu",
    positions="rope",
    rope_theta=10000.0,
    rope_fraction=1.0,
    rope_scaling=None,
    bias=False,
    qkv_bias=False,
    qk_norm=False,
    parallel_blocks=False,
    tied_embeddings=False,
    dropout=0.0,
    causal=True,
    num_encoder_layers=0,
    num_mtp_layers=0,
    mla=None,
    moe=None,
    vision=None,
)
GPT = replace(
    LLAMA,
    name="test-gpt",
    family="gpt",
    num_kv_heads=4,
    norm="layernorm",
    activation="gelu",
    positions="learned",
    bias=True,
    tied_embeddings=True,
)
OPTIMIZER = OptimizerSpec(
    name="adamw",
    lr=1e-2,
    min_lr=1e-3,
    warmup_steps=2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    max_grad_norm=1.0,
)
TRAIN = TrainSpec(
    seq_len=16,
    global_batch=8,
    micro_batch=2,
    steps=4,
    precision="fp64",
    recompute="none",
    recompute_layers=(),
    offload_activations=False,
    offload_optimizer=False,
    compile=False,
    mtp_loss=0.3,
    streams=1,
    seed=7,
    validate_every=0,
    validate_batches=1,
    log_every=1,
    comm_timeout_s=30.0,
    on_nan="stop",
    max_skips=10,
    optimizer=OPTIMIZER,
)
CHECKPOINT = CheckpointSpec(
    dir=None, every=0, keep=0, at_end=False, resume=True, async_save=False, init_from=None
)


def parallelism(
    degrees: Mapping[str, int], *, sp: bool = False, zero_stage: int = 3
) -> ParallelismSpec:
    return ParallelismSpec(
        text="by hand",
        auto=False,
        tp=degrees.get("tp", 1),
        sp=sp,
        pp=degrees.get("pp", 1),
        dp=degrees.get("dp", 1),
        fsdp=degrees.get("fsdp", 1),
        cp=degrees.get("cp", 1),
        ep=1,
        etp=1,
        expert_placement="block",
        expert_load=None,
        layer=False,
        operator=degrees.get("operator", 1),
        zero_stage=zero_stage if degrees.get("fsdp", 1) > 1 else 0,  # type: ignore[arg-type]
        grad_sync="auto",
        prefetch=1,
        reshard="auto",
        cp_kind="ring",
        schedule="1f1b",
        virtual_stages=1,
        schedule_table=None,
        order=AXES,
        allow_cross_node_tp=False,
        allow_pcie_tp=False,
        strict_node=False,
    )


def layout(axes: Mapping[str, int], ranks: Sequence[int] | None = None) -> Layout:
    world = prod(axes.values())
    return Layout(
        axes=axes,
        expert_axes=None,
        ranks=tuple(ranks if ranks is not None else range(world)),
        slots=tuple(
            Slot(rank=rank, node="here", node_rank=0, local_rank=rank, gpu=rank)
            for rank in range(world)
        ),
        proofs=(),
        explain=(),
    )


def plan(
    data: Path | str,
    axes: Mapping[str, int],
    *,
    model: ModelSpec = LLAMA,
    sp: bool = False,
    zero_stage: int = 3,
    spec: Mapping[str, Any] = {},
    ranks: Sequence[int] | None = None,
    train: Mapping[str, Any] = {},
    checkpoint: Mapping[str, Any] = {},
    documents: bool = False,
    validation_fraction: float = 0.1,
) -> Plan:
    """`axes` in any order, outermost first; empty for one process.

    `spec` and the other mappings change fields.
    """
    return Plan(
        recipe=Recipe(
            name="test",
            task="train",
            model=model,
            parallelism=replace(parallelism(axes, sp=sp, zero_stage=zero_stage), **spec),
            train=replace(TRAIN, **train),
            data=DataSpec(
                train=(str(data),),
                validation=(),
                validation_fraction=validation_fraction,
                format="auto",
                text_key="text",
                tokenizer="byte",
                document_mask=documents,
                end_token=None,
            ),
            checkpoint=replace(CHECKPOINT, **checkpoint),
            script=None,
            launch=LaunchSpec(
                backend="local",
                retries=0,
                queue=None,
                image=None,
                env={},
                secrets={},
                timeout_s=None,
                stop_grace_s=5.0,
            ),
            source="by hand",
            notes=(),
        ),
        topology={"digest": "sha256:0", "source": "by hand", "nodes": ["here"]},
        layout=replace(
            layout(axes or {"dp": 1}, ranks),
            expert_axes=expert_axes(axes, spec.get("ep", 1), spec.get("etp", 1)),
        ),
        stages=split_layers(model, axes.get("pp", 1) * spec.get("virtual_stages", 1)),
        memory={},
        time={},
        backend={"kind": "local"},
        parctl_version="0",
    )

"""Checks across the objects of one recipe: what no cluster, however large, could make work.

The one idea: refuse only the truly impossible. Which devices a group lands on, and degrees left to
be inferred, are settled later with the topology at hand. A check over a degree that is not given
does not run.
"""

from math import gcd

from parctl.recipes.faults import Fault
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import DataSpec, ModelSpec, ParallelismSpec, TrainSpec

BYTE_VOCABULARY = 256  # byte 0 ends a document
BRANCHES = 2  # of a parallel block


def check_recipe(
    model: ModelSpec, parallelism: ParallelismSpec, train: TrainSpec | None, data: DataSpec | None
) -> list[Fault]:
    """Check model, degrees and batch against each other."""
    faults = [
        *_tensor_faults(model, parallelism),
        *_pipeline_faults(model, parallelism),
        *_expert_faults(model, parallelism),
        *_operator_faults(model, parallelism),
    ]
    if train is not None:
        faults += _sequence_faults(model, parallelism, train)
        faults += _batch_faults(parallelism, train)
        faults += _optimizer_faults(train)
        faults += _memory_faults(model, train)
    if data is not None and data.tokenizer == "byte" and 0 < model.vocab_size < BYTE_VOCABULARY:
        message = f"the byte tokenizer needs {BYTE_VOCABULARY} tokens, vocab_size is"
        faults.append(_fault("data.tokenizer", f"{message} {model.vocab_size}",
                             f"set `model.vocab_size` to {BYTE_VOCABULARY} or more"))  # fmt: skip
    if data is not None and data.end_token is not None and data.end_token >= model.vocab_size > 0:
        message = f"found {data.end_token}, but the ids of the model end at {model.vocab_size - 1}"
        hint = "give the id that ends a document in the tokenised file"
        faults.append(_fault("data.end_token", message, hint))
    return faults


def _tensor_faults(model: ModelSpec, parallelism: ParallelismSpec) -> list[Fault]:
    tp = parallelism.tp
    if tp is None or tp == 1:
        return []
    faults = []
    if model.num_heads % tp:
        message = f"num_heads ({model.num_heads}) / tp ({tp}) is not a whole number"
        faults.append(_fault("parallelism.tp", message, _nearest_divisor(model.num_heads, tp)))
    elif model.mla is None and model.num_kv_heads % tp and tp % model.num_kv_heads:
        message = f"num_kv_heads ({model.num_kv_heads}) and tp ({tp}): neither divides the other"
        hint = _nearest_divisor(gcd(model.num_kv_heads, model.num_heads), tp)
        faults.append(_fault("parallelism.tp", message, hint))
    if model.ffn_dim % tp:
        message = f"ffn_dim ({model.ffn_dim}) / tp ({tp}) is not a whole number"
        faults.append(_fault("parallelism.tp", message, _nearest_divisor(model.ffn_dim, tp)))
    return faults


def _pipeline_faults(model: ModelSpec, parallelism: ParallelismSpec) -> list[Fault]:
    if parallelism.pp is None or parallelism.pp == 1:
        return []
    stages = parallelism.pp * parallelism.virtual_stages
    layers = model.num_layers + model.num_encoder_layers
    if stages <= layers:
        return []
    shown = f"pp ({parallelism.pp})"
    if parallelism.virtual_stages > 1:
        shown += f" x virtual stages ({parallelism.virtual_stages})"
    message = f"{shown} = {stages} stages, but the model has {layers} layers"
    return [_fault("parallelism.pp", message, f"a stage has at least one layer: at most {layers}")]


def _expert_faults(model: ModelSpec, parallelism: ParallelismSpec) -> list[Fault]:
    if parallelism.ep == 1:
        return []
    if model.moe is None:
        message = f"EP splits experts, but {model.name} has none"
        return [_fault("parallelism.ep", message, "remove EP, or choose a mixture of experts")]
    faults = []
    ep, etp, experts = parallelism.ep, parallelism.etp, model.moe.num_experts
    if ep is not None and experts % ep:
        message = f"num_experts ({experts}) / ep ({ep}) is not a whole number"
        faults.append(_fault("parallelism.ep", message, _nearest_divisor(experts, ep)))
    if parallelism.expert_load is not None:
        found = [len(row) for row in parallelism.expert_load]
        wanted = [experts if is_sparse(model, i) else 0 for i in range(model.num_layers)]
        if found != wanted:
            message = f"the layers in the file have {found} experts, those of the model {wanted}"
            hint = "name a file that a run of this model wrote"
            faults.append(_fault("parallelism.expert_load_file", message, hint))
    if etp is not None and model.moe.expert_ffn_dim % etp:
        message = f"expert_ffn_dim ({model.moe.expert_ffn_dim}) / etp ({etp}) is not whole"
        hint = _nearest_divisor(model.moe.expert_ffn_dim, etp)
        faults.append(_fault("parallelism.etp", message, hint))
    axes = (parallelism.dp, parallelism.fsdp, parallelism.cp, parallelism.tp)
    pool = 1
    for size in axes:
        if size is None or ep is None or etp is None:
            return faults
        pool *= size
    assert ep is not None and etp is not None
    if pool % (ep * etp):
        message = f"ep ({ep}) x etp ({etp}) does not divide dp x fsdp x cp x tp = {pool}"
        hint = "experts are spread over these ranks: " + _nearest_divisor(pool, ep * etp)
        faults.append(_fault("parallelism.ep", message, hint))
    return faults


def _operator_faults(model: ModelSpec, parallelism: ParallelismSpec) -> list[Fault]:
    operator, path = parallelism.operator, "parallelism.operator"
    if operator == 1:
        return []
    if not model.parallel_blocks:
        message = f"the blocks of {model.name} have no branches side by side"
        return [_fault(path, message, "set `model.parallel_blocks: true`, or remove OP")]
    faults = []
    if operator != BRANCHES:
        message = f"found {operator}, but a block has {BRANCHES} branches, attention and MLP"
        faults.append(_fault(path, message, f"write `OP{BRANCHES}`"))
    return faults


def _memory_faults(model: ModelSpec, train: TrainSpec) -> list[Fault]:
    faults = []
    modes = {train.recompute_of(layer) for layer in range(model.num_layers)}
    if train.offload_activations and not modes & {"full", "partitioned"}:
        message = "no layer recomputes from its input, so nothing waits to be used again"
        hint = "set `train.recompute: full` (or partitioned), or remove it"
        faults.append(_fault("train.offload_activations", message, hint))
    if train.streams > 1 and not model.parallel_blocks:
        message = f"the blocks of {model.name} have no branches side by side"
        faults.append(_fault("train.streams", message, "set `model.parallel_blocks: true`"))
    return faults


def _sequence_faults(
    model: ModelSpec, parallelism: ParallelismSpec, train: TrainSpec
) -> list[Fault]:
    if model.vision is not None:
        return []
    faults = []
    if model.positions == "learned" and train.seq_len > model.max_seq_len:
        message = f"seq_len ({train.seq_len}) > max_seq_len ({model.max_seq_len})"
        hint = "learned positions end there: raise `model.max_seq_len`"
        faults.append(_fault("train.seq_len", message, hint))
    tp = (parallelism.tp or 1) if parallelism.sp else 1
    cp = parallelism.cp or 1
    if (
        cp > 1
        and parallelism.cp_kind == "ulysses"
        and model.num_heads % (cp * (parallelism.tp or 1))
    ):
        heads = f"num_heads ({model.num_heads})"
        message = (
            f"ulysses splits heads: {heads} / (cp {cp} x tp {parallelism.tp or 1}) is not whole"
        )
        faults.append(_fault("parallelism.cp", message, f"write `CP{cp}@ring`"))
    # Ring attention gives every rank one chunk from each end, so that causal work is even.
    chunks = (2 if cp > 1 and parallelism.cp_kind == "ring" else 1) * cp * tp
    if train.seq_len % chunks:
        parts = []
        if cp > 1:
            parts.append(f"{chunks // (cp * tp)} x cp ({cp})" if chunks > cp * tp else f"cp ({cp})")
        if tp > 1:
            parts.append(f"tp ({tp}) with sp")
        message = f"seq_len ({train.seq_len}) / ({' x '.join(parts)}) is not a whole number"
        hint = f"for example {-(-train.seq_len // chunks) * chunks}"
        faults.append(_fault("train.seq_len", message, hint))
    return faults


def _batch_faults(parallelism: ParallelismSpec, train: TrainSpec) -> list[Fault]:
    replicas = (parallelism.dp or 1) * (parallelism.fsdp or 1)
    unit = train.micro_batch * replicas
    if train.global_batch % unit == 0:
        return []
    message = (
        f"global_batch ({train.global_batch}) / (micro_batch ({train.micro_batch}) x "
        f"dp ({parallelism.dp or 1}) x fsdp ({parallelism.fsdp or 1})) is not a whole number"
    )
    near = max(unit, round(train.global_batch / unit) * unit)
    return [_fault("train.global_batch", message, f"for example {near}")]


def _optimizer_faults(train: TrainSpec) -> list[Fault]:
    faults = []
    optimizer = train.optimizer
    if optimizer.min_lr > optimizer.lr:
        message = f"min_lr ({optimizer.min_lr:g}) > lr ({optimizer.lr:g})"
        hint = "the rate falls from lr to min_lr"
        faults.append(_fault("train.optimizer.min_lr", message, hint))
    return faults


def _nearest_divisor(number: int, wanted: int) -> str:
    """Name the divisors of `number` on both sides of `wanted`, as a hint."""
    below = next(size for size in range(min(wanted, number), 0, -1) if number % size == 0)
    limit = min(number, 4 * wanted)
    above = next((size for size in range(wanted, limit + 1) if number % size == 0), None)
    names = dict.fromkeys(size for size in (below, above) if size is not None)
    return "for example " + " or ".join(str(size) for size in names)


def _fault(path: str, message: str, hint: str) -> Fault:
    return Fault(path=path, message=message, hint=hint)

"""What this version of the runtime can run, asked before any process starts. Imports no torch."""

from collections.abc import Mapping

from parctl.errors import NotBuiltError, UsageError
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import ModelSpec, ParallelismSpec, Recipe, TrainSpec
from parctl.runtime.serving.check import unbuilt_inference, uneven_inference

WORKS_TODAY = (
    "Llama, GPT, T5, ViT and MoE models with DP, FSDP (ZERO1, ZERO2, ZERO3), HSDP, TP, TP+SP, CP, "
    "EP, OP, PP with every schedule, LAYER and their products, in fp32, bf16, fp64, or fp8 where "
    "the GPU has it, with recompute none, selective, full or partitioned"
)


def refuse_unbuilt(recipe: Recipe, degrees: Mapping[str, int]) -> None:
    """Raise NotBuiltError that names every part of `recipe` which this version cannot run.

    `degrees` are the sizes of the mesh axes (`plan.layout.axes`), plus `ep` when experts are
    spread. A script is the user's own program, so nothing is refused for it. Sizes that do not
    divide raise UsageError.
    """
    if recipe.task == "script":
        return
    refuse_unbuilt_forms(recipe, degrees)
    problems = uneven_parts(recipe, degrees)
    if problems:
        raise UsageError(
            f"recipe {recipe.name} cannot be split so: {'; '.join(problems)}",
            hint="change the degree, or the size that it has to divide",
        )


def refuse_unbuilt_forms(recipe: Recipe, degrees: Mapping[str, int]) -> None:
    """Raise NotBuiltError; with no degrees, for what cannot run in any split."""
    unbuilt = unbuilt_forms(recipe, degrees)
    if unbuilt:
        raise NotBuiltError(
            f"recipe {recipe.name} asks for what this version cannot run: {', '.join(unbuilt)}",
            hint=f"what works today: {WORKS_TODAY}",
        )


def uneven_parts(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List what the degrees do not divide, with the arithmetic."""
    if recipe.inference is not None:
        return uneven_inference(recipe, degrees)
    assert recipe.model and recipe.train
    problems = uneven_sizes(recipe.model, recipe.train, degrees, sp=recipe.parallelism.sp)
    if degrees.get("cp", 1) > 1:
        problems += uneven_context(recipe.model, recipe.train, recipe.parallelism, degrees)
    problems += uneven_memory(recipe.model, recipe.train, recipe.parallelism, degrees)
    if recipe.model.moe:
        problems += uneven_experts(recipe.model, recipe.train, recipe.parallelism, degrees)
    return problems


def unbuilt_forms(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List what is in the grammar but not here, in the recipe's own words."""
    parallelism = recipe.parallelism
    forms = []
    if recipe.inference is not None:
        forms += unbuilt_inference(recipe, degrees)
    if parallelism.operator > 1 and degrees.get("ep", 1) > 1:
        forms.append(f"operator {parallelism.operator} with ep {degrees['ep']}")
    if recipe.model:
        forms += unbuilt_model_parts(recipe.model)
        forms += unbuilt_around_positions(recipe, degrees)
        if recipe.model.vision:
            split = {"SP": parallelism.sp, "CP": degrees.get("cp", 1) > 1}
            forms += [f"{name} of an image's patches" for name, asked in split.items() if asked]
    if recipe.train and recipe.model:
        window, length = recipe.model.sliding_window, recipe.train.seq_len
        if window is not None and window < length:
            forms.append(
                f"training with model.sliding_window {window} below train.seq_len {length} "
                "(up to the window's length all tokens are seen)"
            )
    if recipe.train and recipe.train.precision == "fp16":
        forms.append("train.precision fp16 (it needs loss scaling; bf16 has the range of fp32)")
    directory = recipe.checkpoint.dir if recipe.checkpoint else None
    if directory and "://" in directory and not directory.startswith("file://"):
        forms.append(f"checkpoint.dir {directory} (object stores)")
    return forms


def unbuilt_model_parts(model: ModelSpec) -> list[str]:
    """List the parts of a model that the runtime has no block for."""
    relative, encoder = model.positions == "relative", model.num_encoder_layers > 0
    parts = {
        f"an encoder and {model.positions} positions": encoder and not relative,
        "an encoder and parallel_blocks": encoder and model.parallel_blocks,
        "an encoder and multi-token prediction": encoder and model.num_mtp_layers > 0,
        "relative positions and mla": relative and model.mla is not None,
        "relative positions of an image": relative and model.vision is not None,
        "experts with biases": model.moe is not None and model.bias,
    }
    return [f"model with {name}" for name, present in parts.items() if present]


def unbuilt_around_positions(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List what does not go together with relative positions, or with an encoder."""
    model = recipe.model
    assert model
    masked = recipe.data is not None and recipe.data.document_mask
    pairs = []
    if model.num_encoder_layers:
        # every later stage would need the memory of the first one, and its gradient come back
        pairs += [("PP of an encoder and its decoder", degrees.get("pp", 1) > 1)]
        pairs += [("data.document_mask with an encoder", masked)]
    if model.positions == "relative":
        pairs += [("CP with relative positions", degrees.get("cp", 1) > 1)]
        pairs += [("data.document_mask with relative positions", masked)]
    return [name for name, asked in dict(pairs).items() if asked]


def uneven_sizes(
    model: ModelSpec, train: TrainSpec, degrees: Mapping[str, int], *, sp: bool
) -> list[str]:
    """List the sizes that the degrees do not divide, with the arithmetic."""
    tp = degrees.get("tp", 1)
    rows = train.micro_batch * degrees.get("dp", 1) * degrees.get("fsdp", 1)
    must_divide = [
        ("train.global_batch", train.global_batch, "micro_batch x dp x fsdp", rows),
        ("model.num_heads", model.num_heads, "tp", tp),
    ]
    if not all(is_sparse(model, layer) for layer in range(model.num_layers)):
        must_divide.append(("model.ffn_dim", model.ffn_dim, "tp", tp))
    if sp:
        must_divide.append(("train.seq_len", train.seq_len, "tp, because of SP", tp))
    problems = [
        f"{name} = {size} is no multiple of {factor} ({what})"
        for name, size, what, factor in must_divide
        if size % factor
    ]
    if model.num_kv_heads % tp and tp % model.num_kv_heads:
        problems.append(
            f"model.num_kv_heads = {model.num_kv_heads} neither divides tp = {tp} "
            "nor is divided by it"
        )
    if model.vision and train.seq_len != model.max_seq_len:
        problems.append(
            f"train.seq_len = {train.seq_len}, but an image has {model.max_seq_len} tokens, "
            "its patches and the class token"
        )
    if model.positions == "learned" and train.seq_len > model.max_seq_len:
        problems.append(
            f"train.seq_len = {train.seq_len} is longer than "
            f"model.max_seq_len = {model.max_seq_len} learned positions"
        )
    return problems


def uneven_context(
    model: ModelSpec, train: TrainSpec, parallelism: ParallelismSpec, degrees: Mapping[str, int]
) -> list[str]:
    """List what cp cannot split, with the arithmetic."""
    cp, tp = degrees["cp"], degrees.get("tp", 1)
    sp = tp if parallelism.sp else 1
    suffix = " x tp, because of SP" if parallelism.sp else ""
    if parallelism.cp_kind == "ring":
        problems = []
        if train.seq_len % (2 * cp * sp):
            problems.append(
                f"train.seq_len = {train.seq_len} is no multiple of {2 * cp * sp} "
                f"(2 x cp{suffix}: a ring gives every rank a chunk of each end)"
            )
        if model.dropout:
            problems.append(
                f"model.dropout = {model.dropout} with a ring, whose attention has no dropout: "
                "write it as `@ulysses`, or set it to 0"
            )
        return problems
    heads = model.num_heads // tp
    kv_heads = heads if model.mla else max(1, model.num_kv_heads // tp)
    problems = [
        f"{name} = {size} is no multiple of {factor} ({what})"
        for name, size, factor, what in (
            ("train.seq_len", train.seq_len, cp * sp, f"cp{suffix}"),
            ("heads of a tp rank", heads, cp, "cp, because of Ulysses"),
        )
        if size % factor
    ]
    if kv_heads % cp and cp % kv_heads:
        problems.append(
            f"KV heads of a tp rank = {kv_heads} neither divide cp = {cp} nor are divided by it"
        )
    return problems


def uneven_memory(
    model: ModelSpec, train: TrainSpec, parallelism: ParallelismSpec, degrees: Mapping[str, int]
) -> list[str]:
    """List what cannot be kept in parts as the recipe asks, with the arithmetic."""
    tp, cp = degrees.get("tp", 1), degrees.get("cp", 1)
    problems = []
    modes = {train.recompute_of(layer) for layer in range(model.num_layers)}
    if "partitioned" in modes and not parallelism.sp and train.seq_len // cp % tp:
        problems.append(
            f"train.seq_len / cp = {train.seq_len // cp} is no multiple of {tp} "
            "(tp, which shares the inputs of partitioned recompute)"
        )
    if train.precision == "fp8":
        sizes = {
            "model.dim": model.dim,
            "model.ffn_dim / tp": model.ffn_dim // tp,
            "head_dim x num_heads / tp": model.head_dim * model.num_heads // tp,
            "head_dim x num_kv_heads / tp": model.head_dim * max(1, model.num_kv_heads // tp),
            "micro_batch x seq_len / cp": train.micro_batch * train.seq_len // cp,
        }
        problems += [
            f"{name} = {size} is no multiple of 16 (products in fp8)"
            for name, size in sizes.items()
            if size % 16
        ]
        if parallelism.schedule in ("zero-bubble", "zbv", "dualpipev"):
            problems.append(
                f"schedule {parallelism.schedule} makes gradients of weights apart, which "
                "products in fp8 cannot"
            )
    shards = degrees.get("fsdp", 1) * cp
    if isinstance(parallelism.reshard, int) and (
        shards % parallelism.reshard or shards == parallelism.reshard
    ):
        problems.append(
            f"parallelism.reshard = {parallelism.reshard} is no proper divisor of "
            f"fsdp x cp = {shards}"
        )
    return problems


def uneven_experts(
    model: ModelSpec, train: TrainSpec, parallelism: ParallelismSpec, degrees: Mapping[str, int]
) -> list[str]:
    """List the sizes of experts that the degrees do not divide, with the arithmetic."""
    assert model.moe
    tp, ep, cp = (degrees.get(axis, 1) for axis in ("tp", "ep", "cp"))
    etp = tp if ep == 1 else parallelism.etp or 1
    outer = degrees.get("dp", 1) * degrees.get("fsdp", 1) * cp
    width = model.moe.expert_ffn_dim
    shared = width * model.moe.num_shared_experts
    must_divide = [
        ("model.moe.num_experts", model.moe.num_experts, "ep", ep),
        ("model.moe.expert_ffn_dim", width, "etp" if ep > 1 else "tp, without EP", etp),
        ("num_shared_experts x expert_ffn_dim", shared, "tp", tp),
    ]
    if degrees.get("fsdp", 1) > 1:
        # as `topology.placement.experts` deals ranks out, and the mesh sets replicas apart
        edp = outer // ep if outer % ep == 0 and etp in (1, tp) else outer * tp // (etp * ep)
        dp = degrees.get("dp", 1)
        shards = edp if edp % dp else edp // dp
        must_divide.append(("model.dim", model.dim, "ranks that shard an expert", shards))
    if etp < tp and not parallelism.sp:
        own = train.seq_len // cp
        must_divide.append(("tokens per cp rank", own, "tp, which deals them out to experts", tp))
    return [
        f"{name} = {size} is no multiple of {factor} ({what})"
        for name, size, what, factor in must_divide
        if size % factor
    ]

"""What this version of the runtime can run, asked before any process starts. Imports no torch."""

from collections.abc import Mapping

from parctl.errors import NotBuiltError, UsageError
from parctl.recipes.spec import ModelSpec, Recipe, TrainSpec

WORKS_TODAY = (
    "Llama and GPT models with DP, FSDP (ZERO2, ZERO3), HSDP, TP, TP+SP and their products, "
    "in fp32, bf16 or fp64, with recompute none, selective or full"
)


def refuse_unbuilt(recipe: Recipe, degrees: Mapping[str, int]) -> None:
    """Raise NotBuiltError that names every part of `recipe` which this version cannot run.

    `degrees` are the sizes of the mesh axes (`plan.layout.axes`), plus `ep` when experts are
    spread. A script is the user's own program, so nothing is refused for it. Sizes that do not
    divide raise UsageError.
    """
    if recipe.task == "script":
        return
    unbuilt = unbuilt_forms(recipe, degrees)
    if unbuilt:
        raise NotBuiltError(
            f"recipe {recipe.name} asks for what this version cannot run: {', '.join(unbuilt)}",
            hint=f"what works today: {WORKS_TODAY}",
        )
    assert recipe.model and recipe.train
    problems = uneven_sizes(recipe.model, recipe.train, degrees, sp=recipe.parallelism.sp)
    if problems:
        raise UsageError(
            f"recipe {recipe.name} cannot be split so: {'; '.join(problems)}",
            hint="change the degree, or the size that it has to divide",
        )


def unbuilt_forms(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List what is in the grammar but not here, in the recipe's own words."""
    parallelism = recipe.parallelism
    forms = []
    if recipe.task != "train":
        forms.append(f"task {recipe.task}")
    if parallelism.layer:
        forms.append("LAYER (naive layer placement)")
    forms += [
        f"{axis} {degrees[axis]} ({what})"
        for axis, what in (
            ("pp", "pipeline parallelism"),
            ("cp", "context parallelism"),
            ("ep", "expert parallelism"),
        )
        if degrees.get(axis, 1) > 1 and not (axis == "pp" and parallelism.layer)
    ]
    if parallelism.operator > 1:
        forms.append(f"operator {parallelism.operator} (operator parallelism)")
    if parallelism.zero_stage == 1:
        forms.append("ZERO1")
    if recipe.model:
        forms += unbuilt_model_parts(recipe.model)
    if recipe.train:
        if recipe.train.precision in ("fp8", "fp16"):
            forms.append(f"train.precision {recipe.train.precision}")
        if recipe.train.recompute == "partitioned":
            forms.append("train.recompute partitioned")
    if recipe.data and (
        recipe.data.format == "parquet"
        or any(path.endswith(".parquet") for path in recipe.data.train + recipe.data.validation)
    ):
        forms.append("data.format parquet")
    if recipe.checkpoint and recipe.checkpoint.dir and "://" in recipe.checkpoint.dir:
        forms.append(f"checkpoint.dir {recipe.checkpoint.dir} (object stores)")
    return forms


def unbuilt_model_parts(model: ModelSpec) -> list[str]:
    """List the parts of a model that the runtime has no block for."""
    if model.family not in ("llama", "gpt"):
        return [f"model family {model.family}"]
    parts = {
        "qk_norm": model.qk_norm,
        "relative positions": model.positions == "relative",
        "attention that is not causal": not model.causal,
        "an encoder": model.num_encoder_layers > 0,
        "multi-token prediction": model.num_mtp_layers > 0,
        "latent attention (mla)": model.mla is not None,
        "experts (moe)": model.moe is not None,
        "images (vision)": model.vision is not None,
    }
    return [f"model with {name}" for name, present in parts.items() if present]


def uneven_sizes(
    model: ModelSpec, train: TrainSpec, degrees: Mapping[str, int], *, sp: bool
) -> list[str]:
    """List the sizes that the degrees do not divide, with the arithmetic."""
    tp = degrees.get("tp", 1)
    rows = train.micro_batch * degrees.get("dp", 1) * degrees.get("fsdp", 1)
    must_divide = [
        ("train.global_batch", train.global_batch, "micro_batch x dp x fsdp", rows),
        ("model.num_heads", model.num_heads, "tp", tp),
        ("model.ffn_dim", model.ffn_dim, "tp", tp),
    ]
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
    if model.positions == "learned" and train.seq_len > model.max_seq_len:
        problems.append(
            f"train.seq_len = {train.seq_len} is longer than "
            f"model.max_seq_len = {model.max_seq_len} learned positions"
        )
    return problems

"""What can be said of a job that makes tokens before any process starts. Imports no torch."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from parctl.errors import UsageError
from parctl.recipes.spec import ModelSpec, Recipe
from parctl.runtime.checkpoint.directory import find_checkpoints, local_path
from parctl.runtime.data.check import num_ids
from parctl.runtime.huggingface.check import refuse_bad_weights
from parctl.runtime.inference.chat import load_template
from parctl.runtime.serving.prompts import refuse_bad_prompts

SERVE_NEEDS = ("starlette", "uvicorn", "prometheus_client")


def refuse_bad_inference(recipe: Recipe) -> None:
    """Raise UsageError for weights, tokenizer, prompts or packages that would not do."""
    spec, model = recipe.inference, recipe.model
    assert spec is not None and model is not None
    if recipe.checkpoint is not None and recipe.checkpoint.dir is not None:
        newest_checkpoint(recipe.checkpoint.dir)
    if spec.tokenizer != "byte":
        refuse_other_tokenizer(Path(spec.tokenizer), model)
    elif model.vocab_size < 256:
        raise UsageError(
            f"inference.tokenizer: bytes are 256 tokens, {model.name} has {model.vocab_size}",
            hint="set `model.vocab_size` to 256 or more",
        )
    load_template(spec.tokenizer, spec.chat_template)
    if spec.engine == "vllm":
        if find_spec("vllm") is None:
            raise UsageError(
                "inference.engine: vllm, and vLLM is not installed here",
                hint="`pip install vllm`, or `inference.engine: parctl`",
            )
        return
    if recipe.generate is not None:
        refuse_bad_prompts(recipe.generate.prompts)
    missing = [name for name in SERVE_NEEDS if find_spec(name) is None]
    if recipe.serve is not None and missing:
        raise UsageError(
            f"task: serve needs {', '.join(missing)}, not installed here",
            hint="`pip install 'parctl[serve]'`",
        )


def refuse_missing_files(recipe: Recipe) -> None:
    """Raise UsageError for prompts or weights that are not where the recipe says."""
    if recipe.inference is None or recipe.model is None:
        return
    if recipe.generate is not None:
        refuse_bad_prompts(recipe.generate.prompts)
    if recipe.checkpoint is not None and recipe.checkpoint.init_from is not None:
        refuse_bad_weights(Path(recipe.checkpoint.init_from), recipe.model)


def newest_checkpoint(directory: str) -> Path:
    """Raise UsageError for a directory without a complete one."""
    found = find_checkpoints(local_path(directory))
    if not found.whole:
        raise UsageError(
            f"checkpoint.dir = {directory} holds no complete checkpoint",
            hint="name the `checkpoints` folder of a run that has saved",
        )
    return found.whole[-1]


def refuse_other_tokenizer(path: Path, model: ModelSpec) -> None:
    if not path.is_file():
        raise UsageError(
            f"inference.tokenizer = {path}: no such file",
            hint="give `byte` or the path of a Hugging Face tokenizer.json",
        )
    if (count := num_ids(path)) > model.vocab_size:
        raise UsageError(
            f"inference.tokenizer = {path} makes ids up to {count - 1}, "
            f"but model.vocab_size is {model.vocab_size}",
            hint="is it the tokenizer of this model?",
        )


def unbuilt_inference(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List what the grammar knows and the engine does not do, in the recipe's own words."""
    forms = []
    if degrees.get("pp", 1) > 1 and recipe.parallelism.layer:
        forms.append("LAYER (write PP: stages work at the same time)")
    spec = recipe.inference
    assert spec is not None
    if spec.engine == "vllm" and recipe.task != "serve":
        forms.append("inference.engine vllm for task generate")
    if spec.engine == "vllm" and degrees.get("cp", 1) > 1:
        forms.append("inference.engine vllm with CP")
    directory = recipe.checkpoint.dir if recipe.checkpoint else None
    if directory and "://" in directory and not directory.startswith("file://"):
        forms.append(f"checkpoint.dir {directory} (object stores)")
    return forms


def uneven_inference(recipe: Recipe, degrees: Mapping[str, int]) -> list[str]:
    """List the sizes that the degrees do not divide, with the arithmetic."""
    model, tp, cp = recipe.model, degrees.get("tp", 1), degrees.get("cp", 1)
    assert model is not None
    must_divide = [("model.num_heads", model.num_heads, "tp", tp)]
    if model.moe is None or model.moe.num_dense_layers or model.moe.layer_period > 1:
        must_divide.append(("model.ffn_dim", model.ffn_dim, "tp", tp))
    if model.moe is not None:
        ep = degrees.get("ep", 1)
        etp = tp if ep == 1 else recipe.parallelism.etp or 1
        must_divide.append(("model.moe.num_experts", model.moe.num_experts, "ep", ep))
        must_divide.append(("model.moe.expert_ffn_dim", model.moe.expert_ffn_dim, "etp", etp))
    if cp > 1 and recipe.parallelism.cp_kind == "ulysses":
        must_divide.append(
            ("heads of a tp rank", model.num_heads // tp, "cp, because of ulysses", cp)
        )
    problems = [
        f"{name} = {size} is no multiple of {factor} ({what})"
        for name, size, what, factor in must_divide
        if size % factor
    ]
    if model.mla is None and model.num_kv_heads % tp and tp % model.num_kv_heads:
        problems.append(
            f"model.num_kv_heads = {model.num_kv_heads} neither divides tp = {tp} "
            "nor is divided by it"
        )
    return problems

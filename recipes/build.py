"""From checked fields to the frozen `Recipe`: presets, defaults that depend on the model, and
notes.

The one idea: a default is decided in one order - what the recipe says, else what the model's preset
trains with, else the default of the field reference - and whatever was decided for the user is said
in `Recipe.notes`.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parctl.recipes import spec
from parctl.recipes.checks import check_recipe
from parctl.recipes.corpus import CORPORA, SCHEME, STRIPES
from parctl.recipes.expert_load_file import read_expert_load_file
from parctl.recipes.faults import Fault, did_you_mean, listed
from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.inference import (
    build_generate,
    build_inference,
    build_serve,
    check_inference,
)
from parctl.recipes.launch import build_launch
from parctl.recipes.model_schema import ModelFields
from parctl.recipes.models import complete_model
from parctl.recipes.parallelism import build_parallelism, check_parallelism
from parctl.recipes.placement_schema import PlacementFields
from parctl.recipes.presets import find_preset, is_alias, load_preset, unknown_preset_hint
from parctl.recipes.schedule_file import read_schedule_file
from parctl.recipes.schema import (
    CheckpointFields,
    DataFields,
    ParallelismFields,
    RecipeFields,
    ScriptFields,
    TrainFields,
)

DRAWN = "random"  # `checkpoint.init_from`: draw the first weights
WHAT = ("model", "parallelism")  # every task but script needs
MUST = {"script": "command: [...]", "generate": "prompts: prompts.jsonl"}
MAX_NAME = 33  # a run id is a DNS label of at most 40: this, a dash and six characters


@dataclass(slots=True, kw_only=True)
class Context:
    """What the loader knows beside the fields."""

    source: str
    default_name: str | None  # None: named after the model
    folder: Path  # relative paths start here
    doubtful: set[str] = field(default_factory=set)  # sections from which values were cut out
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, path: str, message: str, hint: str, *, at_key: bool = False) -> None:
        self.faults.append(Fault(path=path, message=message, hint=hint, at_key=at_key))


def build_recipe(fields: RecipeFields, context: Context) -> spec.Recipe | None:
    """Build the recipe; None when `context.faults` says why it cannot be."""
    _check_task(fields, context)
    model, preset_train = _model(fields.model, context)
    parallelism = _parallelism(fields, context)
    train = data = checkpoint = inference = serve = None
    if fields.task == "train" and model is not None:
        train = _train(fields.train or TrainFields(), preset_train, model, context)
    if fields.task == "train":
        data = _data(fields.data, model, context)
    if fields.task != "script":
        checkpoint = _checkpoint(fields, context)
    certain = not context.doubtful & {"model", "parallelism"}
    if model is not None and parallelism is not None and certain:
        context.faults.extend(check_recipe(model, parallelism, train, data))
    launch = build_launch(
        fields.launch, context, script_env=fields.script.env if fields.script else {}
    )
    if fields.task in ("generate", "serve") and model is not None and checkpoint is not None:
        weights = checkpoint.init_from
        inference = build_inference(fields.inference, model, preset_train, weights, context)
        check_inference(model, parallelism, checkpoint, context)
        if fields.task == "serve":
            serve = build_serve(fields.serve, model, launch, context)
    if context.faults or parallelism is None:
        return None
    return spec.Recipe(
        name=fields.name or slug(context.default_name or (model.name if model else "script")),
        task=fields.task,
        model=model,
        parallelism=parallelism,
        train=train,
        data=data,
        checkpoint=checkpoint,
        script=None if fields.script is None else _script(fields.script, context),
        launch=launch,
        placement=_placement(fields.placement),
        inference=inference,
        generate=build_generate(fields.generate, context),
        serve=serve,
        source=context.source,
        notes=tuple(context.notes),
    )


def slug(text: str) -> str:
    """Make a name that can begin a run id.

    >>> slug("LLaMA-3.1 70B")
    'llama-3-1-70b'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:MAX_NAME].strip("-") or "recipe"


def _check_task(fields: RecipeFields, context: Context) -> None:
    script = fields.task == "script"
    needed = {"script": ("script",), "generate": (*WHAT, "generate")}.get(fields.task, WHAT)
    for key in needed:
        if getattr(fields, key) is None:
            example = RecipeFields.model_fields[key].examples
            shown = example[0] if example and isinstance(example[0], str) else f"{{{MUST[key]}}}"
            hint = f"add `{key}: {shown}`"
            context.fault(key, f"missing, and task {fields.task} needs it", hint)
    useless = {
        "train": ("script", "inference", "generate", "serve"),
        "generate": ("script", "train", "data", "serve"),
        "serve": ("script", "train", "data", "generate"),
        "script": ("model", "train", "data", "checkpoint", "inference", "generate", "serve"),
    }[fields.task]
    for key in useless:
        if getattr(fields, key) is not None:
            other = {"inference": "serve", "model": "train", "data": "train", "checkpoint": "train"}
            hint = f"remove it, or set `task: {other.get(key, key)}`"
            context.fault(key, f"has no meaning for task {fields.task}", hint, at_key=True)
    if script and fields.script is not None and fields.script.axes and fields.parallelism:
        message = "found both `parallelism` and `script.axes`"
        context.fault("script.axes", message, "keep one of the two", at_key=True)


def _model(
    fields: ModelFields | None, context: Context
) -> tuple[spec.ModelSpec | None, dict[str, Any]]:
    """Return the model and the training defaults of its preset."""
    if fields is None:
        return None, {}
    if fields.preset is not None and fields.hf is not None:
        context.fault(
            "model.hf", "found both `preset` and `hf`", "keep one of the two", at_key=True
        )
        return None, {}
    given = fields.model_dump(exclude_unset=True, exclude={"preset", "hf"})
    for part in ("moe", "mla", "vision"):
        inner = getattr(fields, part)
        if inner is not None:
            given[part] = inner.model_dump()
    base: dict[str, Any] = {}
    train: dict[str, Any] = {}
    name = context.default_name or "model"
    if fields.preset is not None:
        found = find_preset(fields.preset)
        if found is None:
            message = f"no model is called `{_short(fields.preset)}`"
            context.fault("model.preset", message, unknown_preset_hint(fields.preset))
            return None, {}
        if is_alias(fields.preset):
            context.notes.append(f"{fields.preset} is read as {found}")
        preset = load_preset(found)
        base, train, name = preset.values, preset.train, found
        if given:
            context.notes.append(f"{found} is changed in {listed(given)}")
    if fields.hf is not None:
        folder = _absolute(fields.hf, context)
        base, faults = read_hf_config(Path(folder))
        context.faults.extend(_inside("model", faults))
        if faults:
            return None, {}
        name = Path(folder).name
    model, faults = complete_model({**base, **given}, name)
    if "model" not in context.doubtful:
        context.faults.extend(_inside("model", faults))
    return model, train


def _parallelism(fields: RecipeFields, context: Context) -> spec.ParallelismSpec | None:
    given = fields.parallelism
    script = fields.script
    if given is None and script is not None and script.axes:
        given = ParallelismFields.model_validate({**script.axes, "order": list(script.axes)})
    elif given is None and fields.task == "script":
        given = ParallelismFields(dp="auto")
    if given is None:
        return None
    values = {key: value for key, value in given.model_dump().items() if value is not None}
    if not values.get("auto") and not set(values) & {*spec.AXES, "ep", "operator", "sp"}:
        message = "names no axis"
        context.fault("parallelism", message, "for example `TP+SP+FSDP`, or `auto`")
        return None
    faults = [] if "parallelism" in context.doubtful else check_parallelism(values)
    for key, message, hint in faults:
        context.fault(f"parallelism.{key}", message, hint)
    if faults:
        return None
    built = build_parallelism(values)
    if given.expert_load_file is not None:
        rows, fault = read_expert_load_file(context.folder / given.expert_load_file)
        if fault is not None:
            hint = "runs of models with experts write `expert_load.json` to their directory"
            context.fault("parallelism.expert_load_file", fault, hint)
            return None
        built = replace(built, expert_load=rows)
    if given.schedule_file is not None and built.pp != 1:
        return _with_schedule_file(built, context.folder / given.schedule_file, context)
    return built


def _with_schedule_file(
    built: spec.ParallelismSpec, path: Path, context: Context
) -> spec.ParallelismSpec | None:
    rows, num_stages, fault = read_schedule_file(path)
    if fault is None and built.pp not in (None, len(rows)):
        fault = f"`{path}` has {len(rows)} rows, expected one for each of pp = {built.pp} ranks"
    if fault is not None:
        hint = "one row per pipeline rank, cells as in `0F0,0F1,0B0,0B1`"
        context.fault("parallelism.schedule_file", fault, hint)
        return None
    return replace(built, pp=len(rows), virtual_stages=num_stages // len(rows), schedule_table=rows)


def _train(
    fields: TrainFields, preset: dict[str, Any], model: spec.ModelSpec, context: Context
) -> spec.TrainSpec:
    if fields.recompute is not None and fields.activation_checkpointing is not None:
        message = "found both `recompute` and `activation_checkpointing`, two names of one field"
        context.fault("train.activation_checkpointing", message, "keep one of the two", at_key=True)
    taken: list[str] = []

    def pick(key: str, default: Any) -> Any:
        given = getattr(fields, key)
        if given is None and key in preset:
            taken.append(f"{key} {preset[key]}")
            return preset[key]
        return default if given is None else given

    steps = pick("steps", 1000)
    recompute = fields.recompute or fields.activation_checkpointing or pick(
        "recompute", "selective"
    )  # fmt: skip
    optimizer = fields.optimizer
    lr = optimizer.lr
    if lr is None:
        lr = preset.get("optimizer", {}).get("lr", 3e-4)
        taken.append(f"lr {lr:g}")
    warmup, min_lr = optimizer.warmup_steps, optimizer.min_lr
    train = spec.TrainSpec(
        seq_len=pick("seq_len", min(model.max_seq_len, model.sliding_window or 8192, 8192)),
        global_batch=pick("global_batch", 512),
        micro_batch=pick("micro_batch", 1),
        steps=steps,
        precision=pick("precision", "bf16"),
        recompute=recompute,
        recompute_layers=tuple(fields.recompute_layers),
        offload_activations=fields.offload_activations,
        offload_optimizer=fields.offload_optimizer,
        compile=fields.compile,
        mtp_loss=fields.mtp_loss,
        streams=fields.streams,
        seed=fields.seed,
        validate_every=fields.validate_every,
        validate_batches=fields.validate_batches,
        log_every=fields.log_every,
        comm_timeout_s=float(fields.comm_timeout_s),
        on_nan=fields.on_nan,
        max_skips=fields.max_skips,
        optimizer=spec.OptimizerSpec(
            name=optimizer.name,
            lr=float(lr),
            min_lr=float(f"{lr / 10:.12g}") if min_lr is None else float(min_lr),
            warmup_steps=min(steps // 10, 2000) if warmup is None else warmup,
            betas=(float(optimizer.betas[0]), float(optimizer.betas[1])),
            eps=float(optimizer.eps),
            weight_decay=float(optimizer.weight_decay),
            max_grad_norm=float(optimizer.max_grad_norm),
        ),
    )
    if taken:
        context.notes.append(f"training defaults of {model.name}: {listed(taken)}")
    return train


def _data(
    fields: DataFields | None, model: spec.ModelSpec | None, context: Context
) -> spec.DataSpec:
    images = model is not None and model.vision is not None
    if fields is None:
        what = "images that ship" if images else "text that ships"
        context.notes.append(f"trains on the {what} with parctl: set `data.train`")
        fields = DataFields()
    if images and "train" not in fields.model_fields_set:
        fields = fields.model_copy(update={"train": [STRIPES]})
    for key in ("train", "validation"):
        for index, path in enumerate(getattr(fields, key)):
            name = path.removeprefix(SCHEME)
            if path.startswith(SCHEME) and name not in CORPORA and path != STRIPES:
                hint = did_you_mean(name, CORPORA, "shipped texts are")
                context.fault(f"data.{key}.{index}", f"no text is called `{_short(name)}`", hint)
    tokenizer = fields.tokenizer
    return spec.DataSpec(
        train=tuple(_absolute(path, context) for path in fields.train),
        validation=tuple(_absolute(path, context) for path in fields.validation),
        validation_fraction=float(fields.validation_fraction),
        format=fields.format,
        text_key=fields.text_key,
        tokenizer=tokenizer if tokenizer == "byte" else _absolute(tokenizer, context),
        document_mask=fields.document_mask,
        end_token=fields.end_token,
    )


def _checkpoint(recipe: RecipeFields, context: Context) -> spec.CheckpointSpec:
    fields = recipe.checkpoint or CheckpointFields()
    return spec.CheckpointSpec(
        dir=None if fields.dir is None else _absolute(fields.dir, context),
        every=fields.every,
        keep=fields.keep,
        at_end=fields.at_end,
        resume=fields.resume,
        async_save=fields.async_save,
        init_from=_first_weights(fields, recipe, context),
    )


def _first_weights(fields: CheckpointFields, recipe: RecipeFields, context: Context) -> str | None:
    """Return the folder of the first weights: the one named, else that of `model.hf`.

    None: they are drawn from the seed. Training does so where `model.hf` has a `config.json` alone;
    who generates or serves from a folder without weights has to ask for noise by `random`.
    """
    given, model = fields.init_from, recipe.model
    if given is not None:
        return None if given == DRAWN else _absolute(given, context)
    folder = None if model is None or model.hf is None else Path(_absolute(model.hf, context))
    if folder is None:
        return None
    if next(folder.glob("*.safetensors"), None) is None:
        if recipe.task not in ("generate", "serve") or fields.dir is not None:
            return None
        context.notes.append(
            f"{folder} holds no safetensors files here, and the ranks need them there: "
            f"`checkpoint.init_from: {DRAWN}` draws weights"
        )
        return str(folder)
    context.notes.append(
        f"starts from the weights in {folder}: `checkpoint.init_from: {DRAWN}` draws new ones"
    )
    return str(folder)


def _script(fields: ScriptFields, context: Context) -> spec.ScriptSpec:
    return spec.ScriptSpec(
        command=tuple(fields.command),
        env=dict(fields.env),
        workdir=None if fields.workdir is None else _absolute(fields.workdir, context),
    )


def _placement(fields: PlacementFields | None) -> spec.PlacementSpec | None:
    if fields is None or not (fields.exclude or fields.require or fields.spares):
        return None
    return spec.PlacementSpec(
        exclude=tuple(dict.fromkeys(fields.exclude)),
        require=tuple(dict.fromkeys(fields.require)),
        spares=fields.spares,
    )


def _absolute(path: str, context: Context) -> str:
    """Anchor a relative path at the recipe's folder; addresses with a scheme stay."""
    if "://" in path:
        return path
    return str(context.folder / Path(path).expanduser())


def _inside(prefix: str, faults: list[Fault]) -> list[Fault]:
    return [
        Fault(
            path=f"{prefix}.{fault.path}" if fault.path else prefix,
            message=fault.message,
            hint=fault.hint,
        )
        for fault in faults
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

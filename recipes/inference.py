"""From checked `inference`, `generate` and `serve` fields to their frozen specs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from parctl.recipes import spec
from parctl.recipes.corpus import PROMPTS, SCHEME
from parctl.recipes.inference_schema import (
    GenerateFields,
    InferenceFields,
    SamplingFields,
    ServeFields,
)
from parctl.recipes.inference_spec import GenerateSpec, InferenceSpec, SamplingSpec, ServeSpec

if TYPE_CHECKING:
    from parctl.recipes.build import Context

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build_inference(
    given: InferenceFields | None,
    model: spec.ModelSpec,
    preset_train: dict[str, Any],
    init_from: str | None,
    context: "Context",
) -> InferenceSpec:
    """Settle what follows from the model and from the folder of its weights."""
    fields = given or InferenceFields()
    max_context = fields.max_context or model.max_seq_len
    if max_context > model.max_seq_len:
        message = f"found {max_context}, but {model.name} ends at {model.max_seq_len}"
        context.fault("inference.max_context", message, "raise `model.max_seq_len`, or lower it")
    if fields.host_blocks is not None and fields.preemption != "swap":
        hint = "set `inference.preemption: swap`, or remove it"
        context.fault("inference.host_blocks", "without swapping nothing goes there", hint)
    precision = fields.precision or preset_train.get("precision", "bf16")
    return InferenceSpec(
        engine=fields.engine,
        precision="bf16" if precision == "fp8" else precision,
        tokenizer=_tokenizer(fields, init_from, context),
        chat_template=_file(fields.chat_template, context),
        max_context=max_context,
        max_sequences=fields.max_sequences,
        chunk=fields.chunk,
        block_size=fields.block_size,
        kv_blocks=fields.kv_blocks,
        memory_fraction=float(fields.memory_fraction),
        prefix_cache=fields.prefix_cache,
        preemption=fields.preemption,
        host_blocks=fields.host_blocks,
        seed=fields.seed,
        comm_timeout_s=float(fields.comm_timeout_s),
    )


def check_inference(
    model: spec.ModelSpec,
    parallelism: spec.ParallelismSpec | None,
    checkpoint: spec.CheckpointSpec,
    context: "Context",
) -> None:
    """Refuse what makes sense in training only."""
    if not model.causal or model.num_encoder_layers or model.vision is not None:
        message = f"{model.name} does not write text token by token"
        context.fault("model", message, "choose a decoder, such as `llama-3-8b`")
    if checkpoint.dir is None and checkpoint.init_from is None:
        context.notes.append(
            f"the weights of {model.name} are drawn at random: `checkpoint.dir` names a run's own, "
            "`checkpoint.init_from` or `model: {hf: DIR}` a Hugging Face folder"
        )
    if parallelism is None or "parallelism" in context.doubtful:
        return
    if parallelism.fsdp != 1:
        message = "FSDP shards the state of training, and inference has none"
        context.fault("parallelism.fsdp", message, "use DP for replicas, TP and PP for size")
    if parallelism.operator != 1:
        message = "inference does not split the branches of a block"
        context.fault("parallelism.operator", message, "use TP")
    if parallelism.virtual_stages != 1 or parallelism.schedule_table is not None:
        message = "micro-batches of inference pass the stages once, there is nothing to interleave"
        context.fault("parallelism.schedule", message, "write PP without a schedule")


def _tokenizer(fields: InferenceFields, init_from: str | None, context: "Context") -> str:
    if fields.tokenizer is not None:
        return "byte" if fields.tokenizer == "byte" else str(_file(fields.tokenizer, context))
    beside = None if init_from is None else Path(init_from) / "tokenizer.json"
    if beside is not None and beside.is_file():
        return str(beside)
    if beside is not None:
        context.notes.append(f"{beside} is not there: bytes are tokens (`inference.tokenizer`)")
    return "byte"


def build_generate(fields: GenerateFields | None, context: "Context") -> GenerateSpec | None:
    if fields is None:
        return None
    prompts = fields.prompts
    if prompts.startswith(SCHEME) and prompts != PROMPTS:
        context.fault("generate.prompts", f"found `{prompts[:60]}`", f"there is `{PROMPTS}`")
    if Path(prompts).suffix not in (".txt", ".jsonl") and prompts != PROMPTS:
        message = f"found the suffix `{Path(prompts).suffix}`, expected .txt or .jsonl"
        context.fault("generate.prompts", message, "a prompt, or a request, per line")
    return GenerateSpec(
        prompts=prompts if prompts.startswith(SCHEME) else str(_file(prompts, context)),
        output=_file(fields.output, context),
        sampling=_sampling(fields.sampling),
    )


def build_serve(
    fields: ServeFields | None,
    model: spec.ModelSpec,
    launch: spec.LaunchSpec,
    context: "Context",
) -> ServeSpec:
    fields = fields or ServeFields()
    key = fields.api_key_from
    if key is not None and key not in launch.secrets:
        message = f"`launch.secrets` has no {key}"
        hint = f"add `launch: {{secrets: {{{key}: {{from_env: {key}}}}}}}`"
        context.fault("serve.api_key_from", message, hint)
    if key is None and fields.host not in LOOPBACK:
        context.notes.append(
            f"serve.host {fields.host} is open to everybody who reaches it: `serve.api_key_from` "
            "asks for a key"
        )
    return ServeSpec(
        host=fields.host,
        port=fields.port,
        model_name=fields.model_name or model.name,
        api_key_from=key,
        max_concurrent=fields.max_concurrent,
        max_body_bytes=fields.max_body_bytes,
        max_samples=fields.max_samples,
        drain_s=float(fields.drain_s),
        sampling=_sampling(fields.sampling),
    )


def _sampling(fields: SamplingFields) -> SamplingSpec:
    return SamplingSpec(
        max_tokens=fields.max_tokens,
        temperature=float(fields.temperature),
        top_k=fields.top_k,
        top_p=float(fields.top_p),
        min_p=float(fields.min_p),
        repetition_penalty=float(fields.repetition_penalty),
        presence_penalty=float(fields.presence_penalty),
        frequency_penalty=float(fields.frequency_penalty),
        seed=fields.seed,
        stop=tuple(fields.stop),
    )


def _file(path: str | None, context: "Context") -> str | None:
    return None if path is None else str(context.folder / Path(path).expanduser())

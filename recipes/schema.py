"""What people may write in a recipe, as pydantic models: types, bounds, meaning and an example of
every field.

The one idea: the schema only says what is well formed. Defaults that depend on the model live in
`parctl.recipes.build`, checks across objects in `parctl.recipes.checks`, so an absent field stays
absent (`None`) here. The JSON Schema for editors and the field reference in the docs are generated
from these classes.
"""

from typing import Annotated, Literal

from pydantic import Field

from parctl.recipes.fields import (
    Axis,
    Count,
    CountOrZero,
    DegreeOrNone,
    Environment,
    Fields,
    Fraction,
    NotNegative,
    OneOrMore,
    Positive,
    Reshard,
    Text,
    ZeroOrMore,
)
from parctl.recipes.inference_schema import GenerateFields, InferenceFields, ServeFields
from parctl.recipes.launch_schema import LaunchFields
from parctl.recipes.model_schema import ModelFields
from parctl.recipes.placement_schema import PlacementFields
from parctl.recipes.shorthand import MAX_DEGREE
from parctl.recipes.spec import Precision, Recompute, Schedule, Task


class ParallelismFields(Fields):
    """The mapping form. A degree of `auto` names the axis and leaves its size to the planner.

    `form` holds a shorthand, so that the other keys can stand beside it.
    """

    form: Text | None = Field(
        default=None,
        description="a shorthand; keys beside it add to it",
        examples=["TP8+SP+FSDP16"],
    )
    auto: bool | None = Field(
        default=None, description="the planner picks every degree", examples=[True]
    )
    dp: DegreeOrNone = Field(default=None, description="replicas of the model", examples=[2])
    fsdp: DegreeOrNone = Field(default=None, description="shards of the model state", examples=[16])
    zero_stage: Literal[1, 2, 3] | None = Field(
        default=None,
        description="what fsdp shards: optimizer, + gradients, + parameters; default 3",
        examples=[3],
    )
    tp: DegreeOrNone = Field(default=None, description="tensor parallel", examples=[8])
    sp: bool | None = Field(
        default=None, description="split norms and residuals inside the TP group", examples=[True]
    )
    pp: DegreeOrNone = Field(default=None, description="pipeline stages", examples=[4])
    schedule: Schedule | None = Field(
        default=None, description="of the pipeline; default 1f1b", examples=["interleaved-1f1b"]
    )
    virtual_stages: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="stages per pipeline rank", examples=[2]
    )
    schedule_file: Text | None = Field(
        default=None,
        description="CSV of the pipeline's actions, a row per rank, in place of `schedule`",
        examples=["mine.csv"],
    )
    layer: bool | None = Field(
        default=None, description="naive layer placement: pp without micro-batches", examples=[True]
    )
    grad_sync: Literal["auto", "each", "last"] | None = Field(
        default=None,
        description="exchange gradients after each micro-batch, or after the last of a step;"
        " default auto: each for ZeRO stages 2 and 3 unless last fits too, last otherwise",
        examples=["last"],
    )
    prefetch: Annotated[int, Field(ge=1, le=16)] | None = Field(
        default=None, description="units that fsdp gathers ahead of need; default 1", examples=[2]
    )
    reshard: Reshard | None = Field(
        default=None,
        description="free what fsdp gathered after forward; N: keep shards in groups of N ranks;"
        " default auto: all but the head for stage 3, never for stages 1 and 2",
        examples=["always"],
    )
    cp: DegreeOrNone = Field(default=None, description="context parallel", examples=[4])
    cp_kind: Literal["ring", "ulysses"] | None = Field(
        default=None, description="how attention crosses cp ranks; default ring", examples=["ring"]
    )
    ep: DegreeOrNone = Field(default=None, description="expert parallel", examples=[8])
    etp: DegreeOrNone = Field(
        default=None, description="tensor parallel inside experts; default 1", examples=[2]
    )
    expert_placement: Literal["block", "round-robin", "load-balanced"] | None = Field(
        default=None,
        description="which experts live together on an ep rank; default block",
        examples=["round-robin"],
    )
    expert_load_file: Text | None = Field(
        default=None,
        description="`expert_load.json` of an earlier run, for load-balanced placement",
        examples=["expert_load.json"],
    )
    operator: Annotated[int, Field(ge=1, le=MAX_DEGREE)] | None = Field(
        default=None,
        description="2: the branches of a parallel block on ranks of their own",
        examples=[2],
    )
    order: list[Axis] | None = Field(
        default=None,
        description="mesh axes outermost first; default pp, dp, fsdp, cp, operator, tp",
        examples=[["dp", "pp", "tp"]],
    )
    allow_cross_node_tp: bool | None = Field(
        default=None, description="let TP groups leave the NVLink domain", examples=[True]
    )
    allow_pcie_tp: bool | None = Field(
        default=None, description="let TP groups use PCIe", examples=[True]
    )
    strict_node: bool | None = Field(
        default=None,
        description="a rack-scale NVLink domain does not count as one node",
        examples=[True],
    )


class OptimizerFields(Fields):
    """AdamW with linear warm-up and cosine decay."""

    name: Literal["adamw"] = Field(default="adamw", description="which one", examples=["adamw"])
    lr: Positive | None = Field(
        default=None,
        description="peak learning rate; default the preset's, or 3e-4",
        examples=[3e-4],
    )
    min_lr: NotNegative | None = Field(
        default=None, description="where the cosine ends; default lr / 10", examples=[3e-5]
    )
    warmup_steps: CountOrZero | None = Field(
        default=None, description="default steps / 10, at most 2000", examples=[100]
    )
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.95], description="Adam's decay rates", examples=[[0.9, 0.95]]
    )
    eps: Positive = Field(default=1e-8, description="Adam's epsilon", examples=[1e-8])
    weight_decay: NotNegative = Field(default=0.1, description="on matrices", examples=[0.1])
    max_grad_norm: NotNegative = Field(default=1.0, description="0: no clipping", examples=[1.0])


class TrainFields(Fields):
    """How to train. Absent fields take the preset's value, else the default named here."""

    seq_len: Annotated[int, Field(ge=1, le=1 << 30)] | None = Field(
        default=None,
        description="tokens per sequence; default `max_seq_len`, at most 8192",
        examples=[8192],
    )
    global_batch: Count | None = Field(
        default=None, description="sequences per optimizer step; default 512", examples=[512]
    )
    micro_batch: Count | None = Field(
        default=None, description="sequences per forward pass of one rank; default 1", examples=[1]
    )
    steps: Count | None = Field(
        default=None, description="optimizer steps; default 1000", examples=[1000]
    )
    precision: Precision | None = Field(
        default=None, description="of matrix products; default bf16", examples=["bf16"]
    )
    recompute: Recompute | None = Field(
        default=None,
        description="activations computed again in backward; default selective",
        examples=["selective"],
    )
    recompute_layers: list[Recompute] = Field(
        default=[],
        description="modes of successive layers, over and over; absent: `recompute` for all",
        examples=[["full", "none"]],
    )
    offload_activations: bool = Field(
        default=False,
        description="block inputs that recompute keeps wait in host memory",
        examples=[True],
    )
    offload_optimizer: bool = Field(
        default=False,
        description="optimizer state lives in host memory and is updated there",
        examples=[True],
    )
    compile: bool = Field(
        default=False, description="compile every block (torch.compile)", examples=[True]
    )
    mtp_loss: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.3,
        description="weight of multi-token prediction beside the loss of the next token",
        examples=[0.3],
    )
    streams: Annotated[int, Field(ge=1, le=2)] = Field(
        default=1,
        description="2: the branches of a parallel block on two streams of one device",
        examples=[2],
    )
    activation_checkpointing: Recompute | None = Field(
        default=None, description="another name of `recompute`", examples=["selective"]
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = Field(
        default=0, description="of weights, data order and dropout", examples=[0]
    )
    validate_every: CountOrZero = Field(default=0, description="steps; 0: never", examples=[100])
    validate_batches: Count = Field(
        default=8, description="global batches per validation", examples=[8]
    )
    log_every: Count = Field(default=10, description="steps", examples=[10])
    comm_timeout_s: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=300.0,
        description="of a collective, seconds, after the first step",
        examples=[300.0],
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="where a loss or gradient norm is not finite: end the run, or skip the step",
        examples=["skip"],
    )
    max_skips: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10, description="steps in a row that `on_nan: skip` leaves out", examples=[10]
    )
    optimizer: OptimizerFields = Field(
        default_factory=OptimizerFields, description="AdamW", examples=[{"lr": 3e-4}]
    )


class DataFields(Fields):
    """Where the tokens come from."""

    train: OneOrMore = Field(
        default=["corpus://guide"],
        description="paths or globs; `corpus://guide`: the text that parctl ships;"
        " `corpus://stripes`: images for a vit",
        examples=[["data/*.txt"]],
    )
    validation: ZeroOrMore = Field(
        default=[], description="paths or globs; empty: a share of train", examples=[["held.txt"]]
    )
    validation_fraction: Fraction = Field(
        default=0.05, description="share of train that is held out", examples=[0.05]
    )
    format: Literal["auto", "text", "jsonl", "parquet", "bin"] = Field(
        default="auto", description="auto: by the file's suffix", examples=["jsonl"]
    )
    text_key: Text = Field(
        default="text", description="of jsonl and parquet rows", examples=["text"]
    )
    tokenizer: Text = Field(
        default="byte", description="`byte`, or the path of a tokenizer.json", examples=["byte"]
    )
    document_mask: bool = Field(
        default=False,
        description="attention does not cross the borders of documents in a sequence",
        examples=[True],
    )
    end_token: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="id that ends a document of a tokenised file; default: the tokenizer's own",
        examples=[0],
    )


class CheckpointFields(Fields):
    """Where and when the state is saved."""

    dir: Text | None = Field(
        default=None,
        description="path or file://, s3://, gs:// address; default: the run's own",
        examples=["/mnt/shared/run-1"],
    )
    every: CountOrZero = Field(default=500, description="steps; 0: only at the end", examples=[500])
    keep: CountOrZero = Field(default=3, description="newest complete ones; 0: all", examples=[3])
    at_end: bool = Field(default=True, description="save when training ends", examples=[True])
    resume: bool = Field(
        default=True, description="continue from the newest in `dir`", examples=[True]
    )
    async_save: bool = Field(default=False, description="write in background", examples=[True])
    init_from: Text | None = Field(
        default=None,
        description="Hugging Face folder with the first weights, or `random`; default: those in"
        " the folder of `model.hf`, else random; generate and serve refuse a folder without any",
        examples=["/mnt/models/Llama-3.2-1B"],
    )


class ScriptFields(Fields):
    """`task: script`: any program that reads RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*."""

    command: list[Text] = Field(
        min_length=1,
        description="program and arguments; no shell reads it",
        examples=[["python", "train.py"]],
    )
    env: Environment = Field(
        default={}, description="variables of its ranks", examples=[{"MODE": "fast"}]
    )
    workdir: Text | None = Field(
        default=None, description="default: where you are", examples=["./src"]
    )
    axes: dict[Axis, DegreeOrNone] | None = Field(
        default=None,
        description="the program's mesh, outermost first; default: dp over all devices",
        examples=[{"dp": 2, "tp": 4}],
    )


class RecipeFields(Fields):
    """A parctl recipe: what to run, how it is split over devices, and where it goes."""

    version: Literal[1] = Field(description="of this format", examples=[1])
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,31}[a-z0-9])?$")] | None = Field(
        default=None,
        description="start of run ids: at most 33 lower-case letters, digits and dashes;"
        " default from the file or the model",
        examples=["llama-70b"],
    )
    task: Task = Field(default="train", description="what to do", examples=["train"])
    model: ModelFields | None = Field(
        default=None, description="which; not for task script", examples=["llama-3-70b"]
    )
    parallelism: ParallelismFields | None = Field(
        default=None, description="how it is split", examples=["TP+SP+FSDP"]
    )
    train: TrainFields | None = Field(
        default=None, description="how to train", examples=[{"steps": 1000}]
    )
    data: DataFields | None = Field(
        default=None, description="what to train on", examples=[{"train": ["data/*.txt"]}]
    )
    checkpoint: CheckpointFields | None = Field(
        default=None, description="what is saved", examples=[{"every": 500}]
    )
    script: ScriptFields | None = Field(
        default=None, description="for task script", examples=[{"command": ["python", "train.py"]}]
    )
    inference: InferenceFields | None = Field(
        default=None,
        description="how tokens are made, for tasks generate and serve",
        examples=[{"max_context": 8192}],
    )
    generate: GenerateFields | None = Field(
        default=None,
        description="for task generate",
        examples=[{"prompts": "prompts.jsonl"}],
    )
    serve: ServeFields | None = Field(
        default=None, description="for task serve", examples=[{"port": 8000}]
    )
    launch: LaunchFields | None = Field(
        default=None, description="where it runs", examples=[{"retries": 3}]
    )
    placement: PlacementFields | None = Field(
        default=None, description="on which nodes", examples=[{"exclude": ["gpu-3"]}]
    )

"""The recipe as data: what every part of parctl passes on after the loader has checked it.

People write YAML, which `parctl.recipes.schema` (pydantic) checks; the loader turns it into these
frozen values. They need the standard library only, because the runtime reads them on cluster nodes.
Nothing here validates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from parctl.recipes.inference_spec import GenerateSpec, InferenceSpec, ServeSpec
from parctl.recipes.kubernetes_spec import KubernetesSpec
from parctl.recipes.ray_spec import RaySpec

Task = Literal["train", "generate", "serve", "script"]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "fp64"]
Recompute = Literal["none", "selective", "full", "partitioned"]
Schedule = Literal["gpipe", "1f1b", "interleaved-1f1b", "zero-bubble", "zbv", "dualpipev"]
# mesh axes, outermost to innermost, in the default order
AXES = ("pp", "dp", "fsdp", "cp", "operator", "tp")


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434). All sizes are element counts."""

    q_lora_rank: int | None  # None: queries are projected directly
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """Mixture of experts in place of the MLP."""

    num_experts: int
    top_k: int
    expert_ffn_dim: int
    num_shared_experts: int  # always active, each `expert_ffn_dim` wide
    num_dense_layers: int  # leading layers that keep the dense MLP
    layer_period: int  # every n-th layer is sparse (1: all, 2: every other)
    capacity_factor: float | None  # None: no token is dropped
    aux_loss: float
    z_loss: float
    router: Literal["softmax", "sigmoid"]
    weight_scale: float  # on the weights of routed experts
    bias_rate: float  # step of the sigmoid router's balance bias (2408.15664)
    num_groups: int  # node-limited routing (DeepSeek); 1: off
    top_k_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Patch input and classes of a vision transformer."""

    image_size: int
    patch_size: int
    num_channels: int
    num_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A transformer's shape. Sizes are element counts; see also `parctl.recipes.parameters`."""

    name: str
    family: Literal["llama", "gpt", "moe", "vit", "t5"]
    num_layers: int  # decoder layers
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_seq_len: int
    norm: Literal["rmsnorm", "layernorm"]
    norm_eps: float
    activation: Literal["swiglu", "gelu", "relu", "squared-relu"]
    positions: Literal["rope", "learned", "relative"]
    rope_theta: float
    rope_fraction: float  # share of head_dim that is rotated
    # factor, original_max_seq_len; as Llama 3.1: low_freq_factor, high_freq_factor; as YaRN:
    # beta_fast, beta_slow, and where DeepSeek has them mscale, mscale_all_dim
    rope_scaling: Mapping[str, float] | None
    bias: bool  # on attention and MLP projections
    qkv_bias: bool
    qk_norm: bool
    parallel_blocks: bool  # x + attention(norm x) + mlp(norm x), one norm (GPT-J, PaLM)
    tied_embeddings: bool
    dropout: float
    causal: bool
    num_encoder_layers: int  # encoder-decoder models; else 0
    num_mtp_layers: int  # DeepSeek-V3's multi-token prediction modules
    mla: MlaSpec | None
    moe: MoeSpec | None
    vision: VisionSpec | None
    sliding_window: int | None = None  # tokens that one sees, itself included; None: all before it
    sliding_layers: tuple[int, ...] | None = None  # that see no further; None: all of them

    def window(self, layer: int) -> int | None:
        """Return how many tokens one sees in a layer, itself included; None: all before it."""
        slides = self.sliding_layers is None or layer in self.sliding_layers
        return self.sliding_window if slides else None

    @property
    def kept_window(self) -> int | None:
        """Of how many tokens a sequence keeps keys and values; None: some layer sees all."""
        sliding = [self.window(layer) for layer in range(self.num_layers)]
        return None if None in sliding else self.sliding_window


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelismSpec:
    """Degrees as written. 1: the axis is absent. None: it is named, its degree to be inferred."""

    text: str  # as the user wrote it, or its canonical shorthand
    auto: bool  # the planner's search picks every degree
    tp: int | None
    sp: bool
    pp: int | None
    dp: int | None
    fsdp: int | None
    cp: int | None
    ep: int | None
    etp: int | None  # 1 unless given
    expert_placement: Literal["block", "round-robin", "load-balanced"]
    expert_load: tuple[tuple[float, ...], ...] | None  # of layers, by expert; load-balanced only
    layer: bool  # pp stages without micro-batches (naive placement)
    operator: int  # ranks that share the branches of a parallel block; 1 unless given
    zero_stage: Literal[0, 1, 2, 3]  # of the fsdp axis; 0 when there is none
    grad_sync: Literal["auto", "each", "last"]  # micro-batches that end in an exchange of gradients
    prefetch: int  # units that fsdp gathers ahead of need
    reshard: Literal["auto", "always", "never"] | int  # after forward; N: to groups of N ranks
    cp_kind: Literal["ring", "ulysses"]
    schedule: Schedule
    virtual_stages: int
    # rows of a schedule of the user's own, one per pipeline rank, in place of `schedule`
    schedule_table: tuple[tuple[str, ...], ...] | None
    order: tuple[str, ...]  # mesh axes, outermost first; a permutation of AXES
    allow_cross_node_tp: bool
    allow_pcie_tp: bool
    strict_node: bool  # a rack-scale NVLink domain does not count as one node

    @property
    def reduces_once(self) -> bool:
        """Whether gradients are exchanged in the last backward pass of a step only.

        Without a word in the recipe, stages 2 and 3 of ZeRO reduce-scatter in each: whole gradients
        kept between micro-batches would cost the memory that sharding saved.
        """
        if self.grad_sync == "auto":
            return self.zero_stage < 2
        return self.grad_sync == "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    name: Literal["adamw"]
    lr: float
    min_lr: float  # where the cosine ends
    warmup_steps: int
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float  # 0: no clipping


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    seq_len: int  # tokens
    global_batch: int  # sequences per optimizer step
    micro_batch: int  # sequences per forward pass of one rank
    steps: int
    precision: Precision
    recompute: Recompute
    recompute_layers: tuple[Recompute, ...]  # of successive layers, over and over; empty: as above
    offload_activations: bool  # kept block inputs wait in host memory
    offload_optimizer: bool  # moments live, and are updated, in host memory
    compile: bool  # every block by torch.compile
    mtp_loss: float  # weight of multi-token prediction beside the next token's loss
    streams: int  # streams of one device that the branches of a block run on
    seed: int
    validate_every: int  # steps; 0: never
    validate_batches: int
    log_every: int  # steps
    comm_timeout_s: float  # after the first step; longer before it
    on_nan: Literal["stop", "skip"]  # a loss or gradient norm that is not finite
    max_skips: int  # steps in a row that `skip` leaves out before it stops
    optimizer: OptimizerSpec

    def recompute_of(self, layer: int) -> Recompute:
        """How layer `layer`, from 0, is recomputed."""
        modes = self.recompute_layers
        return modes[layer % len(modes)] if modes else self.recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where the tokens come from. `corpus://guide` is the text that parctl ships."""

    train: tuple[str, ...]  # paths or globs
    validation: tuple[str, ...]  # empty: the last `validation_fraction` of train
    validation_fraction: float
    format: Literal["auto", "text", "jsonl", "parquet", "bin"]
    text_key: str  # of jsonl and parquet rows
    tokenizer: str  # `byte`, or the path of a Hugging Face tokenizer.json
    document_mask: bool  # attention does not cross the borders of documents
    end_token: int | None  # that ends a document of a .bin file; else the tokenizer's own


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    dir: str | None  # None: inside the run directory
    every: int  # steps; 0: only at the end
    keep: int  # newest complete ones; 0: all
    at_end: bool
    resume: bool  # continue from the newest complete one in `dir`
    async_save: bool  # write while training goes on
    init_from: str | None  # Hugging Face folder with the first weights; None: drawn from the seed


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSpec:
    """`task: script`: any program that reads RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSpec:
    """Where a value comes from; it never leaves its source. Exactly one source is set."""

    from_env: str | None
    secret: str | None  # Kubernetes Secret
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    backend: Literal["local", "ray", "kubernetes"] | None  # None: the current context
    retries: int  # restarts after a failure
    queue: str | None
    image: str | None
    env: Mapping[str, str]
    secrets: Mapping[str, SecretSpec]
    timeout_s: float | None  # for the whole run
    stop_grace_s: float  # between SIGTERM and SIGKILL
    workdir: str | None = None  # folder sent along, where the ranks start; None: nothing is sent
    kubernetes: KubernetesSpec | None = None  # None: that back end's defaults
    ray: RaySpec | None = None  # the same
    price_per_gpu_hour: float | None = None  # in any currency; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """Nodes by name, or as lists such as `gpu[01-08]`."""

    exclude: tuple[str, ...]  # must not be used
    require: tuple[str, ...]  # must be used
    spares: int  # nodes kept free


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str
    task: Task
    model: ModelSpec | None  # None only for task: script
    parallelism: ParallelismSpec
    train: TrainSpec | None
    data: DataSpec | None
    checkpoint: CheckpointSpec | None
    script: ScriptSpec | None
    launch: LaunchSpec
    placement: PlacementSpec | None = None  # None: any node will do
    inference: InferenceSpec | None = None  # of tasks generate and serve
    generate: GenerateSpec | None = None
    serve: ServeSpec | None = None
    source: str  # file, shipped name or line that it was read from
    notes: tuple[str, ...]  # what the loader decided on the user's behalf, in sentences

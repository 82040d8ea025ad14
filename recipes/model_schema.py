"""What people may write under `model`, as pydantic models.

The one idea: absent fields stay absent (`None`) here; `parctl.recipes.models` fills them in from
the family, so a preset, a Hugging Face folder and written fields go one way.
"""

from typing import Annotated, Literal

from pydantic import Field

from parctl.recipes.fields import Fields, Fraction, NotNegative, Positive, Size, SizeOrZero, Text


class MlaFields(Fields):
    """Multi-head latent attention (DeepSeek-V2)."""

    q_lora_rank: Size | None = Field(
        default=None,
        description="latent size of queries; absent: projected directly",
        examples=[1536],
    )
    kv_lora_rank: Size = Field(description="latent size of keys and values", examples=[512])
    qk_nope_head_dim: Size = Field(
        description="query and key size per head without positions", examples=[128]
    )
    qk_rope_head_dim: Size = Field(
        description="query and key size per head with positions", examples=[64]
    )
    v_head_dim: Size = Field(description="value size per head", examples=[128])


class MoeFields(Fields):
    """Mixture of experts in place of the MLP."""

    num_experts: Size = Field(description="routed experts per sparse layer", examples=[8])
    top_k: Size = Field(description="routed experts per token", examples=[2])
    expert_ffn_dim: Size = Field(description="width of one expert", examples=[14336])
    num_shared_experts: SizeOrZero = Field(
        default=0, description="experts that every token uses", examples=[1]
    )
    num_dense_layers: SizeOrZero = Field(
        default=0, description="leading layers that keep the dense MLP", examples=[3]
    )
    layer_period: Size = Field(default=1, description="every n-th layer is sparse", examples=[2])
    capacity_factor: Positive | None = Field(
        default=None,
        description="tokens per expert over the even share; absent: none dropped",
        examples=[1.25],
    )
    aux_loss: NotNegative = Field(
        default=0.01, description="weight of the load-balancing loss", examples=[0.01]
    )
    z_loss: NotNegative = Field(
        default=0.0, description="weight of the router's z-loss", examples=[0.001]
    )
    router: Literal["softmax", "sigmoid"] = Field(
        default="softmax", description="how scores become weights", examples=["softmax"]
    )
    weight_scale: Positive = Field(
        default=1.0, description="factor on the weights of routed experts", examples=[2.5]
    )
    bias_rate: NotNegative = Field(
        default=0.001,
        description="how far the sigmoid router's balance bias moves in a step",
        examples=[0.001],
    )
    num_groups: Size = Field(
        default=1, description="node-limited routing: groups of experts", examples=[8]
    )
    top_k_groups: Size = Field(
        default=1, description="node-limited routing: groups a token may use", examples=[4]
    )


class VisionFields(Fields):
    """Patch input and classes of a vision transformer."""

    image_size: Size = Field(description="pixels per side", examples=[224])
    patch_size: Size = Field(description="pixels per side of one patch", examples=[16])
    num_channels: Size = Field(default=3, description="colour channels", examples=[3])
    num_classes: Size = Field(description="output classes", examples=[1000])


class RopeScalingFields(Fields):
    """Stretching of rotary positions: as Llama 3.1 does it, or as YaRN (2309.00071)."""

    factor: Positive = Field(description="how far the context is stretched", examples=[8.0])
    original_max_seq_len: Size = Field(description="context of the first training", examples=[8192])
    low_freq_factor: Positive | None = Field(
        default=None, description="Llama 3.1: periods below are stretched fully", examples=[1.0]
    )
    high_freq_factor: Positive | None = Field(
        default=None, description="Llama 3.1: periods above are not stretched", examples=[4.0]
    )
    beta_fast: Positive | None = Field(
        default=None, description="YaRN: periods above are not stretched", examples=[32.0]
    )
    beta_slow: Positive | None = Field(
        default=None, description="YaRN: periods below are stretched fully", examples=[1.0]
    )
    mscale: Positive | None = Field(
        default=None, description="YaRN of DeepSeek: weight of rotated parts", examples=[1.0]
    )
    mscale_all_dim: Positive | None = Field(
        default=None, description="YaRN of DeepSeek: weight of whole products", examples=[1.0]
    )


class ModelFields(Fields):
    """A model: a preset, the fields of a transformer, or the folder of a Hugging Face checkpoint.

    Fields beside `preset` or `hf` replace what those say. Absent fields follow from `family`.
    """

    preset: Text | None = Field(
        default=None,
        description="name of a shipped model, see `parctl recipes list --models`",
        examples=["llama-3-8b"],
    )
    hf: Text | None = Field(
        default=None, description="folder that holds config.json", examples=["./Llama-3.1-8B"]
    )
    name: Text | None = Field(default=None, description="what plans call it", examples=["my-llama"])
    family: Literal["llama", "gpt", "moe", "vit", "t5"] | None = Field(
        default=None, description="architecture; decides the defaults below", examples=["llama"]
    )
    num_layers: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="decoder layers", examples=[32]
    )
    dim: Size | None = Field(default=None, description="hidden size", examples=[4096])
    num_heads: Size | None = Field(default=None, description="attention heads", examples=[32])
    num_kv_heads: Size | None = Field(
        default=None, description="key and value heads; default `num_heads`", examples=[8]
    )
    head_dim: Size | None = Field(
        default=None, description="size of a head; default `dim / num_heads`", examples=[128]
    )
    ffn_dim: Size | None = Field(
        default=None, description="MLP width; gpt, vit and t5: default 4 x `dim`", examples=[14336]
    )
    vocab_size: SizeOrZero | None = Field(default=None, description="tokens", examples=[128256])
    max_seq_len: Annotated[int, Field(ge=1, le=1 << 30)] | None = Field(
        default=None, description="longest context", examples=[8192]
    )
    norm: Literal["rmsnorm", "layernorm"] | None = Field(
        default=None, description="normalisation", examples=["rmsnorm"]
    )
    norm_eps: Positive | None = Field(default=None, description="its epsilon", examples=[1e-5])
    activation: Literal["swiglu", "gelu", "relu", "squared-relu"] | None = Field(
        default=None, description="of the MLP", examples=["swiglu"]
    )
    positions: Literal["rope", "learned", "relative"] | None = Field(
        default=None, description="how positions enter", examples=["rope"]
    )
    rope_theta: Positive | None = Field(default=None, description="RoPE base", examples=[500000.0])
    rope_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of head_dim that is rotated", examples=[1.0]
    )
    rope_scaling: RopeScalingFields | None = Field(
        default=None, description="stretching of rotary positions", examples=[None]
    )
    bias: bool | None = Field(default=None, description="on attention and MLP", examples=[False])
    qkv_bias: bool | None = Field(
        default=None, description="on queries, keys, values", examples=[True]
    )
    qk_norm: bool | None = Field(
        default=None, description="RMSNorm per head on q and k", examples=[True]
    )
    parallel_blocks: bool | None = Field(
        default=None,
        description="attention and MLP side by side on one norm's output (GPT-J, PaLM)",
        examples=[True],
    )
    tied_embeddings: bool | None = Field(
        default=None, description="the head shares the embedding", examples=[False]
    )
    dropout: Fraction | None = Field(default=None, description="in training", examples=[0.0])
    causal: bool | None = Field(
        default=None, description="attend to the past only", examples=[True]
    )
    num_encoder_layers: SizeOrZero | None = Field(
        default=None, description="of encoder-decoder models", examples=[12]
    )
    num_mtp_layers: SizeOrZero | None = Field(
        default=None, description="multi-token prediction modules", examples=[1]
    )
    sliding_window: Size | None = Field(
        default=None,
        description="how many tokens one sees, itself included; absent: all before it",
        examples=[4096],
    )
    sliding_layers: list[SizeOrZero] | None = Field(
        default=None, description="layers with that window; absent: all", examples=[[0, 2, 4]]
    )
    mla: MlaFields | None = Field(default=None, description="latent attention", examples=[None])
    moe: MoeFields | None = Field(default=None, description="mixture of experts", examples=[None])
    vision: VisionFields | None = Field(default=None, description="image input", examples=[None])

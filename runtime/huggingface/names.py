"""What our weights are called in Hugging Face's checkpoints, and how they lie there.

Three things differ beside names. Experts are one tensor per expert there, one stack here. GPT-2
stores matrices transposed, and query, key and value as one. DeepSeek rotates neighbouring elements
as a pair, we (as Llama) element i with element i + R/2, so rows change places::

    there  r0 i0 r1 i1 r2 i2      here  r0 r1 r2 i0 i1 i2

Imports no torch: a launch asks before any process starts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from parctl.recipes.parameters import RELATIVE_BUCKETS, is_sparse
from parctl.recipes.spec import MlaSpec, ModelSpec
from parctl.runtime.huggingface.config import ENCODER_DECODERS, architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Rotated rows: the last `count` of every `period` rows."""

    period: int
    count: int

    def row_there(self, row: int) -> int:
        """Return where one of our rows lies in Hugging Face's file.

        >>> [Pairs(period=6, count=4).row_there(row) for row in range(6)]
        [0, 1, 2, 4, 3, 5]
        """
        place = row % self.period - (self.period - self.count)
        if place < 0:
            return row
        second, pair = divmod(place, self.count // 2)
        return row - place + 2 * pair + second


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One of our tensors, and where it comes from."""

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]  # several: one per expert, stacked here
    transposed: bool = False  # `[in, out]` there
    part: tuple[int, int] | None = None  # index and number of equal parts of the outputs there
    pairs: Pairs | None = None

    @property
    def shape_there(self) -> tuple[int, ...]:
        """The shape under each key."""
        shape = self.shape[1:] if len(self.keys) > 1 or len(self.shape) == 3 else self.shape
        if self.part is not None:
            shape = (shape[0] * self.part[1], *shape[1:])
        return shape[::-1] if self.transposed else shape


def weights(model: ModelSpec) -> Iterator[Weight]:
    """Yield every tensor of a model. Raises UsageError for a model that Hugging Face lacks."""
    kind = architecture(model)
    if kind == "gpt2":
        yield from gpt2(model)
        return
    if kind in ENCODER_DECODERS:
        yield from t5(model)
        return
    dim = model.dim
    yield Weight(
        name="embedding.weight", shape=(model.vocab_size, dim), keys=("model.embed_tokens.weight",)
    )
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for norm, key in (
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
        ):
            yield Weight(name=f"{ours}{norm}.weight", shape=(dim,), keys=(f"{theirs}{key}.weight",))
        if model.mla is None:
            yield from attention(model, f"{ours}attention.", f"{theirs}self_attn.")
        else:
            yield from latent(model, model.mla, f"{ours}attention.", f"{theirs}self_attn.")
        if is_sparse(model, layer):
            yield from experts(model, f"{ours}moe.", theirs)
        else:
            yield from mlp(
                f"{ours}feed_forward.", f"{theirs}mlp.", dim, model.ffn_dim, bias=model.bias
            )
    yield Weight(name="final_norm.weight", shape=(dim,), keys=("model.norm.weight",))
    if not model.tied_embeddings:
        yield Weight(name="head.weight", shape=(model.vocab_size, dim), keys=("lm_head.weight",))


def linear(name: str, key: str, out: int, into: int, *, bias: bool = False) -> Iterator[Weight]:
    yield Weight(name=f"{name}.weight", shape=(out, into), keys=(f"{key}.weight",))
    if bias:
        yield Weight(name=f"{name}.bias", shape=(out,), keys=(f"{key}.bias",))


def attention(model: ModelSpec, ours: str, theirs: str) -> Iterator[Weight]:
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    bias = model.bias or model.qkv_bias
    yield from linear(f"{ours}wq", f"{theirs}q_proj", queries, model.dim, bias=bias)
    yield from linear(f"{ours}wk", f"{theirs}k_proj", keys, model.dim, bias=bias)
    yield from linear(f"{ours}wv", f"{theirs}v_proj", keys, model.dim, bias=bias)
    yield from linear(f"{ours}wo", f"{theirs}o_proj", model.dim, queries, bias=model.bias)
    if model.qk_norm:
        for norm in ("q_norm.weight", "k_norm.weight"):
            yield Weight(name=ours + norm, shape=(model.head_dim,), keys=(theirs + norm,))


def latent(model: ModelSpec, mla: MlaSpec, ours: str, theirs: str) -> Iterator[Weight]:
    """Multi-head latent attention."""
    head = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    queries, rope = model.num_heads * head, mla.qk_rope_head_dim
    into = model.dim if mla.q_lora_rank is None else mla.q_lora_rank
    if mla.q_lora_rank is not None:
        yield from linear(f"{ours}wq_down", f"{theirs}q_a_proj", into, model.dim)
        yield Weight(
            name=f"{ours}q_norm.weight", shape=(into,), keys=(f"{theirs}q_a_layernorm.weight",)
        )
    name, key = ("wq", "q_proj") if mla.q_lora_rank is None else ("wq_up", "q_b_proj")
    yield Weight(
        name=f"{ours}{name}.weight",
        shape=(queries, into),
        keys=(f"{theirs}{key}.weight",),
        pairs=Pairs(period=head, count=rope),
    )
    down = mla.kv_lora_rank + rope
    yield Weight(
        name=f"{ours}wkv_down.weight",
        shape=(down, model.dim),
        keys=(f"{theirs}kv_a_proj_with_mqa.weight",),
        pairs=Pairs(period=down, count=rope),
    )
    yield Weight(
        name=f"{ours}kv_norm.weight",
        shape=(mla.kv_lora_rank,),
        keys=(f"{theirs}kv_a_layernorm.weight",),
    )
    up = model.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield from linear(f"{ours}wkv_up", f"{theirs}kv_b_proj", up, mla.kv_lora_rank)
    values = model.num_heads * mla.v_head_dim
    yield from linear(f"{ours}wo", f"{theirs}o_proj", model.dim, values)


def mlp(ours: str, theirs: str, dim: int, width: int, *, bias: bool = False) -> Iterator[Weight]:
    yield from linear(f"{ours}w_gate", f"{theirs}gate_proj", width, dim, bias=bias)
    yield from linear(f"{ours}w_up", f"{theirs}up_proj", width, dim, bias=bias)
    yield from linear(f"{ours}w_down", f"{theirs}down_proj", dim, width, bias=bias)


def experts(model: ModelSpec, ours: str, layer: str) -> Iterator[Weight]:
    assert model.moe
    moe, dim, width = model.moe, model.dim, model.moe.expert_ffn_dim
    mixtral = architecture(model) == "mixtral"
    theirs = f"{layer}block_sparse_moe." if mixtral else f"{layer}mlp."
    yield Weight(
        name=f"{ours}router.weight", shape=(moe.num_experts, dim), keys=(f"{theirs}gate.weight",)
    )
    if moe.router == "sigmoid":
        yield Weight(
            name=f"{ours}router.bias",
            shape=(moe.num_experts,),
            keys=(f"{theirs}gate.e_score_correction_bias",),
        )
    for name, key, shape in (
        ("w_gate", "w1" if mixtral else "gate_proj", (width, dim)),
        ("w_up", "w3" if mixtral else "up_proj", (width, dim)),
        ("w_down", "w2" if mixtral else "down_proj", (dim, width)),
    ):
        yield Weight(
            name=f"{ours}experts.{name}",
            shape=(moe.num_experts, *shape),
            keys=tuple(
                f"{theirs}experts.{expert}.{key}.weight" for expert in range(moe.num_experts)
            ),
        )
    if moe.num_shared_experts:
        shared = moe.num_shared_experts * width
        yield from mlp(f"{ours}shared.", f"{theirs}shared_experts.", dim, shared)


def gpt2(model: ModelSpec) -> Iterator[Weight]:
    dim, ffn = model.dim, model.ffn_dim
    yield Weight(
        name="embedding.weight", shape=(model.vocab_size, dim), keys=("transformer.wte.weight",)
    )
    yield Weight(
        name="positions.weight", shape=(model.max_seq_len, dim), keys=("transformer.wpe.weight",)
    )
    for layer in range(model.num_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        yield from layer_norm(f"{ours}attention_norm", f"{theirs}ln_1", dim)
        for index, name in enumerate(("wq", "wk", "wv")):
            yield from transposed(
                f"{ours}attention.{name}", f"{theirs}attn.c_attn", dim, dim, part=(index, 3)
            )
        yield from transposed(f"{ours}attention.wo", f"{theirs}attn.c_proj", dim, dim)
        yield from layer_norm(f"{ours}feed_forward_norm", f"{theirs}ln_2", dim)
        yield from transposed(f"{ours}feed_forward.w_up", f"{theirs}mlp.c_fc", ffn, dim)
        yield from transposed(f"{ours}feed_forward.w_down", f"{theirs}mlp.c_proj", dim, ffn)
    yield from layer_norm("final_norm", "transformer.ln_f", dim)
    if not model.tied_embeddings:
        yield Weight(name="head.weight", shape=(model.vocab_size, dim), keys=("lm_head.weight",))


def layer_norm(name: str, key: str, dim: int) -> Iterator[Weight]:
    for end in ("weight", "bias"):
        yield Weight(name=f"{name}.{end}", shape=(dim,), keys=(f"{key}.{end}",))


def transposed(
    name: str, key: str, out: int, into: int, *, part: tuple[int, int] | None = None
) -> Iterator[Weight]:
    yield Weight(
        name=f"{name}.weight",
        shape=(out, into),
        keys=(f"{key}.weight",),
        transposed=True,
        part=part,
    )
    yield Weight(name=f"{name}.bias", shape=(out,), keys=(f"{key}.bias",), part=part)


def t5(model: ModelSpec) -> Iterator[Weight]:
    """T5 and Switch: what is one block here is a list of sub-layers there."""
    yield Weight(
        name="embedding.weight", shape=(model.vocab_size, model.dim), keys=("shared.weight",)
    )
    yield from t5_stack(model, "encoder.", "encoder.", model.num_encoder_layers, reads_memory=False)
    yield from t5_stack(model, "", "decoder.", model.num_layers, reads_memory=True)


def t5_stack(
    model: ModelSpec, ours: str, theirs: str, num_layers: int, *, reads_memory: bool
) -> Iterator[Weight]:
    dim = model.dim
    yield Weight(
        name=f"{ours}relative_bias.weight",
        shape=(RELATIVE_BUCKETS, model.num_heads),
        keys=(f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight",),
    )
    attentions = [("attention", "SelfAttention")]
    if reads_memory:
        attentions.append(("cross", "EncDecAttention"))
    for layer in range(num_layers):
        block, place = f"{ours}blocks.{layer}.", f"{theirs}block.{layer}.layer."
        for index, (name, key) in enumerate(attentions):
            yield t5_norm(f"{block}{name}_norm", f"{place}{index}.layer_norm", dim)
            module = name if name == "attention" else f"{name}_attention"
            queries = model.num_heads * model.head_dim
            for linear_name, linear_key in (("wq", "q"), ("wk", "k"), ("wv", "v")):
                yield from linear(
                    f"{block}{module}.{linear_name}",
                    f"{place}{index}.{key}.{linear_key}",
                    queries,
                    dim,
                )
            yield from linear(f"{block}{module}.wo", f"{place}{index}.{key}.o", dim, queries)
        last = f"{place}{len(attentions)}."
        yield t5_norm(f"{block}feed_forward_norm", f"{last}layer_norm", dim)
        if is_sparse(model, layer):
            yield from t5_experts(model, f"{block}moe.", f"{last}mlp.")
        else:
            mlp_key = f"{last}{'DenseReluDense' if model.moe is None else 'mlp'}."
            yield from linear(f"{block}feed_forward.w_up", f"{mlp_key}wi", model.ffn_dim, dim)
            yield from linear(f"{block}feed_forward.w_down", f"{mlp_key}wo", dim, model.ffn_dim)
    yield t5_norm(f"{ours}final_norm", f"{theirs}final_layer_norm", dim)


def t5_norm(name: str, key: str, dim: int) -> Weight:
    return Weight(name=f"{name}.weight", shape=(dim,), keys=(f"{key}.weight",))


def t5_experts(model: ModelSpec, ours: str, theirs: str) -> Iterator[Weight]:
    assert model.moe
    count, dim, width = model.moe.num_experts, model.dim, model.moe.expert_ffn_dim
    yield Weight(
        name=f"{ours}router.weight", shape=(count, dim), keys=(f"{theirs}router.classifier.weight",)
    )
    for name, key, shape in (("w_up", "wi", (width, dim)), ("w_down", "wo", (dim, width))):
        yield Weight(
            name=f"{ours}experts.{name}",
            shape=(count, *shape),
            keys=tuple(f"{theirs}experts.expert_{expert}.{key}.weight" for expert in range(count)),
        )

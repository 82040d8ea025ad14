"""How many parameters a model has, counted exactly and part by part from its shape.

The one idea: a count is kept apart by what parallelism does to it. `attention` and `mlp` are split
over tp, `experts` over ep and etp, `replicated` is whole on every tp rank (norms, routers, row
biases, MLA down-projections), and the embedding and the head sit on the first and the last pipeline
stage. The planner divides each part by its own degree.

With h = dim, a = heads, k = KV heads, d = head_dim, f = ffn_dim, g = 3 when the MLP is gated
(SwiGLU) and 2 when not::

    attention   h a d + 2 h k d + a d h
    MLA         h q + q a (dn + dr) + h (r + dr) + r a (dn + dv) + a dv h    (q, r: latent ranks)
    MLP         g h f
    MoE         E g h fe + shared g h fe + h E (router)
    embedding   V h, twice when not tied; learned positions s h
"""

from dataclasses import dataclass

from parctl.recipes.spec import ModelSpec

RELATIVE_BUCKETS = (
    32  # T5 (1910.10683): one bias per bucket and head, shared by all layers of a stack
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCount:
    """Parameters of one transformer layer, apart by how they are split."""

    attention: int  # projections split over tp
    mlp: int  # dense MLP and shared experts, split over tp
    experts: int  # all routed experts together, split over ep and etp
    router: int  # whole on every rank
    replicated: (
        int  # norms, biases of row-split projections, MLA down-projections: whole on every tp rank
    )
    active_experts: int  # routed experts that one token uses

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.experts + self.router + self.replicated

    @property
    def active(self) -> int:
        return self.total - self.experts + self.active_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCount:
    """Parameters of a whole model. Equal layers share one object."""

    embedding: int  # tokens (split over tp by vocabulary), or the patch projection and class token
    positions: int  # learned or relative
    encoder: tuple[LayerCount, ...]  # of encoder-decoder models
    layers: tuple[LayerCount, ...]  # decoder layers, in order
    final_norm: int  # of every stack
    head: int  # 0 when tied to the embedding
    mtp: int  # multi-token prediction modules, beyond the embedding and head they share

    @property
    def total(self) -> int:
        return self._outside_layers + sum(layer.total for layer in self.encoder + self.layers)

    @property
    def active(self) -> int:
        """What one token uses: `top_k` of the routed experts, and no MTP module."""
        inside = sum(layer.active for layer in self.encoder + self.layers)
        return self._outside_layers - self.mtp + inside

    @property
    def _outside_layers(self) -> int:
        return self.embedding + self.positions + self.final_norm + self.head + self.mtp


def num_parameters(model: ModelSpec) -> int:
    """Count all parameters.

    >>> from parctl.recipes.presets import model_preset
    >>> num_parameters(model_preset("llama-3-8b"))
    8030261248
    """
    return count_parameters(model).total


def active_parameters(model: ModelSpec) -> int:
    """Count the parameters that one token uses: all of them unless the model is sparse."""
    return count_parameters(model).active


def is_sparse(model: ModelSpec, layer: int) -> bool:
    """Whether layer `layer`, from 0, has routed experts in place of the MLP."""
    moe = model.moe
    if moe is None or layer < moe.num_dense_layers:
        return False
    return layer % moe.layer_period == moe.layer_period - 1


def count_parameters(model: ModelSpec) -> ModelCount:
    """Count every part of the model."""
    kinds = {
        (sparse, cross): _layer(model, sparse=sparse, cross=cross)
        for sparse in (False, True)
        for cross in (False, True)
        if model.moe is not None or not sparse
    }
    has_encoder = model.num_encoder_layers > 0
    return ModelCount(
        embedding=_embedding(model),
        positions=_positions(model),
        encoder=tuple(
            kinds[is_sparse(model, layer), False] for layer in range(model.num_encoder_layers)
        ),
        layers=tuple(
            kinds[is_sparse(model, layer), has_encoder] for layer in range(model.num_layers)
        ),
        final_norm=_norm(model) * (2 if has_encoder else 1),
        head=_head(model),
        mtp=model.num_mtp_layers * _mtp_module(model),
    )


def _layer(model: ModelSpec, *, sparse: bool, cross: bool) -> LayerCount:
    attention, replicated = _attention(model)
    if cross:
        attention, replicated = 2 * attention, 2 * replicated
    replicated += _norm(model) * ((3 if cross else 2) - model.parallel_blocks)
    if not sparse:
        row_bias = model.dim if model.bias else 0
        return LayerCount(
            attention=attention,
            mlp=_mlp(model, model.ffn_dim),
            experts=0,
            router=0,
            replicated=replicated + row_bias,
            active_experts=0,
        )
    assert model.moe is not None
    moe = model.moe
    expert = _mlp(model, moe.expert_ffn_dim) + (model.dim if model.bias else 0)
    balance_bias = moe.num_experts if moe.router == "sigmoid" else 0  # DeepSeek-V3's, per expert
    return LayerCount(
        attention=attention,
        mlp=moe.num_shared_experts * expert,
        experts=moe.num_experts * expert,
        router=model.dim * moe.num_experts + balance_bias,
        replicated=replicated,
        active_experts=moe.top_k * expert,
    )


def _attention(model: ModelSpec) -> tuple[int, int]:
    """Return what tp splits and what it does not."""
    h, a = model.dim, model.num_heads
    if model.mla is not None:
        mla = model.mla
        query_key = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        whole = h * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank  # with its norm
        split = mla.kv_lora_rank * a * (mla.qk_nope_head_dim + mla.v_head_dim)
        split += a * mla.v_head_dim * h
        if mla.q_lora_rank is None:
            split += h * a * query_key
        else:
            whole += h * mla.q_lora_rank + mla.q_lora_rank
            split += mla.q_lora_rank * a * query_key
        return split, whole
    queries, keys_values = a * model.head_dim, 2 * model.num_kv_heads * model.head_dim
    split = h * (queries + keys_values) + queries * h
    if model.bias or model.qkv_bias:
        split += queries + keys_values
    whole = (h if model.bias else 0) + (2 * model.head_dim if model.qk_norm else 0)
    return split, whole


def _mlp(model: ModelSpec, width: int) -> int:
    """Count what tp splits: the matrices, and the biases of the first projection."""
    matrices = 3 if model.activation == "swiglu" else 2
    return matrices * model.dim * width + ((matrices - 1) * width if model.bias else 0)


def _norm(model: ModelSpec) -> int:
    return model.dim if model.norm == "rmsnorm" else 2 * model.dim


def _embedding(model: ModelSpec) -> int:
    if model.vision is None:
        return model.vocab_size * model.dim
    vision = model.vision
    patch = vision.num_channels * vision.patch_size**2 * model.dim + model.dim
    return patch + model.dim  # and the class token


def _positions(model: ModelSpec) -> int:
    if model.positions == "learned":
        return model.max_seq_len * model.dim
    if model.positions == "relative":
        stacks = 2 if model.num_encoder_layers else 1
        return stacks * RELATIVE_BUCKETS * model.num_heads
    return 0


def _head(model: ModelSpec) -> int:
    if model.vision is not None:
        return (model.dim + 1) * model.vision.num_classes
    return 0 if model.tied_embeddings else model.vocab_size * model.dim


def _mtp_module(model: ModelSpec) -> int:
    """One more layer, a projection of (hidden, embedding), three norms (2412.19437, 2.2)."""
    layer = _layer(model, sparse=model.moe is not None, cross=False)
    return layer.total + 2 * model.dim**2 + 3 * _norm(model)

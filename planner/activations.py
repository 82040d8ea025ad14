"""Activation bytes of one micro-batch: the tensors that backward needs, named one by one.

T = micro_batch x seq_len / cp tokens, e bytes per element, t = tp, h = dim, a = heads,
d = head_dim, f = ffn_dim. Ts = T / t with sp, else T. What the runtime keeps of one layer::

    norm inputs                     2 e h Ts
    gathered inputs of QKV and MLP  2 e h T       (whole with sp too: column-split weights need it)
    queries, keys, values, output   4 e a d T / t, and 4 a T / t log-sum-exp of the fused kernel
                                    (keys and values are repeated for every query head, but not
                                    in a ring; Ulysses keeps the output twice)
    SwiGLU                          4 e f T / t   (gate, up, silu(gate), product)
    GELU 2 e f T / t, ReLU e f T / t, squared ReLU 2 e f T / t
    routed experts                  e T top_k (2 h etp + as above with fe) / t, if balanced
                                    (etp is t without ep)
    dropout masks                   2 e h Ts      (attention on CPU then keeps 3 e a s T / t scores)

    recompute: full         e h Ts per layer; while it is run again one whole layer, and gradients
                            of the stream and of what the activation function made
    recompute: partitioned  e h T / t per layer, and the same
    recompute: selective    results of attention and of the matmuls but the last (of that one only
                            with dropout), sums over tp once added up; norms, gathered inputs and
                            activation functions are made again
    offload_activations     what full and partitioned keep lies in host memory

A parallel block has one norm and one gathered input.

Fused attention never stores scores, which is what 2205.05198 calls selective recompute. How many
micro-batches are alive on a stage depends on the schedule (`in_flight`).
"""

from dataclasses import dataclass
from operator import add
from typing import Literal

from parctl.planner.degrees import Degrees
from parctl.planner.schedules import action_table, most_held
from parctl.planner.states import Regime
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import MlaSpec, ModelSpec, ParallelismSpec, TrainSpec

Kind = Literal["gpu", "cpu"]
# elements per MLP column that backward needs: results of the first matmul, and what follows them
MLP_ELEMENTS = {"swiglu": (2, 2), "gelu": (1, 1), "relu": (0, 1), "squared-relu": (0, 2)}
MATMULS = {"swiglu": 2, "gelu": 1, "relu": 1, "squared-relu": 1}  # before the activation


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerActivations:
    """Bytes of one layer for one micro-batch on one rank."""

    stored: int  # from forward until backward
    working: int  # made again, and freed, while the layer's own backward runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What the sizes of all layers depend on."""

    model: ModelSpec
    train: TrainSpec
    spec: ParallelismSpec
    degrees: Degrees
    regime: Regime
    kind: Kind

    @property
    def tokens(self) -> int:
        """Of one micro-batch on one rank, where heads are split."""
        return self.train.micro_batch * self.train.seq_len // self.degrees.cp

    @property
    def tokens_outside(self) -> int:
        """The same where sp splits tokens: norms, residuals, dropout."""
        return self.tokens // self.degrees.tp if self.spec.sp else self.tokens

    @property
    def hidden(self) -> int:
        """Bytes of a hidden state of `tokens`."""
        return self.regime.compute * self.model.dim * self.tokens

    @property
    def hidden_outside(self) -> int:
        return self.regime.compute * self.model.dim * self.tokens_outside

    @property
    def norm(self) -> int:
        """Bytes that one norm keeps."""
        return self.hidden_outside


def layer_activations(shapes: Shapes, layer: int) -> LayerActivations:
    """Count what layer `layer` keeps for its backward."""
    element, degrees = shapes.regime.compute, shapes.degrees
    attention, projections, again = _attention_bytes(shapes)
    first, rest, results = _mlp_elements(shapes, layer)
    inputs = 1 if shapes.model.parallel_blocks else 2
    # operator parallelism leaves a rank one of the branches: the larger one decides
    join = max if degrees.operator > 1 else add
    everything = inputs * (shapes.norm + shapes.hidden)
    everything += join(attention, round(element * shapes.tokens * (first + rest)))
    if shapes.model.dropout:
        everything += 2 * shapes.hidden_outside
    match shapes.train.recompute_of(layer):
        case "none":
            return LayerActivations(stored=everything, working=0)
        case "selective":
            # what attention adds to the stream; also what the MLP adds where something follows it
            followed = shapes.model.dropout > 0 or is_sparse(shapes.model, layer)
            last = shapes.hidden_outside if followed or degrees.operator > 1 else 0
            stored = shapes.hidden_outside + last
            stored += join(
                projections + shapes.hidden_outside, round(element * shapes.tokens * results)
            )
            working = inputs * (shapes.norm + shapes.hidden) - shapes.hidden_outside
            working += join(again, round(element * shapes.tokens * rest))
            return LayerActivations(stored=stored, working=working)
        case "full":
            stored = shapes.hidden_outside
        case "partitioned":
            stored = shapes.hidden // degrees.tp
    if shapes.train.offload_activations:
        stored = 0
    # of the stream, and of what the activation function made
    made = first / 2 if shapes.model.activation == "swiglu" else first
    gradients = shapes.hidden_outside + round(element * shapes.tokens * made)
    working = everything - stored + gradients
    return LayerActivations(stored=stored, working=working)


def outside_layers(shapes: Shapes) -> int:
    """What the last stage keeps beside its layers: the final norm and the head's gathered input."""
    return shapes.norm + shapes.hidden


def logits_bytes(shapes: Shapes) -> int:
    """The logits and their gradient in the compute type; a part at a time is made wider."""
    model, train = shapes.model, shapes.train
    width = model.vocab_size if model.vision is None else model.vision.num_classes
    local = -(-width // shapes.degrees.tp)
    tokens = shapes.tokens if model.vision is None else train.micro_batch
    return tokens * local * 2 * shapes.regime.compute


def in_flight(stage: int, spec: ParallelismSpec, degrees: Degrees, num_micro_batches: int) -> float:
    """Micro-batches whose activations pipeline rank `stage` holds at its peak.

    In units of the rank's whole depth. gpipe holds all; 1f1b `pp - stage`; interleaving adds
    (pp - 1) / (pp v) on the first rank (2104.04473, 2205.05198); schedules that put weight
    gradients off hold pp everywhere, and DualPipeV one stage more.
    """
    if degrees.pp == 1 or spec.layer:
        return 1.0
    count, pp, chunks = num_micro_batches, degrees.pp, spec.virtual_stages
    if spec.schedule_table is not None:
        return most_held(action_table(spec, pp, count)[stage]) / chunks
    match spec.schedule:
        case "gpipe":
            return float(count)
        case "interleaved-1f1b":
            warm_up = 2 * (pp - stage - 1) + (chunks - 1) * pp + 1
            return min(count * chunks, warm_up) / chunks
        case "zero-bubble" | "zbv":
            return float(min(count, pp))
        case "dualpipev":
            return min(count, pp + 0.5)
        case _:
            return float(min(count, pp - stage))


def _attention_bytes(shapes: Shapes) -> tuple[int, int, int]:
    """Bytes that attention keeps; what selective recompute keeps instead, and makes again."""
    model, tokens, element = shapes.model, shapes.tokens, shapes.regime.compute
    tp = shapes.degrees.tp
    heads = -(-model.num_heads // tp)
    log_sum_exp = 4 * tokens * heads
    ring = shapes.degrees.cp > 1 and shapes.spec.cp_kind == "ring"
    if model.mla is not None:
        kept, projections, again = _latent_elements(model.mla, heads, shapes.kind, ring=ring)
        return (
            element * tokens * kept + log_sum_exp,
            element * tokens * projections + log_sum_exp,
            element * tokens * again,
        )
    kept = element * tokens * 4 * heads * model.head_dim + log_sum_exp
    if model.dropout and shapes.kind == "cpu":
        kept += 3 * element * tokens * heads * shapes.train.seq_len
    key_value_heads = max(1, model.num_kv_heads // tp)
    rotated = tokens * model.head_dim * (heads + key_value_heads)
    normed = element * rotated if model.qk_norm else 0
    if ring:  # keys and values are not repeated
        kept = 2 * element * rotated + log_sum_exp
        return kept + normed, kept, element * rotated + normed
    exchanged = 1
    if shapes.degrees.cp > 1:  # Ulysses: the output before it is sent back; all that is sent
        kept += element * tokens * heads * model.head_dim
        exchanged = 2
    projections = exchanged * element * tokens * model.head_dim * 2 * (heads + key_value_heads)
    projections += log_sum_exp
    again = element * tokens * 3 * heads * model.head_dim  # rotated and repeated q, k, v
    return kept + normed, projections, again + normed


def _latent_elements(mla: MlaSpec, heads: int, kind: Kind, *, ring: bool) -> tuple[int, int, int]:
    """Elements per token that latent attention keeps, that selective keeps, and makes again.

    Latents stay whole under tp. CPU kernels take values widened to keys.
    """
    query_key = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    key_value = mla.qk_nope_head_dim + mla.v_head_dim
    ranks = (mla.q_lora_rank or 0) + mla.kv_lora_rank
    inner = query_key if kind == "cpu" and not ring else mla.v_head_dim
    copied = mla.v_head_dim if inner != mla.v_head_dim else 0  # the output without the added width
    values = key_value if ring else inner
    normed = 2 * ranks
    kept = normed + mla.qk_rope_head_dim + heads * (2 * query_key + values + inner + copied)
    projections = ranks + mla.qk_rope_head_dim + heads * (query_key + key_value + inner)
    return kept, projections, normed - ranks + heads * (2 * query_key + inner)


def _mlp_elements(shapes: Shapes, layer: int) -> tuple[float, float, float]:
    """Elements per token in the MLP: kept before and after the activation, and matmul results."""
    model, degrees = shapes.model, shapes.degrees
    first, rest = MLP_ELEMENTS[model.activation]
    matmuls = MATMULS[model.activation]
    if model.moe is None or not is_sparse(model, layer):
        width = model.ffn_dim / degrees.tp
        return first * width, rest * width, matmuls * width
    moe, tp = model.moe, degrees.tp
    etp = degrees.etp if degrees.ep > 1 else tp
    # Every token visits top_k experts; with balanced routing a rank gets as many rows as it sends.
    # tp ranks share the rows (etp 1), or the width of experts, or both.
    width = (moe.top_k + moe.num_shared_experts) * moe.expert_ffn_dim / tp
    rows = moe.top_k * model.dim * etp / tp
    # The router works in fp32 or wider: its input where that is a copy, scores twice, and choices
    # and their order as 64-bit integers.
    element = shapes.regime.compute
    wide = max(4, element)
    copy = 0 if wide == element else wide * model.dim
    routing = (2 * wide * moe.num_experts + 24 * moe.top_k + copy) / element
    routing /= tp if shapes.spec.sp else 1
    # Rows as experts take them and as they come back; selective recompute keeps what exchanges and
    # the last matmul give, and parts of a sum over etp.
    kept = (3 if degrees.ep > 1 else 1) * rows + (model.dim * etp / tp if etp > 1 else 0)
    return first * width + 2 * rows + routing, rest * width, matmuls * width + kept

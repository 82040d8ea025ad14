"""Seconds that one rank computes for one micro-batch in one layer, and in the embedding and head.

Three kinds of work, each with the rate that bounds it:

    matrix products   2 M N K at the device's peak x efficiency; small ones are slower
    attention         scores and values, 2 dims x context x heads x tokens each
    element-wise      bytes read and written over memory bandwidth: norms, rotations, activations,
                      residuals, casts

The backward pass does the products twice (for the input and for the weights), attention two and a
half times (scores are made again, 2205.14135) and the element-wise work about twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Job
from parctl.planner.time.rates import Rates, rates
from parctl.recipes.parameters import is_sparse

BYTES = 2  # activations are bf16, whatever the products are in
BACKWARD_ATTENTION = 2.5
BACKWARD_MEMORY = 2.0
EXPONENTIAL = 128.0  # a score's exponential in head dimensions of products
FIRST_FUSED = 0.55  # speed of the first FlashAttention over the second (2307.08691, figure 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Seconds forward, forward again in backward, backward for the input and for the weights."""

    forward: float
    again: float = 0.0
    inputs: float
    weights: float

    @property
    def backward(self) -> float:
        return self.again + self.inputs + self.weights

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            forward=self.forward + other.forward,
            again=self.again + other.again,
            inputs=self.inputs + other.inputs,
            weights=self.weights + other.weights,
        )


def layer(job: Job, constants: Constants, index: int) -> Passes:
    """Layer `index` of the model, for one micro-batch."""
    speed = rates(job, constants)
    width = 2.0 if job.arithmetic == "bf16" else 1.0
    each = [
        product_time(
            tokens, rows, columns, speed.products, speed.memory, width, constants.gemm_traffic
        )
        * count
        for tokens, rows, columns, count in layer_products(job, index)
    ]
    products = sum(each)
    attention = attention_time(job, speed, index)
    elements = element_bytes(job, index) * constants.passes / speed.memory
    host = 0.0
    if is_sparse(job.model, index):
        elements += expert_bytes(job) * constants.expert_passes / speed.memory
        host = expert_host(job, constants) / 3
    again = job.repeated
    return Passes(
        forward=products + attention[0] + elements + host,
        again=again.products * (products + host - (0.0 if again.last else each[-1]))
        + again.attention * attention[0]
        + again.elements * elements,
        inputs=products + attention[1] + elements * BACKWARD_MEMORY + host,
        weights=products * job.trained_share + host,
    )


def product_time(
    tokens: float,
    rows: float,
    columns: float,
    rate: float,
    memory: float,
    width: float,
    extra: float,
) -> float:
    """Seconds of one `[tokens, rows] x [rows, columns]` product of `width` bytes per number.

    Its operands and result pass through memory `extra` times: what small products lose.
    """
    operands = width * (tokens * rows + rows * columns)
    traffic = operands + BYTES * tokens * columns
    return 2.0 * tokens * rows * columns / rate + extra * traffic / memory


def layer_products(job: Job, index: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield (M, K, N, how many) of the forward products of a layer on one rank."""
    model, tp, tokens = job.model, job.degrees.tp, job.tokens
    h = model.dim
    if model.mla is not None:
        mla, heads = model.mla, model.num_heads / tp
        query = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        if mla.q_lora_rank is None:
            yield tokens, h, heads * query, 1
        else:
            yield tokens, h, mla.q_lora_rank, 1
            yield tokens, mla.q_lora_rank, heads * query, 1
        yield tokens, h, mla.kv_lora_rank + mla.qk_rope_head_dim, 1
        yield tokens, mla.kv_lora_rank, heads * (mla.qk_nope_head_dim + mla.v_head_dim), 1
        yield tokens, heads * mla.v_head_dim, h, 1
    else:
        queries = model.num_heads * model.head_dim / tp
        keys = max(1.0, model.num_kv_heads / tp) * model.head_dim
        yield tokens, h, queries + 2 * keys, 1
        yield tokens, queries, h, 1
    gates = 2 if model.activation == "swiglu" else 1
    if not is_sparse(model, index):
        yield tokens, h, gates * model.ffn_dim / tp, 1
        yield tokens, model.ffn_dim / tp, h, 1
        return
    moe = model.moe
    assert moe is not None
    yield tokens, h, moe.num_experts, 1
    if moe.num_shared_experts:
        width = moe.num_shared_experts * moe.expert_ffn_dim / tp
        yield tokens, h, gates * width, 1
        yield tokens, width, h, 1
    etp = job.degrees.etp
    routed = tokens / tp * etp * moe.top_k
    experts = moe.num_experts / job.degrees.ep
    width = moe.expert_ffn_dim / etp
    yield routed / experts, h, gates * width, experts
    yield routed / experts, width, h, experts


def attention_time(job: Job, speed: Rates, index: int) -> tuple[float, float]:
    """Seconds forward and backward of scores and values on one rank."""
    model = job.model
    context = context_of(job, index)
    heads = model.num_heads / job.degrees.tp
    flops = 2.0 * job.tokens * context * heads * head_dims(job)
    if job.attention != "plain":
        # exponentials cost the same for narrow heads, and bound them (2407.08608, table of speeds)
        flops *= (1 + EXPONENTIAL / head_dims(job)) / (1 + EXPONENTIAL / 256)
        flops /= FIRST_FUSED if job.attention == "first" else 1.0
        return flops / speed.attention, BACKWARD_ATTENTION * flops / speed.attention
    # full rows of scores are computed, and pass through memory in scaling, mask, softmax, dropout
    full = 2.0 * job.tokens * job.seq_len * heads * head_dims(job)
    scores = BYTES * job.tokens * job.seq_len * heads * 5.5
    forward = full / speed.plain + scores / speed.memory
    return forward, 2 * forward


def head_dims(job: Job) -> float:
    """Widths of a query and a value together."""
    mla = job.model.mla
    if mla is None:
        return 2 * job.model.head_dim
    return mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim


def context_of(job: Job, index: int) -> float:
    """How many positions a token attends to, on average."""
    window = job.windows[index % len(job.windows)]
    full = job.seq_len / 2 if job.model.causal else float(job.seq_len)
    return full if window is None else min(full, float(window))


def element_bytes(job: Job, index: int) -> float:
    """Bytes that the element-wise work of a layer's forward pass moves on one rank, at least."""
    model, tp = job.model, job.degrees.tp
    stream = 12.0 * model.dim / (tp if job.sp else 1)  # 2 norms, 2 residuals: read, read, write
    queries = model.num_heads * head_dims(job) / tp
    if is_sparse(model, index):
        assert model.moe is not None
        moe = model.moe
        width = moe.expert_ffn_dim * (moe.top_k + moe.num_shared_experts) / tp
    else:
        width = model.ffn_dim / tp
    hidden = (3.0 if model.activation == "swiglu" else 2.0) * width
    casts = 0.0
    if job.arithmetic != "bf16":  # inputs of the products: read, written narrow, twice
        casts = 2.0 * (2 * model.dim + queries / 2 + width)
    return BYTES * job.tokens * (stream + 2 * queries + hidden + casts)


def expert_host(job: Job, constants: Constants) -> float:
    """Seconds that a layer with experts waits for its host, forward and backward together."""
    if job.graphs:
        return 0.0
    rack = job.fabric.island > job.product.max_devices_per_node
    return constants.expert_host_rack if rack else constants.expert_host


def expert_bytes(job: Job) -> float:
    """Bytes that one pass over the rows sent to experts reads and writes on one rank."""
    moe = job.model.moe
    assert moe is not None
    return 2.0 * BYTES * job.tokens / job.degrees.tp * moe.top_k * job.model.dim


def head(job: Job, constants: Constants) -> Passes:
    """The final norm, the head and the loss; they are bf16 whatever the layers are in."""
    model, speed = job.model, rates(job, constants)
    vocabulary = model.vocab_size / job.degrees.tp
    product = product_time(
        job.tokens, model.dim, vocabulary, speed.plain, speed.memory, BYTES, constants.gemm_traffic
    )
    # logits written, read for maximum, sum and gradient in float32
    elements = job.tokens * vocabulary * (BYTES + 3 * 4) / speed.memory
    return Passes(
        forward=product + elements,
        inputs=product + elements,
        weights=product * job.trained_share,
    )

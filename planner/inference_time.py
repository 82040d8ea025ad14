"""How long tokens take: the time to the first, and to each that follows.

A step of T tokens of B sequences passes all layers, on tp ranks at once and stage after stage::

    products    max(2 P T / rate, bytes of weights / bandwidth)   P: active parameters of a rank
    attention   max(score FLOPs / rate, bytes of keys and values / bandwidth)
    tp          2 all-reduces a layer: bytes / bandwidth + a latency each
    cp          a prompt: the ring's keys and values; decoding: one gather of each layer's results
    host        launches of a layer's kernels, where nothing hides them

A prompt is a step of its own length, or several where it is longer than a chunk. Decoding is a step
of one token of every sequence: it is bound by memory until the batch is in the hundreds. With C
requests always under way, I tokens in and O out, each of the C sequences waits once per output for
the prompts of the others::

    per token   decode(C) + C prefill(I) / O
    busy        C prefill(I) / (O x per token), the share of time that prompts take
    first       prefill(I) (1 + busy / (2 (1 - busy))), as in a queue with one server; and where
                memory holds only B < C sequences, the wait for it: (C - B) of them leave at the
                rate of B / (O x per token)

The five constants are set by hand on a few published runs and judged on all of them
(`benchmarks/inference_accuracy.py`).
"""

from dataclasses import dataclass

from parctl.planner.degrees import Degrees
from parctl.planner.inference import kv_bytes_per_token
from parctl.planner.shards import ceil_div
from parctl.planner.time.job import Fabric
from parctl.recipes.parameters import count_parameters, is_sparse
from parctl.recipes.spec import ModelSpec
from parctl.topology.products import Product

PRODUCTS = 0.56  # share of the peak that products of a long prompt reach
ATTENTION = 0.35  # share of the bf16 peak that scores of a long prompt reach
MEMORY = 0.75  # share of the bandwidth at which weights and blocks stream
REDUCE_S = 12e-6  # latency of an all-reduce inside a node; between nodes three times that
HOST_S = 25e-6  # of a layer, with its kernels in one graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What makes tokens: a model, split, on devices. `weight` and `kv` are bytes per element."""

    model: ModelSpec
    degrees: Degrees
    product: Product
    fabric: Fabric
    weight: float
    kv: float
    chunk: int


def prefill_s(setting: Setting, num_tokens: int) -> float:
    """Seconds from a prompt's first chunk to its first token, alone on the replica.

    Chunks follow each other through the stages, so the first stage is busy with the next one while
    the last still has the one before.
    """
    times, pp = _chunks_s(setting, num_tokens), setting.degrees.pp
    return (sum(times) + (pp - 1) * max(times)) / pp


def _chunks_s(setting: Setting, num_tokens: int) -> list[float]:
    times = []
    start = 0
    while start < num_tokens:
        size = min(setting.chunk, num_tokens - start)
        times.append(_step_s(setting, size, 1, start + size / 2, rows=1))
        start += size
    return times


def decode_s(setting: Setting, num_sequences: float, context: float) -> float:
    """Seconds of a step of one token for each of several sequences of this average length."""
    return _step_s(setting, num_sequences, num_sequences, context, rows=num_sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a constant number of requests sees. Rates are of one replica."""

    first_token_s: float
    per_token_s: float
    tokens_per_s: float  # output
    num_running: float  # sequences in memory at once


def under_load(
    setting: Setting, *, concurrency: int, prompt: int, output: int, most_running: int | None
) -> Load:
    """Predict first and further tokens with `concurrency` requests always under way."""
    running = float(min(concurrency, most_running or concurrency))
    alone = prefill_s(setting, prompt)
    # with several stages, as many parts of the running sequences are on the way at once
    pp = min(setting.degrees.pp, running)
    decode = decode_s(setting, running / pp, prompt + output / 2)
    own = sum(_chunks_s(setting, prompt)) / setting.degrees.pp  # of each stage, by one prompt
    per_token = decode + running * own / output
    throughput = running / per_token
    busy = running * own / (output * per_token) if running > 1 else 0.0
    queue = alone * busy / (2 * (1 - busy))
    waiting = (concurrency - running) * output / throughput
    return Load(
        first_token_s=alone + queue + decode / 2 + waiting,
        per_token_s=per_token,
        tokens_per_s=throughput,
        num_running=running,
    )


def _step_s(
    setting: Setting, tokens: float, sequences: float, context: float, *, rows: float
) -> float:
    model, degrees, product = setting.model, setting.degrees, setting.product
    assert product.bf16_flops and product.memory_bytes_s
    peak = product.bf16_flops
    if setting.weight < 2 and product.fp8_flops:
        peak = product.fp8_flops
    count = count_parameters(model)
    decoding = tokens == sequences
    own = tokens if decoding else tokens / degrees.cp  # every cp rank computes a single token alike
    memory = product.memory_bytes_s * MEMORY
    split = degrees.tp
    owners = degrees.ep * degrees.etp if degrees.ep > 1 else split  # of an expert's parameters
    dense = sum(layer.total - layer.experts for layer in count.layers)
    active = dense + sum(layer.active_experts for layer in count.layers)
    read = (
        dense / split
        + sum(layer.experts for layer in count.layers) * _touched(model, tokens) / owners
    )
    products = max(2 * active * own / split / (peak * PRODUCTS), read * setting.weight / memory)
    table = model.vocab_size * model.dim
    head = max(
        2 * table * rows / split / (peak * PRODUCTS), table * setting.weight / split / memory
    )
    attention = _attention_s(setting, own, tokens, sequences, context)
    layers = model.num_layers
    exchange = layers * _exchange_s(setting, own, decoding=decoding)
    stages = (degrees.pp - 1) * _hop_s(setting, own)
    return products + head + attention + exchange + stages + layers * HOST_S


def _touched(model: ModelSpec, tokens: float) -> float:
    """Share of the experts that a step of so many tokens chooses, if it chooses at random."""
    if model.moe is None:
        return 0.0
    return float(1 - (1 - model.moe.top_k / model.moe.num_experts) ** tokens)


def _attention_s(
    setting: Setting, own: float, tokens: float, sequences: float, context: float
) -> float:
    model, degrees, product = setting.model, setting.degrees, setting.product
    assert product.bf16_flops and product.memory_bytes_s
    heads = ceil_div(model.num_heads, degrees.tp)
    if model.sliding_window is not None:
        windows = (model.window(layer) or context for layer in range(model.num_layers))
        context = sum(min(context, window) for window in windows) / model.num_layers
    flops = 4.0 * own * context * heads * model.head_dim * model.num_layers
    if tokens == sequences:  # cp ranks share the context of a single token, not the tokens
        flops /= degrees.cp
    held = sequences * context / degrees.cp
    kv = held * kv_bytes_per_token(model, degrees, 1) * setting.kv * model.num_layers
    return max(flops / (product.bf16_flops * ATTENTION), kv / (product.memory_bytes_s * MEMORY))


def _exchange_s(setting: Setting, own: float, *, decoding: bool) -> float:
    """Two all-reduces over tp, and for cp what the others hold: keys and values, or results."""
    model, degrees, fabric = setting.model, setting.degrees, setting.fabric
    seconds = 0.0
    tp = degrees.tp
    if tp > 1:
        inside = tp <= fabric.island
        bandwidth = fabric.fast if inside else fabric.slow
        latency = REDUCE_S if inside else 3 * REDUCE_S
        seconds += 2 * (latency + 2 * (tp - 1) / tp * 2 * own * model.dim / bandwidth)
    if degrees.cp > 1:
        inside = tp * degrees.cp <= fabric.island
        bandwidth = fabric.fast if inside else fabric.slow
        if decoding:  # each rank's result per head, in float32, with its weight
            rows = 4 * own * ceil_div(model.num_heads, tp) * (model.head_dim + 1)
            latency = REDUCE_S if inside else 3 * REDUCE_S
            seconds += latency + (degrees.cp - 1) * rows / bandwidth
        else:  # a ring's keys travel beside the products with those that came before
            keys = 2 * own * kv_bytes_per_token(model, degrees, 1)
            seconds += degrees.cp * REDUCE_S + 0.3 * (degrees.cp - 1) * keys / bandwidth
    if degrees.ep > 1 and model.moe is not None:
        rows = 2 * 2 * own * model.moe.top_k * model.dim / max(1, tp)
        inside = degrees.ep * tp <= fabric.island
        bandwidth = fabric.fast if inside else fabric.slow
        share = sum(is_sparse(model, layer) for layer in range(model.num_layers))
        seconds += (2 * REDUCE_S + rows / bandwidth) * share / model.num_layers
    return seconds


def _hop_s(setting: Setting, own: float) -> float:
    inside = setting.degrees.tp * setting.degrees.pp <= setting.fabric.island
    bandwidth = setting.fabric.fast if inside else setting.fabric.slow
    return REDUCE_S + 2 * own * setting.model.dim / bandwidth

"""What a plan says of a job that makes tokens: bytes per step by axis, and how long tokens take."""

from typing import Any

from parctl.planner.degrees import Degrees
from parctl.planner.devices import Devices
from parctl.planner.inference import ELEMENT, InferenceMemory, kv_bytes_per_token
from parctl.planner.inference_time import Setting, decode_s, prefill_s, under_load
from parctl.planner.time.estimate import fabric_of, slowest
from parctl.recipes.parameters import is_sparse
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout

PROMPT_SHARE = 0.75  # of the context that is estimated for; the rest is output, or less


def inference_traffic(recipe: Recipe, degrees: Degrees) -> dict[str, float]:
    """Bytes that one rank sends in a step of a whole chunk, on every axis of more than one rank.

    With T tokens on a rank and e bytes per element: tp 4 (n-1)/n e T h a layer (two all-reduces),
    cp (n-1) times its own keys and values a layer, pp e T h, ep two exchanges of `top_k` rows a
    token. Replicas send each other nothing.
    """
    model, spec = recipe.model, recipe.inference
    assert model is not None and spec is not None
    element = ELEMENT[spec.precision]
    own = spec.chunk / degrees.cp
    hidden = element * own * model.dim
    sparse = sum(is_sparse(model, layer) for layer in range(model.num_layers)) / degrees.pp
    layers = model.num_layers / degrees.pp
    keys = own * kv_bytes_per_token(model, degrees, element)
    sent = {
        "tp": 4 * (degrees.tp - 1) / degrees.tp * hidden * layers,
        "cp": (degrees.cp - 1) * keys * layers,
        "pp": hidden,
        "dp": 0.0,
        "ep": 2 * (degrees.ep - 1) / degrees.ep * hidden * sparse * (model.moe.top_k)
        if model.moe
        else 0.0,
        "edp": 0.0,
    }
    sizes = {axis: degrees.of(axis) for axis in ("tp", "cp", "pp", "dp", "ep")}
    sizes["edp"] = degrees.num_data_ranks * degrees.cp // degrees.ep if degrees.ep > 1 else 1
    return {axis: volume for axis, volume in sent.items() if sizes[axis] > 1}


def estimate_inference(
    recipe: Recipe,
    degrees: Degrees,
    layout: Layout,
    devices: Devices,
    memory: InferenceMemory,
) -> dict[str, Any]:
    """Predict one request alone, and as many as memory holds, of the longest context.

    Three quarters of that context are prompt; the output is the rest, or for `task: generate` its
    `max_tokens` where that is less. `basis` says how far such predictions are off, or why
    there is none.
    """
    model, spec = recipe.model, recipe.inference
    assert model is not None and spec is not None
    product = slowest(devices)
    if devices.kind == "cpu":
        return {"basis": "not predicted: the devices are CPUs"}
    if product is None or not product.bf16_flops or not product.memory_bytes_s:
        return {"basis": "not predicted: the speed of the devices is not known"}
    if product.key.startswith("mi"):
        return {"basis": "not predicted: published rates of AMD devices are 2 to 4 times lower"}
    if spec.precision in ("fp32", "fp64"):
        return {"basis": f"not predicted: {spec.precision} was not held against published runs"}
    element = float(ELEMENT[spec.precision])
    setting = Setting(
        model=model,
        degrees=degrees,
        product=product,
        fabric=fabric_of(layout, devices, product),
        weight=element,
        kv=element,
        chunk=spec.chunk,
    )
    prompt = max(1, int(memory.max_context * PROMPT_SHARE))
    output = max(1, memory.max_context - prompt)
    if recipe.generate is not None:
        output = min(output, recipe.generate.sampling.max_tokens)
    most = max(1, min(memory.max_sequences, spec.max_sequences))
    full = under_load(setting, concurrency=most, prompt=prompt, output=output, most_running=most)
    return {
        "basis": "estimate; docs/inference.md says how far such predictions are off",
        "prompt_tokens": prompt,
        "output_tokens": output,
        "first_token_s": prefill_s(setting, prompt),
        "per_token_s": decode_s(setting, 1, prompt + output / 2),
        "full": {
            "sequences": most,
            "first_token_s": full.first_token_s,
            "per_token_s": full.per_token_s,
            "tokens_per_s": full.tokens_per_s,
        },
    }

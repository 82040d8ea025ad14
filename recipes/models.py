"""From the fields of a model that somebody gave to a complete `ModelSpec`: family defaults and
shape checks.

The one idea: `family` decides every field that is left out, so a preset file holds only what makes
that model itself, and replacing one field (`--set model.dim=256`) carries over to all that follow
from it.
"""

from collections.abc import Mapping
from typing import Any

from parctl.recipes.faults import Fault, listed
from parctl.recipes.spec import MlaSpec, ModelSpec, MoeSpec, VisionSpec

Values = Mapping[str, Any]

_LLAMA: Values = {
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
    "activation": "swiglu",
    "positions": "rope",
    "bias": False,
    "tied_embeddings": False,
    "causal": True,
}
_GPT: Values = {
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "positions": "learned",
    "bias": True,
    "tied_embeddings": True,
    "causal": True,
}
FAMILY_DEFAULTS: Mapping[str, Values] = {
    "llama": _LLAMA,
    "moe": _LLAMA,
    "gpt": _GPT,
    "vit": {**_GPT, "norm_eps": 1e-6, "tied_embeddings": False, "causal": False, "vocab_size": 0},
    "t5": {
        **_LLAMA,
        "norm_eps": 1e-6,
        "activation": "relu",
        "positions": "relative",
        "tied_embeddings": True,
    },
}
_REQUIRED = ("num_layers", "dim", "num_heads", "ffn_dim", "vocab_size", "max_seq_len")


def complete_model(values: Values, name: str) -> tuple[ModelSpec | None, list[Fault]]:
    """Fill in what follows from the family. Returns the model, or None and why there is none.

    Single values have been checked before; paths in faults are relative to the model.
    """
    given = {key: value for key, value in values.items() if value is not None}
    family = given.get("family")
    if family is None:
        message = "says neither `preset`, `hf` nor `family`"
        return None, [_fault("", message, "for example `model: llama-3-8b`")]
    full = {**FAMILY_DEFAULTS[family], **given}
    _derive(family, full)
    missing = [key for key in _REQUIRED if key not in full]
    if family == "moe" and "moe" not in full:
        missing.append("moe")
    if family == "vit" and "vision" not in full:
        missing.append("vision")
    if missing:
        message = f"leaves out {listed(missing)}, which a {family} model needs"
        return None, [_fault("", message, "give them, or start from a preset: `preset: NAME`")]
    faults = _shape_faults(family, full)
    if faults:
        return None, faults
    return _build(full, name), []


def _derive(family: str, full: dict[str, Any]) -> None:
    """Add the sizes that follow from others."""
    dim, heads = full.get("dim"), full.get("num_heads")
    if dim and family in ("gpt", "vit", "t5"):
        full.setdefault("ffn_dim", 4 * dim)
    moe = full.get("moe")
    if moe and moe["num_dense_layers"] == 0 and moe["layer_period"] == 1:
        full.setdefault("ffn_dim", moe["expert_ffn_dim"])
    if dim and heads and dim % heads == 0:
        full.setdefault("head_dim", dim // heads)
    if heads:
        full.setdefault("num_kv_heads", heads)
    vision = full.get("vision")
    if vision:
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        full.setdefault("max_seq_len", patches + 1)  # and the class token
    if family == "t5" and "num_layers" in full:
        full.setdefault("num_encoder_layers", full["num_layers"])


def _shape_faults(family: str, full: Values) -> list[Fault]:
    faults = []
    heads, kv_heads, dim = full["num_heads"], full["num_kv_heads"], full["dim"]
    if "head_dim" not in full:
        message = f"dim ({dim}) / num_heads ({heads}) is not a whole number"
        faults.append(_fault("num_heads", message, "change one of them, or give `head_dim`"))
    if heads % kv_heads:
        message = f"num_heads ({heads}) / num_kv_heads ({kv_heads}) is not a whole number"
        hint = "every KV head serves the same number of heads"
        faults.append(_fault("num_kv_heads", message, hint))
    if family != "vit" and full["vocab_size"] < 2:
        message = f"found {full['vocab_size']}, expected at least 2"
        faults.append(_fault("vocab_size", message, "the byte tokenizer needs 256"))
    if full["positions"] == "rope" and "head_dim" in full:
        rotated = full["head_dim"] * full.get("rope_fraction", 1.0)
        if rotated != int(rotated) or int(rotated) % 2:
            message = f"head_dim ({full['head_dim']}) x rope_fraction rotates {rotated:g} elements"
            faults.append(_fault("head_dim", message, "RoPE rotates pairs: make it even"))
    faults += _scaling_faults(_given(full.get("rope_scaling")))
    for key, wanted in (("moe", ("moe", "t5")), ("vision", ("vit",)), ("mla", ("llama", "moe"))):
        if full.get(key) is not None and family not in wanted:
            hint = f"set `family: {wanted[0]}`, or remove `{key}`"
            faults.append(_fault(key, f"found `{key}` in a {family} model", hint))
    return faults + _window_faults(full) + _moe_faults(full) + _vision_faults(full)


def _scaling_faults(scaling: Mapping[str, float] | None) -> list[Fault]:
    """Find what is neither the stretching of Llama 3.1 nor YaRN's."""
    if scaling is None:
        return []
    own = set(scaling) - {"factor", "original_max_seq_len"}
    yarn = {"beta_fast", "beta_slow"}
    if own == {"low_freq_factor", "high_freq_factor"}:
        return []
    if yarn <= own <= yarn | {"mscale", "mscale_all_dim"}:
        return []
    message = f"found {listed(sorted(own)) or 'neither'} beside factor and original_max_seq_len"
    hint = (
        "give low_freq_factor and high_freq_factor (Llama 3.1), or beta_fast and beta_slow (YaRN)"
    )
    return [_fault("rope_scaling", message, hint)]


def _window_faults(full: Values) -> list[Fault]:
    layers, window = full.get("sliding_layers"), full.get("sliding_window")
    if layers is not None and window is None:
        hint = "give the window, or remove `sliding_layers`"
        return [_fault("sliding_layers", "found layers and no `sliding_window`", hint)]
    if window is not None and (not full["causal"] or full["positions"] == "relative"):
        hint = "remove it: only attention to the past, without relative positions, has a window"
        return [_fault("sliding_window", f"found a window of {window} tokens", hint)]
    beyond = [layer for layer in layers or () if layer >= full["num_layers"]]
    if beyond:
        message = f"found layer {beyond[0]}, and there are {full['num_layers']}"
        return [_fault("sliding_layers", message, "layers are counted from 0")]
    return []


def _moe_faults(full: Values) -> list[Fault]:
    moe = full.get("moe")
    if moe is None:
        return []
    faults = []
    experts, layers = moe["num_experts"], full["num_layers"]
    if moe["top_k"] > experts:
        message = f"top_k ({moe['top_k']}) > num_experts ({experts})"
        faults.append(_fault("moe.top_k", message, f"at most {experts}"))
    if moe["num_dense_layers"] >= layers:
        message = f"num_dense_layers ({moe['num_dense_layers']}) leaves none of {layers} layers"
        faults.append(_fault("moe.num_dense_layers", message, f"at most {layers - 1}"))
    if experts % moe["num_groups"]:
        message = f"num_experts ({experts}) / num_groups ({moe['num_groups']}) is not whole"
        faults.append(_fault("moe.num_groups", message, "groups of experts are equal"))
    if moe["top_k_groups"] > moe["num_groups"]:
        message = f"top_k_groups ({moe['top_k_groups']}) > num_groups ({moe['num_groups']})"
        faults.append(_fault("moe.top_k_groups", message, f"at most {moe['num_groups']}"))
    return faults


def _vision_faults(full: Values) -> list[Fault]:
    vision = full.get("vision")
    if vision is None or vision["image_size"] % vision["patch_size"] == 0:
        return []
    message = f"image_size ({vision['image_size']}) is no multiple of {vision['patch_size']}"
    return [_fault("vision.patch_size", message, "patches tile the image exactly")]


def _build(full: Values, name: str) -> ModelSpec:
    moe, mla, vision = full.get("moe"), full.get("mla"), full.get("vision")
    sliding = full.get("sliding_layers")
    return ModelSpec(
        name=full.get("name", name),
        family=full["family"],
        num_layers=full["num_layers"],
        dim=full["dim"],
        num_heads=full["num_heads"],
        num_kv_heads=full["num_kv_heads"],
        head_dim=full["head_dim"],
        ffn_dim=full["ffn_dim"],
        vocab_size=full["vocab_size"],
        max_seq_len=full["max_seq_len"],
        norm=full["norm"],
        norm_eps=full["norm_eps"],
        activation=full["activation"],
        positions=full["positions"],
        rope_theta=float(full.get("rope_theta", 10_000.0)),
        rope_fraction=float(full.get("rope_fraction", 1.0)),
        rope_scaling=_given(full.get("rope_scaling")),
        bias=full["bias"],
        qkv_bias=full.get("qkv_bias", False),
        qk_norm=full.get("qk_norm", False),
        parallel_blocks=full.get("parallel_blocks", False),
        tied_embeddings=full["tied_embeddings"],
        dropout=float(full.get("dropout", 0.0)),
        causal=full["causal"],
        num_encoder_layers=full.get("num_encoder_layers", 0),
        num_mtp_layers=full.get("num_mtp_layers", 0),
        mla=None if mla is None else MlaSpec(**mla),
        moe=None if moe is None else MoeSpec(**moe),
        vision=None if vision is None else VisionSpec(**vision),
        sliding_window=full.get("sliding_window"),
        sliding_layers=None if sliding is None else tuple(sorted(sliding)),
    )


def _given(scaling: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    """Leave out what the other kind of stretching has."""
    if scaling is None:
        return None
    return {name: value for name, value in scaling.items() if value is not None}


def _fault(path: str, message: str, hint: str) -> Fault:
    return Fault(path=path, message=message, hint=hint)

"""A Hugging Face `config.json` read as model fields: llama, mistral, gpt2, mixtral, qwen2, qwen3,
qwen3_moe, deepseek_v3, t5, switch_transformers. What a model of ours cannot compute is refused by
its key.

The one idea: only shapes are taken. What the file leaves out takes the value that the
`transformers` library documents as its default for that model type, because that is what the file's
author meant.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parctl.recipes.faults import Fault, listed

_LLAMA_LIKE = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3")
_T5_LIKE = ("t5", "switch_transformers")
MODEL_TYPES = (*_LLAMA_LIKE, "gpt2", *_T5_LIKE)
_BY_LAYER = ("qwen2", "qwen3")  # model types where some layers have a window and others not
# documented defaults of sliding_window, where a model type has one
_WINDOWS = {"mistral": 4096, "mixtral": None, "qwen2": 4096, "qwen3": 4096, "qwen3_moe": 4096}
_NORM_EPS = {"mixtral": 1e-5}  # documented defaults of rms_norm_eps; the others: 1e-6


def read_hf_config(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read model fields from `folder/config.json`; faults have paths relative to the model."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [_fault(f"cannot read `{path}`: {error.strerror}", "name the checkpoint folder")]
    except ValueError as error:
        return {}, [_fault(f"`{path}` is not JSON: {error}", "is the download complete?")]
    if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
        kind = config.get("model_type") if isinstance(config, dict) else None
        message = f"`{path}` has model_type {kind!r}, expected one of {listed(MODEL_TYPES)}"
        return {}, [_fault(message, "give the model's fields instead of `hf`")]
    refused = _refused(config)
    if refused:
        message = f"`{path}` has {refused}, which no model of parctl computes"
        return {}, [_fault(message, "give the model's fields instead of `hf`")]
    try:
        values = _READERS.get(config["model_type"], _llama_like)(config)
    except KeyError as error:
        return {}, [_fault(f"`{path}` leaves out {error}", "is this the model's own config.json?")]
    except TypeError as error:
        return {}, [_fault(f"`{path}`: {error}", "is this the model's own config.json?")]
    wrong = _wrong_types(values)
    if wrong:
        return {}, [_fault(f"`{path}`: {wrong}", "is this the model's own config.json?")]
    return values, []


def _refused(config: Mapping[str, Any]) -> str | None:
    """Return the first setting that would make another model of it if it were ignored."""
    kind = config["model_type"]
    if kind in _T5_LIKE:
        return _refused_of_t5(config)
    scaling: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        scaling |= value if isinstance(value, dict) else {}
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    activation = config.get("activation_function", "gelu_new")
    if kind != "gpt2":
        activation = config.get("hidden_act", "silu")
    bias = bool(config.get("attention_bias", False))
    dense = config.get("mlp_only_layers") or []
    layer_types = set(config.get("layer_types") or ())
    wrong = {
        f"rope_scaling of type {rope_type!r}": rope_type not in ("default", "llama3", "yarn"),
        "attention_factor": scaling.get("attention_factor") is not None,
        "rope_scaling without truncate": scaling.get("truncate", True) is False,
        f"activation {activation!r}": activation
        not in (("gelu_new", "gelu_pytorch_tanh") if kind == "gpt2" else ("silu", "swish")),
        "attention_bias without mlp_bias": bias
        and not (kind in ("llama", "qwen2") and config.get("mlp_bias", kind == "qwen2")),
        "norm_topk_prob: false": kind in ("qwen3_moe", "deepseek_v3")
        and not config.get("norm_topk_prob", kind == "deepseek_v3"),
        "mlp_only_layers that are not the first ones": dense != list(range(len(dense))),
        "layer_types": bool(layer_types - {"full_attention", "sliding_attention"})
        or (kind not in _BY_LAYER and len(layer_types) > 1),
        "rope_interleave: false": config.get("rope_interleave", True) is False,
        "scale_attn_by_inverse_layer_idx": config.get("scale_attn_by_inverse_layer_idx", False),
    }
    return next((name for name, found in wrong.items() if found), None)


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": "gpt",
        "num_layers": config["n_layer"],
        "dim": config["n_embd"],
        "num_heads": config["n_head"],
        "ffn_dim": config.get("n_inner") or 4 * config["n_embd"],
        "vocab_size": config["vocab_size"],
        "max_seq_len": config["n_positions"],
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tied_embeddings": config.get("tie_word_embeddings", True),
        "dropout": config.get("resid_pdrop", 0.1),
    }


def _refused_of_t5(config: Mapping[str, Any]) -> str | None:
    activation = config.get("feed_forward_proj", config.get("dense_act_fn", "relu"))
    layers, sparse = config["num_layers"], config.get("num_sparse_encoder_layers", 0)
    wrong = {
        f"activation {activation!r}": activation != "relu",
        "a head of its own": not config.get("tie_word_embeddings", True),
        "router_bias": config.get("router_bias", False),
        "decoders that are not as deep as encoders": config.get("num_decoder_layers")
        not in (None, layers),
        "sparse layers in one stack only": sparse
        != config.get("num_sparse_decoder_layers", sparse),
        "sparse layers that are not every one or every other": bool(sparse)
        and layers not in (sparse, 2 * sparse),
        "relative_attention_num_buckets other than 32": config.get(
            "relative_attention_num_buckets", 32
        )
        != 32,
        "relative_attention_max_distance other than 128": config.get(
            "relative_attention_max_distance", 128
        )
        != 128,
    }
    return next((name for name, found in wrong.items() if found), None)


def _t5(config: Mapping[str, Any]) -> dict[str, Any]:
    """Models of one `num_layers` for both stacks. `n_positions` is what they were trained with."""
    longest = config.get("n_positions", 512)
    values = {
        "family": "t5",
        "num_layers": config["num_layers"],
        "dim": config["d_model"],
        "num_heads": config["num_heads"],
        "head_dim": config["d_kv"],
        "ffn_dim": config["d_ff"],
        "vocab_size": config["vocab_size"],
        "max_seq_len": longest,
        "norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "dropout": config.get("dropout_rate", 0.1),
    }
    if config["model_type"] == "switch_transformers":
        experts = config.get("num_experts", 8)
        moe = _moe(experts, 1, config["d_ff"], config)
        values["moe"] = moe | {
            "layer_period": config["num_layers"] // config.get("num_sparse_encoder_layers", 3),
            "capacity_factor": config.get("expert_capacity", 64) * experts / longest,
            "z_loss": config.get("router_z_loss_coef", 0.001),
        }
    return values


def _llama_like(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config["model_type"]
    rope = _mapping(config, "rope_parameters")  # newer files put theta and scaling together
    bias = bool(config.get("attention_bias", False))
    values = {
        "family": "moe" if kind in ("mixtral", "qwen3_moe", "deepseek_v3") else "llama",
        "num_layers": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim"),
        "ffn_dim": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "max_seq_len": config["max_position_embeddings"],
        "norm_eps": config.get("rms_norm_eps", _NORM_EPS.get(kind, 1e-6)),
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "rope_scaling": _rope_scaling(rope or _mapping(config, "rope_scaling")),
        "bias": bias and bool(config.get("mlp_bias", False)),
        "qkv_bias": bias or kind == "qwen2",
        "qk_norm": kind in ("qwen3", "qwen3_moe"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    if kind == "mixtral":
        values["moe"] = _moe(
            config["num_local_experts"],
            config.get("num_experts_per_tok", 2),
            config["intermediate_size"],
            config,
        )
    if kind == "qwen3_moe":
        values["moe"] = _moe(
            config.get("num_local_experts") or config["num_experts"],  # named so by newer files
            config["num_experts_per_tok"],
            config["moe_intermediate_size"],
            config,
        )
        values["moe"]["num_dense_layers"] = len(config.get("mlp_only_layers") or [])
    if kind == "deepseek_v3":
        values |= _deepseek(config)
    values |= _sliding(config)
    return {key: value for key, value in values.items() if value is not None}


def _sliding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The window of attention and, where others see everything, the layers that have it.

    Of Qwen's models the layers from `max_window_layers` on, or those that `layer_types` names.
    """
    kind = config["model_type"]
    if kind not in _WINDOWS:
        return {}
    window = config.get("sliding_window", _WINDOWS[kind])
    if kind.startswith("qwen") and not config.get("use_sliding_window", False):
        window = None
    if window is None or kind not in _BY_LAYER:
        return {"sliding_window": window}
    num_layers = config["num_hidden_layers"]
    first = config.get("max_window_layers", 28)
    layers = list(range(min(first, num_layers), num_layers))
    types = config.get("layer_types")
    if types is not None:
        layers = [layer for layer, name in enumerate(types) if name == "sliding_attention"]
    if not layers:
        return {}
    return {
        "sliding_window": window,
        "sliding_layers": None if len(layers) == num_layers else layers,
    }


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSeek-V3's latents and experts; heads are not grouped, and their sizes are the latents'.

    Its multi-token prediction modules are left out, as `transformers` does.
    """
    moe = _moe(
        config["n_routed_experts"],
        config["num_experts_per_tok"],
        config["moe_intermediate_size"],
        config,
    )
    return {
        "num_kv_heads": config["num_attention_heads"],
        "head_dim": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "mla": {
            "q_lora_rank": config.get("q_lora_rank"),
            "kv_lora_rank": config["kv_lora_rank"],
            "qk_nope_head_dim": config["qk_nope_head_dim"],
            "qk_rope_head_dim": config["qk_rope_head_dim"],
            "v_head_dim": config["v_head_dim"],
        },
        "moe": moe
        | {
            "num_shared_experts": config.get("n_shared_experts") or 0,
            "num_dense_layers": config.get("first_k_dense_replace", 3),
            "router": "sigmoid",
            "weight_scale": config.get("routed_scaling_factor", 2.5),
            "num_groups": config.get("n_group", 8),
            "top_k_groups": config.get("topk_group", 4),
        },
    }


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{key}: found {value!r}, expected keys with values")
    return value


def _moe(num_experts: int, top_k: int, width: int, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "expert_ffn_dim": width,
        "num_shared_experts": 0,
        "num_dense_layers": 0,
        "layer_period": config.get("decoder_sparse_step", 1),
        "capacity_factor": None,
        "aux_loss": config.get("router_aux_loss_coef", 0.001),
        "z_loss": 0.0,
        "router": "softmax",
        "weight_scale": 1.0,
        "bias_rate": 0.001,
        "num_groups": 1,
        "top_k_groups": 1,
    }


def _rope_scaling(rope: Mapping[str, Any]) -> dict[str, float] | None:
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "yarn":
        scaling = {
            "factor": rope["factor"],
            "beta_fast": rope.get("beta_fast") or 32,
            "beta_slow": rope.get("beta_slow") or 1,
            "original_max_seq_len": rope["original_max_position_embeddings"],
        }
        sizes = {key: rope[key] for key in ("mscale", "mscale_all_dim") if rope.get(key)}
        return scaling | sizes
    if kind != "llama3":
        return None
    return {
        "factor": rope["factor"],
        "low_freq_factor": rope["low_freq_factor"],
        "high_freq_factor": rope["high_freq_factor"],
        "original_max_seq_len": rope["original_max_position_embeddings"],
    }


def _wrong_types(values: Mapping[str, Any]) -> str | None:
    from pydantic import ValidationError

    from parctl.recipes.model_schema import ModelFields

    try:
        ModelFields.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return None


def _fault(message: str, hint: str) -> Fault:
    return Fault(path="hf", message=message, hint=hint)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "t5": _t5,
    "switch_transformers": _t5,
}

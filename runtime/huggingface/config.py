"""A model's shape as Hugging Face's `config.json`, the reverse of `parctl.recipes.hf_config`.

Imports no torch.
"""

from math import ceil
from typing import Any

from parctl.errors import UsageError
from parctl.recipes.spec import ModelSpec, MoeSpec

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "t5": "T5ForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
}
ENCODER_DECODERS = ("t5", "switch_transformers")
DEEPSEEK_NORM_EPS = 1e-6  # of the norms of latents, which config.json cannot set


def architecture(model: ModelSpec) -> str:
    """Return Hugging Face's `model_type` for a model.

    Raises UsageError where none computes the same.
    """
    if model.family == "gpt":
        kind, wrong = "gpt2", gpt2_differences(model)
    elif model.family == "t5":
        kind = "t5" if model.moe is None else "switch_transformers"
        wrong = t5_differences(model)
    elif model.mla is not None:
        kind, wrong = "deepseek_v3", deepseek_differences(model)
    elif model.moe is not None:
        kind = "qwen3_moe" if model.qk_norm else "mixtral"
        wrong = moe_differences(model, mixtral=kind == "mixtral")
    elif model.qk_norm:
        kind = "qwen3"
        wrong = {"biases beside qk_norm": model.bias or model.qkv_bias}
    else:
        kind, wrong = ("qwen2" if model.qkv_bias and not model.bias else "llama"), {}
    if kind not in ("gpt2", *ENCODER_DECODERS):
        wrong = {**general_differences(model), **wrong}
    named = [
        *(name for name, differs in common_differences(model).items() if differs),
        *(name for name, differs in wrong.items() if differs),
    ]
    if named:
        raise UsageError(
            f"no {kind} model of Hugging Face has what {model.name} has: {', '.join(named)}",
            hint="weights are exchanged for Llama, Qwen2, Qwen3, Mixtral, Qwen3-MoE, DeepSeek-V3, "
            "GPT-2, T5 and Switch models as published",
        )
    return kind


def common_differences(model: ModelSpec) -> dict[str, bool]:
    by_layer = model.qk_norm or (model.qkv_bias and not model.bias)
    return {
        f"family {model.family}": model.family not in ("llama", "moe", "gpt", "t5"),
        "attention that is not causal": not model.causal,
        "an encoder": model.num_encoder_layers > 0 and model.family != "t5",
        "multi-token prediction": model.num_mtp_layers > 0,
        "parallel_blocks": model.parallel_blocks,
        # Mistral and Mixtral have one for all layers, others none
        "a sliding window": model.sliding_window is not None
        and (
            model.family == "gpt"
            or model.mla is not None
            or (model.bias and model.moe is None)
            or (model.kept_window is None and (model.moe is not None or not by_layer))
        ),
    }


def general_differences(model: ModelSpec) -> dict[str, bool]:
    """What no type but GPT-2 has."""
    return {
        f"norm {model.norm}": model.norm != "rmsnorm",
        f"activation {model.activation}": model.activation != "swiglu",
        f"positions {model.positions}": model.positions != "rope",
        f"rope_fraction {model.rope_fraction}": model.rope_fraction != 1.0,
    }


def gpt2_differences(model: ModelSpec) -> dict[str, bool]:
    return {
        f"norm {model.norm}": model.norm != "layernorm",
        f"activation {model.activation}": model.activation != "gelu",
        f"positions {model.positions}": model.positions != "learned",
        "no biases": not model.bias,
        "qk_norm": model.qk_norm,
        "grouped heads": model.num_kv_heads != model.num_heads,
        "head_dim x num_heads that is not dim": model.num_heads * model.head_dim != model.dim,
    }


def t5_differences(model: ModelSpec) -> dict[str, bool]:
    return {
        f"norm {model.norm}": model.norm != "rmsnorm",
        f"activation {model.activation}": model.activation != "relu",
        f"positions {model.positions}": model.positions != "relative",
        "no encoder": model.num_encoder_layers == 0,
        "biases or qk_norm": model.bias or model.qkv_bias or model.qk_norm,
        "grouped heads": model.num_kv_heads != model.num_heads,
        "a head of its own": not model.tied_embeddings,
        **({} if model.moe is None else switch_differences(model, model.moe)),
    }


def switch_differences(model: ModelSpec, moe: MoeSpec) -> dict[str, bool]:
    stacks = (model.num_layers, model.num_encoder_layers)
    return {
        f"a {moe.router} router": moe.router != "softmax",
        f"top_k {moe.top_k}": moe.top_k != 1,
        "no expert capacity": moe.capacity_factor is None,
        "groups of experts": moe.num_groups > 1,
        "shared experts": moe.num_shared_experts > 0,
        "weight_scale": moe.weight_scale != 1.0,
        "dense layers before sparse ones": moe.num_dense_layers > 0,
        "experts that are not as wide as the MLP": moe.expert_ffn_dim != model.ffn_dim,
        # their layer i is sparse where i % step == 1, ours where it is step - 1
        f"a layer_period of {moe.layer_period}": moe.layer_period > 2
        or any(num_layers % moe.layer_period for num_layers in stacks),
    }


def moe_differences(model: ModelSpec, *, mixtral: bool) -> dict[str, bool]:
    assert model.moe
    moe = model.moe
    return {
        "biases": model.bias or model.qkv_bias,
        f"a {moe.router} router": moe.router != "softmax",
        "expert capacity": moe.capacity_factor is not None,
        "top_k 1, whose weight is not normalised": moe.top_k == 1,
        "groups of experts": moe.num_groups > 1,
        "shared experts": moe.num_shared_experts > 0,
        "weight_scale": moe.weight_scale != 1.0,
        "dense layers": mixtral and (moe.num_dense_layers > 0 or moe.layer_period > 1),
    }


def deepseek_differences(model: ModelSpec) -> dict[str, bool]:
    moe = model.moe
    return {
        "latent attention without experts": moe is None,
        f"norm_eps {model.norm_eps:g} beside latents": model.norm_eps != DEEPSEEK_NORM_EPS,
        "biases or qk_norm": model.bias or model.qkv_bias or model.qk_norm,
        "a softmax router beside latents": moe is not None and moe.router != "sigmoid",
        "expert capacity": moe is not None and moe.capacity_factor is not None,
        "top_k 1, whose weight is not normalised": moe is not None and moe.top_k == 1,
        "no shared experts beside latents": moe is not None and moe.num_shared_experts == 0,
        "a layer_period": moe is not None and moe.layer_period > 1,
    }


def config_of(model: ModelSpec, *, dtype: str) -> dict[str, Any]:
    """Return the content of `config.json`. `dtype` as torch names it, for example bfloat16."""
    kind = architecture(model)
    config: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        # the model knows no tokenizer, and transformers' defaults (50256, 2) would end texts early
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "gpt2":
        return config | {
            "n_layer": model.num_layers,
            "n_embd": model.dim,
            "n_head": model.num_heads,
            "n_inner": model.ffn_dim,
            "n_positions": model.max_seq_len,
            "layer_norm_epsilon": model.norm_eps,
            "activation_function": "gelu_new",
            "resid_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "attn_pdrop": model.dropout,
        }
    if kind in ENCODER_DECODERS:
        return config | t5_fields(model)
    config |= {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.dim,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "intermediate_size": model.ffn_dim,
        "max_position_embeddings": model.max_seq_len,
        "rms_norm_eps": model.norm_eps,
        "hidden_act": "silu",
        "rope_theta": model.rope_theta,
        "rope_scaling": rope_scaling(model),
    }
    if kind == "deepseek_v3":
        return config | deepseek_fields(model)
    config["head_dim"] = model.head_dim
    if kind == "llama":
        config |= {"attention_bias": model.bias, "mlp_bias": model.bias}
    if model.moe is not None:
        config |= {
            "num_local_experts" if kind == "mixtral" else "num_experts": model.moe.num_experts,
            "num_experts_per_tok": model.moe.top_k,
            "router_aux_loss_coef": model.moe.aux_loss,
        }
        if kind == "mixtral":
            config["intermediate_size"] = model.moe.expert_ffn_dim
        else:
            config |= {
                "moe_intermediate_size": model.moe.expert_ffn_dim,
                "norm_topk_prob": True,
                "decoder_sparse_step": model.moe.layer_period,
                "mlp_only_layers": list(range(model.moe.num_dense_layers)),
            }
    return config | window_fields(model, kind)


def window_fields(model: ModelSpec, kind: str) -> dict[str, Any]:
    """Return what says that layers have a sliding window; Llama with one is Mistral."""
    window = model.sliding_window
    if window is None:
        return {}
    if kind.startswith("qwen"):
        fields = {"use_sliding_window": True, "sliding_window": window}
        if kind == "qwen3_moe":
            return fields
        sliding = [model.window(layer) is not None for layer in range(model.num_layers)]
        names = ["sliding_attention" if slides else "full_attention" for slides in sliding]
        return {**fields, "max_window_layers": 0, "layer_types": names}
    if kind == "mixtral":
        return {"sliding_window": window}
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": window,
    }


def t5_fields(model: ModelSpec) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "d_model": model.dim,
        "d_kv": model.head_dim,
        "d_ff": model.ffn_dim,
        "num_layers": model.num_encoder_layers,
        "num_decoder_layers": model.num_layers,
        "num_heads": model.num_heads,
        "n_positions": model.max_seq_len,
        "dropout_rate": model.dropout,
        "layer_norm_epsilon": model.norm_eps,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    moe = model.moe
    if moe is None:
        return fields | {"feed_forward_proj": "relu"}
    assert moe.capacity_factor is not None
    even = model.max_seq_len / moe.num_experts
    return fields | {
        "dense_act_fn": "relu",
        "num_experts": moe.num_experts,
        "expert_capacity": ceil(moe.capacity_factor * even),
        "num_sparse_encoder_layers": model.num_encoder_layers // moe.layer_period,
        "num_sparse_decoder_layers": model.num_layers // moe.layer_period,
        "router_aux_loss_coef": moe.aux_loss,
        "router_z_loss_coef": moe.z_loss,
    }


def deepseek_fields(model: ModelSpec) -> dict[str, Any]:
    assert model.mla and model.moe
    mla, moe = model.mla, model.moe
    return {
        "num_key_value_heads": model.num_heads,
        "q_lora_rank": mla.q_lora_rank,
        "kv_lora_rank": mla.kv_lora_rank,
        "qk_nope_head_dim": mla.qk_nope_head_dim,
        "qk_rope_head_dim": mla.qk_rope_head_dim,
        "v_head_dim": mla.v_head_dim,
        "rope_interleave": True,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_ffn_dim,
        "n_shared_experts": moe.num_shared_experts,
        "first_k_dense_replace": moe.num_dense_layers,
        "n_group": moe.num_groups,
        "topk_group": moe.top_k_groups,
        "norm_topk_prob": True,
        "routed_scaling_factor": moe.weight_scale,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
    }


def rope_scaling(model: ModelSpec) -> dict[str, Any] | None:
    if model.rope_scaling is None:
        return None
    scaling = dict(model.rope_scaling)
    original = scaling.pop("original_max_seq_len")
    kind = "yarn" if "beta_fast" in scaling else "llama3"
    return {"rope_type": kind, **scaling, "original_max_position_embeddings": int(original)}

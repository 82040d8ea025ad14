"""Small models made at random and saved as real Hugging Face folders, and what `transformers`
makes of prompts with them.

Weights are drawn wide, so that the two largest logits lie far apart and outputs do not repeat.
"""

import random
from pathlib import Path
from typing import Any

import torch

VOCAB = 128
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
NAMES = ("llama", "qwen3", "mixtral", "deepseek", "gpt2", "mistral", "qwen2")
WINDOW = 10  # of mistral, in all layers, and of qwen2, in its second
WITH_EXPERTS = ("mixtral", "deepseek")


def config_of(name: str) -> Any:
    """Return a configuration: GQA, normalised queries and keys, experts, latents, GPT-2's, or with
    a sliding window.
    """
    import transformers

    match name:
        case "llama":
            return transformers.LlamaConfig(**SHAPE, head_dim=8)
        case "mistral":
            return transformers.MistralConfig(**SHAPE, head_dim=8, sliding_window=WINDOW)
        case "qwen2":
            return transformers.Qwen2Config(
                **SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
            )
        case "qwen3":
            return transformers.Qwen3Config(**{**SHAPE, "tie_word_embeddings": True}, head_dim=8)
        case "mixtral":
            return transformers.MixtralConfig(
                **SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
            )
        case "deepseek":
            return transformers.DeepseekV3Config(
                **{**SHAPE, "num_key_value_heads": 8},
                q_lora_rank=16,
                kv_lora_rank=16,
                qk_nope_head_dim=8,
                qk_rope_head_dim=4,
                v_head_dim=8,
                n_routed_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                n_shared_experts=1,
                first_k_dense_replace=1,
                n_group=4,
                topk_group=2,
                norm_topk_prob=True,
                routed_scaling_factor=2.5,
                rms_norm_eps=1e-6,
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCAB,
                n_embd=32,
                n_layer=2,
                n_head=8,
                n_positions=256,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=None,
            )
    raise AssertionError(name)


def save(name: str, folder: Path) -> None:
    """Write the model called `name` in float64."""
    import transformers

    torch.manual_seed(NAMES.index(name))
    model = transformers.AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)


def wishes(count: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return prompts of 1 to 48 tokens, and how many new ones are wanted of each: 1 to 36.

    Every third prompt goes on where the one before it ends, if that is short.
    """
    draw = random.Random(0)
    prompts: list[tuple[int, ...]] = []
    for index in range(count):
        new = tuple(draw.randrange(VOCAB) for _ in range(draw.randint(1, 48)))
        common = prompts[-1] if index % 3 == 2 else ()
        prompts.append((*common, *new)[:48])
    return prompts, [draw.randint(1, 36) for _ in prompts]


def their_tokens(
    folder: Path, prompts: list[tuple[int, ...]], counts: list[int]
) -> list[tuple[list[int], list[float]]]:
    """Return the greedy tokens of `transformers`, prompt by prompt, and how clear each was.

    In float64. Clear: the difference of the two largest logits.
    """
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    made = []
    for prompt, count in zip(prompts, counts, strict=True):
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.stack([logits[0].topk(2).values for logits in out.logits])
        tokens = out.sequences[0, len(prompt) :].tolist()
        made.append((tokens, (best[:, 0] - best[:, 1]).tolist()))
    return made

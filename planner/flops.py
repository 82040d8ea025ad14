"""Model FLOPs per token: what the arithmetic of the model costs, whatever the hardware repeats.

    F = 6 Nmm + 3 [2 L a (dqk + dv) s] / 2

`Nmm`: parameters that one token uses, without the input embedding and learned positions, with the
head once. Matmuls cost 2 FLOPs per parameter forward and 4 backward. The bracket is attention
scores and values over a context of `s` tokens, backward twice forward; causal attention needs half
of it, and half of it is counted. Recomputed forwards are not counted. Sources differ here by up to
80% at long context, so the convention travels with the number.
"""

from parctl.recipes.parameters import count_parameters
from parctl.recipes.spec import ModelSpec, TrainSpec

CONVENTION = "model FLOPs, causal attention counted half, recompute not counted"
CONVENTION_FULL = "model FLOPs, attention counted in full (not causal), recompute not counted"


def flops_convention(model: ModelSpec) -> str:
    return CONVENTION if model.causal else CONVENTION_FULL


def matmul_parameters(model: ModelSpec) -> int:
    """Parameters that one token multiplies with, the head once even when it is tied."""
    count = count_parameters(model)
    inputs = count.positions + (0 if model.vision is not None else count.embedding)
    tied_head = model.vocab_size * model.dim if model.tied_embeddings and not model.vision else 0
    return count.active - inputs + tied_head


def attention_flops_per_token(model: ModelSpec, seq_len: int) -> float:
    """Forward FLOPs of scores and values per token."""
    if model.mla is not None:
        widths = model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim
    else:
        widths = 2 * model.head_dim
    full = 2.0 * model.num_heads * widths * seq_len
    own = model.num_layers * full * (0.5 if model.causal else 1.0)
    encoder_and_cross = full * (
        model.num_encoder_layers + bool(model.num_encoder_layers) * model.num_layers
    )
    return own + encoder_and_cross


def model_flops_per_token(model: ModelSpec, seq_len: int) -> float:
    """Forward and backward FLOPs of one token in a sequence of `seq_len`."""
    return 6.0 * matmul_parameters(model) + 3.0 * attention_flops_per_token(model, seq_len)


def tokens_per_step(train: TrainSpec) -> int:
    """Tokens that one optimizer step consumes on the whole cluster."""
    return train.global_batch * train.seq_len

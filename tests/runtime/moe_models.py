"""Tiny mixtures of experts of every kind that the runtime has."""

from dataclasses import replace
from typing import Any

from tests.runtime.plans import LLAMA

from parctl.recipes.spec import ModelSpec, MoeSpec

MIXTRAL = MoeSpec(
    num_experts=4,
    top_k=2,
    expert_ffn_dim=24,
    num_shared_experts=0,
    num_dense_layers=0,
    layer_period=1,
    capacity_factor=None,
    aux_loss=0.02,
    z_loss=0.001,
    router="softmax",
    weight_scale=1.0,
    bias_rate=0.001,
    num_groups=1,
    top_k_groups=1,
)


def moe_model(**changes: Any) -> ModelSpec:
    """A Mixtral of two layers, with changes to its experts."""
    return replace(LLAMA, name="test-moe", family="moe", moe=replace(MIXTRAL, **changes))


MODELS = {
    "mixtral": moe_model(),
    "switch": replace(
        moe_model(top_k=1, capacity_factor=1.0, layer_period=2), activation="relu", num_layers=4
    ),
    "capacity of two choices": moe_model(capacity_factor=0.75),
    "deepseek": moe_model(
        num_experts=8,
        top_k=3,
        expert_ffn_dim=12,
        num_shared_experts=2,
        num_dense_layers=1,
        router="sigmoid",
        weight_scale=2.5,
        bias_rate=0.01,
        num_groups=4,
        top_k_groups=2,
    ),
}

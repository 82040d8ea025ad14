"""Memory of jobs that make tokens: by hand, and against the engine's own tensors."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from parctl.cli.inference_view import inference_lines
from parctl.errors import DoesNotFitError
from parctl.planner.cluster import cluster_for
from parctl.planner.degrees import Degrees
from parctl.planner.fit import refuse_misfit
from parctl.planner.inference import InferenceMemory, estimate_inference_memory, kv_bytes_per_token
from parctl.planner.inference_estimate import inference_traffic
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.recipes.presets import model_preset
from parctl.recipes.spec import Recipe
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.place import Place
from parctl.runtime.inference.stage import build_stage

H100 = 85_520_809_984  # bytes that NVML shows


def recipe(tmp_path: Path, model: str, overrides: Sequence[str] = ()) -> Recipe:
    file = tmp_path / "serve.yaml"
    file.write_text(f"version: 1\ntask: serve\nmodel: {model}\nparallelism: DP1\n")
    return load_recipe(str(file), overrides)


def memory(given: Recipe, *, device_bytes: int | None = H100, **degrees: int) -> InferenceMemory:
    return estimate_inference_memory(
        given, Degrees(**degrees), device_bytes=device_bytes, kind="gpu"
    )


def plan(name: str, cluster: str | None, overrides: Sequence[str] = ()) -> Plan:
    loaded = load_recipe(name, overrides)
    return make_plan(loaded, cluster_for(loaded, cluster))


def test_a_token_takes_keys_and_values_of_the_heads_of_a_rank() -> None:
    llama = model_preset("llama-3-70b")  # 8 KV heads of 128
    assert kv_bytes_per_token(llama, Degrees(), 2) == 2 * 8 * 128 * 2
    assert kv_bytes_per_token(llama, Degrees(tp=8), 2) == 2 * 1 * 128 * 2
    assert kv_bytes_per_token(llama, Degrees(tp=16), 2) == 2 * 1 * 128 * 2  # two share a head


def test_a_token_of_latent_attention_takes_one_row_on_every_rank() -> None:
    deepseek = model_preset("deepseek-v3")  # 512 latent, 64 rotated
    assert kv_bytes_per_token(deepseek, Degrees(tp=8), 2) == (512 + 64) * 2


def test_blocks_fill_what_is_left(tmp_path: Path) -> None:
    """Llama 3 8B on one GPU: weights 8,030,261,248 x 2; a block 16 x 32 x 2 x 8 x 128 x 2."""
    found = memory(recipe(tmp_path, "llama-3-8b"))
    (stage,) = found.stages
    assert stage.weights == 16_060_522_496
    assert stage.block_bytes == 16 * 32 * 4096 == 2_097_152
    usable = int(0.9 * H100)
    rest = usable - stage.weights - stage.activations - stage.logits - stage.buffers
    block = 2_097_152 + 65_536  # and one layer of it, which attention gathers
    assert found.num_blocks == rest // block
    assert stage.total <= usable < stage.total + block
    assert found.num_tokens == 16 * found.num_blocks
    assert found.max_sequences == found.num_blocks // (8192 // 16)


def test_the_fullest_stage_decides_for_all(tmp_path: Path) -> None:
    given = recipe(tmp_path, "llama-3-8b")
    alone, split = memory(given), memory(given, pp=2)
    assert split.num_blocks > 2 * alone.num_blocks  # half of the weights, half of a block
    assert max(stage.total for stage in split.stages) <= int(0.9 * H100)
    assert [stage.layers for stage in split.stages] == [17, 15]
    assert {stage.block_bytes // stage.layers for stage in split.stages} == {65_536}


def test_replicas_change_nothing_and_context_ranks_hold_their_part(tmp_path: Path) -> None:
    given = recipe(tmp_path, "llama-3-8b", ["inference.chunk=64"])
    assert memory(given, dp=4) == memory(given)
    found = memory(given, cp=4)
    assert found.tokens_per_block == 64
    assert found.max_sequences == pytest.approx(4 * memory(given).max_sequences, rel=0.02)


def test_where_all_layers_slide_a_sequence_keeps_a_window_and_a_chunk(tmp_path: Path) -> None:
    plain = recipe(tmp_path, "llama-3-8b", ["inference.chunk=512"])
    window = "model={preset: llama-3-8b, sliding_window: 1024}"
    slides = memory(recipe(tmp_path, "llama-3-8b", ["inference.chunk=512", window]))
    # 1023 tokens before a chunk of 512, in blocks of 16: 96, and one more where they begin inside
    assert slides.needed_blocks == 97
    assert slides.num_blocks == memory(plain).num_blocks
    assert slides.max_sequences == slides.num_blocks // 97
    some = "model={preset: llama-3-8b, sliding_window: 1024, sliding_layers: [0, 1]}"
    found = memory(recipe(tmp_path, "llama-3-8b", ["inference.chunk=512", some]))
    assert found.needed_blocks == 8192 // 16  # the other layers see everything


def test_a_given_number_of_blocks_is_kept(tmp_path: Path) -> None:
    found = memory(recipe(tmp_path, "llama-3-8b", ["inference.kv_blocks=600"]))
    assert (found.num_blocks, found.max_sequences) == (600, 1)
    assert found.fits


def test_without_known_memory_there_are_blocks_for_all_sequences(tmp_path: Path) -> None:
    found = memory(recipe(tmp_path, "llama-3-8b"), device_bytes=None)
    assert found.fits is None
    assert found.num_blocks == 64 * (8192 // 16)


def test_weights_without_room_for_one_sequence_do_not_fit() -> None:
    misfit = plan("llama-405b-serve", "h100:1x8", ["parallelism=TP8"])
    assert misfit.memory["fits"] is False
    with pytest.raises(DoesNotFitError) as caught:
        refuse_misfit(misfit)
    assert caught.value.hint is not None
    assert "`TP8+PP2` on 16 such devices fits" in caught.value.hint
    replicas = plan("llama-70b-serve", "h100:1x8", ["parallelism=DP8"])
    with pytest.raises(DoesNotFitError) as caught:
        refuse_misfit(replicas)
    assert caught.value.hint is not None
    assert "`--set parallelism=DP4+TP2` fits" in caught.value.hint


def test_tp_is_the_smallest_at_which_a_sequence_fits() -> None:
    assert plan("llama-70b-serve", "h100:2x8", ["parallelism=DP+TP"]).layout.axes == {
        "dp": 8,
        "tp": 2,
    }
    longer = ["parallelism=DP+TP", "inference.max_context=8192", "inference.precision=fp32"]
    assert plan("llama-70b-serve", "h100:2x8", longer).layout.axes == {"dp": 4, "tp": 4}


@pytest.mark.parametrize(
    ("name", "cluster", "axes"),
    [
        ("tiny-llama-generate", "h100:1x4", {"dp": 4}),
        ("llama-70b-serve", "h100:2x8", {"dp": 8, "tp": 2}),
        ("llama-405b-serve", "h100:2x8", {"pp": 2, "dp": 1, "tp": 8}),
    ],
)
def test_auto_takes_as_many_replicas_as_fit(name: str, cluster: str, axes: dict[str, int]) -> None:
    assert dict(plan(name, cluster, ["parallelism=auto"]).layout.axes) == axes


def test_the_plan_says_what_the_engine_is_to_have() -> None:
    made = plan("llama-70b-serve", "h100:1x8")
    assert made.memory["max_sequences"] == made.memory["num_blocks"] // 512
    assert made.stages == (tuple(range(80)),)
    assert made.memory["stages"][0]["block_bytes"] == 80 * 16 * 512
    # 4 (n-1)/n e T h a layer: 4 x 7/8 x 2 x 2048 x 8192 x 80
    assert made.time["bytes_per_step"] == {"tp": 9_395_240_960.0}


def test_times_are_of_the_recipes_own_numbers() -> None:
    made = plan("long-context-prefill", "h100:16x8")
    times = made.time["inference"]
    assert (times["prompt_tokens"], times["output_tokens"]) == (786_432, 256)
    assert times["full"]["sequences"] == 4 < made.memory["max_sequences"]
    (context, _, full) = inference_lines(made)
    assert "65 sequences of 1,048,576, of which `inference.max_sequences` lets 4 in" in context
    assert full.startswith("With 4 such at once, 256 tokens out: ")
    served = plan("llama-70b-serve", "h100:1x8").time["inference"]  # clients say how many
    assert (served["prompt_tokens"], served["output_tokens"]) == (6144, 2048)


def test_traffic_is_said_for_every_axis(tmp_path: Path) -> None:
    """500 tokens on a cp rank, 16 of 32 layers in a stage, 4 of 8 KV heads on a tp rank."""
    given = recipe(tmp_path, "mixtral-8x7b", ["inference.chunk=1000"])
    sent = inference_traffic(given, Degrees(tp=2, pp=2, cp=2, dp=2))
    hidden = 2 * 500 * 4096
    assert sent == {
        "tp": 4 * 0.5 * hidden * 16,
        "cp": 1 * 500 * 2 * 4 * 128 * 2 * 16,
        "pp": hidden,
        "dp": 0.0,
    }


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("tiny-llama", []),
        ("tiny-gpt", []),
        ("tiny-moe", []),
        (
            "tiny-llama",
            [
                "model.mla={q_lora_rank: 24, kv_lora_rank: 16, qk_nope_head_dim: 8, "
                "qk_rope_head_dim: 8, v_head_dim: 8}"
            ],
        ),
    ],
    ids=str,
)
def test_the_engine_holds_what_the_plan_says(
    tmp_path: Path, model: str, changes: list[str]
) -> None:
    """Parameters and blocks, byte for byte; the engine has one block more, for padding."""
    given = recipe(tmp_path, model, ["inference.precision=fp32", *changes])
    assert given.model is not None and given.inference is not None
    found = memory(given, device_bytes=None)
    config = EngineConfig(num_blocks=10, block_size=given.inference.block_size)
    stage = build_stage(
        given.model,
        given.parallelism,
        config,
        Place(device=torch.device("cpu")),
        None,
        range(given.model.num_layers),
        torch.float32,
    )
    own = {id(tensor): tensor for tensor in stage.model.parameters()}.values()
    assert sum(tensor.nbytes for tensor in own) == found.stages[0].weights
    assert stage.cache.num_bytes == 11 * found.stages[0].block_bytes

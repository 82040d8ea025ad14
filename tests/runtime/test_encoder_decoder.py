"""An encoder and its decoder (T5, Switch): positions, pairs, and every form beside one process.

That a forward pass is that of `transformers` is shown in `test_huggingface`.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.moe_models import MIXTRAL
from tests.runtime.plans import LLAMA, TRAIN, plan

from parctl.errors import UsageError
from parctl.planner.plan import Plan
from parctl.runtime.data.pairs import PairBatches
from parctl.runtime.data.tokens import TokenStream
from parctl.runtime.model.relative import RelativeBias, buckets
from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world

T5 = replace(
    LLAMA,
    name="test-t5",
    family="t5",
    num_layers=2,
    num_encoder_layers=2,
    num_kv_heads=4,
    activation="relu",
    positions="relative",
    tied_embeddings=True,
)
SWITCH = replace(
    T5, moe=replace(MIXTRAL, top_k=1, capacity_factor=1.0, layer_period=2, expert_ffn_dim=48)
)


def test_buckets_are_those_of_the_paper(tmp_path: Path) -> None:
    assert run_ranks(find_buckets, 1, tmp_path) == [
        (
            # 16 near ones; then 16 + 16 log(d / 16) / log 8, of 20: 17.7, of 64: 26.7, of 127: 31.9
            [0, 0, 1, 15, 16, 17, 26, 31, 31],
            # 8 near ones, then 8 + 8 log(d / 8) / log 16, of 20: 10.6; 16 more for keys ahead
            [0, 1, 7, 8, 10, 15, 17, 24, 31],
        )
    ]


def find_buckets() -> tuple[list[int], list[int]]:
    back = torch.tensor([5, 0, -1, -15, -16, -20, -64, -127, -999])
    both = torch.tensor([0, -1, -7, -8, -20, -999, 1, 8, 999])
    return buckets(back, causal=True).tolist(), buckets(both, causal=False).tolist()


def test_a_decoder_adds_its_table_to_what_lies_behind_and_sees_nothing_ahead(
    tmp_path: Path,
) -> None:
    (bias,) = run_ranks(find_bias, 1, tmp_path)
    no = -math.inf
    assert bias == [[[0.0, no, no], [1.0, 0.0, no], [2.0, 1.0, 0.0]]]


def find_bias() -> Any:
    module = RelativeBias(replace(T5, num_heads=1), causal=True)
    with torch.no_grad():
        module.weight.copy_(torch.arange(32.0).unsqueeze(1))
        return module(3)[0].tolist()


def test_the_encoder_reads_a_stretch_and_the_decoder_goes_on(tmp_path: Path) -> None:
    made = plan("", {}, model=T5, train={"seq_len": 4, "global_batch": 1, "micro_batch": 1})
    ((source, tokens, targets, num_pairs),) = run_ranks(first_pair, 1, tmp_path, made)
    assert source == [[10, 11, 12, 13]]
    assert tokens == [[0, 14, 15, 16]]
    assert targets == [[14, 15, 16, 17]]
    assert num_pairs == 2  # 8 tokens each, of 20


def first_pair(made: Plan) -> tuple[Any, Any, Any, int]:
    batches = make_pairs(made, 20)
    (batch,) = batches.validation(0)
    assert batch.source is not None
    return (
        batch.source.tolist(),
        batch.tokens.tolist(),
        batch.targets.tolist(),
        batches.num_sequences,
    )


def make_pairs(made: Plan, num_tokens: int) -> PairBatches:
    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    assert made.recipe.train
    tokens = np.arange(10, 10 + num_tokens, dtype="<u2")
    stream = TokenStream([Path("by hand")], [tokens], vocab_size=256)
    return PairBatches(stream, made.recipe.train, mesh, what="train")


def test_text_that_is_too_short_for_a_pair_is_refused(tmp_path: Path) -> None:
    made = plan("", {}, model=T5, train={"seq_len": 16})
    (said,) = run_ranks(refusal, 1, tmp_path, made)
    assert said.startswith("data.train holds 31 tokens, but a pair for encoder and decoder takes")
    assert said.endswith("2 x train.seq_len = 32")


def refusal(made: Plan) -> str:
    with pytest.raises(UsageError) as caught:
        make_pairs(made, 31)
    return caught.value.message


FORMS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "dp2 x tp2 x ep2": ({"dp": 2, "tp": 2}, {"spec": {"ep": 2}}),
    "fsdp2 x tp2+sp x ep2, selective": (
        {"fsdp": 2, "tp": 2},
        {"sp": True, "spec": {"ep": 2}, "train": {"recompute": "selective"}},
    ),
    "zero1 x tp2, partitioned": (
        {"fsdp": 2, "tp": 2},
        {"zero_stage": 1, "train": {"recompute": "partitioned"}},
    ),
}


@pytest.fixture(scope="module")
def one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Metrics of one process, whose micro-batch is that of both data ranks."""
    assert TRAIN.micro_batch == 2
    alone = plan(text, {}, model=SWITCH, train={"micro_batch": 4})
    return train_to_end(alone, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("form", FORMS)
def test_a_switch_transformer_trains_as_in_one_process(
    form: str, text: Path, tmp_path: Path, one_process: list[dict[str, Any]]
) -> None:
    axes, options = FORMS[form]
    expected = one_process
    metrics = train_to_end(plan(text, axes, model=SWITCH, **options), tmp_path)
    assert len(metrics) == len(expected) == 4
    for ours, reference in zip(metrics, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-10), (ours["step"], key)
        for key in ("expert_load", "expert_dropped"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-6), (ours["step"], key)
    assert expected[0]["expert_dropped"] > 0
    assert expected[-1]["loss"] < expected[0]["loss"]

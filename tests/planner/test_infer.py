"""The rules that find degrees, case by case."""

import pytest

from parctl.errors import CannotPlaceError, ParctlError, UsageError
from parctl.planner.devices import survey
from parctl.planner.infer import resolve_degrees
from parctl.planner.resolution import Resolution
from parctl.recipes.loader import load_recipe
from parctl.topology.placement import largest_tp
from parctl.topology.synthetic import parse_cluster


def resolve(line: str, cluster: str, *overrides: str) -> Resolution:
    recipe = load_recipe(line, overrides)
    spec, topology = recipe.parallelism, parse_cluster(cluster)
    most = largest_tp(
        topology,
        allow_pcie_tp=spec.allow_pcie_tp,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        strict_node=spec.strict_node,
    )
    return resolve_degrees(recipe, survey(topology, strict_node=spec.strict_node), largest_tp=most)


@pytest.mark.parametrize(
    ("line", "cluster", "axes"),
    [
        # nothing fits one device before sharding: tp as large as one NVLink mesh
        ("llama-3-70b: TP+SP+FSDP", "h100:16x8", {"fsdp": 16, "tp": 8}),
        # 64 GB of state at tp 2 fits 77 GB
        ("llama-3-8b: TP+FSDP", "h100:2x8", {"fsdp": 8, "tp": 2}),
        # 128 GB at tp 1 would fit a B300, but a named axis splits at least in two
        ("llama-3-8b: TP+FSDP", "b300:2x8", {"fsdp": 8, "tp": 2}),
        # a rack-scale domain counts as one mesh of 72; the 8 KV heads and 72 allow tp 8
        ("llama-3-70b: TP+FSDP", "gb200:1x18x4", {"fsdp": 9, "tp": 8}),
        ("llama-3-8b: TP", "h100:1x8", {"tp": 8}),
        ("llama-3-8b: TP+PP", "h100:1x8", {"pp": 2, "tp": 4}),
        ("llama-3-8b: TP+SP+PP+FSDP", "h100:4x8", {"pp": 2, "fsdp": 8, "tp": 2}),
        ("llama-3-8b: PP+DP4", "h100:1x8", {"pp": 2, "dp": 4}),
        ("llama-3-8b: TP4+DP", "h100:2x8", {"dp": 4, "tp": 4}),
        ("llama-3-8b: FSDP4+DP", "h100:1x8", {"dp": 2, "fsdp": 4}),
        ("llama-3-8b: HSDP", "h100:8x8", {"dp": 8, "fsdp": 8}),
        ("llama-3-8b: DP", "h100:1x1", {"dp": 1}),
        ("llama-3-8b: TP1", "h100:1x8", {"dp": 1}),
        ("tiny-llama: TP+SP+FSDP", "cpu:1x4", {"fsdp": 2, "tp": 2}),
    ],
)
def test_degrees_left_out_are_inferred(line: str, cluster: str, axes: dict[str, int]) -> None:
    assert dict(resolve(line, cluster, "train.global_batch=4608").axes) == axes


def test_context_parallelism_grows_until_the_sequence_fits() -> None:
    found = resolve("llama-3-8b: CP+FSDP", "h100:2x8", "train.seq_len=131072")
    assert (found.degrees.cp, found.degrees.fsdp) == (8, 2)
    assert found.explain[0] == "cp = 8: the smallest power of two from 2 on at which the job fits"


def test_context_comes_before_the_pipeline() -> None:
    found = resolve("llama-3.1-405b: TP+SP+PP+CP+FSDP", "h100:256x8", "train.global_batch=2048")
    assert (found.degrees.tp, found.degrees.cp, found.degrees.pp) == (8, 2, 2)
    assert found.degrees.world_size == 2048


def test_experts_stay_inside_the_nvlink_domain_when_they_fit_there() -> None:
    found = resolve("mixtral-8x7b: FSDP+EP", "h100:8x8")
    assert (found.degrees.fsdp, found.degrees.ep) == (64, 8)
    assert "inside one NVLink mesh or node of 8" in found.explain[-1]


def test_experts_cross_nodes_when_tensor_ranks_fill_the_domain() -> None:
    found = resolve("mixtral-8x7b: DP+TP8+EP", "h100:8x8")
    assert (found.degrees.dp, found.degrees.ep) == (8, 8)
    assert found.explain[-1] == "ep = 8: the largest divisor of 8 experts and 8 data ranks"


def test_nodes_that_tensor_groups_do_not_fill_are_not_counted() -> None:
    # 6 GPUs of the first node hold no group of 4 more than once
    found = resolve("llama-3-8b: TP4+FSDP", "h100:1x6+h100:2x8", "train.global_batch=510")
    assert found.degrees.fsdp == 1 + 2 + 2


def test_every_inferred_degree_has_its_sentence() -> None:
    found = resolve("llama-3-70b: TP+SP+FSDP", "h100:16x8")
    assert found.explain == (
        "tp = 8: the largest that the hard rule (8) and the heads allow; the training state, "
        "141 GB per rank before the data axes share it, does not fit 77.0 GB at any degree",
        "fsdp = 16: takes the rest of 128 GPUs / tp(8)",
    )


def test_resolved_degrees_are_in_the_recipe() -> None:
    spec = resolve("llama-3-70b: TP+SP+FSDP", "h100:16x8").recipe.parallelism
    assert (spec.tp, spec.fsdp, spec.pp, spec.text) == (8, 16, 1, "TP+SP+FSDP")


@pytest.mark.parametrize(
    ("line", "cluster", "axes", "chosen"),
    [
        ("gpt-2: auto", "h100:1x8", {"dp": 8}, "auto: DP:"),
        ("llama-3-8b: auto", "h100:8x8", {"fsdp": 64}, "auto: FSDP:"),
        ("llama-3-70b: auto", "h100:16x8", {"fsdp": 16, "tp": 8}, "auto: TP+FSDP:"),
        ("mixtral-8x7b: auto", "h100:8x8", {"fsdp": 64}, "auto: FSDP+EP:"),
        ("llama-3-8b: auto", "l40s:2x8", {"pp": 2, "fsdp": 8}, "auto: PP+FSDP:"),
    ],
)
def test_auto_takes_the_first_form_that_fits(
    line: str, cluster: str, axes: dict[str, int], chosen: str
) -> None:
    found = resolve(line, cluster)
    assert dict(found.axes) == axes
    assert any(sentence.startswith(chosen) for sentence in found.explain)
    assert not found.recipe.parallelism.auto


def refusal(line: str, cluster: str, *overrides: str) -> ParctlError:
    with pytest.raises(ParctlError) as caught:
        resolve(line, cluster, *overrides)
    return caught.value


def test_too_few_devices_are_refused_with_the_arithmetic() -> None:
    error = refusal("llama-3-70b: DP4+TP8+PP2", "h100:6x8")
    assert isinstance(error, CannotPlaceError)
    assert error.message == "pp(2) x dp(4) x tp(8) = 64, cluster has 48 GPUs"


def test_tensor_parallelism_needs_two_devices() -> None:
    error = refusal("llama-3-8b: TP+FSDP", "h100:1x1")
    assert isinstance(error, CannotPlaceError)
    assert "one full mesh holds 1" in error.message


def test_a_batch_that_the_rest_does_not_divide_is_refused() -> None:
    error = refusal("llama-3-70b: FSDP", "h100:12x8", "train.global_batch=512")
    assert isinstance(error, UsageError)
    assert error.message == (
        "<line>: train.global_batch = 512, expected a multiple of fsdp(96) = 96"
    )


def test_a_sequence_that_context_ranks_do_not_divide_is_refused() -> None:
    error = refusal("llama-3-8b: CP+FSDP", "h100:1x8", "train.seq_len=1026")
    assert isinstance(error, CannotPlaceError)
    assert error.message == (
        "cp: train.seq_len = 1026 does not divide into 2 x cp(2) x tp(1) = 4 parts"
    )


def test_pipeline_stages_need_layers_and_ranks() -> None:
    error = refusal("llama-3-8b: TP8+PP+FSDP", "h100:1x8")
    assert isinstance(error, CannotPlaceError)
    assert error.message.startswith("pp needs 2 or more stages, and llama-3-8b")


def test_sequence_parallel_ranks_get_as_many_tokens_each() -> None:
    # 96 heads divide by 6, 2,048 tokens do not
    assert resolve("gpt-3-175b: TP+SP+PP+FSDP", "h100:6x6").degrees.tp == 2
    assert resolve("gpt-3-175b: TP+PP+FSDP", "h100:6x6").degrees.tp == 6

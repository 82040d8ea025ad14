"""Whole plans: shipped recipes on sensible clusters, refusals, and cost."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from parctl.errors import CannotPlaceError, UsageError
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def plan(line: str, cluster: str, *overrides: str) -> Plan:
    return make_plan(load_recipe(line, overrides), parse_cluster(cluster))


SHIPPED = [
    ("tiny-llama", "cpu:1x4", {"fsdp": 2, "tp": 2}),
    ("tiny-gpt", "cpu:1x8", {"pp": 2, "dp": 2, "tp": 2}),
    ("tiny-moe", "cpu:1x4", {"dp": 2, "tp": 2}),
    ("llama-70b", "h100:16x8", {"fsdp": 16, "tp": 8}),
    ("gpt3-175b", "h100:128x8", {"pp": 8, "dp": 16, "tp": 8}),
    ("mixtral-8x7b", "h100:8x8", {"dp": 16, "tp": 4}),
    ("llama-405b", "h100:2048x8", {"pp": 16, "fsdp": 8, "cp": 16, "tp": 8}),
    ("deepseek-v3", "h100:128x8", {"pp": 8, "dp": 64, "tp": 2}),
    ("llama-3-8b-1m", "h100:16x8", {"fsdp": 2, "cp": 8, "tp": 8}),
]


@pytest.mark.parametrize(("name", "cluster", "axes"), SHIPPED, ids=[row[0] for row in SHIPPED])
def test_a_shipped_recipe_is_planned_and_fits(
    name: str, cluster: str, axes: dict[str, int]
) -> None:
    made = plan(name, cluster)
    assert dict(made.layout.axes) == axes
    is_cpu = cluster.startswith("cpu")  # of unknown memory
    assert made.memory["fits"] is (None if is_cpu else True)
    tensor = next(proof for proof in made.layout.proofs if proof.axis == "tp")
    assert tensor.scope == "node"
    assert tensor.worst_link == ("host" if is_cpu else "nvlink")


def test_gpt3_keeps_tensor_groups_in_a_node_and_crosses_with_the_rest() -> None:
    made = plan("gpt3-175b", "h100:128x8")
    links = {
        proof.axis: (proof.worst_link, proof.nodes_per_group > 1) for proof in made.layout.proofs
    }
    assert links == {
        "pp": ("network", True),
        "dp": ("network", True),
        "tp": ("nvlink", False),
    }
    assert [len(stage) for stage in made.stages] == [12] * 8


def test_a_line_gives_the_plan_of_the_shipped_recipe() -> None:
    line, shipped = plan("LLaMA-70B: TP+SP+FSDP", "h100:16x8"), plan("llama-70b", "h100:16x8")
    assert line.recipe.source != shipped.recipe.source
    assert line.hash == shipped.hash
    assert line.layout == shipped.layout


def test_pcie_only_devices_are_refused_for_an_inferred_tensor_degree() -> None:
    with pytest.raises(CannotPlaceError, match=r"tp\(8\) needs NVLink") as caught:
        plan("llama-70b", "l40s:16x8")
    assert "parallelism.allow_pcie_tp: true" in str(caught.value.hint)


def test_a_tensor_group_larger_than_the_mesh_needs_a_rack_scale_domain() -> None:
    with pytest.raises(CannotPlaceError, match=r"tp\(16\) > 8 GPUs per NVLink domain"):
        plan("llama-70b", "h100:16x8", "parallelism=TP16+FSDP8")
    made = plan("llama-70b", "gb200:2x18x4", "parallelism=TP16+FSDP8")
    tensor = next(proof for proof in made.layout.proofs if proof.axis == "tp")
    assert (tensor.worst_link, tensor.scope) == ("nvlink", "domain")


def test_uneven_nodes_are_used_as_far_as_they_go() -> None:
    made = plan("llama-3-8b: TP4+FSDP", "h100:1x6+h100:2x8", "train.global_batch=510")
    assert dict(made.layout.axes) == {"fsdp": 5, "tp": 4}


def test_a_small_device_that_no_rank_sits_on_does_not_decide_whether_it_fits() -> None:
    recipe = load_recipe("llama-70b")
    mixed = make_plan(recipe, parse_cluster("h100:16x8+l40s:1x4"))
    alone = make_plan(recipe, parse_cluster("h100:16x8"))
    assert mixed.layout.axes == {"fsdp": 16, "tp": 8}
    assert mixed.memory == alone.memory
    assert mixed.memory["fits"] is True
    assert mixed.time["peak_flops_per_device"] == alone.time["peak_flops_per_device"]


def test_the_same_input_gives_the_same_plan() -> None:
    assert plan("llama-70b", "h100:16x8") == plan("llama-70b", "h100:16x8")


def test_the_time_section_holds_what_the_runtime_divides_by() -> None:
    made = plan("llama-70b", "h100:16x8")
    assert made.time["tokens_per_step"] == 512 * 8192
    assert made.time["micro_batches_per_step"] == 32
    assert made.time["peak_flops_per_device"] == 989e12
    assert made.time["model_flops_per_token"] == pytest.approx(449e9, rel=1e-3)
    assert set(made.time["bytes_per_step"]) == {"fsdp", "tp"}


def test_a_cpu_has_no_peak() -> None:
    assert plan("tiny-llama", "cpu:1x4").time["peak_flops_per_device"] is None


@pytest.fixture
def script(tmp_path: Path) -> str:
    recipe = tmp_path / "script.yaml"
    recipe.write_text(
        "version: 1\nname: mine\ntask: script\nscript: {command: [python, mine.py]}\n"
    )
    return str(recipe)


@pytest.mark.parametrize(
    ("form", "axes"),
    [
        ("TP4+DP", {"dp": 4, "tp": 4}),
        ("TP", {"tp": 8}),
        ("TP4+PP", {"pp": 4, "tp": 4}),
        ("HSDP", {"dp": 2, "fsdp": 8}),
    ],
)
def test_a_program_of_the_user_is_placed_without_a_model(
    script: str, form: str, axes: dict[str, int]
) -> None:
    made = plan(script, "h100:2x8", f"parallelism={form}")
    assert dict(made.layout.axes) == axes
    assert made.layout.ranks == tuple(range(made.layout.world_size))
    assert made.memory["fits"] is None
    assert made.stages == ()


def test_two_open_axes_of_a_program_are_refused(script: str) -> None:
    with pytest.raises(UsageError, match="without a model nothing says how large tp should be"):
        plan(script, "h100:2x8", "parallelism=TP+DP")


def test_operator_groups_stay_inside_a_node() -> None:
    made = plan("llama-3-8b: OP2+TP2+DP", "h100:2x8", "model.parallel_blocks=true")
    assert made.layout.axes == {"dp": 4, "operator": 2, "tp": 2}
    (proof,) = [proof for proof in made.layout.proofs if proof.axis == "operator"]
    assert (proof.size, proof.scope, proof.nodes_per_group) == (2, "node", 1)


@pytest.mark.parametrize(("cluster", "named"), [("a100:1x8", "a100"), ("cpu:1x8", "CPUs")])
def test_fp8_is_refused_where_no_device_multiplies_it(cluster: str, named: str) -> None:
    with pytest.raises(CannotPlaceError, match=f"precision = fp8, and {named}"):
        plan("tiny-llama: DP", cluster, "train.precision=fp8")
    assert plan("tiny-llama: DP", "h100:1x8", "train.precision=fp8").layout.world_size == 8


def test_whole_gradients_wait_for_the_last_micro_batch_where_they_fit() -> None:
    made = plan("llama-3-70b: TP+SP+FSDP", "h100:16x8")
    assert made.recipe.parallelism.grad_sync == "last"
    assert "grad_sync = last: whole gradients of 32 micro-batches fit" in made.layout.explain
    tight = plan("llama-3-70b: FSDP", "h100:16x8")  # 282 GB of gradients
    assert tight.recipe.parallelism.grad_sync == "each"


def test_cpu_devices_are_as_many_as_the_degrees_ask_for() -> None:
    recipe = load_recipe("tiny-llama: TP2+SP+FSDP2")
    topology = cluster_for(recipe, None)
    if topology.nodes[0].hardware.kind != "cpu":
        pytest.skip("this machine has GPUs, which are not made up")
    assert topology.num_devices == 4
    assert cluster_for(recipe, None, 6).num_devices == 6
    said = "a degree that is left open"
    assert not any(said in warning for warning in topology.warnings)
    # an open degree takes what there is, and that is said
    cores = cluster_for(load_recipe("tiny-llama: FSDP"), None)
    assert cores.warnings[-1].startswith(
        f"this machine has no GPU: a degree that is left open shares its {cores.num_devices} CPU"
    )
    assert make_plan(recipe, topology).layout.world_size == 4


def test_a_hundred_thousand_gpus_are_planned_in_about_two_cpu_seconds() -> None:
    started = time.process_time()
    made = plan("LLaMA-70B: TP+SP+FSDP", "h100:12500x8", "train.global_batch=12500")
    assert made.layout.world_size == 100_000
    assert made.hash.startswith("sha256:")
    assert time.process_time() - started < 5  # 1 on a free core


def test_planning_loads_no_torch_ray_or_kubernetes() -> None:
    script = (
        "import sys; from parctl.cli.main import run; "
        "code = run(['plan', 'llama-70b', '--cluster', 'h100:16x8']); "
        "print([name for name in ('torch', 'ray', 'kubernetes') if name in sys.modules], code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[] 0"

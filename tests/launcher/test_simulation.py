"""A simulated launch: the same manifests as a real one, thousands of nodes in seconds."""

import time

import pytest

from parctl.errors import CannotPlaceError, UsageError
from parctl.launcher.local_manifest import local_document
from parctl.launcher.rendered import Rendered, pods_of, render_on
from parctl.launcher.simulation import read_failure, saved_bytes, simulate
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import count_parameters
from parctl.topology.synthetic import parse_cluster


def rendered(line: str, cluster: str, backend: str, *overrides: str) -> Rendered:
    recipe, topology = load_recipe(line, list(overrides)), parse_cluster(cluster)
    return simulate(recipe, topology, backend=backend).rendered[0]


def test_ten_thousand_gpus_take_seconds() -> None:
    recipe = load_recipe(
        "llama-70b: TP8+SP+FSDP", ["train.global_batch=9984", "placement.spares=2"]
    )
    topology = parse_cluster("h100:1250x8")
    began = time.process_time()
    found = simulate(recipe, topology, fail_node=("node-17", 1000), mtbf_hours=6000)

    assert time.process_time() - began < 15
    assert (found.plan.layout.world_size, found.plan.layout.num_nodes) == (9984, 1248)
    kubernetes = next(each for each in found.rendered if each.backend == "kubernetes")
    assert kubernetes.refusal is None and kubernetes.pods == 1248
    assert kubernetes.num_bytes < 1_000_000 and not kubernetes.too_large
    assert found.loss is not None and found.loss.outcome == "same degrees"
    assert found.saving is not None and found.saving.best_goodput > 0.9


def test_a_local_run_is_rendered_as_a_launch_would() -> None:
    recipe, topology = load_recipe("tiny-llama: TP2+FSDP2"), parse_cluster("cpu:1x4")
    plan = make_plan(recipe, topology)
    each = render_on("local", plan, topology)

    assert each.objects == {"LocalRun": 1} and each.refusal is None
    assert each.num_bytes > len(str(local_document(plan, "simulated-000000")["ranks"])) / 2


def test_what_a_back_end_refuses_is_told_in_its_words() -> None:
    each = rendered("llama-70b: TP8+SP+FSDP", "h100:4x8", "local")

    assert each.refusal == "the plan uses 4 nodes, and a local run has one"
    assert (each.num_bytes, each.objects) == (0, {})


def test_what_a_recipe_leaves_open_is_asked_and_supplied() -> None:
    each = rendered("llama-70b: TP8+SP+FSDP", "h100:4x8", "kubernetes")

    assert each.refusal is None and each.pods == 4
    assert any("checkpoint.dir is not set" in sentence for sentence in each.asks)
    assert any("launch.image is not set" in sentence for sentence in each.asks)
    ray = rendered("llama-70b: TP8+SP+FSDP", "h100:4x8", "ray")
    assert ray.refusal is None and ray.package_bytes > 100_000  # parctl itself is sent along
    told = rendered(
        "llama-70b: TP8+SP+FSDP",
        "h100:4x8",
        "kubernetes",
        "checkpoint.dir=s3://bucket/run",
        "launch.image=example/torch",
    )
    assert told.asks == () and told.refusal is None


@pytest.mark.parametrize(
    ("document", "pods"),
    [
        ({"kind": "ConfigMap"}, 0),
        ({"kind": "Pod", "spec": {}}, 1),
        ({"kind": "Job", "spec": {"parallelism": 5}}, 5),
        (
            {
                "kind": "JobSet",
                "spec": {
                    "replicatedJobs": [
                        {"replicas": 3, "template": {"spec": {"parallelism": 4}}},
                        {"template": {"spec": {}}},
                    ]
                },
            },
            13,
        ),
        (
            {
                "kind": "LeaderWorkerSet",
                "spec": {"replicas": 2, "leaderWorkerTemplate": {"size": 8}},
            },
            16,
        ),
    ],
)
def test_pods_are_counted_by_the_object(document: dict[str, object], pods: int) -> None:
    assert pods_of(document) == pods


def test_a_misfit_is_told_and_still_simulated() -> None:
    found = simulate(load_recipe("llama-70b: DP8"), parse_cluster("h100:1x8"))

    assert found.misfit is not None and found.misfit.exit_code == 3
    assert found.rendered


def test_what_cannot_be_placed_cannot_be_simulated() -> None:
    with pytest.raises(CannotPlaceError):
        simulate(load_recipe("llama-70b: TP8+FSDP4"), parse_cluster("h100:1x8"))


def test_a_save_holds_weights_and_moments_once() -> None:
    recipe = load_recipe("llama-70b: TP8+SP+FSDP")
    plan = make_plan(recipe, parse_cluster("h100:4x8"))

    assert recipe.model is not None
    assert saved_bytes(plan) == count_parameters(recipe.model).total * 12


def test_savings_of_the_recipe_stand_beside_the_best() -> None:
    recipe = load_recipe("llama-70b: TP8+SP+FSDP", ["checkpoint.every=200"])
    found = simulate(
        recipe, parse_cluster("h100:4x8"), mtbf_hours=400, checkpoint_s=60, restart_s=120
    ).saving
    assert found is not None and found.step_time_s is not None
    assert found.failures.mtbf_s == 360_000
    assert found.assumed == ()
    assert found.best_steps == round(found.failures.daly_s / found.step_time_s)
    assert found.recipe_goodput == found.failures.goodput(200 * found.step_time_s)
    assert found.recipe_goodput <= found.best_goodput


@pytest.mark.parametrize(
    ("text", "read"), [("3@1000", ("node-3", 1000)), ("node-2@7", ("node-2", 7))]
)
def test_failures_are_read_by_number_or_name(text: str, read: tuple[str, int]) -> None:
    assert read_failure(text, parse_cluster("h100:4x8")) == read


@pytest.mark.parametrize("text", ["3", "@5", "9@5", "node-1@", "node-1@x", "node-7@5"])
def test_a_failure_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_failure(text, parse_cluster("h100:4x8"))
    assert refused.value.message.startswith(f"--fail-node {text}: ")


def test_a_back_end_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError) as refused:
        rendered("tiny-llama: DP2", "h100:1x2", "nomad")
    assert refused.value.message == "there is no back end `nomad`"


def test_a_job_that_saves_nothing_has_no_goodput() -> None:
    with pytest.raises(UsageError) as refused:
        simulate(load_recipe("llama-70b-serve"), parse_cluster("h100:1x8"), mtbf_hours=100)
    assert "it saves nothing" in refused.value.message

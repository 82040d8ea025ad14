"""What a plan becomes: goldens of every shape, and the claims that no golden can make."""

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launcher.kubernetes.cases import (
    CASES,
    RACKS,
    TARGET,
    cluster,
    manifests,
    plan_of,
    pod_template,
    serve_plan,
)

from parctl.errors import CannotPlaceError, UsageError
from parctl.launcher.kubernetes.patch import merge_patch
from parctl.launcher.kubernetes.payload import pack, read_payload, read_workdir, unpack_workdir
from parctl.launcher.kubernetes.placement import PREFERRED, REQUIRED, topology_request
from parctl.launcher.kubernetes.render import render
from parctl.planner.plan import plan_from_json
from parctl.recipes.kubernetes_spec import Kind, KubernetesSpec
from parctl.recipes.spec import CheckpointSpec, SecretSpec
from parctl.topology.layout import Proof

GOLDENS = Path(__file__).parent / "goldens"
SECRET = SecretSpec(from_env=None, secret="store", key="value")
WRITE = "PARCTL_WRITE_GOLDENS" in os.environ  # here: every test starts without such variables


def workload(case: str) -> Any:
    return manifests(case).documents[-1]


def pod(case: str) -> Any:
    return pod_template(workload(case))["spec"]


@pytest.mark.parametrize("case", CASES)
def test_the_objects_are_those_of_the_golden_file(case: str) -> None:
    """PARCTL_WRITE_GOLDENS=1 writes them anew; the plan itself changes with every field of it."""
    documents = json.loads(json.dumps(manifests(case).documents))
    for document in documents:
        if "binaryData" in document:
            document["binaryData"] = {name: "..." for name in document["binaryData"]}
        annotations = document["metadata"].get("annotations", {})
        if "parctl.dev/plan-hash" in annotations:
            annotations["parctl.dev/plan-hash"] = "sha256:..."
        if document["kind"] == "RayJob":
            document["spec"]["metadata"]["parctl_plan"] = "sha256:..."
    text = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    golden = GOLDENS / f"{case}.yaml"
    if WRITE:
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert json.dumps(manifests("kueue").documents) == json.dumps(manifests("kueue").documents)


def test_every_object_carries_the_run_and_the_usual_labels() -> None:
    for case in CASES:
        for document in manifests(case).documents:
            labels = document["metadata"]["labels"]
            assert labels["parctl.dev/run"] == f"probe-{case}"
            assert labels["app.kubernetes.io/instance"] == f"probe-{case}"
            assert labels["app.kubernetes.io/managed-by"] == "parctl"
            assert labels["parctl.dev/owner"] == "ada"
            assert document["metadata"]["namespace"] == "team-a"


def test_pods_read_the_plan_that_was_rendered(tmp_path: Path) -> None:
    plan, target = CASES["kueue"]
    (config,) = [d for d in render(plan, "a-run", target).documents if d["kind"] == "ConfigMap"]
    for name, data in config["binaryData"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    content = read_payload(tmp_path, "plan.json")
    assert content is not None
    assert plan_from_json(json.loads(content)).hash == plan.hash
    topology = read_payload(tmp_path, "topology.json")
    assert topology is not None and json.loads(topology)["tiers"] == list(RACKS.tiers)


def test_what_does_not_fit_one_object_is_split_over_several(tmp_path: Path) -> None:
    large = os.urandom(2_000_000)  # does not compress
    maps = pack({"a": b"first", "large": large, "b": b"last"})
    assert len(maps) == 4
    for data in maps:
        assert sum(len(base64.b64decode(part)) for part in data.values()) <= 900_000
        for name, part in data.items():
            (tmp_path / name).write_bytes(base64.b64decode(part))
    assert read_payload(tmp_path, "large") == large
    assert read_payload(tmp_path, "b") == b"last"
    assert read_payload(tmp_path, "absent") is None


def test_a_work_folder_travels_without_caches_and_arrives_whole(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "inner" / "__pycache__").mkdir(parents=True)
    (source / "train.py").write_text("print(1)")
    (source / "inner" / "data.txt").write_text("x" * 1000)
    (source / "inner" / "__pycache__" / "junk.pyc").write_text("junk")
    unpack_workdir(read_workdir(source), tmp_path / "there")
    found = sorted(p.relative_to(tmp_path / "there") for p in (tmp_path / "there").rglob("*.*"))
    assert found == [Path("inner/data.txt"), Path("train.py")]


def test_a_work_folder_that_is_too_large_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(os.urandom(1_500_000))
    with pytest.raises(UsageError, match=r"is 1\.4 MiB compressed"):
        read_workdir(tmp_path)


def test_pods_pass_the_restricted_standard_unless_the_recipe_asks_for_more() -> None:
    for case in CASES:
        spec = pod(case)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]
            assert ("add" in security["capabilities"]) == (case == "privileged")
        assert ("hostNetwork" in spec) == (case == "privileged")


def test_memory_is_the_estimate_of_all_ranks_with_shared_memory_counted() -> None:
    stage = {"weights": 10, "optimizer": 20, "parameters": 5}
    plan = plan_of(
        KubernetesSpec(kind="job"),
        kind="cpu",
        memory={"total_bytes": 100 * 2**20, "stages": [stage]},
    )
    spec = render(plan, "a-run", TARGET).documents[-1]["spec"]["template"]["spec"]
    resources = spec["containers"][0]["resources"]
    # 512 of the agent, twice (256 + 100) of ranks, 128 of /dev/shm; the limit doubles all but that
    assert resources["requests"]["memory"] == "1352Mi"
    assert resources["limits"]["memory"] == "2576Mi"
    (shm,) = [v for v in spec["volumes"] if v["name"] == "shared-memory"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Mi"}


def test_auto_is_a_jobset_where_the_cluster_has_it() -> None:
    plan = plan_of()
    assert render(plan, "a-run", TARGET).documents[-1]["kind"] == "JobSet"
    without = replace(TARGET, has_jobset=False)
    assert render(plan, "a-run", without).documents[-1]["kind"] == "Job"


def test_pods_are_kept_apart_where_two_fit_on_a_node() -> None:
    plan = plan_of(KubernetesSpec(kind="job"))  # two ranks per node

    def apart(per_node: int) -> bool:
        target = replace(TARGET, topology=cluster(per_node=per_node))
        spec = render(plan, "a-run", target).documents[-1]["spec"]["template"]["spec"]
        return "podAntiAffinity" in spec["affinity"]

    assert not apart(2)
    assert not apart(3)
    assert apart(4)


def test_the_nearest_tier_that_holds_the_planned_nodes_is_preferred() -> None:
    one_rack = plan_of(nodes=("gpu-1", "gpu-2"))
    two_racks = plan_of(nodes=("gpu-2", "gpu-3"))
    spec = KubernetesSpec()
    assert topology_request(one_rack, spec, RACKS) == {PREFERRED: "example.com/rack"}
    assert topology_request(two_racks, spec, RACKS) == {PREFERRED: "example.com/block"}
    assert topology_request(one_rack, spec, None) == {}
    labels = replace(
        RACKS, nodes=tuple(replace(n, sources={"tiers": "k8s-label"}) for n in RACKS.nodes)
    )
    assert topology_request(one_rack, spec, labels) == {}, "no level of Kueue's"
    named = KubernetesSpec(topology="example.com/spine")
    assert topology_request(one_rack, named, RACKS) == {REQUIRED: "example.com/spine"}


def test_tensor_parallel_groups_over_nodes_require_their_domain() -> None:
    plan = plan_of()
    proof = Proof(
        axis="tp",
        size=4,
        groups=1,
        worst_link="nvlink",
        bandwidth=450.0,
        scope="domain",
        nodes_per_group=2,
        reason="",
    )
    plan = replace(plan, layout=replace(plan.layout, proofs=(proof,)))
    assert topology_request(plan, KubernetesSpec(), RACKS) == {REQUIRED: "example.com/rack"}


def test_node_names_of_an_invented_cluster_bind_no_pod() -> None:
    plan = plan_of(KubernetesSpec(kind="job"), source="synthetic h100:2x2")
    spec = render(plan, "a-run", TARGET).documents[-1]["spec"]["template"]["spec"]
    assert "nodeAffinity" not in spec["affinity"]


def test_the_value_of_a_secret_is_never_asked_for() -> None:
    plan = plan_of(secrets={"TOKEN": SecretSpec(from_env="TOKEN", secret=None, key=None)})
    with pytest.raises(UsageError, match="must not be written into an object"):
        render(plan, "a-run", TARGET)


@pytest.mark.parametrize("kind", ["job", "jobset", "rayjob", "leaderworkerset"])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"env": {"RANK": "0", "MASTER_ADDR": "x"}}, "`RANK`, `MASTER_ADDR`"),
        ({"env": {"PARCTL_LEADER": "elsewhere"}}, "`PARCTL_LEADER`"),
        ({"env": {"LWS_WORKER_INDEX": "1"}}, "`LWS_WORKER_INDEX`"),
        ({"secrets": {"WORLD_SIZE": SECRET}}, "`WORLD_SIZE`"),
        ({"secrets": {"HOME": SECRET}}, "`HOME`"),
    ],
)
def test_variables_that_parctl_sets_are_nobody_elses(
    kind: Any, given: dict[str, Any], named: str
) -> None:
    made = serve_plan if kind == "leaderworkerset" else plan_of
    with pytest.raises(UsageError, match=f"^the recipe sets {named}, which parctl sets itself"):
        render(made(KubernetesSpec(kind=kind), **given), "a-run", TARGET)


def test_a_recipe_may_set_what_is_only_proposed() -> None:
    given = {"HOME": "/root", "GLOO_SOCKET_IFNAME": "eth1", "NCCL_DEBUG": "INFO"}
    assert render(plan_of(env=given), "a-run", TARGET).documents


def test_a_secret_is_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-5b1c")
    text = json.dumps(manifests("everything").documents)
    assert '"secretKeyRef": {"name": "hugging-face", "key": "token"}' in text
    assert "canary-5b1c" not in text


def test_checkpoints_of_several_nodes_need_a_shared_volume() -> None:
    def plan(directory: str | None, spec: KubernetesSpec | None = None) -> Any:
        made = plan_of(spec)
        saving = CheckpointSpec(
            dir=directory,
            every=1,
            keep=1,
            at_end=True,
            resume=True,
            async_save=False,
            init_from=None,
        )
        return replace(made, recipe=replace(made.recipe, task="train", checkpoint=saving))

    everything = CASES["everything"][0].recipe.launch.kubernetes
    assert everything is not None
    volumes = replace(everything, topology=None)  # which would need a queue
    with pytest.raises(UsageError, match="ranks on several nodes cannot use a pod's own disk"):
        render(plan(None), "a-run", TARGET)
    with pytest.raises(UsageError, match="is on no volume"):
        render(plan("/data/run", volumes), "a-run", TARGET)
    assert render(plan("/mnt/shared/run", volumes), "a-run", TARGET).documents


def test_unequal_nodes_are_refused_with_their_counts() -> None:
    plan = plan_of()
    slots = tuple(
        replace(slot, node="gpu-1" if slot.rank < 3 else "gpu-2") for slot in plan.layout.slots
    )
    uneven = replace(plan, layout=replace(plan.layout, slots=slots))
    with pytest.raises(CannotPlaceError, match="3 on gpu-1, 1 on gpu-2"):
        render(uneven, "a-run", TARGET)


def test_without_an_image_nothing_is_rendered() -> None:
    with pytest.raises(UsageError, match="no container image"):
        render(plan_of(), "a-run", replace(TARGET, image=None))


def test_a_merge_patch_merges_removes_and_replaces() -> None:
    value = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    assert merge_patch(value, {"a": {"b": None, "e": 3}, "d": [9]}) == {
        "a": {"c": 2, "e": 3},
        "d": [9],
    }


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("Job", {"metadata": {"labels": None}}, r"metadata.labels.parctl.dev/"),
        ("Job", {"metadata": {"name": "mine"}}, "metadata.name"),
        ("Job", {"metadata": {"namespace": "priv"}}, "metadata.namespace"),
        ("Job", {"metadata": None}, "metadata.name"),
        ("Job", {"spec": {"completions": 1}}, "spec.completions"),
        ("JobSet", {"spec": {"replicatedJobs": []}}, "metadata.labels.parctl.dev/"),
        ("JobSet", {"spec": None}, "metadata.labels.parctl.dev/"),
        ("ConfigMap", {"metadata": {"labels": {"parctl.dev/run": "b"}}}, "parctl.dev/run"),
        ("Pod", {"metadata": {"labels": {"parctl.dev/role": None}}}, "parctl.dev/role"),
        ("Pod", {"spec": {"containers": None}}, "the command of the container"),
        ("Pod", {"spec": {"containers": [{"name": "ranks"}]}}, "the command of the container"),
    ],
)
def test_a_patch_may_not_lose_the_run(kind: str, change: dict[str, Any], words: str) -> None:
    shape: Kind = "jobset" if kind == "JobSet" else "job"
    spec = KubernetesSpec(kind=shape, patch={kind: change})
    with pytest.raises(UsageError, match=words):
        render(plan_of(spec), "a-run", TARGET)


def test_a_patch_of_what_is_not_there_is_told() -> None:
    spec = KubernetesSpec(kind="job", patch={"JobSet": {"metadata": {"annotations": {"a": "b"}}}})
    notes = render(plan_of(spec), "a-run", TARGET).notes
    assert "launch.kubernetes.patch.JobSet is not used: this run has no JobSet" in notes


def test_a_tier_that_nobody_would_see_to_is_refused() -> None:
    spec = KubernetesSpec(kind="job", topology="example.com/rack")
    with pytest.raises(UsageError, match="no queue would see to it"):
        render(plan_of(spec), "a-run", TARGET)

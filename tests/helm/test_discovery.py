"""Discovery on a real cluster whose nodes have very different GPUs, by a fake driver library."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.cluster import Cluster
from tests.cluster.machine import CGROUPS, wait_until
from tests.helm.chart import CHART
from tests.helm.conftest import NVML, RECORDS, Site, need_nvml, site_in, token_of

from parctl.topology.discovery.reading import read_node
from parctl.topology.model import Topology
from parctl.topology.store import topology_from_json, topology_to_json

pytestmark = pytest.mark.cluster
# a DGX-1, a DGX H100, a B200 box with a GPU that lost its links, a tray of a GB200 rack
SPECS = {
    "gpu-1": "v100x8.spec",
    "gpu-2": "h100x8.spec",
    "gpu-3": "b200x8_gpu2down.spec",
    "cpu-1": "gb200x4.spec",
}
GPUS = 8
RELEASE = "topo"
LIMIT_BYTES = 96 * 2**20
# what is the GPUs' own; cards, CPUs and memory are those of the machine that plays the node
INSIDE = ("gpus", "links", "nvlink_groups", "nvlink_cliques", "numa_groups", "domain")


def driver_values(specs: Path) -> Object:
    """Values that put the fake library, and each node's own file, in the daemon's way."""
    return {
        "discovery": {
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "extraEnv": [
                {"name": "LD_LIBRARY_PATH", "value": "/nvml"},
                {"name": "FAKE_NVML", "value": "/nvml-specs/$(PARCTL_NODE).spec"},
            ],
            "extraVolumes": [
                {"name": "nvml", "hostPath": {"path": str(NVML)}},
                {"name": "specs", "hostPath": {"path": str(specs)}},
            ],
            "extraVolumeMounts": [
                {"name": "nvml", "mountPath": "/nvml", "readOnly": True},
                {"name": "specs", "mountPath": "/nvml-specs", "readOnly": True},
            ],
        }
    }


@pytest.fixture(scope="module")
def site(session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One release for all tests here; the nodes say that they have eight GPUs."""
    need_nvml()
    folder = tmp_path_factory.mktemp("helm")
    specs = specs_of(session_cluster)
    with session_cluster.inside():
        session_cluster.heal()
        for name in SPECS:
            if name.startswith("gpu"):
                session_cluster.nodes[name].set_gpus(GPUS)
        with site_in(session_cluster, folder, "helm4") as made:
            made.install(RELEASE, CHART, driver_values(specs))
            made.wait_discovery(len(SPECS))
            yield made
        session_cluster.heal()


def specs_of(cluster: Cluster) -> Path:
    folder = cluster.machine.folder / "nvml"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for node, spec in SPECS.items():
        (folder / f"{node}.spec").write_text((NVML / spec).read_text())
    return folder


def parctl(site: Site, *words: str) -> "subprocess.CompletedProcess[str]":

    return subprocess.run(
        [sys.executable, "-m", "parctl", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "KUBECONFIG": str(site.cluster.kubeconfig)},
    )


def from_kubernetes(site: Site) -> Topology:
    said = parctl(site, "topology", "--from", "kubernetes", "-o", "json")
    assert said.returncode == 0, said.stderr
    return topology_from_json(json.loads(said.stdout))


def capture(spec: str, monkeypatch: pytest.MonkeyPatch) -> Object:
    """What the same driver library says to this process' child."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(NVML))
    monkeypatch.setenv("FAKE_NVML", str(NVML / spec))
    found = read_node()
    assert found.node is not None, found.failure
    return found.node


def test_the_cluster_shows_what_each_node_itself_shows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.wait_records(*SPECS)
    nodes = {n["name"]: n for n in topology_to_json(from_kubernetes(site))["nodes"]}

    assert set(nodes) == set(SPECS)
    for name, spec in SPECS.items():
        wanted = capture(spec, monkeypatch)
        assert {k: nodes[name][k] for k in INSIDE} == {k: wanted[k] for k in INSIDE}, name


def test_kubectl_prints_what_a_person_asks_first(site: Site) -> None:
    site.wait_records(*SPECS)
    rows = site.cluster.kubectl("get", "ntopo", "--no-headers").splitlines()

    assert [row.split()[:5] for row in rows] == [
        ["cpu-1", "4", "gb200", "NV18", "True"],
        ["gpu-1", "8", "v100", "NV2", "True"],
        ["gpu-2", "8", "h100", "NV18", "True"],
        ["gpu-3", "8", "b200", "NV18", "False"],
    ]
    assert rows[3].split()[5] == "DeadNvlink"


def test_tensor_parallel_groups_are_placed_by_it(site: Site, tmp_path: Path) -> None:
    """On the DGX-1 all eight are connected, and only {0-3} and {4-7} are full meshes."""
    site.wait_records(*SPECS)
    recipe = {
        "version": 1,
        "name": "placed",
        "task": "script",
        "parallelism": "DP2+TP4",
        "script": {"command": ["python3", "-S", "-c", "print('here')"]},
        "placement": {"exclude": [name for name in SPECS if name != "gpu-1"]},
        "launch": {"backend": "kubernetes", "image": "parctl.test/base:1"},
    }
    recipe["launch"]["kubernetes"] = {"cpu": "50m", "memory": "256Mi"}  # type: ignore[index]
    file = tmp_path / "placed.yaml"
    file.write_text(yaml.safe_dump(recipe))

    said = parctl(site, "plan", str(file), "--cluster", "kubernetes", "-o", "json")
    assert said.returncode == 0, said.stderr
    layout = json.loads(said.stdout)["layout"]
    gpu_of = {slot["rank"]: slot["gpu"] for slot in layout["slots"]}
    ranks = layout["ranks"]
    groups = {frozenset(gpu_of[rank] for rank in ranks[i : i + 4]) for i in (0, 4)}
    assert groups == {frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})}

    words = ("-b", "kubernetes", "-n", site.namespace)
    launched = parctl(site, "launch", str(file), *words, "--run-id", "placed-1", "--follow")
    assert launched.returncode == 0, launched.stderr
    logs = parctl(site, "logs", "placed-1", *words)
    assert logs.stdout.count("here") == GPUS
    parctl(site, "delete", "placed-1", *words)


def test_a_fault_after_the_start_is_seen_within_the_timer_and_named(site: Site) -> None:
    site.wait_records(*SPECS)
    file = site.cluster.machine.folder / "nvml" / "gpu-2.spec"
    whole = file.read_text()
    try:
        file.write_text(whole + "".join(f"down 5 {link}\n" for link in range(18)) + "ecc 5 3\n")
        start = time.monotonic()
        wait_until(lambda: health(site, "gpu-2") == "False", seconds=20, what="fault of gpu-2")
        # five seconds between readings, one to read and tell
        assert time.monotonic() - start < 9

        checked = parctl(site, "topology", "--from", "kubernetes", "--check")
        assert checked.returncode == 1
        assert "gpu-2: gpu 5: no NVLink" in checked.stdout
        assert "gpu-2: gpu 5: 3 uncorrected ECC errors" in checked.stdout

        def told() -> bool:
            lines = list(site.cluster.api.events("default"))
            return any(line.startswith("DeadNvlink Node/gpu-2: gpu 5:") for line in lines)

        wait_until(told, seconds=10, what="event of the fault")
    finally:
        file.write_text(whole)
    wait_until(lambda: health(site, "gpu-2") == "True", seconds=20, what="recovery of gpu-2")


def health(site: Site, node: str) -> str:
    record = site.record(node)
    assert record is not None
    conditions = {c["type"]: c["status"] for c in record["status"]["conditions"]}
    return str(conditions["Healthy"])


def test_a_record_goes_with_its_node_and_is_as_small_as_said(site: Site) -> None:
    record = site.wait_records(*SPECS)["gpu-2"]

    (owner,) = record["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Node", "gpu-2")
    record["metadata"].pop("managedFields", None)
    assert len(json.dumps(record, separators=(",", ":"))) < 5000


def test_memory_is_bounded_and_an_idle_daemon_costs_nothing(site: Site) -> None:
    site.wait_records(*SPECS)
    pod = next(p for p in site.pods() if p["spec"]["nodeName"] == "gpu-2")
    group = cgroup_of(site, pod, "memory")
    usage = group / "memory.max_usage_in_bytes"
    stat = (group / "memory.stat").read_text()
    resident = int(
        next(line for line in stat.splitlines() if line.startswith("total_rss ")).split()[1]
    )

    # the kernel's own count since the pod began, with the child that reads and the page cache
    assert int(usage.read_text()) <= LIMIT_BYTES
    assert resident < LIMIT_BYTES / 2
    assert all(s["restartCount"] == 0 for s in pod["status"]["containerStatuses"])
    used = cgroup_of(site, pod, "cpuacct") / "cpuacct.usage"
    before, start = int(used.read_text()), time.monotonic()
    time.sleep(11)  # two readings, ten polls: sixty times as often as by default
    share = (int(used.read_text()) - before) / 1e9 / (time.monotonic() - start)
    print(f"resident {resident / 2**20:.1f} MiB, share of a core {share:.4f}")
    assert share < 0.15


def cgroup_of(site: Site, pod: Object, controller: str) -> Path:
    root = CGROUPS / controller / site.cluster.machine.cgroup
    uid = pod["metadata"]["uid"]
    found = [p for p in root.rglob(f"*{uid}*") if p.is_dir()]
    assert found, f"no cgroup of pod {uid} under {root}"
    return found[0]


def test_a_daemon_writes_about_its_own_node_only(site: Site) -> None:
    site.wait_records(*SPECS)
    pod = next(p for p in site.pods() if p["spec"]["nodeName"] == "gpu-1")
    api = Api(token_of(site, pod))
    note = {"metadata": {"annotations": {"example.com/note": "x"}}}
    try:
        api.patch("NodeTopology", "gpu-1", note, api_version=RECORDS)
        with pytest.raises(ApiError, match="discovery on node <gpu-1> may not write about gpu-2"):
            api.patch("NodeTopology", "gpu-2", note, api_version=RECORDS)
        with pytest.raises(ApiError, match="403"):
            api.patch("Node", "gpu-1", note)
        with pytest.raises(ApiError, match="403"):
            api.list("Secret", site.namespace)
        with pytest.raises(ApiError, match="403"):
            api.request("DELETE", f"/apis/{RECORDS}/nodetopologies/gpu-1")
    finally:
        api.close()


def test_a_record_that_somebody_changed_is_right_again_with_the_next_reading(site: Site) -> None:
    right = site.wait_records(*SPECS)["gpu-2"]["spec"]
    api = site.cluster.api
    wrong = {"spec": {"links": ["X"] * GPUS, "domain": "rack.1"}}

    api.patch("NodeTopology", "gpu-2", wrong, api_version=RECORDS)
    wait_until(lambda: spec_of(site, "gpu-2") == right, seconds=20, what="the record put right")
    api.delete("NodeTopology", "gpu-2", api_version=RECORDS)
    wait_until(lambda: spec_of(site, "gpu-2") == right, seconds=20, what="the record back")

    # and one that is right is left alone
    before = site.record("gpu-2")
    time.sleep(11)
    after = site.record("gpu-2")
    assert before is not None and after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def spec_of(site: Site, node: str) -> Object | None:
    record = site.record(node)
    return record and record["spec"]


def test_a_daemon_outlives_the_api_server(site: Site) -> None:
    site.wait_records(*SPECS)
    before = {pod["metadata"]["uid"] for pod in site.pods()}
    file = site.cluster.machine.folder / "nvml" / "gpu-2.spec"
    whole = file.read_text()
    try:
        file.write_text(whole + "ecc 1 2\n")
        site.cluster.control_plane.restart_api_server()
        wait_until(lambda: health(site, "gpu-2") == "False", seconds=30, what="fault of gpu-2")
    finally:
        file.write_text(whole)
    wait_until(lambda: health(site, "gpu-2") == "True", seconds=20, what="recovery of gpu-2")

    assert {pod["metadata"]["uid"] for pod in site.pods()} == before
    assert all(
        s["restartCount"] == 0 for p in site.pods() for s in p["status"]["containerStatuses"]
    )


def test_labels_and_taints_are_its_own_and_of_its_own_node(site: Site) -> None:
    """Last here: it changes the release."""
    specs = site.cluster.machine.folder / "nvml"
    more = {"discovery": {"labels": True, "taintEffect": "PreferNoSchedule"}}
    site.install(RELEASE, CHART, driver_values(specs), more, verb="upgrade")
    site.wait_discovery(len(SPECS), 90)
    api = site.cluster.api

    def labelled() -> bool:
        return "nvidia.com/gpu.clique" in api.get("Node", "cpu-1")["metadata"]["labels"]

    try:
        wait_until(labelled, seconds=30, what="labels of cpu-1")
        labels = api.get("Node", "cpu-1")["metadata"]["labels"]
        assert labels["nvidia.com/gpu.count"] == "4"
        assert labels["nvidia.com/gpu.clique"] == "aabbccdd-eeff-0011-2233-445566778899.32766"
        # what the operator said of gpu-1 stands, right or wrong: 81559 MiB is no V100's
        assert api.get("Node", "gpu-1")["metadata"]["labels"]["nvidia.com/gpu.memory"] == "81559"
        wait_until(lambda: "parctl.dev/fault" in taints(api, "gpu-3"), seconds=30, what="taint")
        assert "parctl.dev/fault" not in taints(api, "gpu-2")
        assert "nvidia.com/gpu" in taints(api, "gpu-3")  # not ours, and still there

        pod = next(p for p in site.pods() if p["spec"]["nodeName"] == "gpu-1")
        own = Api(token_of(site, pod))
        try:
            for change, words in FORBIDDEN:
                with pytest.raises(ApiError, match=words):
                    own.patch("Node", "gpu-1", change)
            with pytest.raises(ApiError, match="may not write about gpu-2"):
                own.patch("Node", "gpu-2", {"metadata": {"labels": {"nvidia.com/gpu.count": "1"}}})
            own.patch("Node", "gpu-1", {"metadata": {"labels": {"nvidia.com/gpu.clique": "c.1"}}})
            with pytest.raises(ApiError, match="no finalizer"):
                own.patch("NodeTopology", "gpu-1", STAYS, api_version=RECORDS)
        finally:
            own.close()
    finally:
        clean = {"nvidia.com/gpu.clique": None}
        api.patch("Node", "gpu-1", {"metadata": {"labels": clean}})
        gone = {f"nvidia.com/gpu.{key}": None for key in ("clique", "count", "memory")}
        api.patch("Node", "cpu-1", {"metadata": {"labels": gone}})
        site.helm("uninstall", RELEASE)
        kept = [t for t in api.get("Node", "gpu-3")["spec"]["taints"] if "parctl" not in t["key"]]
        api.patch("Node", "gpu-3", {"spec": {"taints": kept}})


STAYS = {"metadata": {"finalizers": ["example.com/stay"]}}
FORBIDDEN = (
    ({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}, "this label"),
    ({"metadata": {"labels": {"kubernetes.io/hostname": None}}}, "this label"),
    ({"metadata": {"annotations": {"example.com/note": "x"}}}, "no annotation"),
    ({"spec": {"unschedulable": True}}, "does not cordon"),
    ({"spec": {"taints": [{"key": "other", "effect": "NoExecute"}]}}, "this taint"),
    ({"spec": {"taints": [{"key": "parctl.dev/fault", "effect": "NoExecute"}]}}, "this taint"),
    ({"spec": {"providerID": "aws:///zone/i-0"}}, "which machine a node is"),
    ({"spec": {"podCIDR": "10.99.0.0/24", "podCIDRs": ["10.99.0.0/24"]}}, "which addresses"),
    (STAYS, "no finalizer"),
    (
        {
            "metadata": {
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": "none", "uid": "no-such"}
                ]
            }
        },
        "no owner",
    ),
)


def taints(api: Api, node: str) -> list[str]:
    return [taint["key"] for taint in api.get("Node", node)["spec"].get("taints") or ()]

"""Cancelling ends when no pod is left and none will come again, without a cluster."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.fake_api import FakeApi, kubeconfig, serve

from parctl.launcher.kubernetes import names, stopping
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.leader_worker_set import LWS_API
from parctl.launcher.kubernetes.objects import PARTS, RAY_API, RunObjects

PODS = "/api/v1/namespaces/team-a/pods"
# of each kind that makes pods by another: its API, where its part is, the part that makes pods
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JobSet": ("jobset.x-k8s.io/v1alpha2", "/apis/batch/v1/namespaces/team-a/jobs", {}),
    "RayJob": (RAY_API, f"/apis/{RAY_API}/namespaces/team-a/rayclusters", {}),
    "LeaderWorkerSet": (
        LWS_API,
        "/apis/apps/v1/namespaces/team-a/statefulsets",
        {"replicas": 1},
    ),
}
DEAF = 3  # how often a part is looked at before it hears of the end


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(stopping, "POLL_S", 0.01)
    monkeypatch.setattr(stopping, "SLACK_S", 1.0)
    with serve() as (api, address):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", address, token="t")))
        yield api


def add_pod(api: FakeApi) -> None:
    metadata = {"name": f"probe-0-{api.version}", "labels": {names.RUN: "probe"}}
    api.put(f"{PODS}/{metadata['name']}", {"kind": "Pod", "metadata": metadata, "spec": {}})


def started(api: FakeApi, kind: str) -> RunObjects:
    """A run with one pod, which comes again when it is deleted as long as its part is deaf."""
    version, folder, spec = KINDS[kind]
    group = f"/apis/{version}/namespaces/team-a/{kind.lower()}s"
    metadata = {"name": "probe", "labels": {names.RUN: "probe"}}
    workload = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": {}}
    part = f"{folder}/probe-part"
    api.put(part, {"kind": PARTS[kind][1], "metadata": {"name": "probe-part"}, "spec": spec})
    add_pod(api)
    looks, due = [0], [0]  # at the part; at pods, until one is made again

    def controller(method: str, path: str) -> None:
        if method == "GET" and path.startswith(folder):
            looks[0] += 1
            if looks[0] == DEAF:
                api.remove(part)
        elif method == "DELETE" and looks[0] < DEAF:
            due[0] = 2
        elif method == "GET" and due[0]:
            due[0] -= 1
            if not due[0]:
                add_pod(api)

    api.refuse = controller
    return RunObjects(workload=api.put(f"{group}/probe", workload), pods=[])


def pods_of(api: FakeApi) -> list[str]:
    return [path for path in api.objects if path.startswith(PODS)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_comes_again_is_ended_too(api: FakeApi, kind: str) -> None:
    run = started(api, kind)

    stopping.cancel_run(Client(find_access(None)), run, grace_s=0)

    assert pods_of(api) == []
    assert not any(path.startswith(KINDS[kind][1]) for path in api.objects)


def test_without_a_controller_cancelling_ends_all_the_same(api: FakeApi) -> None:
    run = started(api, "JobSet")
    api.refuse = lambda method, path: None
    start = time.monotonic()

    stopping.cancel_run(Client(find_access(None)), run, grace_s=0)

    assert pods_of(api) == []
    assert time.monotonic() - start < 5


def test_who_may_not_look_at_the_parts_goes_by_the_pods(api: FakeApi) -> None:
    run = started(api, "LeaderWorkerSet")
    folder = KINDS["LeaderWorkerSet"][1]
    no = (403, {"reason": "Forbidden", "message": "ada may not"})
    api.refuse = lambda method, path: no if path.startswith(folder) else None

    stopping.cancel_run(Client(find_access(None)), run, grace_s=0)

    assert pods_of(api) == []

"""Logs of a run by an account that may not read all of it: told, and never waited for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.fake_api import FakeApi, kubeconfig, serve

from parctl.launcher.backend import LogLine
from parctl.launcher.kubernetes import logs, names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess, find_access
from parctl.launcher.kubernetes.leader_worker_set import INDEX_LABEL
from parctl.launcher.kubernetes.objects import RunObjects

POD = "/api/v1/namespaces/team-a/pods/probe-0"
LOG = f"{POD}/log"
FORBIDDEN = (403, {"reason": "Forbidden", "message": "ada may not"})


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    with serve() as (api, address):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", address, token="t")))
        state = {"name": names.CONTAINER, "state": {"terminated": {"exitCode": 0}}}
        metadata = {"name": "probe-0", "labels": {names.ROLE: names.RANKS, INDEX_LABEL: "0"}}
        status = {"phase": "Succeeded", "containerStatuses": [state]}
        api.put(POD, {"kind": "Pod", "metadata": metadata, "status": status})
        api.put(LOG, {"said": "hello"})
        yield api


def run_of(api: FakeApi) -> RunObjects:
    workload = {"kind": "Job", "metadata": {"name": "probe"}}
    return RunObjects(workload=workload, pods=[api.objects[POD]])


def access() -> ClusterAccess:
    return find_access(None)


def follow(api: FakeApi) -> Iterator[LogLine]:
    run = run_of(api)
    return logs.follow_logs(
        access(), lambda: run, rank=None, since=None, tail=None, ended=lambda run: True
    )


def refuse(api: FakeApi, path: str, times: int | None = None) -> None:
    """Refuse what is asked of this path, always or so many times."""
    left = [times]

    def answer(method: str, asked: str) -> Any:
        if asked.partition("?")[0] != path or left[0] == 0:
            return None
        left[0] = None if left[0] is None else left[0] - 1
        return FORBIDDEN

    api.refuse = answer


def test_a_log_is_followed_to_its_end(api: FakeApi) -> None:
    (line,) = follow(api)

    assert "hello" in line.text


@pytest.mark.parametrize("path", [POD, LOG])
def test_who_may_not_follow_a_pod_is_told_and_does_not_wait_for_ever(
    api: FakeApi, path: str
) -> None:
    refuse(api, path)

    with pytest.raises(ApiError, match="Kubernetes answers 403 Forbidden: ada may not"):
        list(follow(api))


@pytest.mark.parametrize("path", [POD, LOG])
def test_a_server_that_refuses_for_a_moment_is_asked_again(api: FakeApi, path: str) -> None:
    refuse(api, path, times=logs.REFUSALS - 1)

    assert any("hello" in line.text for line in follow(api))


def test_a_log_that_may_not_be_read_is_no_empty_log(api: FakeApi) -> None:
    refuse(api, LOG)

    with pytest.raises(ApiError, match="ada may not"):
        list(logs.read_logs(Client(access()), run_of(api), rank=None, since=None, tail=None))


def test_metrics_are_refused_and_a_status_does_without_the_report(api: FakeApi) -> None:
    refuse(api, LOG)

    assert list(logs.leader_log(Client(access()), run_of(api), whole=False)) == []
    with pytest.raises(ApiError, match="ada may not"):
        list(logs.leader_log(Client(access()), run_of(api), whole=True))


def test_a_log_that_is_gone_is_empty(api: FakeApi) -> None:
    api.remove(LOG)

    assert list(follow(api)) == []

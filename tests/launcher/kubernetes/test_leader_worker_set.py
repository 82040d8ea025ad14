"""An endpoint as a LeaderWorkerSet: what is rendered, what is refused, how its pods are read."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.cases import TARGET, plan_of, serve_plan

from parctl.errors import UsageError
from parctl.launcher.backend import State
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.objects import RunObjects, index_of
from parctl.launcher.kubernetes.pod import count_start
from parctl.launcher.kubernetes.relay import relay
from parctl.launcher.kubernetes.render import render
from parctl.launcher.kubernetes.report import first_report, last_words
from parctl.launcher.kubernetes.state import status_of
from parctl.launcher.kubernetes.why import diagnose
from parctl.launcher.verdict import plain_verdict
from parctl.recipes.kubernetes_spec import KubernetesSpec

GROUP = KubernetesSpec(kind="leaderworkerset")


def documents(plan: Any, **target: Any) -> dict[str, Mapping[str, Any]]:
    made = render(plan, "a-run", replace(TARGET, **target)).documents
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in made}


def test_auto_is_a_leader_worker_set_for_what_serves_and_can_be_one() -> None:
    def kind(plan: Any, **target: Any) -> str:
        return str(render(plan, "a-run", replace(TARGET, **target)).documents[-1]["kind"])

    assert kind(serve_plan()) == "LeaderWorkerSet"
    assert kind(serve_plan(), has_lws=False) == "JobSet"
    assert kind(serve_plan(), has_lws=False, has_jobset=False) == "Job"
    assert kind(serve_plan(KubernetesSpec(recovery="coordinator"))) == "JobSet"
    assert kind(serve_plan(timeout_s=60.0)) == "JobSet"
    assert kind(plan_of()) == "JobSet"


def test_one_group_has_a_pod_per_node_and_starts_again_for_ever() -> None:
    made = documents(serve_plan(GROUP))["LeaderWorkerSet/a-run"]
    group = made["spec"]["leaderWorkerTemplate"]
    pod = group["workerTemplate"]["spec"]
    environment = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert (made["spec"]["replicas"], group["size"]) == (1, 2)
    assert pod["restartPolicy"] == "Always"
    assert environment["PARCTL_LEADER"] == "a-run-0.a-run"
    assert "PARCTL_FAILURES" not in environment


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(GROUP), "a run of task script ends"),
        (serve_plan(replace(GROUP, recovery="coordinator")), "start again by themselves"),
        (serve_plan(GROUP, timeout_s=60.0), "launch.timeout_s = 60"),
    ],
)
def test_what_a_group_cannot_give_is_refused(plan: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        render(plan, "a-run", TARGET)


def test_retries_that_nobody_counts_are_told() -> None:
    assert (
        "retries = 3 is not counted" in render(serve_plan(GROUP, retries=3), "r", TARGET).notes[0]
    )
    assert not any("counted" in each for each in render(serve_plan(GROUP), "r", TARGET).notes)


def test_a_tier_is_kept_by_the_set_itself_where_there_is_no_queue() -> None:
    spec = replace(GROUP, topology="example.com/rack")
    key = "leaderworkerset.sigs.k8s.io/exclusive-topology"
    alone = documents(serve_plan(spec))["LeaderWorkerSet/a-run"]
    queued = documents(serve_plan(spec, queue="research"))["LeaderWorkerSet/a-run"]
    assert alone["metadata"]["annotations"][key] == "example.com/rack"
    assert key not in queued["metadata"]["annotations"]
    assert queued["spec"]["leaderWorkerTemplate"]["workerTemplate"]["metadata"]["annotations"] == {
        "kueue.x-k8s.io/podset-required-topology": "example.com/rack"
    }


@pytest.mark.parametrize("kind", ["leaderworkerset", "jobset", "job"])
def test_clients_reach_every_pod_that_answers(kind: Any) -> None:
    made = documents(serve_plan(KubernetesSpec(kind=kind)))
    service, policy = made["Service/a-run-endpoint"], made["NetworkPolicy/a-run"]
    text = json.dumps(list(made.values())[-1])
    assert service["spec"]["selector"] == {names.RUN: "a-run", names.ROLE: "ranks"}
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": 8000}]
    assert policy["spec"]["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": {names.RUN: "a-run"}}}]},
        {"ports": [{"port": 8000, "protocol": "TCP"}]},
    ]
    assert '"readinessProbe": {"httpGet": {"path": "/health", "port": 8000}' in text


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 8000, "is reached by `kubectl port-forward` alone"),
        ("localhost", 8000, "is reached by `kubectl port-forward` alone"),
        ("0.0.0.0", 0, "serve.port = 0"),
    ],
)
def test_an_endpoint_that_nobody_can_name_has_no_service(host: str, port: int, words: str) -> None:
    manifests = render(serve_plan(GROUP, host=host, port=port), "a-run", TARGET)
    text = json.dumps(manifests.documents)
    assert words in manifests.notes[-1]
    assert "a-run-endpoint" not in text and "readinessProbe" not in text
    assert '"ingress": [{"from"' in text


def test_the_pods_of_a_rayjob_are_ready_when_ray_is() -> None:
    manifests = render(serve_plan(KubernetesSpec(kind="rayjob")), "a-run", TARGET)
    text = json.dumps(manifests.documents)
    assert "readinessProbe" not in text and "a-run-endpoint" not in text
    assert manifests.notes == (
        "a RayJob has no Service for clients: port 8000 of the pod with torch's rank 0",
    )


def test_the_address_inside_of_the_cluster_is_told() -> None:
    assert render(serve_plan(), "a-run", TARGET).notes == (
        "inside of the cluster the endpoint is http://a-run-endpoint.team-a:8000/v1",
    )


def test_the_starts_of_a_container_are_counted_in_its_pod(tmp_path: Path) -> None:
    assert [count_start(tmp_path) for _ in range(3)] == [0, 1, 2]


def pod(name: str, index: int, container: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod of a set, as the server has it."""
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "creationTimestamp": "2026-01-01T00:00:01Z",
            "labels": {
                names.RUN: "a-run",
                names.ROLE: "ranks",
                "leaderworkerset.sigs.k8s.io/worker-index": str(index),
            },
        },
        "spec": {"nodeName": f"gpu-{index + 1}", "containers": [{"name": "ranks"}], **spec},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "ranks", "restartCount": 0, **container}],
        },
    }


def run_of(*pods: dict[str, Any], **status: Any) -> RunObjects:
    workload = json.loads(json.dumps(documents(serve_plan(GROUP))["LeaderWorkerSet/a-run"]))
    workload["metadata"] |= {"uid": "set", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return RunObjects(workload=workload | {"status": status}, pods=pods)


def facts_of(run: RunObjects, **given: Any) -> Facts:
    known: dict[str, Any] = {
        "run": run,
        "report": None,
        "jobs": (),
        "events": (),
        "nodes": None,
        "others": None,
        "queue_entry": None,
        "local_queue": None,
        "cluster_queue": None,
        "has_kueue": False,
        "unread": (),
        "now_unix": 1767225700.0,
    }
    return Facts(**(known | given))


def test_the_label_of_the_set_is_the_index_of_a_pod() -> None:
    assert index_of(pod("a-run-0-3", 3, {"state": {"running": {}}})) == 3


def test_a_container_that_waits_to_start_again_tells_what_ended_it() -> None:
    verdict = plain_verdict("rank 3 was killed by SIGKILL", cause="SIGKILL", fix=None)
    report = replace(first_report(), state=State.RESTARTING, attempt=2, verdict=verdict)
    ended = {"terminated": {"exitCode": 1, "message": last_words(report)}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    pods = [
        pod(f"a-run-{index}", index, {"state": waiting, "lastState": ended, "restartCount": 2})
        for index in range(2)
    ]
    run = run_of(*pods, replicas=1)
    status = status_of(run, None, server="https://x")
    assert (status.state, status.restarts) == (State.RESTARTING, 2)
    known = facts_of(run, report=report)
    assert diagnose(known).sentence == "the run starts again, since rank 3 was killed by SIGKILL"


def test_a_container_that_ran_out_of_memory_is_named_until_it_runs_again() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    waiting = pod("a-run-0", 0, {"state": {"waiting": {}}, "lastState": killed})
    again = pod("a-run-0", 0, {"state": {"running": {}}, "lastState": killed})
    other = pod("a-run-0-1", 1, {"state": {"running": {}}})
    before = diagnose(facts_of(run_of(waiting, other, replicas=1))).sentence
    after = diagnose(facts_of(run_of(again, other, replicas=1))).sentence
    assert before.startswith("pod a-run-0 on node gpu-1 was killed for using more memory")
    assert "memory" not in after


def test_a_set_without_a_quota_for_its_second_pod_says_so() -> None:
    running = pod("a-run-0", 0, {"state": {"running": {}}})
    stateful = {"metadata": {"name": "a-run-0", "uid": "stateful"}}
    said = (
        "create Pod a-run-0-1 in StatefulSet a-run-0 failed error: pods is forbidden: exceeded "
        "quota: small, requested: nvidia.com/gpu=2, used: nvidia.com/gpu=2, "
        "limited: nvidia.com/gpu=2"
    )
    event = {
        "reason": "FailedCreate",
        "message": said,
        "involvedObject": {"kind": "StatefulSet", "name": "a-run-0", "uid": "stateful"},
    }
    known = facts_of(run_of(running, replicas=1), jobs=[stateful], events=[event])
    assert diagnose(known).sentence.startswith("quota small of the namespace is used up")


def test_the_relay_hands_bytes_on_and_refuses_where_nobody_listens() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async def talk(port: int, *, whole: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        if whole:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    async def scene() -> tuple[bytes, bytes]:
        far = await asyncio.start_server(echo, "127.0.0.1", 0)
        there = far.sockets[0].getsockname()[1]
        free = await asyncio.start_server(echo, "127.0.0.1", 0)
        here = free.sockets[0].getsockname()[1]
        free.close()
        choices: dict[str, Any] = {"listen": "127.0.0.1", "target_port": there}
        running = asyncio.create_task(relay(here, "127.0.0.1", **choices))
        await asyncio.sleep(0.1)
        answered = await talk(here, whole=True)
        far.close()
        refused = await talk(here, whole=False)
        running.cancel()
        return answered, refused

    answered, refused = asyncio.run(scene())
    assert answered == b"X" * 100_000
    assert refused == b""

"""A RayJob: what is rendered, what its pods do at their start and end, what its status means."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.launcher.kubernetes.cases import TARGET, manifests, plan_of

from parctl.errors import UsageError
from parctl.launcher.backend import State
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.objects import RunObjects
from parctl.launcher.kubernetes.payload import read_payload
from parctl.launcher.kubernetes.ray_pod import (
    attend,
    environment,
    lay_out_files,
    shell_line,
)
from parctl.launcher.kubernetes.ray_voice import Voice
from parctl.launcher.kubernetes.render import render
from parctl.launcher.kubernetes.report import last_report, metrics_rows
from parctl.launcher.kubernetes.state import status_of
from parctl.launcher.kubernetes.why import diagnose
from parctl.launcher.ray.job_log import log_line
from parctl.recipes.kubernetes_spec import KubernetesSpec
from parctl.recipes.spec import SecretSpec
from parctl.topology.sources.ray_dashboard import Dashboard

RAYJOB = KubernetesSpec(kind="rayjob")


def spec_of(**choices: Any) -> Any:
    plan = plan_of(choices.pop("spec", RAYJOB), **choices)
    return render(plan, "a-run", TARGET).documents[-1]["spec"]


def test_the_driver_is_the_job_and_nobody_else_retries() -> None:
    spec = spec_of(retries=3)

    assert spec["jobId"] == "a-run"
    assert spec["entrypoint"] == "exec python3 -P -m parctl.launcher.ray.driver"
    assert spec["backoffLimit"] == 0
    assert json.loads(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "86400"}}


def test_workers_hold_a_node_each_and_the_head_holds_no_device() -> None:
    cluster = spec_of()["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]

    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    assert group["rayStartParams"]["num-gpus"] == group["rayStartParams"]["num-cpus"] == "2"
    assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"
    (container,) = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert head["template"]["metadata"]["labels"]["parctl.dev/role"] == "coordinator"
    assert group["template"]["metadata"]["labels"]["parctl.dev/role"] == "ranks"


def test_the_dashboard_asks_for_a_token_and_only_the_operator_may_come_from_outside() -> None:
    documents = manifests("rayjob").documents
    (policy,) = [each for each in documents if each["kind"] == "NetworkPolicy"]

    assert documents[-1]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    own, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": {"parctl.dev/run": "probe-rayjob"}}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    (source,) = operator["from"]
    assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_shared_memory_has_room_for_the_object_store_too() -> None:
    (group,) = spec_of()["rayClusterSpec"]["workerGroupSpecs"]
    (volume,) = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shared-memory"]

    assert volume["emptyDir"]["sizeLimit"] == "2176Mi"  # 2 x 1024 of the ranks, 128 of Ray


def test_the_estimate_of_memory_counts_ray_and_a_given_amount_is_kept() -> None:
    stage = {"weights": 10, "optimizer": 20, "parameters": 5}
    memory = {"total_bytes": 100 * 2**20, "stages": [stage]}

    def asked(spec: KubernetesSpec, kind: str) -> Any:
        (group,) = spec_of(spec=spec, kind=kind, memory=memory)["rayClusterSpec"][
            "workerGroupSpecs"
        ]
        return group["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"]

    # as a Job it is 1352Mi; Ray's processes are 1024, its object store 128
    assert asked(RAYJOB, "cpu") == "2504Mi"
    assert asked(replace(RAYJOB, memory="9Gi"), "cpu") == "9Gi"


def test_secrets_are_references_and_the_driver_is_told_their_names_only() -> None:
    secret = SecretSpec(from_env=None, secret="hugging-face", key="token")
    documents = render(plan_of(RAYJOB, secrets={"HF_TOKEN": secret}), "a-run", TARGET).documents
    (config,) = [each for each in documents if each["kind"] == "ConfigMap"]

    assert run_settings(config)["secrets"] == {"HF_TOKEN": "HF_TOKEN"}
    assert '"secretKeyRef": {"name": "hugging-face", "key": "token"}' in json.dumps(documents)


def test_a_folder_that_is_sent_along_is_where_the_ranks_start() -> None:
    documents = render(plan_of(RAYJOB), "a-run", replace(TARGET, workdir=b"tar")).documents

    assert run_settings(documents[0])["workdir"] == "/parctl/run/work"


def test_a_coordinator_beside_the_driver_is_refused() -> None:
    with pytest.raises(UsageError, match="a RayJob has a driver"):
        spec_of(spec=KubernetesSpec(kind="rayjob", recovery="coordinator"))


def run_settings(config: Any) -> Any:
    import base64

    return json.loads(gzip.decompress(base64.b64decode(config["binaryData"]["run.json.gz.000"])))


def test_the_plan_lies_where_the_driver_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    payload = tmp_path / "payload"
    payload.mkdir()
    for name, data in manifests("rayjob").documents[0]["binaryData"].items():
        (payload / name).write_bytes(base64.b64decode(data))
    monkeypatch.setenv("PARCTL_PLAN_FOLDER", str(payload))
    monkeypatch.setenv("PYTHONPATH", "/opt/other")
    monkeypatch.setenv("PARCTL_RUN_ID", "a-run")

    package = lay_out_files(tmp_path / "run")
    variables = environment(package)

    assert (package / "parctl_run" / "plan.json").read_bytes() == read_payload(payload, "plan.json")
    assert json.loads((package / "parctl_run" / "run.json").read_text())["kind"] == "RayRun"
    assert variables["PYTHONPATH"] == f"{package}:/opt/other"
    assert "PARCTL_RUN_ID" not in variables  # else Ray itself would count as a rank


def test_a_ray_pod_is_called_by_its_node() -> None:
    line = shell_line("ray start  --address=a:6379  --block ", "gpu 1")

    assert line.endswith("exec ray start --address=a:6379 --block --labels=parctl.dev/node='gpu 1'")


class Stop:
    def __init__(self) -> None:
        self.asked = False


def attended(program: str, stop: Any, busy: list[bool]) -> int:
    ray = subprocess.Popen([sys.executable, "-S", "-c", program])

    def tick() -> None:
        if stop.asked and busy[0]:
            busy[0] = False  # the ranks have saved, one tick later

    return attend(ray, stop, grace_s=30.0, tick=tick, told=lambda: None, busy=lambda: busy[0])


def test_a_pod_that_is_told_to_end_keeps_ray_until_no_rank_is_left() -> None:
    stop, busy = Stop(), [True]
    timer = threading.Timer(0.5, lambda: setattr(stop, "asked", True))
    timer.start()

    code = attended("import time; time.sleep(60)", stop, busy)

    assert busy == [False]
    assert code == -signal.SIGTERM


def test_the_end_of_ray_is_the_end_of_its_pod() -> None:
    assert attended("raise SystemExit(3)", Stop(), [True]) == 3


def test_orphans_are_buried() -> None:
    program = "import os, sys\nif os.fork() == 0: os._exit(0)\nos._exit(0)"
    orphan = os.fork()
    if orphan == 0:
        os._exit(0)

    assert attended(program, Stop(), [True]) == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(orphan, os.WNOHANG)


class Answers(BaseHTTPRequestHandler):
    """The dashboard of a Ray with one job."""

    row: ClassVar[dict[str, Any]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self.answer(200 if self.row else 404, self.row)

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        self.answer(200, {"stopped": True})

    def answer(self, code: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *words: Any) -> None:
        pass


RECORD = {
    "schema": 1,
    "state": "Running",
    "attempt": 2,
    "restarts": 1,
    "step": 7,
    "ended_unix": None,
    "verdict": None,
    "reason": None,
    "fix": None,
    "updated_unix": 1000.0,
}
DETAILS = {
    "schema": 1,
    "ranks": [{"rank": 0, "node": "gpu-1", "local_rank": 0, "pid": 12, "state": "running"}],
    "nodes": {"gpu-1": "abc"},
    "history": ["attempt 1: rank 0 failed"],
}


def test_the_head_repeats_what_the_driver_says(tmp_path: Path) -> None:
    class Handler(Answers):
        row: ClassVar[dict[str, Any]] = {}
        asked: ClassVar[list[str]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    said: list[str] = []
    address = f"http://127.0.0.1:{server.server_address[1]}"
    voice = Voice("a-run", tmp_path, dashboard=Dashboard(address), write=said.append)
    try:
        voice.tick()
        silent = not said and not voice.runs
        Handler.row = {
            "submission_id": "a-run",
            "status": "RUNNING",
            "metadata": {"parctl": json.dumps(RECORD), "parctl_plan": "sha256:0"},
        }
        folder = tmp_path / "parctl" / "a-run" / "driver"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(DETAILS))
        (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 1.5}\n')
        lines = [log_line(None, "attempt 2 starts on gpu-1"), log_line(0, "hello")]
        (tmp_path / "job-driver-a-run.log").write_text("\n".join(lines) + "\n")
        time.sleep(1.05)
        voice.tick()
        voice.stop_job()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    report = last_report(said)
    assert silent
    assert report is not None and voice.runs
    assert (report.state, report.attempt, report.restarts, report.step) == ("Running", 2, 1, 7)
    assert report.ranks[0].node == "gpu-1" and report.history == ("attempt 1: rank 0 failed",)
    assert metrics_rows(said) == '{"step": 7, "loss": 1.5}'
    assert said[-2:] == ["[parctl] say attempt 2 starts on gpu-1", "[rank 0] hello"]
    assert Handler.asked[-1] == "POST /api/jobs/a-run/stop"


def rayjob(**status: Any) -> RunObjects:
    metadata = {
        "name": "a-run",
        "uid": "1",
        "namespace": "team-a",
        "creationTimestamp": "2026-11-21T12:00:00Z",
        "annotations": {"parctl.dev/num-pods": "2"},
    }
    workload = {"kind": "RayJob", "metadata": metadata, "spec": {}, "status": status}
    return RunObjects(workload=workload, pods=[])


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, State.PENDING),
        ({"jobDeploymentStatus": "Initializing"}, State.PENDING),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, State.SUCCEEDED),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, State.CANCELLED),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, State.FAILED),
    ],
)
def test_the_state_of_a_rayjob_is_that_of_the_run(status: Any, state: State) -> None:
    assert status_of(rayjob(**status), None, server="").state is state


def test_a_rayjob_that_kuberay_refuses_says_why() -> None:
    said = "RayJobDeletionPolicy feature gate must be enabled to use DeletionStrategy"
    run = rayjob(jobDeploymentStatus="ValidationFailed", message=said)

    status = status_of(run, None, server="")

    assert status.state is State.FAILED and status.verdict is not None
    assert status.verdict.sentence == f"KubeRay does not accept the RayJob: {said}"
    assert "KubeRay 1.6" in str(status.verdict.fix)


def test_while_ray_comes_up_nobody_speaks_of_ranks() -> None:
    run = rayjob(jobDeploymentStatus="Initializing")
    pods = [
        {
            "metadata": {
                "name": f"a-run-{i}",
                "uid": f"2{i}",
                "labels": {"parctl.dev/role": "ranks"},
            },
            "spec": {"nodeName": f"gpu-{i}"},
            "status": {"phase": "Running"},
        }
        for i in (1, 2)
    ]
    facts = Facts(
        run=replace(run, pods=pods),
        report=None,
        jobs=[],
        events=[],
        nodes=None,
        others=None,
        queue_entry=None,
        local_queue=None,
        cluster_queue=None,
        has_kueue=False,
        unread=[],
        now_unix=time.time(),
    )

    assert diagnose(facts).sentence.startswith("Ray is coming up in the pods")

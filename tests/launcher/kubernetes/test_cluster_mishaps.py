"""What happens to whoever watches a run, and to what it was made of; and a rank that just stops."""

import signal
import subprocess
import sys
import time

import pytest
from tests.launcher.kubernetes.parity import settings
from tests.launcher.kubernetes.real import MOUNT, Here, start_probe

from parctl.launcher.backend import State

pytestmark = pytest.mark.cluster


def test_ctrl_c_ends_the_following_and_not_the_run(here: Here) -> None:
    probe = start_probe(here)
    probe.counting()
    words = [sys.executable, "-m", "parctl", "logs", "probe-1", "-b", "kubernetes", "--follow"]
    follower = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    first = follower.stdout.readline()

    follower.send_signal(signal.SIGINT)
    _, complaints = follower.communicate(timeout=30)
    counted = probe.counts()
    probe.counting(beyond=max(counted) + 3)

    assert "[rank " in first or "[parctl] " in first
    assert follower.returncode == 130
    assert "Traceback" not in complaints
    assert probe.finish().state is State.SUCCEEDED


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_launcher_whose_clock_is_wrong_tells_no_wrong_story(
    here: Here, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    probe = start_probe(here)
    probe.counting()

    said = here.why()
    here.ask(lambda backend: backend.cancel("probe-1", grace_s=3))
    ended = here.ended()

    assert "going on" in said.sentence
    assert ended.state is State.CANCELLED
    assert ended.ended_unix is not None and abs(ended.ended_unix - right()) < 60


def test_a_run_goes_on_without_its_plan_and_a_new_pod_is_told_of(here: Here) -> None:
    probe = start_probe(here, retries=1)
    before = probe.counting()

    here.cluster.api.delete("ConfigMap", "probe-1-plan", here.namespace)
    probe.counting(beyond=max(before) + 3)
    for pod in here.pods():
        here.cluster.api.delete("Pod", pod["metadata"]["name"], here.namespace)
    said = here.diagnosis_until("probe-1-plan")
    here.ask(lambda backend: backend.cancel("probe-1", grace_s=1))

    assert "holds the plan of the run, was deleted" in said.sentence
    assert here.ended().state is State.CANCELLED


@pytest.mark.timeout(400)  # torch is imported twice
def test_a_rank_that_stops_is_named_by_those_that_wait_for_it(here: Here) -> None:
    here.cluster.claim(here.namespace, "shared")
    changes = {
        "launch.kubernetes.volumes": f"{{shared: {{mount: {MOUNT}, claim: shared}}}}",
        "launch.kubernetes.cpu": "100m",
        "checkpoint.dir": f"{MOUNT}/hang-1",
        "placement": "{exclude: [gpu-3]}",
        "train.comm_timeout_s": "4",
        "train.steps": "100000",
    }
    words = [f"{key}={value}" for key, value in changes.items()]
    small = [word for word in settings("tiny-llama") if word != "--set" and "steps" not in word]
    here.launch("tiny-llama", "hang-1", *small, *words)
    running = here.until(lambda status: (status.step or 0) >= 2, "hang-1", seconds=180)
    victim = running.ranks[3]
    (pod,) = [p for p in here.pods("hang-1") if p["spec"]["nodeName"] == victim.node]
    stop = ["exec", pod["metadata"]["name"], "--", "sh", "-c", f"kill -STOP {victim.pid}"]
    here.cluster.kubectl("-n", here.namespace, *stop)
    began = time.monotonic()

    ended = here.ended("hang-1")

    assert ended.state is State.FAILED and ended.verdict is not None
    assert ended.verdict.rank == 3
    assert "it is stopped (SIGSTOP)" in ended.verdict.sentence
    assert f"node {victim.node}" in ended.verdict.sentence
    assert time.monotonic() - began < 60


def test_a_rank_that_floods_its_log_takes_no_memory_for_it(here: Here) -> None:
    """What the pod's log keeps of it is the kubelet's business, which turns it over at 10 MiB."""
    flood = "import sys; sys.stdout.write(('x' * 99 + '\\n') * 500_000)"
    recipe = here.recipe(["python3", "-S", "-c", flood], kubernetes={"memory": "300Mi"})

    here.launch(recipe)

    assert here.ended().state is State.SUCCEEDED

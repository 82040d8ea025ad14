"""What a run on a real cluster makes of faults: its outcome, its words, what it lost, what is left.

The probe counts what it would have trained; a step is lost when it has to be counted again.
"""

import subprocess
import sys
import time

import pytest
from tests.cluster.machine import wait_until
from tests.launcher.kubernetes.real import Here, start_probe

from parctl.launcher.backend import State

pytestmark = pytest.mark.cluster
RECOVERIES = ("native", "coordinator")


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_a_killed_rank_is_started_again_from_where_it_was(here: Here, recovery: str) -> None:
    probe = start_probe(here, retries=1, kubernetes={"recovery": recovery})
    before = probe.counting()

    probe.kill_rank(3)
    again = here.until(lambda status: status.restarts == 1)
    after = probe.counting(beyond=max(before) + 3)

    assert again.state in (State.RESTARTING, State.RUNNING, State.PLACING)
    assert min(after) >= min(before)  # nothing that was counted is counted again
    assert probe.finish().state is State.SUCCEEDED


def test_without_retries_a_killed_rank_is_the_verdict(here: Here) -> None:
    probe = start_probe(here)
    probe.counting()

    probe.kill_rank(2)
    ended = here.ended()

    assert ended.state is State.FAILED
    assert ended.verdict is not None
    assert ended.verdict.rank == 2
    assert "SIGKILL" in ended.verdict.sentence


def test_a_deleted_pod_is_replaced_and_not_counted(here: Here) -> None:
    probe = start_probe(here)
    before = probe.counting()
    victim = here.pods()[1]["metadata"]["name"]

    here.cluster.api.delete("Pod", victim, here.namespace)
    gone = [pod["metadata"]["uid"] for pod in here.pods()]
    wait_until(lambda: replaced(here, gone), seconds=60, what="a new pod")
    saved = probe.counts()
    probe.counting(beyond=max(saved) + 3)

    assert min(saved) >= min(before)
    assert probe.finish().state is State.SUCCEEDED


def test_a_killed_node_moves_the_run_to_another(here: Here) -> None:
    kubernetes = {"recovery": "coordinator"}
    probe = start_probe(here, retries=1, placement={}, kubernetes=kubernetes)
    before = probe.counting()
    dead = here.pods()[0]["spec"]["nodeName"]

    here.cluster.nodes[dead].kill()
    probe.counting(beyond=max(before) + 5, seconds=180)

    here.until(lambda status: dead not in {rank.node for rank in status.ranks}, seconds=30)
    assert probe.finish().state is State.SUCCEEDED


def test_a_node_that_comes_back_takes_its_ranks_again(here: Here) -> None:
    """Only two nodes will do, so the run has to wait for the dead one."""
    probe = start_probe(here, retries=1, kubernetes={"recovery": "coordinator"})
    before = probe.counting()

    here.cluster.nodes["gpu-2"].kill()
    said = here.diagnosis_until("gpu-2")
    here.cluster.nodes["gpu-2"].back()
    probe.counting(beyond=max(before) + 5, seconds=180)

    assert "gpu-2" in said.sentence
    assert probe.finish().state is State.SUCCEEDED


def test_a_drained_node_is_left_with_the_work_saved(here: Here) -> None:
    probe = start_probe(here, placement={})
    before = probe.counting()
    node = here.pods()[0]["spec"]["nodeName"]

    here.cluster.nodes[node].drain()
    # ranks count on until their pods are told to end, which takes a loaded machine seconds
    wait_until(lambda: node not in homes(here), seconds=60, what=f"no pod of the run on {node}")
    saved = probe.counts()
    probe.counting(beyond=max(saved) + 3, seconds=180)

    assert min(saved) >= min(before)
    assert node not in homes(here)
    assert probe.finish().state is State.SUCCEEDED
    assert here.status().restarts == 0


def test_a_cordoned_node_is_named_and_used_once_it_is_free(here: Here) -> None:
    probe = start_probe(here, planned=lambda: here.cluster.nodes["gpu-2"].cordon(True))
    said = here.diagnosis_until("cordoned")

    here.cluster.nodes["gpu-2"].cordon(False)
    probe.counting()

    assert "gpu-2" in said.sentence
    assert homes(here) == {"gpu-1", "gpu-2"}
    assert probe.finish().state is State.SUCCEEDED


def test_a_run_does_not_notice_an_api_server_that_restarts(here: Here) -> None:
    probe = start_probe(here)
    before = probe.counting()

    here.cluster.control_plane.kill_api_server()
    down = here.parctl("status", "probe-1", "-b", "kubernetes")
    probe.counting(beyond=max(before) + 5)
    here.cluster.control_plane.restart_api_server()

    assert down.returncode == 5, down.stderr
    assert "Traceback" not in down.stderr
    assert probe.finish().state is State.SUCCEEDED
    assert here.status().restarts == 0


def test_a_run_does_not_notice_controllers_that_restart(here: Here) -> None:
    probe = start_probe(here)
    before = probe.counting()

    here.cluster.control_plane.restart_controller_manager()
    here.cluster.controllers.restart("jobset")
    probe.counting(beyond=max(before) + 3)

    assert probe.finish().state is State.SUCCEEDED
    assert here.status().restarts == 0


def test_a_silent_kubelet_is_named(here: Here) -> None:
    probe = start_probe(here, kubernetes={"dead_node_s": 300})
    probe.counting()

    here.cluster.nodes["gpu-2"].stop_kubelet()
    said = here.diagnosis_until("gpu-2")
    here.cluster.nodes["gpu-2"].resume_kubelet()

    assert "gpu-2" in said.sentence
    assert probe.finish().state is State.SUCCEEDED


def test_a_container_past_its_memory_is_named(here: Here) -> None:
    eat = "import time\nkept = bytearray(2**30)\ntime.sleep(60)"
    recipe = here.recipe(["python3", "-S", "-c", eat], kubernetes={"memory": "200Mi"})
    here.launch(recipe)

    ended = here.ended()

    said = here.why()
    assert ended.state is State.FAILED
    assert "memory" in f"{said.sentence} {said.fix}", said


def test_a_cancelled_run_leaves_no_pod_and_a_deleted_one_no_object(here: Here) -> None:
    probe = start_probe(here)
    probe.counting()

    here.ask(lambda backend: backend.cancel("probe-1", grace_s=3))
    ended = here.ended()
    deadline = time.monotonic() + 30
    while any(alive(pod) for pod in here.pods()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    here.ask(lambda backend: backend.delete("probe-1"))

    assert ended.state is State.CANCELLED
    deadline = time.monotonic() + 30
    while here.objects():
        assert time.monotonic() < deadline, here.objects()
        time.sleep(0.2)


def test_a_launcher_that_is_killed_leaves_the_run_alone(here: Here) -> None:
    volume = here.cluster.claim(here.namespace, "other")
    recipe = here.recipe(["python3", "-S", "-c", "import time; time.sleep(8); print('whole')"])
    words = [sys.executable, "-m", "parctl", "launch", str(recipe), "--run-id", "probe-1"]
    follower = subprocess.Popen([*words, "-b", "kubernetes", "--follow"])
    try:
        here.cluster.api.wait(
            "JobSet", "probe-1", bool, here.namespace, "jobset.x-k8s.io/v1alpha2", seconds=60
        )
    finally:
        follower.kill()
        follower.wait()

    assert here.ended().state is State.SUCCEEDED
    assert here.log(0)[-1] == "whole"
    assert volume.exists()


def homes(here: Here) -> set[str | None]:
    """Nodes on which the run has a pod that has not ended."""
    return {pod["spec"].get("nodeName") for pod in here.pods() if alive(pod)}


def replaced(here: Here, uids: list[str]) -> bool:
    """Whether a pod runs that is none of these."""
    return any(pod["metadata"]["uid"] not in uids and alive(pod) for pod in here.pods())


def alive(pod: dict[str, object]) -> bool:
    status = pod["status"]
    assert isinstance(status, dict)
    return status.get("phase") in ("Pending", "Running")

"""A RayJob under a real KubeRay: a run as every other, with Ray's driver where others have pods."""

import time

import pytest
from tests.cluster.machine import wait_until
from tests.cluster.queues import make_queue
from tests.launcher.kubernetes.real import Here, start_probe
from tests.launcher.kubernetes.test_cluster_faults import alive

from parctl.launcher.backend import State

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # Ray starts three times
RAYJOB = {"kind": "rayjob"}


def test_a_killed_rank_starts_again_and_the_end_frees_the_nodes(here: Here) -> None:
    here.cluster.controllers.ensure("kuberay")
    probe = start_probe(here, retries=1, kubernetes=RAYJOB)
    before = probe.counting(seconds=300)
    running = here.running()

    probe.kill_rank(3)
    here.until(lambda status: status.restarts == 1)
    after = probe.counting(beyond=max(before) + 3)
    ended = probe.finish()
    wait_until(lambda: not any(map(alive, here.pods())), seconds=60, what="no pod with devices")

    assert running.state is State.RUNNING
    assert {rank.rank: rank.node for rank in running.ranks} == {
        0: "gpu-1",
        1: "gpu-1",
        2: "gpu-2",
        3: "gpu-2",
    }
    assert min(after) >= min(before)
    assert (ended.state, ended.restarts) == (State.SUCCEEDED, 1)
    text = here.log(3)
    assert next(line for line in text if line.startswith("rank 3 on gpu-2")).endswith("from 0")
    assert "the run is Succeeded" in here.log()
    assert "the run is Succeeded" in here.why().sentence
    here.ask(lambda backend: backend.delete("probe-1"))
    wait_until(lambda: not here.objects(), seconds=60, what="nothing of the run")


def test_a_drained_node_lets_all_ranks_save_and_costs_no_retry(here: Here) -> None:
    here.cluster.controllers.ensure("kuberay")
    probe = start_probe(here, kubernetes=RAYJOB, placement={}, stop_grace_s=20)
    before = probe.counting(seconds=300)
    drained = here.pods()[0]["spec"]["nodeName"]

    here.cluster.nodes[drained].drain()
    wait_until(lambda: probe.asked() == [0, 1, 2, 3], seconds=20, what="all ranks asked to save")
    after = probe.counting(beyond=max(probe.counts()) + 3, seconds=300)
    moved = here.until(  # the head repeats what the driver says once a second
        lambda status: drained not in {rank.node for rank in status.ranks}, seconds=30
    )
    ended = probe.finish()

    assert min(after) >= min(before)
    assert [rank.rank for rank in moved.ranks] == [0, 1, 2, 3]
    assert ended.state is State.SUCCEEDED  # with no retry to spend
    assert any(f"{drained}: told to end" in line for line in here.log())
    here.ask(lambda backend: backend.delete("probe-1"))
    wait_until(lambda: not here.objects(), seconds=60, what="nothing of the run")


def test_a_queue_holds_a_run_back_whole_and_lets_it_in_whole(here: Here) -> None:
    here.cluster.controllers.ensure("kuberay", "kueue")
    make_queue(here.cluster, here.namespace, gpus=2)
    probe = start_probe(here, kubernetes=RAYJOB, queue="team")  # of 4
    said = here.diagnosis_until("team", seconds=90)
    waiting = here.status()
    before = here.cluster.api.list("Pod", here.namespace)

    make_queue(here.cluster, here.namespace, gpus=4)
    probe.counting(seconds=300)
    nodes = {pod["spec"]["nodeName"] for pod in here.pods()}
    ended = probe.finish()

    assert "4" in said.sentence and "2" in said.sentence
    assert waiting.state is State.PENDING
    assert before == []
    assert nodes == {"gpu-1", "gpu-2"}
    assert ended.state is State.SUCCEEDED
    here.ask(lambda backend: backend.delete("probe-1"))
    wait_until(lambda: not here.objects(), seconds=60, what="nothing of the run")


def test_a_cancelled_run_saves_and_leaves_no_pod(here: Here) -> None:
    here.cluster.controllers.ensure("kuberay")
    probe = start_probe(here, kubernetes=RAYJOB)
    probe.counting(seconds=300)

    began = time.monotonic()
    here.ask(lambda backend: backend.cancel("probe-1", grace_s=5))
    took_s = time.monotonic() - began
    left = [pod for pod in here.cluster.api.list("Pod", here.namespace) if alive(pod)]
    stopped = probe.counts()
    time.sleep(1.0)

    assert left == []
    assert took_s < 30
    assert probe.counts() == stopped
    assert here.status().state is State.CANCELLED
    here.ask(lambda backend: backend.delete("probe-1"))
    wait_until(lambda: not here.objects(), seconds=60, what="nothing of the run")

"""An endpoint as a LeaderWorkerSet: real pods that answer as this machine does, and start again."""

import json
import socket
import time
from typing import Any

import pytest
import yaml
from tests.cluster.machine import wait_until
from tests.cluster.queues import make_queue
from tests.launcher.kubernetes.real import Here
from tests.launcher.kubernetes.serving import (
    RECIPE,
    RUN,
    complete,
    healthy,
    service_address,
    until_healthy,
    write_recipe,
)
from tests.launcher.kubernetes.test_cluster_faults import alive

from parctl.launcher.backend import RankStatus, State

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def answer_of_this_machine(here: Here) -> str:
    """The same recipe on one rank here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local: dict[str, Any] = {"parallelism": "TP1", "placement": {}, "launch": {}}
    recipe = here.folder / "here.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **local, "serve": {"port": port}}))
    started = here.parctl("launch", str(recipe), "-b", "local", "--run-id", "here-1")
    assert started.returncode == 0, started.stderr
    try:
        wait_until(lambda: healthy("127.0.0.1", port), seconds=120, what="the endpoint here")
        return complete("127.0.0.1", port)
    finally:
        here.parctl("cancel", "here-1", "-b", "local")


def kill_rank(here: Here, found: RankStatus) -> None:
    pod = next(p for p in here.pods(RUN) if p["spec"]["nodeName"] == found.node)
    words = ["-n", here.namespace, "exec", pod["metadata"]["name"], "--"]
    here.cluster.kubectl(*words, "sh", "-c", f"kill -KILL {found.pid}")


def listed(here: Here) -> list[tuple[str, str]]:
    said = here.parctl("list", "-b", "kubernetes", "-o", "json")
    return [(run["run_id"], run["state"]) for run in json.loads(said.stdout)]


def test_a_group_answers_as_one_machine_and_starts_again_when_a_rank_dies(here: Here) -> None:
    here.cluster.controllers.ensure("lws")
    wanted = answer_of_this_machine(here)
    here.launch(write_recipe(here), RUN)
    address = service_address(here)
    until_healthy(here, address)
    kind = here.cluster.api.get(
        "LeaderWorkerSet", RUN, here.namespace, "leaderworkerset.x-k8s.io/v1"
    )["kind"]
    first = complete(address)
    each = [complete(pod["status"]["podIP"]) for pod in here.pods(RUN)]
    running = here.running(RUN)
    before = {pod["metadata"]["uid"] for pod in here.pods(RUN)}

    kill_rank(here, running.ranks[3])
    said = here.diagnosis_until("the run starts again", RUN)
    until_healthy(here, address)
    again = complete(address)
    restarted = here.running(RUN)
    after = {pod["metadata"]["uid"] for pod in here.pods(RUN)}

    assert kind == "LeaderWorkerSet"
    assert {rank.node for rank in running.ranks} == {"gpu-1", "gpu-2"}
    assert first == wanted and len(wanted) > 8
    assert each == [wanted, wanted], "whichever pod a client comes to"
    assert "rank 3 (node" in said.sentence and "SIGKILL" in said.sentence
    assert again == wanted
    assert (running.restarts, restarted.restarts) == (0, 1)
    assert after == before, "containers start again in their pods"
    assert any("serving endpoint at" in line for line in here.log(0, RUN))
    # `list` reads the group alone, whose controller counts a little after its pods are ready
    wait_until(lambda: listed(here) == [(RUN, "Running")], seconds=30, what="Running in the list")

    began = time.monotonic()
    here.ask(lambda backend: backend.cancel(RUN, grace_s=5))
    took_s = time.monotonic() - began
    wait_until(lambda: not any(map(alive, here.pods(RUN))), seconds=30, what="no pod")
    assert here.status(RUN).state is State.CANCELLED
    assert took_s < 30
    here.ask(lambda backend: backend.delete(RUN))
    wait_until(lambda: not here.objects(RUN), seconds=60, what="nothing of the run")
    left = here.cluster.kubectl("-n", here.namespace, "get", "statefulset,service", "-o", "name")
    assert left.split() == []


def test_a_pod_that_is_deleted_comes_back_to_its_group(here: Here) -> None:
    here.cluster.controllers.ensure("lws")
    here.launch(write_recipe(here), RUN)
    address = service_address(here)
    until_healthy(here, address)
    first = complete(address)

    here.cluster.api.delete("Pod", f"{RUN}-0-1", here.namespace)
    wait_until(lambda: not healthy(address), seconds=60, what="the loss")
    until_healthy(here, address)

    assert complete(address) == first
    assert here.running(RUN).restarts >= 1


def test_a_queue_holds_a_group_back_whole_and_lets_it_in_whole(here: Here) -> None:
    here.cluster.controllers.ensure("lws", "kueue")
    make_queue(here.cluster, here.namespace, gpus=2)
    here.launch(write_recipe(here, queue="team"), RUN)  # of 4
    said = here.diagnosis_until("team", RUN, seconds=90)
    waiting = here.status(RUN)
    placed = [pod for pod in here.pods(RUN) if pod["spec"].get("nodeName")]

    make_queue(here.cluster, here.namespace, gpus=4)
    until_healthy(here, service_address(here))

    assert "2" in said.sentence
    assert waiting.state is State.PENDING
    assert placed == []
    assert {pod["spec"]["nodeName"] for pod in here.pods(RUN)} == {"gpu-1", "gpu-2"}
    here.ask(lambda backend: backend.cancel(RUN, grace_s=5))
    here.ask(lambda backend: backend.delete(RUN))
    wait_until(lambda: not here.objects(RUN), seconds=60, what="nothing of the run")

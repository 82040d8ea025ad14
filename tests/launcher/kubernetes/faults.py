"""The faults of a run in pods, one after the other, and what is seen of each: rows of a table.

The run is the counting probe. A fault is noticed when `parctl why` says something else than before,
or `parctl status` counts a restart; a step is lost when a rank goes on from a smaller count than it
had.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.machine import wait_until
from tests.launcher.kubernetes.real import Here, Probe, start_probe

GOING_ON = re.compile(r"the run is going on|its ranks are being started")
NOTICE_S = 150.0
COORDINATED = {"kubernetes": {"recovery": "coordinator"}, "retries": 1, "placement": {}}
# only two nodes will do: the third is excluded
NARROW = {"kubernetes": {"recovery": "coordinator"}, "retries": 1}
RAYJOB = {"kubernetes": {"kind": "rayjob"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    name: str
    cause: Callable[[Here, Probe], None]
    heal: Callable[[Here], None] = lambda here: None
    launch: Mapping[str, Any] = field(default_factory=lambda: {"retries": 1})
    is_noticed: bool = True  # False: the run does not feel it, and nothing is to be said
    is_the_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    fault: str
    outcome: str
    noticed_s: float | None
    lost: int  # steps
    left: int  # objects, after the run was deleted
    sentence: str

    def __str__(self) -> str:
        noticed = "-" if self.noticed_s is None else f"{self.noticed_s:.1f} s"
        cells = (self.fault, self.outcome, noticed, self.lost, self.left, self.sentence)
        return "| " + " | ".join(str(cell) for cell in cells) + " |"


def kill_rank(here: Here, probe: Probe) -> None:
    probe.kill_rank(3)


def node_of_a_pod(here: Here) -> str:
    return str(here.pods()[0]["spec"]["nodeName"])


def delete_pod(here: Here, probe: Probe) -> None:
    here.cluster.api.delete("Pod", here.pods()[0]["metadata"]["name"], here.namespace)


def kill_node(here: Here, probe: Probe) -> None:
    here.cluster.nodes[node_of_a_pod(here)].kill()


def kill_second(here: Here, probe: Probe) -> None:
    here.cluster.nodes["gpu-2"].kill()


def drain(here: Here, probe: Probe) -> None:
    here.cluster.nodes[node_of_a_pod(here)].drain()


def stop_kubelet(here: Here, probe: Probe) -> None:
    here.cluster.nodes["gpu-2"].stop_kubelet()


def resume_kubelet(here: Here) -> None:
    here.cluster.nodes["gpu-2"].resume_kubelet()


def restart_api_server(here: Here, probe: Probe) -> None:
    here.cluster.control_plane.kill_api_server()
    time.sleep(3.0)
    here.cluster.control_plane.restart_api_server()


def restart_controllers(here: Here, probe: Probe) -> None:
    here.cluster.control_plane.restart_controller_manager()
    here.cluster.controllers.restart("jobset")


def kill_coordinator(here: Here, probe: Probe) -> None:
    selector = "parctl.dev/run=probe-1,parctl.dev/role=coordinator"
    for pod in here.cluster.api.list("Pod", here.namespace, selector=selector):
        name = pod["metadata"]["name"]
        here.cluster.api.delete("Pod", name, here.namespace, grace_s=0)


def lose_plan(here: Here, probe: Probe) -> None:
    here.cluster.api.delete("ConfigMap", "probe-1-plan", here.namespace)


FAULTS: Sequence[Fault] = (
    Fault(name="rank killed (SIGKILL)", cause=kill_rank),
    Fault(name="the same, coordinator", cause=kill_rank, launch=COORDINATED),
    Fault(name="rank killed, no retries", cause=kill_rank, launch={}, is_the_end=True),
    Fault(name="pod deleted", cause=delete_pod),
    Fault(name="node drained", cause=drain, launch={"placement": {}}),
    Fault(name="node dead for good, coordinator", cause=kill_node, launch=COORDINATED),
    Fault(
        name="node dead and back, coordinator",
        cause=kill_second,
        heal=lambda here: here.cluster.nodes["gpu-2"].back(),
        launch=NARROW,
    ),
    Fault(
        name="kubelet stopped",
        cause=stop_kubelet,
        heal=resume_kubelet,
        launch={"kubernetes": {"dead_node_s": 300}},
    ),
    Fault(name="coordinator's pod deleted", cause=kill_coordinator, launch=COORDINATED),
    Fault(name="API server restarted", cause=restart_api_server, is_noticed=False),
    Fault(name="controllers restarted", cause=restart_controllers, is_noticed=False),
    Fault(name="ConfigMap with the plan deleted", cause=lose_plan, is_noticed=False),
    Fault(name="rank killed, RayJob", cause=kill_rank, launch={**RAYJOB, "retries": 1}),
    Fault(name="node drained, RayJob", cause=drain, launch={**RAYJOB, "placement": {}}),
)


def lost_steps(here: Here, before: Sequence[int]) -> int:
    """The most that a rank has to count again; ranks say from where they begin."""
    lost = 0
    for rank, count in enumerate(before):
        begins = [int(line.rpartition(" from ")[2]) for line in here.log(rank) if " from " in line]
        if begins and begins[-1] > 0:  # from 0 they begin the first time
            lost = max(lost, count - begins[-1])
    return lost


def suffer(here: Here, fault: Fault) -> Row:
    """Launch, cause the fault, watch, let it end, delete. Raises TimeoutError, AssertionError."""
    if fault.launch.get("kubernetes") == RAYJOB["kubernetes"]:
        here.cluster.controllers.ensure("kuberay")
    probe = start_probe(here, **fault.launch)
    probe.counting(seconds=300)
    here.running()
    before = probe.counts()
    began = time.monotonic()
    fault.cause(here, probe)
    noticed_s, sentence = None, "-"
    if fault.is_noticed:
        while GOING_ON.search(sentence := here.why().sentence) and not here.status().restarts:
            assert time.monotonic() < began + NOTICE_S, "nobody has noticed"
            time.sleep(0.1)
        noticed_s = time.monotonic() - began
        if GOING_ON.search(sentence):  # it was over sooner than one can ask
            told = [each for each in here.why().evidence if each.startswith("attempt ")]
            sentence = "; ".join([sentence, *told[-1:]])
    fault.heal(here)
    if not fault.is_the_end:
        wait_until(
            lambda: GOING_ON.search(here.why().sentence), seconds=300, what="the run going on"
        )
        probe.counting(beyond=max(probe.counts()) + 3, seconds=300)
    lost = lost_steps(here, before)
    ended = probe.finish()
    if ended.state == "Failed":
        sentence = here.why().sentence
    outcome = f"{ended.state}, {ended.restarts} counted"
    here.ask(lambda backend: backend.delete("probe-1"))
    wait_until(lambda: not here.objects(), seconds=60, what="nothing of the run")
    return Row(
        fault=fault.name,
        outcome=outcome,
        noticed_s=noticed_s,
        lost=lost,
        left=len(here.objects()),
        sentence=sentence,
    )

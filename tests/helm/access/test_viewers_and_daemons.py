"""Viewers and the discovery daemon: they use every right that they have, and miss each."""

import os
import subprocess
import sys

import pytest
from tests.cluster.api import Api, Object
from tests.cluster.queues import make_queue
from tests.helm.access.rights import (
    HELLO,
    SLEEP,
    Right,
    User,
    less,
    ok,
    rights,
    rights_of,
    rules_without,
    sample,
)
from tests.helm.chart import render
from tests.helm.conftest import NVML, RECORDS, need_nvml
from tests.launcher.kubernetes import serving
from tests.launcher.kubernetes.real import Here

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # the matrix takes every right away


def shown(here: Here) -> None:
    """Runs of every kind, by somebody else: one that ended, one each that waits."""
    here.launch(here.recipe(HELLO, "DP2", kubernetes={"kind": "job"}), "seen-job")
    here.launch(here.recipe(HELLO, "DP2", kubernetes={"kind": "jobset"}), "seen-jobset")
    here.ended("seen-job")  # before the others, which would take its GPUs where they are started
    here.ended("seen-jobset")
    here.launch(here.recipe(HELLO, "DP2", kubernetes={"kind": "rayjob"}), "seen-ray")
    served = {"kind": "leaderworkerset", "cpu": "50m"}
    here.launch(serving.write_recipe(here, kubernetes=served), "seen-served")
    make_queue(here.cluster, here.namespace, gpus=1)
    for kind in ("job", "jobset"):
        waiting = here.recipe(SLEEP, "DP2", queue="team", kubernetes={"kind": kind})
        here.launch(waiting, f"seen-queued-{kind}")


WAIT = ("--timeout", "0.5")
# a command for every right that a viewer has
LOOKS: dict[Right, tuple[str, ...]] = {
    ("get", "jobs"): ("status", "seen-job"),
    ("list", "jobs"): ("list",),
    ("watch", "jobs"): ("wait", "seen-queued-job", *WAIT),
    ("get", "jobsets"): ("status", "seen-jobset"),
    ("list", "jobsets"): ("list",),
    ("watch", "jobsets"): ("wait", "seen-queued-jobset", *WAIT),
    ("get", "leaderworkersets"): ("status", "seen-served"),
    ("list", "leaderworkersets"): ("list",),
    ("watch", "leaderworkersets"): ("wait", "seen-served", *WAIT),
    ("list", "statefulsets"): ("why", "seen-served"),
    ("get", "rayjobs"): ("status", "seen-ray"),
    ("list", "rayjobs"): ("list",),
    ("watch", "rayjobs"): ("wait", "seen-ray", *WAIT),
    ("list", "rayclusters"): ("why", "seen-ray"),
    ("get", "pods"): ("logs", "seen-job", "--follow"),
    ("list", "pods"): ("status", "seen-job"),
    ("watch", "pods"): ("wait", "seen-queued-job", *WAIT),
    ("get", "pods/log"): ("logs", "seen-job"),
    ("list", "events"): ("why", "seen-queued-job"),
    ("list", "workloads"): ("why", "seen-queued-job"),
    ("get", "localqueues"): ("why", "seen-queued-job"),
}


def test_viewers_see_and_touch_nothing(here: Here) -> None:
    shown(here)
    viewer = User(here, rules_without("viewer"), rules_without("cluster-viewer"))

    for word in ("status", "why", "wait"):
        ok(viewer, word, "seen-job")
    assert "hello" in ok(viewer, "logs", "seen-jobset")
    for words in sorted(set(LOOKS.values())):
        viewer.parctl(*words)
    assert set(LOOKS) == rights("viewer")
    assert rights("viewer") - viewer.used() == set()
    assert viewer.refused() - rights("viewer") - rights("cluster-viewer") == set()
    attempts = (
        ("cancel", "seen-queued-job"),
        ("cancel", "seen-job"),
        ("delete", "seen-job"),
        ("launch", str(here.folder / "probe.yaml"), "--run-id", "not-mine"),
    )
    for words in attempts:
        done = viewer.parctl(*words)
        over = words == ("cancel", "seen-job")  # it has ended: there is nothing to do
        assert over or done.returncode == 5, (words, done.stderr)

    assert here.status("seen-job").state == "Succeeded"
    verbs = {verb for verb, _ in viewer.used()}
    assert verbs <= {"get", "list", "watch"}
    for removed in sample(sorted(LOOKS)):
        short = User(here, rules_without("viewer", removed), [])
        short.parctl(*LOOKS[removed])
        assert removed in short.refused(), removed


def discovery_rules(*settings: str) -> list[Object]:
    """Everything that the daemon may do, wherever."""
    flags = [word for setting in settings for word in ("--set", f"discovery.{setting}")]
    found = [each for each in render("helm4", *flags) if each["kind"] in ("ClusterRole", "Role")]
    return [
        rule
        for each in found
        if each["metadata"]["name"].endswith("-discovery")
        for rule in each["rules"]
    ]


def daemon(user: User, publish: str, seconds: float) -> str:
    """Let the daemon run here as the user, on a node with a broken GPU; return what it says."""
    settings = {
        "PARCTL_NODE": "gpu-1",
        "PARCTL_POD": "daemon",
        "PARCTL_POD_UID": "00000000-0000-4000-8000-000000000000",
        "PARCTL_POD_NAMESPACE": user.here.namespace,
        "PARCTL_PUBLISH": publish,
        "PARCTL_INTERVAL_S": "1",
        "PARCTL_POLL_S": "0.5",
        "PARCTL_EVENTS": "true",
        "PARCTL_LABELS": str(publish == "crd").lower(),
        "PARCTL_TAINT_EFFECT": "PreferNoSchedule" if publish == "crd" else "",
        "LD_LIBRARY_PATH": str(NVML),
        "FAKE_NVML": str(NVML / "b200x8_gpu2down.spec"),
    }
    environment = {**os.environ, **settings, "KUBECONFIG": str(user.kubeconfig)}
    command = [sys.executable, "-m", "parctl.cli.discover"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            process.terminate()
            said = process.communicate()[1]
    return said


def test_discovery_uses_every_right_it_has_and_misses_each(here: Here, definition: None) -> None:
    need_nvml()
    api = here.cluster.api
    for publish, settings in (
        ("crd", ("labels=true", "taintEffect=PreferNoSchedule")),
        ("configMap", ("publish=configMap",)),
    ):
        rules = discovery_rules(*settings)
        for removed in (None, *sample(sorted(rights_of(rules)))):
            user = User(here, [], less(rules, removed))
            try:
                said = daemon(user, publish, 4)
            finally:
                forget(api)
            if removed is None:
                assert said == ""
                # a ConfigMap is looked for when the daemon starts, before there is one
                assert user.granted() == rights_of(rules)
                continue
            # applying what is not there is a patch by its verb, and needs `create` too
            verb = "patch" if removed[0] == "create" and removed[1] != "events" else removed[0]
            assert (verb, removed[1]) in user.refused(), said
            missed = "no event of " if removed[1] == "events" else "not published: "
            assert missed in said


def forget(api: Api) -> None:
    """What the daemon leaves at its node."""
    api.delete("NodeTopology", "gpu-1", None, RECORDS)
    node = api.get("Node", "gpu-1")
    kept = [t for t in node["spec"].get("taints") or () if t["key"] != "parctl.dev/fault"]
    labels = {"nvidia.com/gpu.clique": None}
    api.patch("Node", "gpu-1", {"metadata": {"labels": labels}, "spec": {"taints": kept}})

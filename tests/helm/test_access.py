"""The roles have exactly the verbs that parctl uses, by the API server's own audit log."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.api import Object
from tests.cluster.cluster import Cluster
from tests.cluster.programs import PROGRAMS
from tests.cluster.queues import make_queue
from tests.helm.chart import one, render
from tests.helm.conftest import DEFINITION
from tests.launcher.kubernetes.real import Here

pytestmark = pytest.mark.cluster
Right = tuple[str, str]  # verb, resource or resource/subresource
# read before the first test: each test starts with an environment free of such names
MATRIX = os.environ.get("PARCTL_MATRIX") == "1"
SAMPLE = 2
HELLO = ["python3", "-S", "-c", "import time; time.sleep(0.5); print('hello')"]
SLEEP = ["python3", "-S", "-c", "import time; time.sleep(600)"]
# used only beside faults that other tests make: a pod on a node that died is given up
IN_FAULTS = {("patch", "pods/status")}
# asked for where KubeRay is there, which it is not here
OF_RAY = ("rayjobs", "rayclusters")


def rights(role: str) -> set[Right]:
    """What a role of the chart allows."""
    rules = one(render("helm4"), "ClusterRole", f"parctl-{role}")["rules"]
    return {
        (verb, resource)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rules_without(role: str, right: Right | None = None) -> list[Object]:
    """The rules of a role, less one right."""
    rules = one(render("helm4"), "ClusterRole", f"parctl-{role}")["rules"]
    result = []
    for rule in rules:
        for resource in rule["resources"]:
            verbs = [verb for verb in rule["verbs"] if (verb, resource) != right]
            if verbs:
                result.append({**rule, "resources": [resource], "verbs": verbs})
    return result


class User:
    """Somebody with some rights, and what the API server has heard of them."""

    def __init__(self, here: Here, rules: list[Object], cluster_rules: list[Object]) -> None:
        self.here = here
        self.kubeconfig = here.cluster.user(here.namespace, rules, cluster_rules=cluster_rules)
        text = self.kubeconfig.read_text()
        found = re.search(r"user-[0-9a-f]{8}", self.kubeconfig.name + text)
        assert found
        self.name = f"system:serviceaccount:{here.namespace}:{found[0]}"

    def parctl(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "parctl", *words],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )

    def heard(self) -> list[tuple[Right, int]]:
        """Each request about an object, with the answer's code."""
        found = []
        log = self.here.cluster.machine.logs / "audit.log"
        for line in log.read_text(errors="replace").splitlines():
            if self.name not in line:
                continue
            entry = json.loads(line)
            about = entry.get("objectRef")
            if entry["user"]["username"] != self.name or not (about and about.get("resource")):
                continue
            if "responseStatus" not in entry:
                continue
            resource = about["resource"]
            if about.get("subresource"):
                resource += f"/{about['subresource']}"
            found.append(((entry["verb"], resource), entry["responseStatus"]["code"]))
        return found

    def used(self) -> set[Right]:
        """Rights that were used. Applying what is not there takes `create` as well as `patch`."""
        used = {right for right, code in self.heard() if code < 400}
        made = {
            ("create", right[1])
            for right, code in self.heard()
            if right[0] == "patch" and code == 201
        }
        return used | made

    def refused(self) -> set[Right]:
        return {right for right, code in self.heard() if code == 403}


@pytest.fixture
def definition(cluster: Cluster) -> Iterator[None]:
    """The kind of records, without a release."""
    api = cluster.api
    api.apply(one(render("helm4"), "CustomResourceDefinition"))
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{DEFINITION}")
    yield
    api.delete("CustomResourceDefinition", DEFINITION, None, "apiextensions.k8s.io/v1")


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    cluster.controllers.ensure("jobset", "kueue")
    with cluster.namespace() as namespace:
        place = Here(cluster=cluster, namespace=namespace, folder=tmp_path)
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        yield place


Part = Callable[[User, Here], None]


def ok(user: User, *words: str) -> str:
    done = user.parctl(*words)
    assert done.returncode == 0, f"parctl {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def a_run(kind: str) -> Part:
    """Launch, look at it in every way, delete it."""

    def part(user: User, here: Here) -> None:
        run = f"day-{kind}"
        recipe = here.recipe(HELLO, "DP2", kubernetes={"kind": kind})
        ok(user, "launch", str(recipe), "--run-id", run)
        ok(user, "status", run)
        ok(user, "wait", run, "--timeout", "60")
        assert "hello" in ok(user, "logs", run)
        ok(user, "list")
        ok(user, "why", run)
        ok(user, "delete", run)

    return part


def led(user: User, here: Here) -> None:
    """A run with a coordinator, which has an account and a role of its own."""
    recipe = here.recipe(HELLO, "DP2", kubernetes={"recovery": "coordinator"})
    ok(user, "launch", str(recipe), "--run-id", "day-led", "--follow")
    ok(user, "delete", "day-led")


def queued(user: User, here: Here) -> None:
    """A run that waits for Kueue, and is cancelled."""
    make_queue(here.cluster, here.namespace, gpus=2)
    recipe = here.recipe(SLEEP, "DP2", queue="team")
    ok(user, "launch", str(recipe), "--run-id", "day-queued")
    here.running("day-queued")
    ok(user, "why", "day-queued")
    ok(user, "cancel", "day-queued", "--grace", "1")
    ok(user, "delete", "day-queued")


def taken_back(user: User, here: Here) -> None:
    """A launch that the cluster refuses at its last object: those before it are deleted."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-jobs"}}
    hard = {"count/jobs.batch": "0"}
    here.cluster.api.apply({**quota, "spec": {"hard": hard}}, namespace=here.namespace)
    here.cluster.api.wait(
        "ResourceQuota", "no-jobs", lambda q: q.get("status", {}).get("hard"), here.namespace
    )
    recipe = here.recipe(HELLO, "DP2", kubernetes={"kind": "job", "recovery": "coordinator"})
    done = user.parctl("launch", str(recipe), "--run-id", "day-refused")
    assert done.returncode == 2, done.stderr
    here.cluster.api.delete("ResourceQuota", "no-jobs", here.namespace)


PARTS: dict[str, Part] = {
    "taken back": taken_back,
    "job": a_run("job"),
    "jobset": a_run("jobset"),
    "led": led,
    "queued": queued,
}


def test_users_use_every_right_they_have_and_lack_none(here: Here, definition: None) -> None:
    user = User(here, rules_without("user"), rules_without("cluster-viewer"))

    for part in PARTS.values():
        part(user, here)

    allowed = rights("user") | rights("cluster-viewer")
    assert user.refused() - allowed == set()
    assert user.used() - allowed == set()
    unused = allowed - user.used() - IN_FAULTS
    assert {right for right in unused if right[1] not in OF_RAY} == set()


# which part of the day misses a right; the first of them that does
MISSED_BY = {
    "jobsets": "jobset",
    "workloads": "queued",
    "localqueues": "queued",
    "clusterqueues": "queued",
    "serviceaccounts": "taken back",
    "roles": "taken back",
    "rolebindings": "taken back",
    "services": "taken back",
    "networkpolicies": "taken back",
}
# these are used by one part only
MISSED = {
    ("list", "serviceaccounts"): "job",
    ("list", "roles"): "job",
    ("list", "rolebindings"): "job",
    ("list", "services"): "job",
    ("list", "networkpolicies"): "job",
    ("get", "pods"): "led",
    ("delete", "pods"): "queued",
    ("delete", "configmaps"): "taken back",
}


def removals() -> list[Right]:
    """Every right that the day uses; a few of them, other ones each day, where time is short."""
    every = sorted(rights("user") | rights("cluster-viewer"))
    every = [right for right in every if right not in IN_FAULTS and right[1] not in OF_RAY]
    if MATRIX:
        return every
    start = int(time.time() // 86400) * SAMPLE
    return [every[(start + i) % len(every)] for i in range(SAMPLE)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "removed" in metafunc.fixturenames:
        found = removals() if PROGRAMS["helm4"].built else []
        metafunc.parametrize("removed", found, ids=lambda right: "-".join(right))


def test_a_user_without_one_of_the_rights_misses_it(
    here: Here, definition: None, removed: Right
) -> None:
    user = User(here, rules_without("user", removed), rules_without("cluster-viewer", removed))
    part = MISSED.get(removed) or MISSED_BY.get(removed[1], "job")

    with contextlib.suppress(AssertionError):  # some commands fail, others do without and say so
        PARTS[part](user, here)

    # applying what is not there is a patch by its verb, and needs `create` too
    missed = ("patch" if removed[0] == "create" else removed[0], removed[1])
    if removed == ("get", "pods"):
        missed = ("patch", "roles")  # a coordinator may do that: nobody grants what they lack
    assert missed in user.refused(), part


def test_viewers_see_and_touch_nothing(here: Here) -> None:
    recipe = here.recipe(HELLO, "DP2", kubernetes={"kind": "job"})
    here.launch(recipe, "seen-1")
    here.ended("seen-1")
    viewer = User(here, rules_without("viewer"), rules_without("cluster-viewer"))

    looks: tuple[tuple[str, ...], ...] = (
        ("list",),
        ("status", "seen-1"),
        ("why", "seen-1"),
        ("wait", "seen-1"),
    )
    for words in looks:
        ok(viewer, *words)
    assert "hello" in ok(viewer, "logs", "seen-1")
    attempts: tuple[tuple[str, ...], ...] = (
        ("cancel", "seen-1"),
        ("delete", "seen-1"),
        ("launch", str(recipe), "--run-id", "not-mine"),
    )
    for words in attempts:
        done = viewer.parctl(*words)
        assert words[0] == "cancel" or done.returncode == 5, (words, done.stderr)

    assert here.status("seen-1").state == "Succeeded"
    verbs = {verb for verb, _ in viewer.used()}
    assert verbs <= {"get", "list", "watch"}

"""The roles have exactly the verbs that parctl uses, by the API server's own audit log.

Every role's day is played once with all its rights, none of which may go unused, and then again
without each right in turn: whoever misses one is refused, and told so.
"""

import contextlib
from collections.abc import Callable

import pytest
from tests.cluster.programs import PROGRAMS
from tests.cluster.queues import make_queue
from tests.helm.access.rights import HELLO, SLEEP, Right, User, ok, rights, rules_without, sample
from tests.launcher.kubernetes import serving
from tests.launcher.kubernetes.real import Here

pytestmark = pytest.mark.cluster
# used beside a node that died, which other tests make: here it is missed by who may not pass it on
IN_FAULTS = {("patch", "pods/status")}


Part = Callable[[User, Here], None]


def a_run(kind: str) -> Part:
    """Launch, look at it in every way, delete it; launch another, and cancel that."""

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
        other = here.recipe(SLEEP, "DP2", kubernetes={"kind": kind})
        ok(user, "launch", str(other), "--run-id", f"{run}-2")
        # the first run may be over before anybody watches it
        assert user.parctl("wait", f"{run}-2", "--timeout", "3").returncode == 124
        ok(user, "cancel", f"{run}-2", "--grace", "1")
        ok(user, "delete", f"{run}-2")

    return part


def by_ray(user: User, here: Here) -> None:
    recipe = here.recipe(HELLO, "DP2", kubernetes={"kind": "rayjob"})
    not_started(user, str(recipe), "day-ray")


def served(user: User, here: Here) -> None:
    recipe = serving.write_recipe(here, kubernetes={"kind": "leaderworkerset", "cpu": "50m"})
    not_started(user, recipe, "day-served")


def not_started(user: User, recipe: str, run: str) -> None:
    """A run whose controller is not there; only its kind is."""
    ok(user, "launch", recipe, "--run-id", run)
    ok(user, "status", run)
    assert user.parctl("wait", run, "--timeout", "1").returncode == 124
    ok(user, "list")
    ok(user, "why", run)
    ok(user, "cancel", run, "--grace", "1")
    ok(user, "delete", run)


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
    "ray": by_ray,
    "served": served,
}


def test_users_use_every_right_they_have_and_lack_none(here: Here, definition: None) -> None:
    user = User(here, rules_without("user"), rules_without("cluster-viewer"))

    for part in PARTS.values():
        part(user, here)

    allowed = rights("user") | rights("cluster-viewer")
    assert user.refused() - allowed == set()
    assert user.used() - allowed == set()
    assert allowed - user.used() - IN_FAULTS == set()


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
    "pods/status": "led",
    "rayjobs": "ray",
    "rayclusters": "ray",
    "leaderworkersets": "served",
    "statefulsets": "served",
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
    # whose owner comes last
    ("patch", "services"): "job",
    ("patch", "networkpolicies"): "job",
    ("patch", "serviceaccounts"): "led",
    ("patch", "roles"): "led",
    ("patch", "rolebindings"): "led",
}


def removals() -> list[Right]:
    return sample(sorted(rights("user") | rights("cluster-viewer")))


# a coordinator has these, and nobody grants what they lack
PASSED_ON = {("get", "pods"), ("patch", "pods/status")}


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

    missed = removed
    if removed in PASSED_ON:
        missed = ("create", "roles")
    assert missed in user.refused(), part

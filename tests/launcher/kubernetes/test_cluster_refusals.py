"""What a cluster does not take: said before anything runs, with the way out, and nothing stays."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from tests.cluster.api import ApiError, Object
from tests.cluster.cluster import JOBSET
from tests.cluster.machine import wait_until
from tests.cluster.pods import pod_spec
from tests.launcher.kubernetes.cases import TARGET, plan_of
from tests.launcher.kubernetes.real import Here

from parctl.errors import BackendError, ParctlError, UsageError
from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.names import PLAN_HASH
from parctl.launcher.kubernetes.render import render
from parctl.launcher.kubernetes.submit import submit
from parctl.recipes.kubernetes_spec import KubernetesSpec

pytestmark = pytest.mark.cluster
HELLO = ["python3", "-S", "-c", "print('hello')"]
EVERYTHING = (
    ("", "configmaps"),
    ("", "services"),
    ("", "pods"),
    ("networking.k8s.io", "networkpolicies"),
    ("batch", "jobs"),
    ("jobset.x-k8s.io", "jobsets"),
)
VERBS = ("get", "list", "watch", "create", "patch", "delete")


def refused(here: Here, *overrides: str) -> ParctlError:
    """Launch, be refused, and leave nothing."""
    with pytest.raises(ParctlError) as caught:
        here.launch(here.recipe(HELLO, placement={}), "probe-1", *overrides)
    wait_until(lambda: not here.objects(), seconds=20, what="nothing of the run")
    return caught.value


def as_user(here: Here, monkeypatch: pytest.MonkeyPatch, rules: list[Object]) -> None:
    # nodes are the cluster's: whoever plans may list them
    user = here.cluster.user(here.namespace, rules, cluster_rules=[rule("", "nodes", ["list"])])
    monkeypatch.setenv("KUBECONFIG", str(user))


def rule(group: str, resource: str, verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": [resource], "verbs": verbs}


def test_a_namespace_that_does_not_exist(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARCTL_NAMESPACE", "nowhere")

    with pytest.raises(UsageError, match="there is no namespace `nowhere`"):
        here.launch(here.recipe(HELLO, placement={}))


def test_a_quota_that_is_used_up(here: Here) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    spec = {"hard": {"count/configmaps": "1"}}  # the namespace's own certificates are the one
    here.cluster.api.apply({**quota, "spec": spec}, namespace=here.namespace)
    full = {"count/configmaps": "1"}
    here.cluster.api.wait(
        "ResourceQuota", "few", lambda q: q.get("status", {}).get("used") == full, here.namespace
    )

    error = refused(here)

    assert isinstance(error, UsageError)
    assert "exceeded quota: few" in str(error)


@pytest.mark.parametrize(
    ("group", "resource"), [("", "configmaps"), ("jobset.x-k8s.io", "jobsets")]
)
def test_a_missing_right_to_create_is_named_and_the_rest_taken_back(
    here: Here, monkeypatch: pytest.MonkeyPatch, group: str, resource: str
) -> None:
    rules = [
        rule(*each, [v for v in VERBS if each != (group, resource) or v not in ("create", "patch")])
        for each in EVERYTHING
    ]
    as_user(here, monkeypatch, rules)

    error = refused(here)

    assert isinstance(error, BackendError)
    assert error.exit_code == 5
    assert resource in str(error)


def test_a_user_with_these_rights_and_no_others_can_launch(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = [rule(*each, list(VERBS)) for each in EVERYTHING]
    as_user(here, monkeypatch, [*rules, rule("", "pods/log", ["get"])])

    here.launch(here.recipe(HELLO, placement={"exclude": ["gpu-3"]}))

    assert here.ended().state == "Succeeded"
    assert here.log(0)[-1] == "hello"


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("ConfigMap", "probe-1-plan", {"data": {"mine": "yes"}}),
        ("Service", "probe-1", {"spec": {"ports": [{"port": 80}]}}),
    ],
)
def test_an_object_of_somebody_else_is_left_as_it_is(
    here: Here, kind: str, name: str, content: Object
) -> None:
    metadata = {"name": name, "namespace": here.namespace}
    theirs = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **content}
    here.cluster.api.apply(theirs)
    before = here.cluster.api.get(kind, name, here.namespace)

    error = refused(here, "launch.kubernetes.kind=job")

    assert isinstance(error, UsageError)
    assert f"{kind} `{name}` already, which is no part of a run" in str(error)
    assert here.cluster.api.get(kind, name, here.namespace) == before


@pytest.mark.parametrize("name", [f"race-{number}" for number in range(5)])
def test_two_launches_of_one_name_do_not_spoil_each_other(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = replace(TARGET, namespace=here.namespace)
    specs = [KubernetesSpec(kind="job", dead_node_s=seconds) for seconds in (5.0, 7.0)]
    both = [render(plan_of(spec), name, target) for spec in specs]
    for variable, value in here.environment.items():
        monkeypatch.setenv(variable, value)
    together = Barrier(2)

    def send(manifests: Manifests) -> bool:
        client = Client(find_access(None))
        together.wait()
        try:
            return submit(client, manifests).created
        except UsageError as error:
            assert "another plan" in str(error)
            return False

    with ThreadPoolExecutor(2) as threads:
        created = list(threads.map(send, both))

    assert sorted(created) == [False, True]
    winner = both[created.index(True)]
    job = here.cluster.api.get("Job", name, here.namespace, "batch/v1")
    assert job["metadata"]["annotations"][PLAN_HASH] == winner.plan.hash
    plan = here.cluster.api.get("ConfigMap", f"{name}-plan", here.namespace)
    assert plan["binaryData"] == winner.documents[0]["binaryData"]


def test_a_token_that_the_server_does_not_accept(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = here.cluster.authority.token_kubeconfig("stranger", "not-a-token", here.namespace)
    monkeypatch.setenv("KUBECONFIG", str(config))

    said = here.parctl("list", "-b", "kubernetes")

    assert said.returncode == 5
    assert "Unauthorized" in said.stderr or "401" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_policy_that_denies(here: Here) -> None:
    """An admission policy stands for any webhook that says no."""
    name = f"deny-{here.namespace}"
    group = "admissionregistration.k8s.io/v1"
    workloads = {"apiGroups": ["jobset.x-k8s.io"], "apiVersions": ["*"]}
    matched = [{**workloads, "operations": ["CREATE"], "resources": ["jobsets"]}]
    here_only = {"matchLabels": {"kubernetes.io/metadata.name": here.namespace}}
    policy: Object = {
        "matchConstraints": {"resourceRules": matched, "namespaceSelector": here_only},
        "validations": [{"expression": "false", "message": "no runs on Saturdays"}],
    }
    binding = {"policyName": name, "validationActions": ["Deny"]}
    for kind, spec in (
        ("ValidatingAdmissionPolicy", policy),
        ("ValidatingAdmissionPolicyBinding", binding),
    ):
        meta = {"name": name}
        item = {"apiVersion": group, "kind": kind, "metadata": meta, "spec": spec}
        here.cluster.api.apply(item)
    try:
        wait_until(lambda: is_denied(here), seconds=60, what="policy in force")
        error = refused(here)
    finally:
        here.cluster.api.delete("ValidatingAdmissionPolicyBinding", name, None, group)
        here.cluster.api.delete("ValidatingAdmissionPolicy", name, None, group)

    assert isinstance(error, UsageError)
    assert "no runs on Saturdays" in str(error)


def is_denied(here: Here) -> bool:
    """A policy takes effect a moment after it is made."""
    job = {"name": "ranks", "template": {"spec": {"template": {"spec": pod_spec(HELLO)}}}}
    spec = {"replicatedJobs": [job]}
    item: Object = {"apiVersion": JOBSET, "kind": "JobSet", "metadata": {"name": "asking"}}
    try:
        here.cluster.api.apply({**item, "spec": spec}, namespace=here.namespace, dry_run=True)
    except ApiError as error:
        return "Saturdays" in str(error)
    return False

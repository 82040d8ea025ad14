"""What is rendered, judged by a real API server: its schemas, its policies, its controllers."""

from copy import deepcopy
from typing import Any

import pytest
import yaml
from tests.cluster.api import ApiError
from tests.cluster.cluster import Cluster
from tests.launcher.kubernetes.cases import CASES, manifests, pod_template
from tests.launcher.kubernetes.real import Here

pytestmark = pytest.mark.cluster
NEEDS_PRIVILEGE = ("privileged",)  # host network, host path, RDMA


def documents(case: str, namespace: str) -> list[dict[str, Any]]:
    """The objects of a case, moved to the test's namespace."""
    found = deepcopy([dict(document) for document in manifests(case).documents])
    for document in found:
        document["metadata"] = {**document["metadata"], "namespace": namespace}
    return found


def pod_of(case: str, namespace: str) -> dict[str, Any]:
    """The pod that the case's workload would make: policies judge pods only."""
    template = pod_template(documents(case, namespace)[-1])
    pod_spec = {**template["spec"], "priorityClassName": None, "serviceAccountName": "default"}
    meta = {"name": "judged", "namespace": namespace, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod_spec}


@pytest.mark.parametrize("case", CASES)
def test_the_server_accepts_every_object_strictly(here: Here, case: str) -> None:
    needed = {"rayjob": "kuberay", "serve": "lws"}
    here.cluster.controllers.ensure(*([needed[case]] if case in needed else []))
    text = yaml.safe_dump_all(documents(case, here.namespace))

    words = ["apply", "--dry-run=server", "--validate=strict", "--server-side", "-f", "-"]
    said = here.cluster.kubectl(*words, stdin=text)

    assert len(said.splitlines()) == len(manifests(case).documents)


@pytest.mark.parametrize("case", CASES)
def test_only_what_needs_privilege_violates_the_restricted_standard(
    cluster: Cluster, case: str
) -> None:
    with cluster.namespace(pod_security="restricted") as restricted:
        if case not in NEEDS_PRIVILEGE:
            cluster.api.apply(pod_of(case, restricted), dry_run=True)
            return
        with pytest.raises(ApiError, match="violates PodSecurity") as refused:
            cluster.api.apply(pod_of(case, restricted), dry_run=True)
        assert "hostNetwork" in str(refused.value)
    with cluster.namespace(pod_security="privileged") as privileged:
        cluster.api.apply(pod_of(case, privileged), dry_run=True)


def test_a_dry_run_applied_by_kubectl_runs_too(here: Here) -> None:
    recipe = here.recipe(["python3", "-S", "-c", "print('hello')"])
    words = ["--run-id", "by-hand", "--cluster", "kubernetes"]

    shown = here.parctl("launch", str(recipe), "-b", "kubernetes", "--dry-run", *words)
    assert shown.returncode == 0, shown.stderr
    here.cluster.kubectl("apply", "-f", "-", stdin=shown.stdout)

    assert here.ended("by-hand").state == "Succeeded"
    assert here.log(0, "by-hand")[-1] == "hello"

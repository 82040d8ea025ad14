"""Who may give up a pod by its status may not have it answer at another machine's address."""

from itertools import count

import pytest
from tests.cluster.api import Api, ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_until
from tests.cluster.pods import pod_spec
from tests.helm.chart import render

pytestmark = pytest.mark.cluster
ADMISSION = "admissionregistration.k8s.io/v1"
RULES = [{"apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["get", "patch"]}]


def test_a_user_gives_up_a_pod_and_gives_it_no_address(cluster: Cluster, namespace: str) -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    policy = [
        each
        for each in render("helm4")
        if each["kind"] in kinds and each["metadata"]["name"] == "parctl-pod-addresses"
    ]
    assert [each["kind"] for each in policy] == list(kinds)
    nowhere = {**pod_spec(["true"]), "nodeSelector": {"no": "such"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost"}, "spec": nowhere}
    runs = {**pod, "metadata": {"name": "runs"}, "spec": pod_spec(["sleep", "60"])}
    addresses = (f"10.99.{number // 256}.{number % 256}" for number in count(1))
    user = Api(cluster.user(namespace, RULES))
    try:
        for each in (*policy, pod):
            cluster.api.apply(each, namespace=namespace if each is pod else None)

        def refused() -> bool:
            """A new policy takes the API server a moment; what is there already changes nothing."""
            ip = next(addresses)
            address = {"podIP": ip, "podIPs": [{"ip": ip}]}
            try:
                user.patch("Pod", "lost", {"status": address}, namespace, subresource="status")
            except ApiError as error:
                return "which address a pod has" in str(error)
            return False

        wait_until(refused, seconds=30, what="a refusal")
        given_up = {"status": {"phase": "Failed", "reason": "NodeLost"}}
        user.patch("Pod", "lost", given_up, namespace, subresource="status")
        cluster.api.apply(runs, namespace=namespace)  # the kubelet gives this one its address
        wait_until(
            lambda: cluster.api.get("Pod", "runs", namespace)["status"].get("podIP"),
            seconds=60,
            what="the address of a pod that runs",
        )

        assert cluster.api.get("Pod", "lost", namespace)["status"]["phase"] == "Failed"
    finally:
        user.close()
        for each in policy:
            cluster.api.delete(each["kind"], each["metadata"]["name"], None, ADMISSION)

"""The end of a run on request: pods save and leave, and later all objects go."""

import time
from contextlib import suppress
from typing import Any

from parctl.errors import BackendError, ParctlError
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.leader_worker_set import LEADER_WORKER_SET
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import (
    PARTS,
    RunObjects,
    annotation_of,
    find_workload,
    index_of,
    kueue_api,
    phase_of,
)
from parctl.launcher.kubernetes.state import end_of, is_suspended

POLL_S = 0.25
SLACK_S = 10.0  # for the kubelet to see a pod off
# whatever a run may consist of, the workload apart
KINDS = (
    ("batch/v1", "Job"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ServiceAccount"),
)
REFUSED = (403, 404)


def cancel_run(client: Client, run: RunObjects, *, grace_s: float | None) -> None:
    """Suspend the workload, which ends its pods, and wait until none is left.

    Suspending keeps the workload, and with it the run in `parctl list`. Pods get their own time to
    save, or `grace_s`; what is left after that is deleted by force. A controller that has not heard
    yet makes a pod again: until it has, none that is left is not the end.
    """
    workload = run.workload
    if end_of(workload) is not None:
        return
    name = workload["metadata"]["name"]
    change: Object = {"metadata": {"annotations": {names.CANCELLED: f"{client.now_unix:.3f}"}}}
    # a set has no word for being suspended, and keeps nothing when it is to have no group
    is_set = workload["kind"] == LEADER_WORKER_SET
    change["spec"] = {"replicas": 0} if is_set else {"suspend": True}
    if annotation_of(workload, names.RECOVERY) == "coordinator":
        client.delete("batch/v1", "Job", names.coordinator_name(name))
    client.patch(workload["apiVersion"], workload["kind"], name, change)
    _evict(client, workload)
    pods = _living(client, name)
    own_s = max((float(_grace_of(pod)) for pod in pods), default=0.0)
    deadline = time.monotonic() + (own_s if grace_s is None else grace_s)
    while (pods or _makes_pods(client, workload)) and time.monotonic() < deadline + SLACK_S:
        late = time.monotonic() >= deadline
        for pod in pods:
            if is_set and not late and index_of(pod):
                continue  # made again as long as the pod is there that its StatefulSet belongs to
            deleting = "deletionTimestamp" in pod["metadata"]
            if late or grace_s is not None or not deleting:
                left_s = max(1, int(deadline - time.monotonic()))
                client.delete("v1", "Pod", pod["metadata"]["name"], grace_s=left_s)
        grace_s = None  # said once
        time.sleep(POLL_S)
        pods = _living(client, name)
    for pod in pods:  # on a node that does not answer
        bury_pod(client, pod["metadata"]["name"])


def bury_pod(client: Client, name: str) -> None:
    """Give up a pod whose node will never say that it ended.

    Deleting by force is not enough: the Job's finalizer keeps the pod until its phase says that it
    has ended, which only its node would say.
    """
    ended = {"status": {"phase": "Failed", "reason": "NodeLost"}}
    with suppress(ApiError):  # who may not do that, may still delete
        client.patch("v1", "Pod", name, ended, part="status")
    client.delete("v1", "Pod", name, grace_s=0)


def delete_run(client: Client, run: RunObjects) -> None:
    """Delete the workload, and what it does not own because a submission was cut off."""
    workload = run.workload
    name = workload["metadata"]["name"]
    client.delete(workload["apiVersion"], workload["kind"], name)
    for api, kind in KINDS:
        with suppress(ParctlError):
            for each in client.list(api, kind, labels=f"{names.RUN}={name}") or ():
                client.delete(api, kind, each["metadata"]["name"])
    deadline = time.monotonic() + SLACK_S
    while find_workload(client, name) is not None:
        if time.monotonic() > deadline:
            raise BackendError(
                f"run `{name}` is being deleted, and still there after {SLACK_S:.0f} s",
                hint="a finalizer holds it: is its controller running?",
            )
        time.sleep(POLL_S)


def _evict(client: Client, workload: Object) -> None:
    """Tell Kueue too, which would start again what it has admitted."""
    if names.QUEUE not in (workload["metadata"].get("labels") or {}):
        return
    try:
        api = kueue_api(client)
        queued = client.list(api, "Workload") or [] if api else []
    except ApiError as error:
        if error.code in REFUSED:
            return
        raise
    off = {"spec": {"active": False}}
    for each in queued:
        owners = each["metadata"].get("ownerReferences") or ()
        if any(owner["uid"] == workload["metadata"]["uid"] for owner in owners):
            client.patch(each["apiVersion"], "Workload", each["metadata"]["name"], off)


def _makes_pods(client: Client, workload: Object) -> bool:
    """Whether what the workload is made of has not heard of its end: pods come again that go."""
    if workload["kind"] not in PARTS:
        return False
    api, kind, label = PARTS[workload["kind"]]
    try:
        parts = client.list(api, kind, labels=f"{label}={workload['metadata']['name']}") or []
    except ApiError as error:
        if error.code in REFUSED:  # who may not look has the pods to go by
            return False
        raise
    if kind == "StatefulSet":
        return any(part["spec"].get("replicas") for part in parts)
    return any(not is_suspended(part) and end_of(part) is None for part in parts)


def _living(client: Client, run_id: str) -> list[Object]:
    pods = client.list("v1", "Pod", labels=f"{names.RUN}={run_id}") or []
    return [pod for pod in pods if phase_of(pod) not in ("Succeeded", "Failed")]


def _grace_of(pod: Object) -> Any:
    return pod["spec"].get("terminationGracePeriodSeconds") or 30

"""Sending the objects of a run, and taking them back when not all of them get through.

The workload comes last, and then owns the others: deleting it deletes all of them, whoever does it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from parctl.errors import BackendError, ParctlError, UsageError
from parctl.launcher.backend import Manifests, RunRef
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import annotation_of, find_workload
from parctl.launcher.kubernetes.preconditions import (
    is_leftover,
    refuse_taken,
    refuse_unknown_queue,
    try_pod,
)

FORBIDDEN, NOT_FOUND, CONFLICT, SERVER_FAILED = 403, 404, 409, 500


def submit(client: Client, manifests: Manifests) -> RunRef:
    """Create every object, or none. The same id and plan twice is no error and changes nothing."""
    present = find_workload(client, manifests.run_id)
    if present is not None:
        if annotation_of(present, names.PLAN_HASH) != manifests.plan.hash:
            raise UsageError(
                f"run `{manifests.run_id}` exists already with another plan",
                hint="choose another `--run-id`, or delete that run",
            )
        return RunRef(run_id=manifests.run_id, backend="kubernetes", created=False)
    refuse_unknown_queue(client, manifests)
    sent: list[Mapping[str, Any]] = []
    try:
        for document in manifests.documents:
            sent.append(document)  # before: an answer that was lost may stand for an object
            applied = create(client, document)
    except BaseException as error:
        answered = isinstance(error, ApiError) and error.code < SERVER_FAILED
        # what was refused may be somebody else's
        take_back(client, sent[:-1] if answered or isinstance(error, UsageError) else sent)
        raise
    own(client, applied, sent[:-1])
    return RunRef(run_id=manifests.run_id, backend="kubernetes", created=True)


def check(client: Client, manifests: Manifests) -> bool:
    """Have the cluster validate every object: quotas, webhooks, policies and rights included.

    False: but for a pod, which who launches may not make.
    """
    refuse_unknown_queue(client, manifests)
    workload = manifests.documents[-1]
    for document in manifests.documents:
        refuse_taken(client, document)
        try:
            client.apply(document, dry_run=True)
        except ApiError as error:
            raise _refused(error, _name(document), document) from error
    try:
        return try_pod(client, workload)
    except ApiError as error:
        raise _refused(error, "a pod of the run", workload) from error


def create(client: Client, document: Mapping[str, Any]) -> Object:
    """Create one object; a refusal names it and says what would help.

    One of the run's own may be there: of a launch that was cut short, or goes on beside this one.
    """
    try:
        try:
            return client.create(document)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            there = refuse_taken(client, document)
            if there is not None and is_leftover(client, there):
                take_back(client, [document])
            return client.apply(document)
    except ApiError as error:
        raise _refused(error, _name(document), document) from error


def _name(document: Mapping[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def own(client: Client, owner: Object, dependents: Sequence[Mapping[str, Any]]) -> None:
    """Let the cluster delete the dependents with their owner."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    change = {"metadata": {"ownerReferences": [reference]}}
    for each in dependents:
        client.patch(each["apiVersion"], each["kind"], each["metadata"]["name"], change)


def take_back(client: Client, sent: Sequence[Mapping[str, Any]]) -> None:
    """Delete what was sent, the last first; what cannot be deleted now stays, by its label."""
    for document in reversed(sent):
        with suppress(ParctlError):
            client.delete(document["apiVersion"], document["kind"], document["metadata"]["name"])


def _refused(error: ApiError, name: str, document: Mapping[str, Any]) -> BackendError | UsageError:
    namespace = document["metadata"].get("namespace")
    said = error.said
    if error.code == NOT_FOUND and "namespaces" in said:
        return UsageError(
            f"there is no namespace `{namespace}`",
            hint=f"`kubectl create namespace {namespace}`, or name another: `--namespace`",
        )
    if error.code == NOT_FOUND:
        return UsageError(
            f"{name}: the cluster does not serve {document['apiVersion']}",
            hint="install its controller, or set `launch.kubernetes.kind: job`",
        )
    if error.code == FORBIDDEN and "exceeded quota" in said:
        return UsageError(
            f"{name} is refused by a quota of namespace {namespace}: {said}",
            hint="wait until other runs have ended, ask for less, or use another namespace",
        )
    if error.code == FORBIDDEN and "violates PodSecurity" in said:
        return UsageError(
            f"{name} violates the pod security standard of namespace {namespace}: {said}",
            hint="use a namespace that permits it, or leave out host network, host paths and RDMA",
        )
    if "admission webhook" in said:
        return UsageError(f"{name} is refused by an admission webhook: {said}")
    if document["kind"] == "ConfigMap" and "immutable" in said:
        return UsageError(
            f"{name} is there already: the run was launched with another plan a moment ago",
            hint="choose another `--run-id`",
        )
    if error.code in (400, 422, CONFLICT):
        return UsageError(
            f"{name} is not valid for this cluster: {said}",
            hint="check `launch.kubernetes`, and its `patch` above all",
        )
    return error

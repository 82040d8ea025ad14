"""Write what a reading found into the cluster, and only what changed.

The API is spoken over what the caller passes in: one method, so that this folder needs no client
of its own. A record is applied by its whole (server-side apply), its status by a merge patch;
labels are applied without force and only where nobody else has them, taints with the version of
the node that they were read from.

What the cluster has is looked at before each reading is told: a record that was deleted, edited by
hand or lost with its node is written anew, and one that is as it should be costs that one look.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from parctl.errors import BackendError
from parctl.topology.discovery import objects
from parctl.topology.discovery.conditions import Change, Condition, changes, conditions_of
from parctl.topology.discovery.objects import Object
from parctl.topology.discovery.reading import Reading
from parctl.topology.discovery.record import Record, empty_record, lost, record_of
from parctl.topology.document import mapping, mappings

MANAGER = "parctl-discovery"
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
FORBIDDEN, NOT_FOUND, CONFLICT = 403, 404, 409
NO_DEFINITION = (
    f"no definition {objects.DEFINITION} in this cluster: install one release of the chart with"
    " crds.install=true, or set discovery.publish=configMap"
)
REFRESH_S = 3600.0  # `observedAt` is renewed that often though nothing changed


class Api(Protocol):
    """One request to the API server and its JSON. Raises BackendError with HTTP's `code`."""

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> Object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is written, and where to."""

    node: str
    publish: Literal["crd", "configMap"]
    namespace: str  # of the ConfigMap
    config_map: str  # its name
    pod_name: str
    pod_uid: str
    events: bool
    labels: bool
    taint_effect: str | None  # None: the node gets no taint


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the cluster was told last."""

    record: Record = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    observed: str = ""  # `observedAt`
    at_s: float = -REFRESH_S  # by `time.monotonic`


def publish(
    api: Api,
    target: Target,
    reading: Reading,
    before: Published,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Published:
    """Tell the cluster of a reading. What it was told before is not told again.

    Whatever the API answers with, other than a conflict, is raised as it came. Only a cluster
    without the definition is told of by name, and who may not create events does without them.
    """
    moment = now().isoformat(timespec="seconds").replace("+00:00", "Z")
    # of a reading that failed nothing is known: the last record stands
    if reading.failure:
        record = before.record or empty_record()
    else:
        record = record_of(reading, before.record)
    faults = [*reading.faults, *lost(record)]
    conditions = tuple(conditions_of(reading, faults, before.conditions, moment))
    known = (
        time.monotonic() - before.at_s < REFRESH_S
        and record == before.record
        and conditions == before.conditions
    )
    told = before
    if not known:
        at_s = time.monotonic()
        told = Published(record=record, conditions=conditions, observed=moment, at_s=at_s)
    status = objects.status_document(record, conditions, told.observed)
    if target.publish == "configMap":
        # the same again changes nothing, and brings back what somebody deleted
        _apply_config_map(api, target, record, status)
        return told
    if known:
        return told
    node = api.ask("GET", _node_path(target))
    path = f"{objects.RECORDS_PATH}/{target.node}"
    _apply_record(api, path, objects.node_topology(record, node))
    api.ask("PATCH", f"{path}/status", body={"status": status}, content=MERGE)
    if target.labels:
        _apply_labels(api, target, record, node)
    if target.taint_effect:
        _apply_taint(api, target, conditions, node, target.taint_effect)
    if target.events:
        _create_events(api, target, changes(before.conditions, conditions), node, moment)
    return told


def recall(api: Api, target: Target, told: Published | None) -> Published:
    """What the cluster has: of `told`, if nobody touched it, else of an earlier daemon or a hand.

    Nothing is told twice, and what is not there any more is expected no more. A ConfigMap is
    written whole at each reading, so it is looked at only when the daemon starts.
    """
    if target.publish == "configMap":
        if told is not None:
            return told
        path = _config_map_path(target)
    else:
        path = f"{objects.RECORDS_PATH}/{target.node}"
    try:
        found = api.ask("GET", path)
    except BackendError as error:
        if getattr(error, "code", None) == NOT_FOUND:
            return Published()
        raise
    content = objects.in_config_map(found) if target.publish == "configMap" else found
    record = dict(mapping(content, "spec"))
    # the definition sees to their keys; a ConfigMap may have been edited
    conditions = tuple(
        dict(each)
        for each in mappings(mapping(content, "status").get("conditions"))
        if {"type", "status", "reason", "message", "lastTransitionTime"} <= set(each)
    )
    if told is not None and (record, conditions) == (told.record, told.conditions):
        return told
    return Published(record=record, conditions=conditions)


def _apply_record(api: Api, path: str, document: Object) -> None:
    try:
        found = api.ask("PATCH", path, _applying(force=True), body=document, content=APPLY)
    except BackendError as error:
        # applying creates what is not there, so it is the kind that was not found
        if getattr(error, "code", None) == NOT_FOUND:
            raise BackendError(f"{error}; {NO_DEFINITION}") from error
        raise
    record = document["spec"]
    strange = [key for key, value in found["spec"].items() if record.get(key) != value]
    if strange:
        # somebody wrote more into it, and applying leaves to others what is theirs
        change = {"spec": dict.fromkeys(strange)}
        api.ask("PATCH", path, body=change, content=MERGE)
        api.ask("PATCH", path, _applying(force=True), body=document, content=APPLY)


def _apply_config_map(api: Api, target: Target, record: Record, status: Object) -> None:
    pod = {"name": target.pod_name, "uid": target.pod_uid}
    document = objects.config_map(record, status, name=target.config_map, node=target.node, pod=pod)
    path = _config_map_path(target)
    api.ask("PATCH", path, _applying(force=True), body=document, content=APPLY)


def _create_events(
    api: Api, target: Target, found: Iterable[Change], node: Object, moment: str
) -> None:
    path = f"/api/v1/namespaces/{objects.EVENTS_NAMESPACE}/events"
    for number, change in enumerate(found):
        name = f"{target.node}.{time.time_ns() + number:x}"
        document = objects.event(change, node, now=moment, name=name)
        try:
            api.ask("POST", path, body=document)
        except BackendError as error:
            if getattr(error, "code", None) != FORBIDDEN:
                raise
            # the conditions say it too, and a record that waits for this would never be told
            print(f"no event of {change.reason}: {error}", file=sys.stderr, flush=True)


def _apply_labels(api: Api, target: Target, record: Record, node: Object) -> None:
    labels = objects.own_labels(objects.labels_of(record), node, MANAGER)
    metadata = {"name": target.node, "labels": labels}
    document = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
    try:
        api.ask("PATCH", _node_path(target), _applying(force=False), body=document, content=APPLY)
    except BackendError as error:
        # somebody took one over since the node was read: it is theirs, and seen at the next change
        if getattr(error, "code", None) != CONFLICT:
            raise


def _apply_taint(
    api: Api, target: Target, conditions: tuple[Condition, ...], node: Object, effect: str
) -> None:
    for _ in range(3):
        taints = objects.tainted(node, conditions, effect)
        if taints is None:
            return
        version = node["metadata"]["resourceVersion"]
        change = {"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}
        try:
            api.ask("PATCH", _node_path(target), body=change, content=MERGE)
            return
        except BackendError as error:
            if getattr(error, "code", None) != CONFLICT:
                raise
            node = api.ask("GET", _node_path(target))


def _config_map_path(target: Target) -> str:
    return f"/api/v1/namespaces/{target.namespace}/configmaps/{target.config_map}"


def _node_path(target: Target) -> str:
    return f"/api/v1/nodes/{target.node}"


def _applying(*, force: bool) -> dict[str, str]:
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
    return query | ({"force": "true"} if force else {})

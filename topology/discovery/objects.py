"""What is published about a node, as Kubernetes objects. Pure: nothing here talks to a cluster.

The record is a `NodeTopology` named after its node, and goes with it. Where the cluster does not
have that kind, it is a ConfigMap in the daemon's own namespace, and goes with the daemon's pod;
a container that starts again in that pod, as after a reboot, finds it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parctl.topology.discovery.conditions import HEALTHY, Change, Condition, status_of
from parctl.topology.discovery.record import Record
from parctl.topology.document import mapping

GROUP, VERSION, PLURAL, KIND = "parctl.dev", "v1alpha1", "nodetopologies", "NodeTopology"
DEFINITION = f"{PLURAL}.{GROUP}"
RECORDS_PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
CONFIG_LABEL = "parctl.dev/node-topology"
CONFIG_KEY = "record.json"
TAINT = "parctl.dev/fault"
# labels that others define and write; we write them where nobody else does
CLIQUE, COUNT, MEMORY = "nvidia.com/gpu.clique", "nvidia.com/gpu.count", "nvidia.com/gpu.memory"
EVENTS_NAMESPACE = "default"  # of events about objects that have no namespace
MIB = 2**20

Object = dict[str, Any]


def node_topology(record: Record, node: Mapping[str, Any]) -> Object:
    """The object without its status. `node` is the Node object that it belongs to."""
    meta = node["metadata"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": meta["name"], "ownerReferences": [owner]},
        "spec": record,
    }


def status_document(record: Record, conditions: Sequence[Condition], now: str) -> Object:
    """The status: conditions, and what `kubectl get nodetopologies` prints."""
    gpus = record.get("gpus") or []
    products = sorted({gpu["product"] for gpu in gpus if gpu.get("product")})
    return {
        "observedAt": now,
        "gpus": len(gpus),
        "product": ",".join(products),
        "nvlink": _nvlink(record),
        "conditions": [dict(condition) for condition in conditions],
    }


def config_map(
    record: Record, status: Object, *, name: str, node: str, pod: Mapping[str, str]
) -> Object:
    """The same as a ConfigMap. `pod` has the name and uid of the daemon's pod, its owner."""
    owner = {"apiVersion": "v1", "kind": "Pod", **pod}
    content = {"node": node, "spec": record, "status": status}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {CONFIG_LABEL: "true"},
            "ownerReferences": [owner],
        },
        "data": {CONFIG_KEY: json.dumps(content, separators=(",", ":"), sort_keys=True)},
    }


def in_config_map(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """What such a ConfigMap holds: `node`, `spec`, `status`. Empty for one that holds no record."""
    try:
        return mapping(json.loads(mapping(item, "data").get(CONFIG_KEY) or ""))
    except (ValueError, TypeError, RecursionError):
        return {}


def event(change: Change, node: Mapping[str, Any], *, now: str, name: str) -> Object:
    """An event about the node, as `kubectl describe node` shows it."""
    meta = node["metadata"]
    about = {"apiVersion": "v1", "kind": "Node", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": EVENTS_NAMESPACE},
        "involvedObject": about,
        "type": "Warning" if change.warning else "Normal",
        "reason": change.reason,
        "message": change.message,
        "source": {"component": "parctl-discovery", "host": meta["name"]},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def labels_of(record: Record) -> dict[str, str]:
    """Facts that have a label of their own in the field, as NVIDIA's tools write them.

    The product is not among them: we know it by another name than its label has.
    """
    gpus = record.get("gpus") or []
    sizes = {gpu.get("memory_bytes") for gpu in gpus}
    labels = {COUNT: str(len(gpus))} if gpus else {}
    size = sizes.pop() if len(sizes) == 1 else None
    if size:
        labels[MEMORY] = str(size // MIB)
    if record.get("domain"):
        labels[CLIQUE] = record["domain"]
    return labels


def own_labels(labels: Mapping[str, str], node: Mapping[str, Any], manager: str) -> dict[str, str]:
    """Those of the labels that nobody else has on the node."""
    present = node["metadata"].get("labels") or {}
    by_manager = list(_managed_labels(node))
    others = {label for who, label in by_manager if who != manager}
    mine = {label for who, label in by_manager if who == manager}
    ours = {key: value for key, value in labels.items() if key not in others}
    # a label of unknown origin is somebody's too, unless we are on record for it
    return {key: value for key, value in ours.items() if key not in present or key in mine}


def tainted(
    node: Mapping[str, Any], conditions: Sequence[Mapping[str, Any]], effect: str
) -> list[Object] | None:
    """The node's taints as they should be; None where they are so already."""
    taints = [dict(taint) for taint in node.get("spec", {}).get("taints") or ()]
    kept = [taint for taint in taints if taint.get("key") != TAINT]
    health = status_of(conditions, HEALTHY)
    if health == "Unknown":  # a reading that failed says nothing new
        return None
    if health == "False":
        reason = next(str(each["reason"]) for each in conditions if each["type"] == HEALTHY)
        kept.append({"key": TAINT, "value": reason, "effect": effect})
    return None if _plain(kept) == _plain(taints) else kept


def _plain(taints: list[Object]) -> set[tuple[Any, ...]]:
    return {(taint.get("key"), taint.get("value"), taint.get("effect")) for taint in taints}


def _managed_labels(node: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Who is on record for which label."""
    for entry in node["metadata"].get("managedFields") or ():
        fields = entry.get("fieldsV1", {}).get("f:metadata", {}).get("f:labels", {})
        for key in fields:
            yield entry.get("manager"), key.removeprefix("f:")


def _nvlink(record: Record) -> str:
    """The best link that some GPU has to another, as `NV18`; empty where there is none."""
    codes = {code for row in record.get("links") or () for code in row.split()}
    joined = [code for code in codes if code.startswith("NV") and code[2:].isdigit()]
    return max(joined, key=lambda code: int(code[2:]), default="XGMI" if "XGMI" in codes else "")

"""Why the scheduler finds no node for a pod."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from parctl.launcher.kubernetes.causes import Cause, event_line, events_of, pod_name, some
from parctl.launcher.kubernetes.causes_node import cordoned
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import phase_of
from parctl.launcher.kubernetes.resources import num_bytes


def schedule_causes(facts: Facts) -> Sequence[Cause]:
    """One cause for the first pod that has no node; they are all alike."""
    pods = [
        pod
        for pod in [*facts.run.rank_pods, *facts.run.coordinator_pods]
        if phase_of(pod) == "Pending" and not pod["spec"].get("nodeName")
    ]
    if not pods:
        return []
    pod = pods[0]
    message = _message(facts, pod)
    if message is None:
        return [
            Cause(sentence=f"pod {pod_name(pod)} has not been looked at by the scheduler", fix=None)
        ]
    evidence = tuple(event_line(event) for event in events_of(facts, "FailedScheduling")[:1])
    cause = _volumes(message) or _resources(facts, pod, message) or _nodes(facts, pod, message)
    sentence, fix = cause or (f"no node takes pod {pod_name(pod)}: {message}", None)
    waiting = f"{len(pods)} of {_wanted(facts)} pods wait: " if len(pods) > 1 else ""
    return [Cause(sentence=f"{waiting}{sentence}", fix=fix, evidence=evidence or (message,))]


def _message(facts: Facts, pod: Object) -> str | None:
    for entry in (pod.get("status") or {}).get("conditions") or ():
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return str(entry.get("message") or entry.get("reason"))
    return None


def _wanted(facts: Facts) -> int:
    return max(len(facts.run.rank_pods), int(facts.run.workload["spec"].get("parallelism") or 0))


def _volumes(message: str) -> tuple[str, str] | None:
    match = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    if match:
        return (
            f"there is no PersistentVolumeClaim {match[1]} in the namespace",
            "create it, or correct `launch.kubernetes.volumes`",
        )
    if "unbound immediate PersistentVolumeClaims" in message:
        return (
            "a PersistentVolumeClaim of the run is not bound to a volume",
            "`kubectl get pvc` shows which; it needs a storage class, or a volume that fits",
        )
    if "volume node affinity conflict" in message:
        return (
            "a volume of the run can only be used on nodes that the pods may not go to",
            "use a volume that all nodes can mount",
        )
    return None


def _resources(facts: Facts, pod: Object, message: str) -> tuple[str, str] | None:
    """What is lacking: what no node has enough of at all, else what others hold."""
    lacking = [name.rstrip(".") for name in re.findall(r"Insufficient ([\w./-]+)", message)]
    if not lacking:
        return None
    nodes = _allowed_nodes(facts, pod)
    for name in lacking if nodes else ():
        need = _need(pod, name)
        most = max(_amount(node["status"].get("allocatable") or {}, name) for node in nodes)
        if most == 0:
            return (
                f"no node of the cluster has {name} for these pods",
                "are the device plug-in and the drivers installed? `kubectl get nodes -o wide`; "
                "the resource's name is `launch.kubernetes.gpu_resource`",
            )
        if most < need:
            return (
                f"a pod asks for {_shown(need, name)} of {name}, and the largest node has "
                f"{_shown(most, name)}",
                "put fewer ranks on a node: lower `tp`, or plan for this cluster",
            )
    name = next((each for each in lacking if "/" in each), lacking[0])
    out_of_use = [
        str(node["metadata"]["name"])
        for node in _matching_nodes(facts, pod)
        if node["spec"].get("unschedulable")
        and _amount(node["status"].get("allocatable") or {}, name) >= _need(pod, name)
    ]
    if out_of_use:
        verb = "is" if len(out_of_use) == 1 else "are"
        return (
            f"{some(out_of_use)}, which could take a pod, {verb} cordoned, and the other nodes "
            f"have too little of {name} free",
            "`kubectl uncordon NODE` when it may be used again, or wait until others have ended",
        )
    holders = _holders(facts, name)
    held = f": held by {holders}" if holders else ""
    return (
        f"every node that could take a pod has too little of {name} free "
        f"({_shown(_need(pod, name), name)} needed){held}",
        "wait until others have ended, or use fewer nodes",
    )


def _nodes(facts: Facts, pod: Object, message: str) -> tuple[str, str | None] | None:
    """What keeps the pods off nodes that would be large enough."""
    matching = _matching_nodes(facts, pod)
    if "node affinity/selector" in message and facts.nodes is not None and not matching:
        selector = pod["spec"].get("nodeSelector") or {}
        if selector:
            labels = ", ".join(f"{key}={value}" for key, value in selector.items())
            return (
                f"no free node has the labels {labels}",
                "`kubectl get nodes --show-labels`; correct `launch.kubernetes.node_selector`",
            )
        return (
            "the nodes that the plan or `placement` names are not there",
            "plan again for the nodes that are there, or drop `launch.kubernetes.nodes: planned`",
        )
    if "were unschedulable" in message and "untolerated taint" not in message:
        return (
            f"the nodes are cordoned: {cordoned(facts)}",
            "`kubectl uncordon NODE` when it may be used again",
        )
    if "untolerated taint" in message:
        taint = _untolerated(pod, matching)
        name, key = (_taint_text(taint), taint["key"]) if taint else ("of their own", "KEY")
        return (
            f"the nodes have the taint {name}, which the pods do not tolerate",
            f"`launch.kubernetes.tolerations: [{{key: {key}}}]`, if the run may go there",
        )
    if "anti-affinity" in message:
        return (
            "there are fewer free nodes than pods, and each pod needs a node of its own",
            "wait until others have ended, or use fewer nodes",
        )
    return None


def _untolerated(pod: Object, nodes: Sequence[Object]) -> Mapping[str, Any] | None:
    for node in nodes:
        for taint in node["spec"].get("taints") or ():
            if not _tolerates(pod, taint):
                found: Mapping[str, Any] = taint
                return found
    return None


def _taint_text(taint: Mapping[str, Any]) -> str:
    value = taint.get("value")
    return f"{taint['key']}={value}" if value else str(taint["key"])


def _matching_nodes(facts: Facts, pod: Object) -> list[Object]:
    """Nodes that have the labels which the pod selects."""
    wanted = (pod["spec"].get("nodeSelector") or {}).items()
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution", {}
    ).get("nodeSelectorTerms") or ()
    return [
        node
        for node in facts.nodes or ()
        if wanted <= (node["metadata"].get("labels") or {}).items()
        and all(_meets(node, each) for term in required for each in term["matchExpressions"])
    ]


def _meets(node: Object, expression: Mapping[str, Any]) -> bool:
    value = (node["metadata"].get("labels") or {}).get(expression["key"])
    listed = value in (expression.get("values") or ())
    return listed if expression["operator"] == "In" else not listed


def _allowed_nodes(facts: Facts, pod: Object) -> list[Object]:
    """Nodes that the pod's labels and tolerations let it go to."""
    return [
        node
        for node in _matching_nodes(facts, pod)
        if not node["spec"].get("unschedulable")
        and all(_tolerates(pod, taint) for taint in node["spec"].get("taints") or ())
    ]


def _tolerates(pod: Object, taint: Mapping[str, Any]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    for each in pod["spec"].get("tolerations") or ():
        if each.get("key") not in (None, taint["key"]):
            continue
        if each.get("effect") not in (None, taint.get("effect")):
            continue
        if each.get("operator") == "Exists" or each.get("value", "") == taint.get("value", ""):
            return True
    return False


def _need(pod: Object, name: str) -> float:
    total = 0.0
    for container in pod["spec"]["containers"]:
        total += _amount(container.get("resources", {}).get("requests") or {}, name)
    return total


def _amount(quantities: Mapping[str, Any], name: str) -> float:
    value = str(quantities.get(name) or "0")
    return float(value[:-1]) / 1000 if value.endswith("m") else float(num_bytes(value))


def _shown(amount: float, name: str) -> str:
    return f"{amount / 2**30:.1f} GiB" if name in ("memory", "ephemeral-storage") else f"{amount:g}"


def _holders(facts: Facts, name: str) -> str:
    """Who uses the resource now, most first."""
    held: dict[str, float] = {}
    for pod in facts.others or ():
        if pod["spec"].get("nodeName") and phase_of(pod) in ("Pending", "Running"):
            amount = _need(pod, name)
            if amount and "/" in name:
                labels = pod["metadata"].get("labels") or {}
                run = labels.get("parctl.dev/run") or labels.get("job-name")
                owner = f"{pod['metadata']['namespace']}/{run or pod_name(pod)}"
                held[owner] = held.get(owner, 0) + amount
    ranked = sorted(held.items(), key=lambda item: -item[1])
    return some([f"{owner} ({amount:g})" for owner, amount in ranked])

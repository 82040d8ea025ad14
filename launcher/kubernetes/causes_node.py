"""Nodes that pods of a run are on and that do not answer, and pods that cannot leave them."""

from collections.abc import Sequence

from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.causes import Cause, pod_name, some
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import annotation_of, phase_of, unix


def node_causes(facts: Facts) -> Sequence[Cause]:
    """Dead nodes first, then pods that are stuck in leaving."""
    dead = {node["metadata"]["name"]: said for node in facts.nodes or () if (said := _dead(node))}
    known = None if facts.nodes is None else {n["metadata"]["name"] for n in facts.nodes}
    causes = []
    for pod in facts.run.rank_pods:
        node = pod["spec"].get("nodeName")
        if node is None or phase_of(pod) in ("Succeeded", "Failed"):
            continue
        if known is not None and node not in known:
            causes.append(
                Cause(
                    sentence=f"node {node}, where pod {pod_name(pod)} is, has left the cluster",
                    fix="nothing: the cluster deletes the pod and makes a new one",
                )
            )
        elif node in dead:
            causes.append(_on_dead_node(facts, pod, node, dead[node]))
        elif _stuck_s(facts, pod) > 0:
            causes.append(
                Cause(
                    sentence=f"pod {pod_name(pod)} has been ending for longer than it was given, "
                    f"on node {node}",
                    fix=f"look at the kubelet of node {node}: it does not end its processes",
                )
            )
    return causes


def _on_dead_node(facts: Facts, pod: Object, node: str, said: str) -> Cause:
    sentence = f"node {node}, where pod {pod_name(pod)} is, does not answer: {said}"
    if _stuck_s(facts, pod) > 0:
        workload = facts.run.workload
        coordinated = annotation_of(workload, names.RECOVERY) == "coordinator"
        manual = not coordinated and workload["kind"] in ("Job", "JobSet")
        return Cause(
            sentence=f"{sentence}; the pod cannot be replaced before it is known to be gone",
            fix=f"if the machine is really off: `kubectl taint node {node} "
            "node.kubernetes.io/out-of-service=:NoExecute`, and the cluster gives its pods up"
            + ("; `recovery: coordinator` does it by itself" if manual else ""),
        )
    return Cause(
        sentence=sentence,
        fix="bring it back; else its pods are taken off it after `launch.kubernetes.dead_node_s`",
    )


def _dead(node: Object) -> str | None:
    for entry in (node.get("status") or {}).get("conditions") or ():
        if entry["type"] == "Ready" and entry["status"] != "True":
            return str(entry.get("message") or entry.get("reason") or "it is not ready")
    return None


def _stuck_s(facts: Facts, pod: Object) -> float:
    """How long a pod has been ending beyond the time it was given; negative: it still has time."""
    deleted = unix(pod["metadata"].get("deletionTimestamp"))  # the end of its grace period
    return -1.0 if deleted is None else facts.now_unix - deleted - 5.0


def cordoned(facts: Facts) -> str:
    found = [n["metadata"]["name"] for n in facts.nodes or () if n["spec"].get("unschedulable")]
    return some(found)

"""Where the pods of a plan may go: affinity, tolerations, Kueue's topology request.

All pods of a run come from one template, so no index can be bound to a node here: pods are drawn to
the nodes of the plan, and the layout is computed again of where they really are.
"""

from collections.abc import Sequence

from parctl.launcher.kubernetes.names import RANKS, ROLE, RUN, Object
from parctl.planner.plan import Plan
from parctl.planner.request import node_choice
from parctl.recipes.kubernetes_spec import KubernetesSpec, TolerationSpec
from parctl.topology.model import Topology

HOSTNAME = "kubernetes.io/hostname"
REQUIRED = "kueue.x-k8s.io/podset-required-topology"
PREFERRED = "kueue.x-k8s.io/podset-preferred-topology"
# a preference is copied into every pod: beyond so many names it costs more than it gives
MAX_PREFERRED = 64
KUEUE = "kueue"  # how a node's tiers are marked when they are levels of a Kueue Topology
FROM_CLUSTER = "k8s "  # how `Topology.source` begins when node names are those of a cluster


def affinity(plan: Plan, spec: KubernetesSpec, run_id: str, topology: Topology | None) -> Object:
    """The nodes of the plan, none that the recipe excludes, and one pod per node."""
    required: list[Object] = []
    result: Object = {}
    choice = node_choice(plan.recipe)
    if choice["exclude"]:
        required.append(_hostname("NotIn", sorted(choice["exclude"])))
    planned = _planned_nodes(plan)
    if spec.nodes == "planned" and planned:
        required.append(_hostname("In", planned))
    if required:
        terms = {"nodeSelectorTerms": [{"matchExpressions": required}]}
        result["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if spec.nodes == "preferred" and 0 < len(planned) <= MAX_PREFERRED:
        preference = {"matchExpressions": [_hostname("In", planned)]}
        result.setdefault("nodeAffinity", {})["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100, "preference": preference}
        ]
    if not _takes_whole_nodes(plan, topology):
        result["podAntiAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "labelSelector": {"matchLabels": {RUN: run_id, ROLE: RANKS}},
                    "topologyKey": HOSTNAME,
                }
            ]
        }
    return result


def tolerations(plan: Plan, spec: KubernetesSpec) -> list[Object]:
    """GPU taints, the recipe's own, and how long a pod stays on a node that does not answer."""
    result: list[Object] = []
    if plan.topology.get("kind") == "gpu":
        result.append({"key": spec.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    result += [_toleration(toleration) for toleration in spec.tolerations]
    result += [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": int(spec.dead_node_s),
        }
        for taint in ("not-ready", "unreachable")
    ]
    return result


def topology_request(plan: Plan, spec: KubernetesSpec, topology: Topology | None) -> dict[str, str]:
    """Kueue's annotations, by what the layout crosses.

    A tensor-parallel group that spans nodes lives in one NVLink domain, which is required. Else the
    nearest tier that holds all planned nodes is preferred: what was planned close, stays close.
    """
    if spec.topology is not None:
        return {REQUIRED: spec.topology}
    if topology is None or not topology.tiers or not topology.source.startswith(FROM_CLUSTER):
        return {}
    planned = set(_planned_nodes(plan))
    nodes = [node for node in topology.nodes if node.name in planned]
    # a queue refuses levels that no Topology of Kueue has
    if not nodes or any(node.sources.get("tiers") != KUEUE for node in nodes):
        return {}
    for level, key in enumerate(topology.tiers):
        values = {node.tiers[level] for node in nodes}
        if key != HOSTNAME and len(values) == 1 and values != {"?"}:
            return {REQUIRED if _spans_domain(plan) else PREFERRED: key}
    return {PREFERRED: topology.tiers[-1]} if topology.tiers[-1] != HOSTNAME else {}


def _spans_domain(plan: Plan) -> bool:
    return any(
        proof.axis == "tp" and proof.scope == "domain" and proof.nodes_per_group > 1
        for proof in plan.layout.proofs
    )


def _planned_nodes(plan: Plan) -> list[str]:
    """Names of nodes, where they are those of a cluster and not invented for a plan."""
    if not str(plan.topology.get("source", "")).startswith(FROM_CLUSTER):
        return []
    return list(dict.fromkeys(slot.node for slot in plan.layout.slots))


def _takes_whole_nodes(plan: Plan, topology: Topology | None) -> bool:
    """Whether a pod leaves no device of its node, so that a second one cannot be there anyway."""
    if topology is None or plan.topology.get("kind") != "gpu":
        return False
    used: dict[str, int] = {}
    for slot in plan.layout.slots:
        used[slot.node] = used.get(slot.node, 0) + 1
    most = max(len(node.hardware.devices) for node in topology.nodes)
    return 2 * max(used.values()) > most


def _hostname(operator: str, names: Sequence[str]) -> Object:
    return {"key": HOSTNAME, "operator": operator, "values": list(names)}


def _toleration(spec: TolerationSpec) -> Object:
    fields = {
        "key": spec.key,
        "operator": spec.operator,
        "value": spec.value,
        "effect": spec.effect,
        "tolerationSeconds": spec.seconds,
    }
    return {name: value for name, value in fields.items() if value is not None}

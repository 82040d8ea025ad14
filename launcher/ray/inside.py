"""What Ray's nodes are like inside: their links and NICs, which Ray does not know.

Each node is asked by parctl's own discovery, run there as a task that takes nothing of the node.
Its answer replaces the bare count of GPUs that Ray has, where the two agree on that count.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parctl.errors import BackendError
from parctl.launcher.ray.jobs import delete_job, find_job, read_json, send_package, submit_job
from parctl.launcher.ray.packages import parctl_package
from parctl.launcher.ray.run_files import LOOK_FILE, log_name
from parctl.launcher.run_id import new_run_id
from parctl.topology.model import Node, Topology
from parctl.topology.sources.ray import list_nodes, named_nodes, read_cluster
from parctl.topology.sources.ray_dashboard import find_dashboard
from parctl.topology.store import topology_from_json

ENTRYPOINT = "exec python3 -P -m parctl.launcher.ray.look"
LOCAL = "local"
LIMIT_S = 300.0
POLL_S = 0.3


def read_cluster_inside(address: str | None) -> Topology:
    """Ask a cluster and then every node of it. Submits a short job, and removes it.

    Raises BackendError when the cluster cannot be reached or the job fails.
    """
    dashboard = find_dashboard(address)
    topology = read_cluster(dashboard.address)
    package = parctl_package()
    send_package(dashboard, package)
    job_id = new_run_id("topology")
    submit_job(
        dashboard,
        {
            "entrypoint": f"{ENTRYPOINT} {job_id}",
            "submission_id": job_id,
            "runtime_env": {"py_modules": [package.uri]},
            "metadata": {"name": "parctl topology"},
        },
    )
    deadline = time.monotonic() + LIMIT_S
    while (job := find_job(dashboard, job_id)) is not None and not job.ended:
        if time.monotonic() > deadline:
            raise BackendError(f"the nodes of {dashboard.address} did not answer in {LIMIT_S:g} s")
        time.sleep(POLL_S)
    found = read_json(dashboard, job.driver_node, log_name(job_id, LOOK_FILE)) if job else None
    if job is None or job.status != "SUCCEEDED" or not isinstance(found, dict):
        raise BackendError(
            f"the nodes of {dashboard.address} could not be asked: job {job_id} "
            f"{job.status if job else 'is gone'}",
            hint=f"its log says why: `ray job logs {job_id}`",
        )
    delete_job(dashboard, job_id)
    names = {node.node_id: name for name, node in named_nodes(list_nodes(dashboard)).items()}
    return with_insides(
        topology, {names[key]: value for key, value in found.items() if key in names}
    )


def with_insides(topology: Topology, insides: Mapping[str, Any]) -> Topology:
    """Put what nodes said of themselves in place of what Ray knows. Pure.

    `insides`: by node name, a topology of one node as JSON, or text on why there is none.
    """
    nodes, warnings = [], list(topology.warnings)
    for node in topology.nodes:
        inside = insides.get(node.name)
        found, problem = _inside_of(node, inside)
        nodes.append(found)
        if problem is not None:
            warnings.append(problem)
    known = all(node.sources.get("hardware") == LOCAL for node in nodes)
    unknown = () if known and nodes else topology.unknown
    return replace(topology, nodes=tuple(nodes), warnings=tuple(warnings), unknown=unknown)


def _inside_of(node: Node, inside: Any) -> tuple[Node, str | None]:
    if not isinstance(inside, Mapping):
        return node, f"{node.name}: {inside or 'it did not answer'}; links are not known"
    (found,) = topology_from_json(json.loads(json.dumps(inside)), where=node.name).nodes
    counted, there = len(node.hardware.devices), len(found.hardware.devices)
    if found.hardware.kind != node.hardware.kind or counted != there:
        return node, (
            f"{node.name}: Ray counts {counted} {node.hardware.kind} devices, the machine has "
            f"{there} {found.hardware.kind} devices; links are not known"
        )
    return (
        replace(
            node,
            hardware=found.hardware,
            domain=node.domain or found.domain,
            sources={**node.sources, "hardware": LOCAL},
        ),
        None,
    )

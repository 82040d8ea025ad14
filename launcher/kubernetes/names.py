"""Names that the renderer, the pods and the client have to agree on.

Every object of a run carries `parctl.dev/run`; so one label finds, and deletes, all of them.
"""

import hashlib
from typing import Any

Object = dict[str, Any]  # a Kubernetes object as JSON

RUN = "parctl.dev/run"  # label: run id
ROLE = "parctl.dev/role"  # label: what the object is to the run
OWNER = "parctl.dev/owner"  # label: who launched it
PLAN_HASH = "parctl.dev/plan-hash"  # annotations from here on
RECIPE = "parctl.dev/recipe"
STEPS = "parctl.dev/steps"
NUM_RANKS = "parctl.dev/num-ranks"
NUM_PODS = "parctl.dev/num-pods"
RECOVERY = "parctl.dev/recovery"
CANCELLED = "parctl.dev/cancelled"  # time (unix seconds), put there by `parctl cancel`
STATE = "parctl.dev/state"  # written by the coordinator: JSON of `report.Report`

WORKLOAD, RANKS, COORDINATOR, PLAN = "workload", "ranks", "coordinator", "plan"  # values of ROLE
MANAGER = "parctl"  # app.kubernetes.io/managed-by, and the field manager of server-side apply
CONTAINER = "ranks"
REPLICATED_JOB = "ranks"  # of a JobSet: its pods are called RUN-ranks-0-INDEX

PLAN_MOUNT = "/parctl/plan"
RUN_MOUNT = "/parctl/run"
AGENT_MOUNT = "/parctl/agent"
CONTROL_PORT = 29400
DASHBOARD_PORT = 8265  # of a Ray head
TERMINATION_LOG = "/dev/termination-log"
QUEUE = "kueue.x-k8s.io/queue-name"

# what an agent's container exits with; those of the ranks, see `parctl.runtime.worker`
FINISHED, FAILED, RETRY, SAVED = 0, 1, 75, 143


def coordinator_name(run_id: str) -> str:
    return f"{run_id}-coordinator"


def control_port(run_id: str, *, host_network: bool) -> int:
    """Where the leader listens. On the host's network two runs may share a node.

    >>> control_port("a-run", host_network=False)
    29400
    """
    if not host_network:
        return CONTROL_PORT
    return 20000 + int(hashlib.sha256(run_id.encode()).hexdigest(), 16) % 9000

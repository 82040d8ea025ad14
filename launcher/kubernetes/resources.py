"""What a pod asks of its node: devices, cores, memory, shared memory.

Memory is asked for by the plan's own estimate, and the limit is twice that: an estimate that is
wrong by half must not kill a run, one that is wrong by more must not kill its node. /dev/shm is
memory, and is counted.
"""

import re
from dataclasses import dataclass

from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec

MIB = 2**20
AGENT_BYTES = 512 * MIB  # agent, leader and the process that the ranks are forked from
# of a rank outside of its tensors: CUDA context, pinned and NCCL buffers; or libraries alone
HOST_BYTES = {"gpu": 3072 * MIB, "cpu": 256 * MIB}
# NCCL keeps up to 10 MiB per channel and peer in /dev/shm, loaders their batches
SHARED_BYTES = {"gpu": 1024 * MIB, "cpu": 64 * MIB}
LIMIT_FACTOR = 2
UNITS = {"": 1, "m": 1e-3}
UNITS |= {unit: 1000 ** (i + 1) for i, unit in enumerate("kMGT")}
UNITS |= {f"{unit}i": 1024 ** (i + 1) for i, unit in enumerate("KMGT")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Of one pod. Quantities as Kubernetes writes them."""

    requests: dict[str, str]
    limits: dict[str, str]
    shared_memory: str


def pod_resources(plan: Plan, spec: KubernetesSpec) -> Resources:
    """Add up what the fullest pod of a plan needs. A script's memory is unknown: none is asked."""
    num_ranks = ranks_per_pod(plan)
    kind = "gpu" if plan.topology.get("kind") == "gpu" else "cpu"
    shared = spec.shared_memory or mebibytes(num_ranks * SHARED_BYTES[kind])
    requests = {"cpu": spec.cpu or f"{500 * num_ranks}m"}
    limits: dict[str, str] = {}
    memory = spec.memory
    if memory is not None:
        requests["memory"] = limits["memory"] = memory
    elif plan.memory.get("total_bytes"):
        own = AGENT_BYTES + num_ranks * (HOST_BYTES[kind] + _host_bytes(plan, kind))
        requests["memory"] = mebibytes(own + num_bytes(shared))
        limits["memory"] = mebibytes(LIMIT_FACTOR * own + num_bytes(shared))
    if kind == "gpu":
        requests[spec.gpu_resource] = limits[spec.gpu_resource] = str(num_ranks)
    for name, count in spec.rdma.items():
        requests[name] = limits[name] = str(count)
    return Resources(requests=requests, limits=limits, shared_memory=shared)


def ranks_per_pod(plan: Plan) -> int:
    """Of the fullest node: one pod template serves all."""
    counts: dict[str, int] = {}
    for slot in plan.layout.slots:
        counts[slot.node] = counts.get(slot.node, 0) + 1
    return max(counts.values())


def num_bytes(quantity: str) -> int:
    """Read a quantity.

    >>> num_bytes("1.5Gi"), num_bytes("2G")
    (1610612736, 2000000000)
    """
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity)
    assert match, quantity
    return int(float(match[1]) * UNITS[match[2]])


def _host_bytes(plan: Plan, kind: str) -> int:
    """What a rank keeps in host memory: on CPUs everything, else what is copied or moved there."""
    stages = plan.memory["stages"]
    if kind == "cpu":
        return int(plan.memory["total_bytes"])
    train, checkpoint = plan.recipe.train, plan.recipe.checkpoint
    host = 0
    if checkpoint is not None and checkpoint.async_save:
        host += max(stage["weights"] + stage["optimizer"] for stage in stages)
    if train is not None and train.offload_optimizer:
        host += max(8 * stage["parameters"] for stage in stages)  # two moments in fp32
    return int(host)


def mebibytes(size: float) -> str:
    """Write a number of bytes as a quantity, rounded up.

    >>> mebibytes(1.5 * 2**20)
    '2Mi'
    """
    return f"{-int(-size // MIB)}Mi"

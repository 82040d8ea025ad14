"""Nodes as tests of discovery write them: two GPUs joined by NVLink, and what one reading says."""

from typing import Any

from parctl.topology.discovery.reading import Fault, Reading

SOURCES = {"product": "nvml", "uuid": "nvml"}


def gpu(index: int, **facts: Any) -> dict[str, Any]:
    return {
        "index": index,
        "product": "h100",
        "uuid": f"GPU-{index}",
        "memory_bytes": 85520809984,
        "numa": None,
        "mig": False,
        "ecc_errors": 0,
        "faults": [],
        "sources": dict(SOURCES),
        **facts,
    }


def nic(name: str) -> dict[str, Any]:
    return {"name": name, "speed_gbit_s": 400.0, "numa": 0, "sources": {"name": "sysfs"}}


def node(num_gpus: int = 2, *, nics: tuple[str, ...] = (), **facts: Any) -> dict[str, Any]:
    """A node of a topology file."""
    row = ["NV18"] * num_gpus
    links = [" ".join([*row[:i], "X", *row[i + 1 :]]) for i in range(num_gpus)]
    return {
        "name": "vm",
        "domain": None,
        "tiers": [],
        "kind": "gpu",
        "gpus": [gpu(i) for i in range(num_gpus)],
        "links": links,
        "nvlink_groups": [[0, 1]],
        "nvlink_cliques": [],
        "numa_groups": None,
        "nics": [nic(name) for name in nics],
        "nic_links": [],
        "num_cpus": 64,
        "memory_bytes": None,
        "sources": {"matrix": "nvml"},
        "node_sources": {},
        **facts,
    }


def reading(
    found: dict[str, Any] | None = None, *faults: Fault, warnings: tuple[str, ...] = ()
) -> Reading:
    return Reading(
        node=node() if found is None else found, warnings=warnings, faults=faults, failure=None
    )


DEAD_LINK = Fault(kind="dead-nvlink", message="gpu 1: no NVLink")
ECC = Fault(kind="ecc", message="gpu 0: 7 uncorrected ECC errors")

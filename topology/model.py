"""The cluster as data: cluster > fabric tiers > NVLink domain > node > NUMA > device.

Nothing here is guessed. A fact that nobody told us is None (or `?` in a link matrix), and every
fact has a source: `sources` maps a field of the object to where it came from (`nvml`, `smi`,
`k8s-label`, `sysfs`, `product`, `synthetic`, `file`, ...). Standard library only: the runtime reads
these values on cluster nodes.

Link matrix codes are those of `nvidia-smi topo -m`, which everybody in the field reads:

    X     the device itself            PHB   through the CPU's PCIe host bridge
    NV#   # bonded NVLinks             NODE  across host bridges of one NUMA node
    XGMI  AMD Infinity Fabric          SYS   across NUMA nodes
    PIX   one PCIe bridge              HOST  CPU devices: shared memory of one node
    PXB   several PCIe bridges         ?     unknown
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal


class LinkClass(StrEnum):
    """How two devices reach each other, best first."""

    DEVICE = "device"  # a group of one: nothing to cross
    NVLINK = "nvlink"
    XGMI = "xgmi"
    HOST = "host"
    PCIE = "pcie"
    NETWORK = "network"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or one slot for a CPU rank. JSON calls them `gpus`, whatever they are."""

    index: int
    product: (
        str | None
    )  # canonical key of `topology.products`, or the vendor's name when not in the table
    uuid: str | None
    memory_bytes: int | None
    numa: int | None
    pci: str | None
    cpu_affinity: str | None = None  # the kernel's list of CPUs nearest to it: "0-51,104-155"
    mig: bool | None = None  # cut into slices, or itself a slice: no NVLink, no peer access
    ecc_errors: int | None = None  # uncorrected, since the driver started
    remapped_rows: int | None = None  # memory rows replaced by spare ones, or waiting to be
    power_limit_w: float | None = None
    faults: tuple[str, ...] = ()  # sentences; a device with a fault is not used
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    name: str
    speed_gbit_s: float | None
    numa: int | None
    pci: str | None
    rail: int | None  # NICs of one rail meet in one switch
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What is inside a node, without its name. Equal nodes share it: a thousand cost as one."""

    kind: Literal["gpu", "cpu"]
    devices: tuple[Device, ...]
    matrix: tuple[
        tuple[str, ...], ...
    ]  # link code from row device to column device, positions as in `devices`
    nics: tuple[Nic, ...]
    nic_matrix: tuple[
        tuple[str, ...], ...
    ]  # link code from row device to column NIC; empty: unknown
    num_cpus: int | None
    memory_bytes: int | None  # of the host
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def nvlink_groups(self) -> tuple[tuple[int, ...], ...]:
        """Sets connected over NVLink or xGMI, as positions. Connected is not fully meshed.

        By known links: `knows_nvlink_groups` says whether unknown ones might join two of them.
        """
        from parctl.topology.cliques import connected_groups

        return connected_groups(self.matrix)

    @cached_property
    def nvlink_cliques(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Largest full meshes that cover the devices, each with its smallest link count.

        By known links, as `nvlink_groups`.
        """
        from parctl.topology.cliques import full_mesh_cliques

        return full_mesh_cliques(self.matrix)

    @cached_property
    def knows_nvlink_groups(self) -> bool:
        """Whether `nvlink_groups` are the whole truth."""
        from parctl.topology.cliques import groups_are_known

        return groups_are_known(self.matrix)

    @cached_property
    def knows_nvlink_cliques(self) -> bool:
        """Whether `nvlink_cliques` are the whole truth."""
        from parctl.topology.cliques import cliques_are_known

        return cliques_are_known(self.matrix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    hardware: Hardware
    domain: (
        str | None
    )  # rack-scale NVLink domain that this node belongs to; None: the node is its own domain
    tiers: tuple[str, ...]  # value per `Topology.tiers`, nearest first: ("rack-3", "block-1"); `?`
    # where it is unknown
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A whole cluster. `nodes` is in natural order: that order decides node ranks."""

    name: str
    source: str  # "local", "synthetic h100:16x8", a file name, ...
    tiers: tuple[str, ...]  # names of the fabric tiers, nearest first
    nodes: tuple[Node, ...]
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()  # facts that nobody told us, in words

    @property
    def num_devices(self) -> int:
        return sum(len(node.hardware.devices) for node in self.nodes)

    @cached_property
    def digest(self) -> str:
        """`sha256:` and 64 hex digits over all facts, equal for equal topologies."""
        from parctl.topology.store import canonical_text

        return "sha256:" + hashlib.sha256(canonical_text(self).encode()).hexdigest()

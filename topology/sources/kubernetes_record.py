"""What the chart's daemon recorded about the inside of nodes: NodeTopology objects or ConfigMaps.

A record is what NVML and sysfs said on the node itself. It is believed before what the API server
says of the node, with one exception: the cluster hands out what is allocatable and no more. Where
that is less, the rest of the GPUs is shown and not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import UsageError
from parctl.topology.discovery.objects import CONFIG_LABEL, GROUP, KIND, in_config_map
from parctl.topology.discovery.record import lost, node_of
from parctl.topology.document import mapping, mappings, text_of
from parctl.topology.model import Hardware
from parctl.topology.store import SCHEMA, topology_from_json

STATUS = "k8s-status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The inside of one node, as its daemon read it last."""

    hardware: Hardware
    domain: str | None
    domain_source: str | None
    warnings: tuple[str, ...]  # sentences without the node's name


def is_record(item: Mapping[str, Any]) -> bool:
    """Whether a Kubernetes object is a record, or a ConfigMap that holds one."""
    kind, group = item.get("kind"), text_of(item.get("apiVersion")) or ""
    if kind == KIND:
        return group.startswith(f"{GROUP}/")
    return kind == "ConfigMap" and CONFIG_LABEL in mapping(item, "metadata", "labels")


def read_records(items: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Recorded], list[str]]:
    """Records by node, and a sentence for each that cannot be read. Without GPUs it is none."""
    nodes: list[dict[str, Any]] = []
    specs: dict[str, Mapping[str, Any]] = {}
    unread: list[str] = []
    for item in items:
        name, spec = _spec_of(item)
        if name is None:
            unread.append("a record of a node: it names none")
        elif mappings(spec.get("gpus")) and name not in specs:
            specs[name] = spec
            nodes.append(node_of(spec, name))
    found: dict[str, Recorded] = {}
    for node in _readable(nodes, unread):
        spec = specs[node.name]
        told = spec.get("warnings")
        said = [text for text in told if isinstance(text, str)] if isinstance(told, list) else []
        found[node.name] = Recorded(
            hardware=node.hardware,
            domain=node.domain,
            domain_source=node.sources.get("domain"),
            warnings=(*said, *(fault.message for fault in lost(spec))),
        )
    return found, unread


def _readable(nodes: Sequence[dict[str, Any]], unread: list[str]) -> Sequence[Any]:
    """All nodes at once; one by one only if some node is wrong."""
    if not nodes:
        return ()
    document = {"schema": SCHEMA, "name": "records", "source": "records", "nodes": nodes}
    try:
        return topology_from_json(document, where="NodeTopology").nodes
    except UsageError as error:
        if len(nodes) == 1:
            unread.append(f"the record of {nodes[0]['name']}: {error.message}")
            return ()
    return [found for node in nodes for found in _readable([node], unread)]


def as_recorded(recorded: Recorded, *, num_cpus: int | None, memory_bytes: int | None) -> Hardware:
    """The hardware, with the part of the host that pods may have."""
    hardware = recorded.hardware
    if num_cpus is None and memory_bytes is None:
        return hardware
    return replace(
        hardware,
        num_cpus=num_cpus if num_cpus is not None else hardware.num_cpus,
        memory_bytes=memory_bytes if memory_bytes is not None else hardware.memory_bytes,
        sources={**hardware.sources, "num_cpus": STATUS, "memory_bytes": STATUS},
    )


def handed_out(hardware: Hardware, count: int) -> Hardware:
    """The hardware of which the cluster hands out `count` devices.

    Which ones is not known; those with a fault are the first to be left out, then the last.
    """
    well = [i for i, device in enumerate(hardware.devices) if not device.faults]
    out = set(well[count:])
    fault = f"not handed out: {count} of {len(hardware.devices)} GPUs are allocatable"
    devices = tuple(
        replace(device, faults=(fault,), sources={**device.sources, "faults": STATUS})
        if i in out
        else device
        for i, device in enumerate(hardware.devices)
    )
    return replace(hardware, devices=devices)


def _spec_of(item: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    if item.get("kind") == KIND:
        return text_of(mapping(item, "metadata").get("name")), mapping(item, "spec")
    content = in_config_map(item)
    return text_of(content.get("node")), mapping(content, "spec")

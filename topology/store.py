"""Topologies as JSON: what `parctl topology -o json` prints and every command reads back.

One node holds all its facts, so that a reader needs no second table::

    {schema, name, source, tiers: [...], domains: [{name, nodes, num_devices}],
     nodes: [{name, domain, tiers, kind, gpus: [{index, product, uuid, memory_bytes, numa, pci,
              cpu_affinity, mig, ecc_errors, remapped_rows, power_limit_w, faults, sources}],
              links: ["X NV18", "NV18 X"], nvlink_groups, nvlink_cliques, numa_groups,
              nics: [{name, speed_gbit_s, numa, pci, rail, sources}], nic_links: [...], num_cpus,
              memory_bytes, sources, node_sources}],
     warnings, unknown}

`domains`, `nvlink_groups`, `nvlink_cliques` (members and the smallest link count between two of
them) and `numa_groups` are derived: written for readers, ignored when read. Groups name devices by
index; they are null where an unknown link or NUMA node might change them. Equal nodes share one
`Hardware` in memory, on either side.
"""

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.topology.document import read_documents
from parctl.topology.model import Device, Hardware, Nic, Node, Topology
from parctl.topology.reader import Reader

SCHEMA = 1
MAX_FILE_BYTES = 2**30
INDENT_UP_TO = 64  # nodes: larger files are written without white space


def topology_to_json(topology: Topology) -> dict[str, Any]:
    """The topology as plain values. Nodes of one hardware share the same lists: copy to change."""
    rendered: dict[int, dict[str, Any]] = {}
    nodes = []
    for node in topology.nodes:
        inside = rendered.get(id(node.hardware))
        if inside is None:
            inside = rendered[id(node.hardware)] = _hardware_to_json(node.hardware)
        nodes.append(
            {
                "name": node.name,
                "domain": node.domain,
                "tiers": list(node.tiers),
                **inside,
                "node_sources": dict(node.sources),
            }
        )
    return {
        "schema": SCHEMA,
        "name": topology.name,
        "source": topology.source,
        "tiers": list(topology.tiers),
        "domains": _domains(topology),
        "nodes": nodes,
        "warnings": list(topology.warnings),
        "unknown": list(topology.unknown),
    }


def canonical_text(topology: Topology) -> str:
    """All facts as one line, equal for equal topologies; equal hardware is written once."""
    numbers: dict[str, int] = {}
    seen: dict[int, int] = {}
    nodes = []
    for node in topology.nodes:
        number = seen.get(id(node.hardware))
        if number is None:
            text = json.dumps(_hardware_to_json(node.hardware), sort_keys=True)
            number = seen[id(node.hardware)] = numbers.setdefault(text, len(numbers))
        nodes.append([node.name, number, node.domain, node.tiers, dict(node.sources)])
    facts = {
        "name": topology.name,
        "source": topology.source,
        "tiers": topology.tiers,
        "hardware": list(numbers),
        "nodes": nodes,
        "warnings": topology.warnings,
        "unknown": topology.unknown,
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def save_topology(topology: Topology, path: Path) -> None:
    """Write the topology to a file, whole or not at all."""
    indent = 2 if len(topology.nodes) <= INDENT_UP_TO else None
    text = json.dumps(topology_to_json(topology), indent=indent) + "\n"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def load_topology(path: Path) -> Topology:
    """Read a topology file, JSON or YAML. Raises UsageError that says where it is wrong."""
    return topology_from_text(read_file(path), str(path))


def read_file(path: Path) -> str:
    """Text of a file of bounded size. Raises UsageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UsageError(
            f"{str(path)[:200]}: cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="`parctl topology -o json > FILE` writes one",
        ) from error
    return decode_text(data, str(path))


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8, or the UTF-16 that PowerShell writes. Raises UsageError for other bytes."""
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{name}: larger than {MAX_FILE_BYTES:,} bytes")
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) > 2
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text (byte {error.start})") from error


def looks_like(text: str) -> bool:
    """Whether a text is a topology as we write it, JSON or YAML, right or wrong inside."""
    return (
        re.search(r'(?m)^\s*\{?\s*"?schema"?\s*:\s*\d', text) is not None
        and re.search(r'(?m)(?:^|[\s,{])"?nodes"?\s*:', text) is not None
    )


def topology_from_text(text: str, name: str) -> Topology:
    """Rebuild a topology from JSON or YAML; one that was cut gives its whole nodes."""
    documents = read_documents(text, name)
    if len(documents.values) != 1:
        raise UsageError(f"{name}: found {len(documents.values)} documents, expected one")
    topology = topology_from_json(documents.values[0], where=name)
    if documents.cut is None:
        return topology
    return replace(topology, unknown=(*topology.unknown, documents.cut))


def topology_from_json(data: Any, *, where: str = "topology") -> Topology:
    """Rebuild a topology from what `topology_to_json` made. Raises UsageError naming the place."""
    reader = Reader(where, data)
    schema = reader.integer("schema")
    if schema != SCHEMA:
        raise reader.error("schema", f"is {schema}, this parctl reads schema {SCHEMA}")
    tiers = reader.strings("tiers")
    shared: dict[str, list[tuple[Mapping[str, Any], Hardware]]] = {}
    nodes = tuple(_node(node, tiers, shared) for node in reader.items("nodes"))
    unknown = reader.strings("unknown")
    # a map of the fabric may name no node, as Kueue's Topology and Slurm's flat one, and says so
    if not nodes and not any(text.startswith("nodes:") for text in unknown):
        raise reader.error("nodes", "is empty, expected at least one node")
    names = Counter(node.name for node in nodes)
    name, times = names.most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise reader.error("nodes", f"has `{name}` {times} times, expected one node per name")
    return Topology(
        name=reader.text("name"),
        source=reader.text("source"),
        tiers=tiers,
        nodes=nodes,
        warnings=reader.strings("warnings"),
        unknown=unknown,
    )


def _hardware_to_json(hardware: Hardware) -> dict[str, Any]:
    index = [device.index for device in hardware.devices]
    return {
        "kind": hardware.kind,
        "gpus": [_fields(device, "sources", "faults") for device in hardware.devices],
        "links": [" ".join(row) for row in hardware.matrix],
        "nvlink_groups": [[index[i] for i in group] for group in hardware.nvlink_groups]
        if hardware.knows_nvlink_groups
        else None,
        "nvlink_cliques": [
            {"gpus": [index[i] for i in members], "links": least}
            for members, least in hardware.nvlink_cliques
        ]
        if hardware.knows_nvlink_cliques
        else None,
        "numa_groups": _numa_groups(hardware.devices),
        "nics": [_fields(nic, "sources") for nic in hardware.nics],
        "nic_links": [" ".join(row) for row in hardware.nic_matrix],
        "num_cpus": hardware.num_cpus,
        "memory_bytes": hardware.memory_bytes,
        "sources": dict(hardware.sources),
    }


def _fields(value: Device | Nic, *plain: str) -> dict[str, Any]:
    names = value.__slots__
    result = {name: getattr(value, name) for name in names if name not in plain}
    if isinstance(value, Device):
        result["faults"] = list(value.faults)
    return result | {"sources": dict(value.sources)}


def _numa_groups(devices: Sequence[Device]) -> list[list[int]] | None:
    groups: dict[int, list[int]] = {}
    for device in devices:
        if device.numa is None:
            return None
        groups.setdefault(device.numa, []).append(device.index)
    return [groups[numa] for numa in sorted(groups)]


def _domains(topology: Topology) -> list[dict[str, Any]]:
    members: dict[str, list[Node]] = {}
    for node in topology.nodes:
        if node.domain is not None:
            members.setdefault(node.domain, []).append(node)
    return [
        {
            "name": name,
            "nodes": [node.name for node in nodes],
            "num_devices": sum(len(node.hardware.devices) for node in nodes),
        }
        for name, nodes in members.items()
    ]


INSIDE = (
    "kind",
    "gpus",
    "links",
    "nics",
    "nic_links",
    "num_cpus",
    "memory_bytes",
    "sources",
)


def _node(
    reader: Reader,
    tiers: tuple[str, ...],
    shared: dict[str, list[tuple[Mapping[str, Any], Hardware]]],
) -> Node:
    inside = {key: reader.get(key) for key in INSIDE}
    # nodes that begin alike are compared in full: cheaper than building a key of all facts
    alike = shared.setdefault(f"{inside['kind']} {str(inside['links'])[:80]}", [])
    hardware = next((known for facts, known in alike if facts == inside), None)
    if hardware is None:
        hardware = _hardware(reader)
        alike.insert(0, (inside, hardware))
        del alike[8:]
    values = reader.strings("tiers")
    if len(values) != len(tiers):
        raise reader.error("tiers", f"has {len(values)} values, the topology has {len(tiers)}")
    return Node(
        name=reader.text("name"),
        hardware=hardware,
        domain=reader.optional_text("domain"),
        tiers=values,
        sources=reader.mapping("node_sources"),
    )


def _hardware(reader: Reader) -> Hardware:
    kind = reader.text("kind")
    if kind not in ("gpu", "cpu"):
        raise reader.error("kind", f"is `{kind}`, expected gpu or cpu")
    devices = tuple(
        Device(
            index=gpu.integer("index"),
            product=gpu.optional_text("product"),
            uuid=gpu.optional_text("uuid"),
            memory_bytes=gpu.optional_integer("memory_bytes"),
            numa=gpu.optional_integer("numa"),
            pci=gpu.optional_text("pci"),
            cpu_affinity=gpu.optional_text("cpu_affinity"),
            mig=gpu.optional_boolean("mig"),
            ecc_errors=gpu.optional_integer("ecc_errors"),
            remapped_rows=gpu.optional_integer("remapped_rows"),
            power_limit_w=gpu.optional_number("power_limit_w"),
            faults=gpu.strings("faults"),
            sources=gpu.mapping("sources"),
        )
        for gpu in reader.items("gpus")
    )
    if len({device.index for device in devices}) < len(devices):
        raise reader.error("gpus", "has an index twice")
    nics = tuple(
        Nic(
            name=nic.text("name"),
            speed_gbit_s=nic.optional_number("speed_gbit_s"),
            numa=nic.optional_integer("numa"),
            pci=nic.optional_text("pci"),
            rail=nic.optional_integer("rail"),
            sources=nic.mapping("sources"),
        )
        for nic in reader.items("nics")
    )
    return Hardware(
        kind="cpu" if kind == "cpu" else "gpu",
        devices=devices,
        matrix=reader.matrix("links", len(devices), len(devices)),
        nics=nics,
        nic_matrix=reader.matrix("nic_links", len(devices), len(nics))
        if reader.strings("nic_links")
        else (),
        num_cpus=reader.optional_integer("num_cpus"),
        memory_bytes=reader.optional_integer("memory_bytes"),
        sources=reader.mapping("sources"),
    )

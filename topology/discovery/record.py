"""A node as a record that a cluster keeps: the node of a topology file, made small.

::

    spec: {schema, domain, kind, gpus: [...], gpu_sources: {...}, links: ["X NV18", ...],
           nics: [...], nic_sources: {...}, nic_links: [...], num_cpus, memory_bytes, sources,
           node_sources, warnings, expected: {gpus, nics}}

Thousands of records are listed at once, so what can be derived, what is unknown and what all GPUs
have in common (where their facts come from) is not repeated. `expected` is the most that was ever
seen here: a NIC or a GPU that is not there any more leaves no other trace.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from parctl.topology.discovery.reading import Fault, Reading
from parctl.topology.document import mapping, mappings

SCHEMA = 1
# characters of a text that the definition takes, where the driver or the kernel may say anything
MAX_TEXT = 253
MAX_OF = {
    "pci": 64,
    "faults": 1024,
    "warnings": 1024,
    "cpu_affinity": 4096,
    "links": 8192,
    "nic_links": 8192,
}
MAX_WARNINGS = 256
DERIVED = ("name", "tiers", "nvlink_groups", "nvlink_cliques", "numa_groups")

Record = dict[str, Any]


def record_of(reading: Reading, before: Mapping[str, Any]) -> Record:
    """The record of a reading. `before` is the last one, of which what is expected is kept."""
    node = {key: value for key, value in (reading.node or {}).items() if key not in DERIVED}
    record: Record = {"schema": SCHEMA}
    for key, sources in (("gpus", "gpu_sources"), ("nics", "nic_sources")):
        items = [dict(item) for item in node.pop(key, ())]
        common = _common_sources(items)
        if common is not None:
            record[sources] = common
        record[key] = [_without_empty(item) for item in items]
    record |= node
    record["warnings"] = list(reading.warnings)[:MAX_WARNINGS]
    record["expected"] = {
        "gpus": max(len(record["gpus"]), expected_gpus(before)),
        "nics": sorted({*names_of(record["nics"]), *expected_nics(before)}),
    }
    return {key: _bounded(value, key) for key, value in _without_empty(record).items()}


def empty_record() -> Record:
    """The record of a node that was never read."""
    return {"schema": SCHEMA}


def node_of(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The node of a topology file that a record stands for."""
    node: dict[str, Any] = {"name": name, "tiers": [], "kind": "gpu", "links": [], **record}
    for key, sources in (("gpus", "gpu_sources"), ("nics", "nic_sources")):
        common = record.get(sources)
        if common and isinstance(record.get(key), list):
            node[key] = [
                {"sources": common, **item} if isinstance(item, Mapping) else item
                for item in record[key]
            ]
    return node


def lost(record: Mapping[str, Any]) -> list[Fault]:
    """What was there once and is not now."""
    faults = []
    gpus, num_expected = len(mappings(record.get("gpus"))), expected_gpus(record)
    if gpus < num_expected:
        faults.append(
            Fault(kind="missing-gpu", message=f"{gpus} GPUs are there, {num_expected} once were")
        )
    there = set(names_of(mappings(record.get("nics"))))
    gone = [name for name in expected_nics(record) if name not in there]
    if gone:
        faults.append(
            Fault(kind="missing-nic", message=f"NIC {', '.join(gone)}: not there or down")
        )
    return faults


def expected_gpus(record: Mapping[str, Any]) -> int:
    count = mapping(record, "expected").get("gpus")
    return count if isinstance(count, int) else 0


def expected_nics(record: Mapping[str, Any]) -> list[str]:
    names = mapping(record, "expected").get("nics")
    return [str(name) for name in names] if isinstance(names, list) else []


def names_of(nics: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(nic.get("name")) for nic in nics]


def _common_sources(items: list[dict[str, Any]]) -> dict[str, str] | None:
    """Take the sources out of the items where all have the same."""
    if not items or any(item.get("sources") != items[0].get("sources") for item in items):
        return None
    common: dict[str, str] | None = items[0].get("sources")
    for item in items:
        item.pop("sources", None)
    return common


def _bounded(value: Any, key: str) -> Any:
    """The value with texts cut to what is taken; else the whole record would be refused."""
    if isinstance(value, str):
        return value[: MAX_OF.get(key, MAX_TEXT)]
    if isinstance(value, Mapping):
        return {name: _bounded(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_bounded(item, key) for item in value]
    return value


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item not in (None, [], {}, "")}

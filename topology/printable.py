"""Refuse names that would do something to a terminal, a hostfile or a YAML file.

Captures come from other people. A control character in a name - an escape sequence, a line break -
is no part of any real name, and whatever prints it later would obey it.
"""

import re
from collections.abc import Iterator

from parctl.errors import UsageError
from parctl.topology.model import Hardware, Topology

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_printable(topology: Topology, name: str) -> None:
    """Raise UsageError that begins with `name` when a text of the topology has control characters.

    Equal nodes share their hardware, which is looked at once.
    """
    for text in _texts(topology):
        if _CONTROL.search(text):
            raise UsageError(
                f"{name}: found {text[:60]!a}, a text with control characters",
                hint="names and sentences of a cluster are plain text in one line",
            )


def _texts(topology: Topology) -> Iterator[str]:
    yield from (topology.name, topology.source, *topology.tiers)
    yield from topology.warnings
    yield from topology.unknown
    seen: dict[int, Hardware] = {}
    for node in topology.nodes:
        yield from (node.name, node.domain or "", *node.tiers, *node.sources.values())
        seen.setdefault(id(node.hardware), node.hardware)
    for hardware in seen.values():
        yield from hardware.sources.values()
        for device in hardware.devices:
            told = (device.product, device.uuid, device.pci, device.cpu_affinity)
            yield from (text for text in told if text is not None)
            yield from device.faults
            yield from device.sources.values()
        for nic in hardware.nics:
            yield from (nic.name, nic.pci or "", *nic.sources.values())

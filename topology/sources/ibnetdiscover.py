"""`ibnetdiscover`: which host port hangs on which InfiniBand switch, and how switches are joined.

::

    Switch  41 "S-0ff08c43215bae48"     # "MF0;leaf-1:MQM8700/U1" enhanced port 0 lid 556 lmc 0
    [1]     "H-0ff08c4321664e96"[1](ff08c4321664e96)    # "node-3 mlx5_0" lid 1181 4xHDR
    [25]    "S-0ff08c432172aa1a"[1]     # "MF0;core-1:MCS8500/L01/U1" lid 226 4xHDR

Levels: a switch with a host port is level 1, its other neighbours level 2, and so on. Tier t of a
host is the part of the fabric that it reaches over switches up to level t, named after its first
switch of level t. On a rail-optimised fabric the NICs of a host hang on different leaves; the
leaves that hosts tie together are one part, and a NIC's rail is its leaf's place in that part.

The map knows hosts and NICs, not what is inside a host: merge it with a source that does.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parctl.errors import UsageError
from parctl.topology.model import Hardware, Nic, Node, Topology
from parctl.topology.placement.order import in_natural_order, natural_key
from parctl.topology.sources.capture import plain_lines

SOURCE = "ibnetdiscover"
# Gbit/s of one lane; the port shows how many it has: 4xHDR
LANE_GBIT_S = {
    "SDR": 2.5, "DDR": 5, "QDR": 10, "FDR10": 10, "FDR": 14, "EDR": 25, "HDR": 50, "NDR": 100,
    "XDR": 200,
}  # fmt: skip
NOT_A_HOST = re.compile(r"aggregation node|^MF0;|^Quantum|^SwitchX", re.IGNORECASE)

_BLOCK = re.compile(r'\s*(Switch|Ca|Rt)\s+\d+\s+"([SHR]-[0-9a-fA-F]{1,16})"\s*(?:#\s*"([^"]*)")?')
_PORT = re.compile(
    r'\s*\[(\d{1,3})\](?:\([0-9a-fA-F]+\))?\s*"([SHR]-[0-9a-fA-F]{1,16})"\[(\d{1,3})\]'
    r"(?:\([0-9a-fA-F]+\))?(?:\s*#\s*(.*))?"
)
_SPEED = re.compile(r"\b(\d{1,2})x([A-Z]{3}(?:10)?)\b")
_QUOTED = re.compile(r'"([^"]*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """A link between a switch and another port."""

    a: str
    a_port: int
    b: str
    b_port: int
    gbit_s: float | None


def looks_like(text: str) -> bool:
    """Whether a switch or channel adapter of ibnetdiscover is described."""
    return re.search(r'(?m)^(?:Switch|Ca)\s+\d+\s+"[SH]-[0-9a-fA-F]+"', text) is not None


def read_text(text: str, name: str) -> Topology:
    """Read the fabric as hosts in tiers. Raises UsageError when no host is cabled to a switch."""
    lines = plain_lines(text)
    names, cables, described = _read(lines)
    switches = {port for cable in cables for port in (cable.a, cable.b) if port[0] == "S"}
    host_ports: dict[str, list[Cable]] = defaultdict(list)
    for cable in cables:
        for end in (cable.a, cable.b):
            if end[0] == "H" and not NOT_A_HOST.search(names.get(end, "")):
                host_ports[end].append(cable)
    if not host_ports:
        raise UsageError(
            f"{name}:1: no host is cabled to a switch in {len(lines)} lines",
            hint="save the output of `ibnetdiscover`, run where the whole fabric can be seen",
        )
    hosts = _hosts(host_ports, names)
    leaves = {_far(cable, ca) for ca, ports in host_ports.items() for cable in ports}
    levels = _levels(leaves, switches, cables)
    tiers = list(_tiers(hosts, host_ports, levels, cables, names))
    rails = _rails(hosts, host_ports)
    unknown = [f"devices of all {len(hosts)} hosts: {SOURCE} sees the network only"]
    if lost := len(switches - described):
        unknown.append(f"ports of {lost} switches that others are cabled to: not in the text")
    nodes = in_natural_order(
        Node(
            name=host,
            hardware=_hardware(adapters, host_ports, names, rails),
            domain=None,
            tiers=tuple(tier[host] for tier in tiers),
            sources={"hardware": SOURCE, "tiers": SOURCE},
        )
        for host, adapters in hosts.items()
    )
    return Topology(
        name=name,
        source=f"{SOURCE} {name}",
        tiers=tuple(f"ib-level-{i + 1}" for i in range(len(tiers))),
        nodes=nodes,
        warnings=tuple(_alone(tiers)),
        unknown=tuple(unknown),
    )


def _read(lines: Sequence[str]) -> tuple[dict[str, str], list[Cable], set[str]]:
    """Descriptions by id, every cable once, and the ids that have a block of their own."""
    described: set[str] = set()
    names: dict[str, str] = {}
    cables: dict[tuple[tuple[str, int], ...], Cable] = {}
    current: str | None = None
    for line in lines:
        if block := _BLOCK.match(line):
            current = _identity(block[2])
            described.add(current)
            if block[3]:
                names[current] = block[3]
        elif current is not None and (port := _PORT.match(line)):
            peer = _identity(port[2])
            comment = port[4] or ""
            if quoted := _QUOTED.search(comment):
                names.setdefault(peer, quoted[1])
            speed = _SPEED.search(comment)
            cable = Cable(
                a=current,
                a_port=int(port[1]),
                b=peer,
                b_port=int(port[3]),
                gbit_s=float(int(speed[1]) * LANE_GBIT_S[speed[2]])
                if speed and speed[2] in LANE_GBIT_S
                else None,
            )
            ends = tuple(sorted([(cable.a, cable.a_port), (cable.b, cable.b_port)]))
            cables.setdefault(ends, cable)
    return names, list(cables.values()), described


def _identity(text: str) -> str:
    return text[:2] + text[2:].lower().lstrip("0")


def _far(cable: Cable, end: str) -> str:
    return cable.b if cable.a == end else cable.a


def _hosts(host_ports: Iterable[str], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Adapters by host: a description begins with the host's name, `node-3 mlx5_0`."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for adapter in sorted(host_ports, key=lambda ca: (natural_key(names.get(ca, "")), ca)):
        words = names.get(adapter, "").split()
        hosts[words[0] if words else adapter].append(adapter)
    return hosts


def _levels(leaves: Iterable[str], switches: set[str], cables: Sequence[Cable]) -> dict[str, int]:
    """Level of each switch: steps from the nearest host port."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for cable in cables:
        if cable.a in switches and cable.b in switches:
            neighbours[cable.a].add(cable.b)
            neighbours[cable.b].add(cable.a)
    levels: dict[str, int] = {}
    frontier, level = {leaf for leaf in leaves if leaf in switches}, 1
    while frontier:
        levels |= dict.fromkeys(frontier, level)
        frontier = {peer for switch in frontier for peer in neighbours[switch]} - levels.keys()
        level += 1
    return levels


def _tiers(
    hosts: Mapping[str, Sequence[str]],
    host_ports: Mapping[str, Sequence[Cable]],
    levels: Mapping[str, int],
    cables: Sequence[Cable],
    names: Mapping[str, str],
) -> Iterator[dict[str, str]]:
    """Part of the fabric that each host reaches, level by level, until it is one."""
    titles = _titles(levels, names)
    parent: dict[str, str] = {}

    def find(item: str) -> str:
        while parent.setdefault(item, item) != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for host, adapters in hosts.items():
        for adapter in adapters:
            for cable in host_ports[adapter]:
                parent[find(f"host {host}")] = find(_far(cable, adapter))
    for level in range(1, max(levels.values(), default=0) + 1):
        for cable in cables:
            ends = (levels.get(cable.a), levels.get(cable.b))
            if None not in ends and max(end for end in ends if end) <= level:
                parent[find(cable.a)] = find(cable.b)
        first: dict[str, str] = {}
        for switch in sorted(levels, key=lambda s: (-levels[s], natural_key(titles[s]), s)):
            if levels[switch] <= level:
                first.setdefault(find(switch), titles[switch])
        part = {host: first.get(find(f"host {host}"), "?") for host in hosts}
        yield part
        if len(set(part.values())) == 1:
            return


def _titles(switches: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """A name of its own for each switch: its description, with its id where two share one."""
    plain = {switch: names.get(switch, "").removeprefix("MF0;").strip() for switch in switches}
    times = Counter(plain.values())
    return {
        switch: title if title and times[title] == 1 else f"{title} {switch}".strip()
        for switch, title in plain.items()
    }


def _rails(
    hosts: Mapping[str, Sequence[str]], host_ports: Mapping[str, Sequence[Cable]]
) -> dict[str, int]:
    """Rail of each leaf that hosts with several leaves share: its place among theirs."""
    rails: dict[str, int] = {}
    for host in sorted(hosts, key=natural_key):
        leaves = dict.fromkeys(
            _far(cable, adapter) for adapter in hosts[host] for cable in host_ports[adapter]
        )
        if len(leaves) > 1:
            for place, leaf in enumerate(leaves):
                rails.setdefault(leaf, place)
    return rails


def _hardware(
    adapters: Sequence[str],
    host_ports: Mapping[str, Sequence[Cable]],
    names: Mapping[str, str],
    rails: Mapping[str, int],
) -> Hardware:
    nics = []
    for adapter in adapters:
        words = names.get(adapter, "").split()
        for cable in host_ports[adapter]:
            port = cable.b_port if cable.b == adapter else cable.a_port
            name = words[1] if len(words) > 1 else adapter
            facts = {"speed_gbit_s": cable.gbit_s, "rail": rails.get(_far(cable, adapter))}
            nics.append(
                Nic(
                    name=name if len(host_ports[adapter]) == 1 else f"{name}:{port}",
                    speed_gbit_s=cable.gbit_s,
                    numa=None,
                    pci=None,
                    rail=rails.get(_far(cable, adapter)),
                    sources={key: SOURCE for key, value in facts.items() if value is not None},
                )
            )
    return Hardware(
        kind="gpu",
        devices=(),
        matrix=(),
        nics=tuple(nics),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
        sources={"nics": SOURCE},
    )


def _alone(tiers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if tiers and len(set(tiers[-1].values())) > 1:
        yield (
            f"the fabric is in {len(set(tiers[-1].values()))} parts that no switch joins; "
            "was the whole of it scanned?"
        )

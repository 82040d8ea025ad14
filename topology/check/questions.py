"""Can TP=N stay on full NVLink, and on which GPUs? For every N, and whatever else is amiss.

The answer is the hard rule's own (`topology.placement.hard_rule`): a tensor-parallel group needs a
link of its own between every two members. Inside a node groups are packed so that as many as can be
have it; in a rack-scale domain any members can be joined, so groups that fit a node stay in it and
larger ones take whatever GPUs the domain has. `unknown` means that the links that would decide are
not known, and no product's table knows them either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from parctl.topology.check.findings import Finding, find_problems
from parctl.topology.cliques import largest_mesh, pack_meshes, worst_count
from parctl.topology.describe import UNKNOWN, group_text, name_range
from parctl.topology.links import link_count
from parctl.topology.model import Hardware, Node, Topology
from parctl.topology.placement.hard_rule import inspect
from parctl.topology.products import find_product

Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where groups can live: the same device indexes in each node, or anywhere in the domains."""

    nodes: tuple[str, ...]  # empty: across domains
    groups: tuple[tuple[int, ...], ...]  # device indexes of one node; empty: across the domain
    domains: tuple[str, ...]  # rack-scale domains that groups spread over; empty: inside the nodes
    num_groups: int  # over all the nodes or domains
    code: str  # the worst link inside a group: NV18, XGMI
    from_product: bool  # links were not reported, the table of products says so

    def __str__(self) -> str:
        if self.domains:
            return f"{name_range(self.domains)}: any GPUs of a domain {self.code}"
        text = f"{name_range(self.nodes)}: {' '.join(map(group_text, self.groups))} {self.code}"
        return f"{text} (by product)" if self.from_product else text


@dataclass(frozen=True, slots=True, kw_only=True)
class TpAnswer:
    size: int
    answer: Answer
    places: tuple[Place, ...]
    reason: str | None  # why not

    @property
    def num_groups(self) -> int:
        return sum(place.num_groups for place in self.places)

    @property
    def explanation(self) -> str:
        """On which GPUs, or why not."""
        return self.reason or "; ".join(str(place) for place in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    tp: tuple[TpAnswer, ...]  # for 2, 3, ... up to the largest node or domain
    findings: tuple[Finding, ...]  # faults first

    @property
    def ok(self) -> bool:
        return not any(finding.fault for finding in self.findings)


def check_topology(topology: Topology) -> Check:
    """Answer for every TP size, and list what is wrong or odd."""
    return Check(tp=tuple(_answers(topology)), findings=find_problems(topology))


def check_to_json(check: Check) -> dict[str, Any]:
    """The check as plain values."""
    return {
        "ok": check.ok,
        "tp": [
            {
                "size": answer.size,
                "answer": answer.answer,
                "num_groups": answer.num_groups,
                "places": [
                    {
                        "nodes": list(place.nodes),
                        "gpus": [list(group) for group in place.groups],
                        "domains": list(place.domains),
                        "num_groups": place.num_groups,
                        "link": place.code,
                        "source": "product" if place.from_product else "reported",
                    }
                    for place in answer.places
                ],
                "reason": answer.reason,
            }
            for answer in check.tp
        ],
        "findings": [
            {
                "kind": finding.kind,
                "fault": finding.fault,
                "nodes": list(finding.nodes),
                "gpus": list(finding.gpus),
                "message": finding.message,
            }
            for finding in check.findings
        ],
    }


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One kind of node, as far as full meshes go."""

    nodes: list[Node]
    hardware: Hardware
    matrix: tuple[tuple[str, ...], ...]
    from_product: bool
    usable: tuple[int, ...]  # positions of devices that work and are whole
    in_domain: tuple[int, ...]  # those that take part in a rack-scale domain
    largest: int  # full mesh by links that are known
    largest_perhaps: int  # if every unknown link were NVLink

    def index(self, members: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.hardware.devices[i].index for i in members)


def _linked(code: str) -> bool:
    return link_count(code) > 0


def _perhaps_linked(code: str) -> bool:
    return code == UNKNOWN or link_count(code) > 0


def _kinds(topology: Topology) -> list[_Kind]:
    by_hardware: dict[int, list[Node]] = {}
    for node in topology.nodes:
        if node.hardware.kind == "gpu":
            by_hardware.setdefault(id(node.hardware), []).append(node)
    kinds = []
    for nodes in by_hardware.values():
        hardware = nodes[0].hardware
        inside = inspect(hardware, allow_pcie=False)
        usable = tuple(sorted(i for i in inside.usable if not hardware.devices[i].mig))
        kinds.append(
            _Kind(
                nodes=nodes,
                hardware=hardware,
                matrix=inside.matrix,
                from_product=inside.from_product,
                usable=usable,
                in_domain=tuple(i for i in usable if i not in inside.stragglers),
                largest=largest_mesh(inside.matrix, _linked, usable),
                largest_perhaps=largest_mesh(inside.matrix, _perhaps_linked, usable),
            )
        )
    return kinds


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """A rack-scale NVLink domain: several nodes behind one fabric."""

    name: str
    num_members: int
    largest_in_node: int
    code: str


def _answers(topology: Topology) -> Iterator[TpAnswer]:
    kinds = _kinds(topology)
    domains = _rack_scale_domains(kinds)
    limit = max(
        [len(kind.hardware.devices) for kind in kinds] + [d.num_members for d in domains],
        default=1,
    )
    spread = {domain.name for domain in domains}
    for size in range(2, limit + 1):
        places = [place for kind in kinds for place in _in_nodes(kind, size, spread)]
        places += _in_domains(domains, size)
        if places:
            yield TpAnswer(size=size, answer="yes", places=tuple(places), reason=None)
        elif any(kind.largest_perhaps >= size for kind in kinds):
            reason = "the links between the GPUs are unknown"
            yield TpAnswer(size=size, answer="unknown", places=(), reason=reason)
        else:
            yield TpAnswer(size=size, answer="no", places=(), reason=_reason(kinds, domains))


def _rack_scale_domains(kinds: list[_Kind]) -> list[_Domain]:
    members: dict[str, list[_Kind]] = {}
    for kind in kinds:
        for node in kind.nodes:
            # a map of the fabric names domains and no devices
            if node.domain is not None and kind.in_domain:
                members.setdefault(node.domain, []).append(kind)
    return [
        _Domain(
            name=name,
            num_members=sum(len(kind.in_domain) for kind in inside),
            largest_in_node=max(kind.largest for kind in inside),
            code=min({_domain_code(kind) for kind in inside}),
        )
        for name, inside in members.items()
        if len(inside) > 1
    ]


def _domain_code(kind: _Kind) -> str:
    """Behind one fabric every pair has the links of its lesser member."""
    counts = [worst_count(kind.matrix, pair) for pair in combinations(kind.in_domain, 2)]
    if counts:
        return f"NV{min(counts)}"
    product = find_product(kind.hardware.devices[0].product or "")
    return f"NV{product.links}" if product is not None and product.links else "NVLink"


def _in_nodes(kind: _Kind, size: int, spread: set[str]) -> Iterator[Place]:
    """Groups inside single nodes; nodes of a rack-scale domain only if they are used up so."""
    whole = kind.largest % size == 0
    nodes = [node.name for node in kind.nodes if whole or node.domain not in spread]
    if kind.largest < size or not nodes:
        return
    by_code: dict[str, list[tuple[int, ...]]] = {}
    for group in pack_meshes(kind.matrix, size, _linked, kind.usable):
        code = kind.matrix[group[0]][group[1]]
        if code != "XGMI":
            code = f"NV{worst_count(kind.matrix, group)}"
        by_code.setdefault(code, []).append(kind.index(group))
    for code, groups in by_code.items():
        yield Place(
            nodes=tuple(nodes),
            groups=tuple(groups),
            domains=(),
            num_groups=len(groups) * len(nodes),
            code=code,
            from_product=kind.from_product,
        )


def _in_domains(domains: list[_Domain], size: int) -> Iterator[Place]:
    by_code: dict[str, list[_Domain]] = {}
    for domain in domains:
        in_node = domain.largest_in_node >= size and domain.largest_in_node % size == 0
        if domain.num_members >= size and not in_node:
            by_code.setdefault(domain.code, []).append(domain)
    for code, members in by_code.items():
        yield Place(
            nodes=(),
            groups=(),
            domains=tuple(domain.name for domain in members),
            num_groups=sum(domain.num_members // size for domain in members),
            code=code,
            from_product=False,
        )


def _reason(kinds: list[_Kind], domains: list[_Domain]) -> str:
    largest = max((kind.largest for kind in kinds), default=0)
    if domains:
        return f"the largest NVLink domain has {max(d.num_members for d in domains)} usable GPUs"
    if largest < 2:
        return "no two GPUs are joined by NVLink"
    kind = next(kind for kind in kinds if kind.largest == largest)
    group = pack_meshes(kind.matrix, largest, _linked, kind.usable)[0]
    return (
        f"the largest full mesh has {largest} GPUs: {kind.nodes[0].name} "
        f"{group_text(kind.index(group))}"
    )

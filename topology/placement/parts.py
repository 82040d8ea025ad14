"""Cut the mesh into parts, so that each may live in a container of its own.

An axis is one part, unless only some of it belongs somewhere: the ranks of `fsdp` that fill a node,
the ranks that `ep` takes from an axis, the full meshes of a `tp` group that crosses nodes. A family
is a set of groups that talk, or must stay, together: one per axis, `ep`, and three that only bind.
With fsdp 16 = 8 in a node x 2, tp 1::

    part        families                     container
    fsdp(8)     fsdp, fsdp in a node         the nearest of its families': the node
    fsdp(2)     fsdp                         the cluster

A part lies in the nearest container of its families, for all their groups lie in theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from parctl.topology.placement.request import CP, EP, FSDP, OPERATOR, PP, TP, LayoutRequest

TP_MESH = "tp in a mesh"
FSDP_NODE = "fsdp in a node"
FSDP_DOMAIN = "fsdp in a domain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    axis: str
    size: int
    families: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How many ranks of an fsdp group share a node, and a domain, before it crosses."""

    node: int
    domain: int
    size: int

    @property
    def crosses_nodes(self) -> bool:
        return self.node < self.size

    @property
    def crosses_domains(self) -> bool:
        return self.domain < self.size


def fills(request: LayoutRequest, *, has_domains: bool) -> Iterator[Fill | None]:
    """Ways to fill nodes with fsdp ranks, the fullest domains first, then the fullest nodes.

    None: there is nothing to fill, or the ranks of a script keep an order of their own.
    """
    size = request.axes.get(FSDP, 1)
    if size == 1 or request.linear:
        yield None
        return
    divisors = [n for n in range(size, 0, -1) if size % n == 0]
    for domain in divisors:
        for node in divisors if has_domains else [domain]:
            if domain % node == 0:
                yield Fill(node=node, domain=domain, size=size)


def carve(request: LayoutRequest, mesh: int, fill: Fill | None) -> tuple[Part, ...] | None:
    """Parts, innermost first. `mesh`: ranks of a tp group in one mesh. None: they do not divide."""
    outer = [(a, n) for a, n in reversed(list(request.axes.items())) if a not in (TP, PP)]
    taken, takes_tp = _ep_shares(request, outer)
    cut: dict[str, list[Part] | None] = {TP: _tp_parts(request, mesh, takes_tp)}
    for axis, size in outer:
        marks = [(taken[axis], EP)]
        if axis == FSDP and fill is not None:
            marks += [(fill.node, FSDP_NODE), (fill.domain, FSDP_DOMAIN)]
        cut[axis] = _cut(axis, size, marks)
    if PP in request.axes:
        cut[PP] = _cut(PP, request.axes[PP], [])
    parts: list[Part] = []
    for axis in (TP, *(axis for axis in reversed(list(request.axes)) if axis != TP)):
        pieces = cut[axis]
        if pieces is None:
            return None
        parts += pieces
    parts = [part for part in parts if part.size > 1]
    if fill is not None and fill.crosses_nodes:
        # what fsdp leaves of a node must not go to an axis that replicates or follows it
        parts.sort(key=lambda part: replicates(part.axis) and EP not in part.families)
    return tuple(parts)


def replicates(axis: str) -> bool:
    """Whether fsdp goes before this axis in a node: `dp`, `pp`, and axes that we do not know."""
    return axis not in (TP, OPERATOR, CP, FSDP)


def _ep_shares(
    request: LayoutRequest, outer: Sequence[tuple[str, int]]
) -> tuple[dict[str, int], bool]:
    """How many inner ranks of each data axis belong to one ep group, and whether tp's do."""
    left, takes_tp = request.ep, prod(size for _, size in outer) % request.ep > 0
    shares: dict[str, int] = {}
    for axis, size in outer:
        if left == 1:
            shares[axis] = 1
        elif left % size == 0 or takes_tp:
            shares[axis], left = size, max(1, left // size)
        elif size % left == 0:
            shares[axis], left = left, 1
        else:
            # ep divides neither way: all that is left of it may lie anywhere on this axis
            shares[axis] = size
    return shares, takes_tp


def _tp_parts(request: LayoutRequest, mesh: int, takes_tp: bool) -> list[Part] | None:
    # elsewhere the levels of tp itself say what may join its groups
    binding = [(mesh, TP_MESH)] if request.allow_cross_node_tp else []
    if not takes_tp:
        return _cut(TP, request.tp, binding)
    if binding:
        return _cut(TP, request.tp, [*binding, (request.tp, EP)])
    outer = prod(size for axis, size in request.axes.items() if axis not in (TP, PP))
    taken = request.ep // outer
    sizes = (request.etp, taken, request.tp // (request.etp * taken))
    return [
        Part(axis=TP, size=size, families=frozenset({TP, EP} if position == 1 else {TP}))
        for position, size in enumerate(sizes)
    ]


def _cut(axis: str, size: int, marks: Sequence[tuple[int, str]]) -> list[Part] | None:
    """Cut an axis at the marks (inner ranks, their family). None: they are no divisor chain."""
    parts: list[Part] = []
    done = 1
    for bound in sorted({mark for mark, _ in marks if mark > 1} | {size}):
        if bound % done:
            return None
        families = {axis, *(family for mark, family in marks if mark >= bound)}
        parts.append(Part(axis=axis, size=bound // done, families=frozenset(families)))
        done = bound
    return parts

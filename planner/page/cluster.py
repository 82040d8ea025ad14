"""Groups on the picture of the cluster: fabric blocks > NVLink domains > nodes > devices.

A device shows its RANK. A choice of axis above the picture colours devices by their group on that
axis, so one sees at a glance whether groups stay inside nodes; the proof of the axis is printed
beside. The choice is a set of radio buttons and CSS: the page has no script.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import prod

from parctl.planner.page.parts import paragraph, section
from parctl.planner.page.style import NUM_COLOURS
from parctl.planner.plan import Plan
from parctl.topology.layout import Layout, Proof
from parctl.topology.model import Node, Topology
from parctl.topology.picture.drawing import escaped

MOST_NODES = 64  # that are drawn
PER_ROW = 8  # devices of a node
WITHIN = {
    "device": "on one device",
    "node": "inside one node",
    "domain": "inside one NVLink domain",
    "cluster": "across nodes",
}


def cluster_section(plan: Plan, topology: Topology) -> str:
    axes = [axis for axis, size in plan.layout.axes.items() if size > 1] or list(plan.layout.axes)
    chosen = len(axes) - 1
    buttons = "".join(
        f'<label><input type="radio" name="axis" id="axis-{number}"'
        f"{' checked' * (number == chosen)}>{escaped(axis)} ({plan.layout.axes[axis]:,})</label>"
        for number, axis in enumerate(axes)
    )
    proofs = {proof.axis: proof for proof in plan.layout.proofs}
    said = "".join(
        f'<p class="said said-{number}">{escaped(proof_text(proofs[axis]))}</p>'
        for number, axis in enumerate(axes)
        if axis in proofs
    )
    used = set(plan.topology["nodes"])
    nodes = [node for node in topology.nodes if node.name in used][:MOST_NODES]
    rest = len(used) - len(nodes)
    idle = len(topology.nodes) - len(used)
    notes = [
        *([f"and {rest:,} more nodes, not drawn"] if rest > 0 else []),
        *([f"{idle:,} node{'s' * (idle > 1)} of the cluster not used"] if idle > 0 else []),
    ]
    picture = _Picture(plan, topology, axes)
    body = "".join(picture.blocks(nodes, len(topology.tiers)))
    return section(
        "Groups on the cluster",
        f"<style>{_rules(len(axes))}</style>",
        f'<div class="axes">{buttons}</div>',
        said,
        f'<div class="cluster">{body}</div>',
        *(paragraph(note, "dim") for note in notes),
        paragraph(
            "Each square is a device with its RANK. Squares of one colour that lie together are "
            "one group; colours come again after eight groups.",
            "dim small",
        ),
    )


def proof_text(proof: Proof) -> str:
    rate = "" if proof.bandwidth is None else f" at {proof.bandwidth:g} GB/s"
    return (
        f"{proof.axis}: {proof.groups:,} group{'s' * (proof.groups != 1)} of {proof.size:,}, worst "
        f"link {proof.worst_link}{rate}, {WITHIN[proof.scope]}: {proof.reason}"
    )


def group_numbers(layout: Layout, axis: str) -> list[int]:
    """By rank: which group of `axis` it is in, numbered by the coordinates on the other axes."""
    sizes = list(layout.axes.values())
    place = list(layout.axes).index(axis)
    size, stride = sizes[place], prod(sizes[place + 1 :])
    numbers = [0] * len(layout.ranks)
    for position, rank in enumerate(layout.ranks):
        outer, rest = divmod(position, size * stride)
        numbers[rank] = outer * stride + rest % stride
    return numbers


def coordinate_texts(layout: Layout) -> list[str]:
    """By rank: `pp 0, fsdp 3, tp 1`."""
    texts = [""] * len(layout.ranks)
    for position, rank in enumerate(layout.ranks):
        rest, told = position, []
        for axis, size in reversed(list(layout.axes.items())):
            rest, coordinate = divmod(rest, size)
            told.append(f"{axis} {coordinate}")
        texts[rank] = ", ".join(reversed(told))
    return texts


def _rules(num_axes: int) -> str:
    rules = []
    for axis in range(num_axes):
        rules.append(f"body:has(#axis-{axis}:checked) .said-{axis}{{display:block}}")
        rules += [
            f"body:has(#axis-{axis}:checked) .a{axis}g{colour}"
            f"{{background:var(--c{colour});color:var(--o{colour})}}"
            for colour in range(NUM_COLOURS)
        ]
    return "\n".join(rules)


class _Picture:
    def __init__(self, plan: Plan, topology: Topology, axes: Sequence[str]) -> None:
        self._tiers = topology.tiers
        self._numbers = [group_numbers(plan.layout, axis) for axis in axes]
        self._where = coordinate_texts(plan.layout)
        self._rank: Mapping[tuple[str, int], int] = {
            (slot.node, slot.gpu): slot.rank for slot in plan.layout.slots
        }
        self._domain_sizes: dict[str, int] = {}
        for node in topology.nodes:
            if node.domain is not None:
                self._domain_sizes[node.domain] = self._domain_sizes.get(node.domain, 0) + 1

    def blocks(self, nodes: Sequence[Node], depth: int) -> Iterator[str]:
        """The frames of one fabric tier, the farthest first, then NVLink domains, then nodes."""
        if depth == 0:
            yield from self._domains(nodes)
            return
        for value, members in groupby(nodes, key=lambda node: node.tiers[depth - 1]):
            inner = "".join(self.blocks(list(members), depth - 1))
            title = escaped(f"{self._tiers[depth - 1]} {value}")
            yield f'<div class="block"><h3>{title}</h3>{inner}</div>'

    def _domains(self, nodes: Sequence[Node]) -> Iterator[str]:
        for domain, members in groupby(nodes, key=lambda node: node.domain):
            drawn = "".join(self._node(node) for node in members)
            if domain is None or self._domain_sizes[domain] == 1:
                yield drawn
            else:
                title = escaped(f"NVLink domain {domain}")
                yield f'<div class="rack"><h3>{title}</h3>{drawn}</div>'

    def _node(self, node: Node) -> str:
        devices = node.hardware.devices
        columns = min(PER_ROW, max(1, len(devices)))
        drawn = "".join(self._device(node.name, device.index) for device in devices)
        return (
            f'<div class="node"><h3>{escaped(node.name)}</h3>'
            f'<div class="devices" style="grid-template-columns:repeat({columns},auto)">{drawn}'
            "</div></div>"
        )

    def _device(self, node: str, index: int) -> str:
        rank = self._rank.get((node, index))
        if rank is None:
            return f'<div class="dev free" title="device {index}: not used">-</div>'
        classes = " ".join(
            f"a{axis}g{numbers[rank] % NUM_COLOURS}" for axis, numbers in enumerate(self._numbers)
        )
        title = f"rank {rank}: {self._where[rank]}, device {index}"
        return f'<div class="dev {classes}" title="{escaped(title)}">{rank}</div>'

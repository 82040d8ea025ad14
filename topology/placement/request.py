"""What a layout is asked for: the sizes of the axes and what the recipe permits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

from parctl.errors import UsageError
from parctl.topology.model import Topology

TP = "tp"
CP = "cp"
OPERATOR = "operator"
EP = "ep"
PP = "pp"
FSDP = "fsdp"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRequest:
    """`axes` orders the mesh outermost first. Expert parallelism is carved out of the data axes."""

    axes: Mapping[str, int]
    ep: int = 1  # 1: no expert parallelism
    etp: int = 1  # how many ways tensor parallelism splits one expert
    sp: bool = False  # lives with tp: changes no placement, only what is said about it
    # bytes one rank sends per step, by axis and for "ep"; None: those of a nominal transformer
    traffic: Mapping[str, float] | None = None
    allow_pcie_tp: bool = False
    allow_cross_node_tp: bool = False
    strict_node: bool = False  # tp stays in one node even where an NVLink domain spans several
    linear: bool = False  # ranks in program order: nodes and local devices are permuted instead
    exclude: tuple[str, ...] = ()  # names of nodes that the job must not use
    require: tuple[str, ...] = ()  # names of nodes that the job must use
    spares: int = 0  # nodes kept free, each able to stand in for any other

    @property
    def world_size(self) -> int:
        return prod(self.axes.values())

    @property
    def tp(self) -> int:
        return self.axes.get(TP, 1)

    @property
    def arithmetic(self) -> str:
        """`dp(4) x pp(2) x tp(8) = 64`."""
        return product_text(self.axes)


def product_text(factors: Mapping[str, int]) -> str:
    """Show a product of axis sizes, those of size 1 left out unless there is nothing else.

    >>> product_text({"dp": 4, "pp": 1, "tp": 8})
    'dp(4) x tp(8) = 32'
    """
    shown = {axis: size for axis, size in factors.items() if size > 1} or factors
    return " x ".join(f"{a}({size})" for a, size in shown.items()) + f" = {prod(factors.values())}"


def check_request(request: LayoutRequest) -> None:
    """Raise UsageError for sizes that no cluster could hold."""
    for axis, size in (*request.axes.items(), ("ep", request.ep), ("etp", request.etp)):
        if size < 1:
            raise UsageError(f"{axis} = {size}, expected at least 1")
    if not request.axes:
        raise UsageError("a layout needs at least one axis")
    if request.spares < 0:
        raise UsageError(f"spares = {request.spares}, expected 0 or more")


def check_nodes(request: LayoutRequest, topology: Topology) -> None:
    """Raise UsageError for excluded or required nodes that the cluster does not have."""
    check_names(topology, exclude=request.exclude, require=request.require)


def check_names(topology: Topology, *, exclude: Sequence[str], require: Sequence[str]) -> None:
    """Raise UsageError for names that the cluster does not have, or that are in both lists."""
    known = {node.name for node in topology.nodes}
    for what, names in (("exclude", exclude), ("require", require)):
        for name in names:
            if name not in known:
                nearest = get_close_matches(name, sorted(known), n=1)
                raise UsageError(
                    f"{what} names node `{name}`, which `{topology.name}` does not have",
                    hint=f"did you mean `{nearest[0]}`?" if nearest else None,
                )
    both = sorted(set(exclude) & set(require))
    if both:
        raise UsageError(f"node `{both[0]}` is both excluded and required")

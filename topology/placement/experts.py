"""Expert parallelism: a second view of the same ranks.

Inside a pipeline stage the ranks of `dp x fsdp x cp` (then `tp`) are dealt out again::

    mesh        pp, [dp, fsdp, cp], tp              4 ranks, dp 2, tp 2
    etp = tp    pp, edp, ep, etp                    edp 1, ep 2, etp 2: an expert is split as tp is
    etp = 1     pp, edp, ep, tp                     edp 1, ep 2, tp 2: every tp rank has it whole
    else        pp, edp, ep, etp                    ep takes tp ranks too: dp 1, tp 4, ep 4, etp 1

`ep` is the innermost part of the data axes, so that its ranks are neighbours. What remains is
expert-data parallel (`edp`): replicas of the same experts.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt

from parctl.errors import UsageError
from parctl.topology.layout import Layout
from parctl.topology.placement.request import PP, TP

Grid = npt.NDArray[np.int64]


def expert_axes(axes: Mapping[str, int], ep: int, etp: int) -> dict[str, int] | None:
    """Name and size of the expert view's axes, outermost first. None: no expert parallelism."""
    if ep == 1:
        return None
    tp, outer = axes.get(TP, 1), _data_size(axes)
    stage = {PP: axes[PP]} if PP in axes else {}
    if outer % ep == 0 and etp in (1, tp):
        name = "etp" if etp == tp else TP
        return {**stage, "edp": outer // ep, "ep": ep, name: tp}
    if tp % etp == 0 and (outer * tp // etp) % ep == 0 and _nests(outer, ep):
        return {**stage, "edp": outer * tp // etp // ep, "ep": ep, "etp": etp}
    raise UsageError(
        f"ep({ep}) x etp({etp}) does not divide the ranks of one pipeline stage: "
        f"data axes {outer} x tp({tp}) = {outer * tp}",
        hint=f"ep is carved out of dp x fsdp x cp = {outer}: use a divisor of {outer}",
    )


def expert_grid(axes: Mapping[str, int], experts: Mapping[str, int], ranks: Grid) -> Grid:
    """Deal the mesh out again: array shaped by `experts`, from any array shaped by `axes`."""
    names = list(axes)
    tp, ep = axes.get(TP, 1), experts["ep"]
    etp = experts.get("etp", tp)
    order = [PP] * (PP in axes)
    order += [name for name in names if name not in (PP, TP)]
    order += [TP] * (TP in axes)
    grid = ranks.reshape(tuple(axes.values())).transpose([names.index(name) for name in order])
    stages, outer = axes.get(PP, 1), _data_size(axes)
    spare = tp // etp
    if outer % ep == 0:
        # edp outside | ep | spare tp ranks | etp, spare ranks joining edp
        dealt = grid.reshape(stages, outer // ep, ep, spare, etp).transpose(0, 1, 3, 2, 4)
    else:
        taken = ep // outer
        dealt = grid.reshape(stages, outer, spare // taken, taken, etp).transpose(0, 2, 1, 3, 4)
    return dealt.reshape(tuple(experts.values()))


def expert_positions(axes: Mapping[str, int], experts: Mapping[str, int]) -> Grid:
    """Positions in the mesh, dealt out, ascending along every axis.

    An axis made of two (ep of data and tp ranks) may be out of order, but torch sorts the ranks of
    a group. Its members stay the same.
    """
    grid = expert_grid(axes, experts, np.arange(prod(axes.values())))
    for axis in range(grid.ndim):
        grid = np.sort(grid, axis=axis)
    return grid


def expert_groups(layout: Layout, axis: str) -> list[list[int]]:
    """All groups of ranks along an axis of the expert view, as `Layout.groups` for the mesh."""
    assert layout.expert_axes is not None
    grid = expert_grid(layout.axes, layout.expert_axes, np.array(layout.ranks, dtype=np.int64))
    position = list(layout.expert_axes).index(axis)
    groups: list[list[int]] = (
        np.moveaxis(grid, position, -1).reshape(-1, grid.shape[position]).tolist()
    )
    return groups


def expert_holders(layout: Layout) -> list[list[int]]:
    """For every place along ep the ranks that hold its experts, or parts of them."""
    assert layout.expert_axes is not None
    positions = expert_positions(layout.axes, layout.expert_axes)
    along = np.moveaxis(positions, list(layout.expert_axes).index("ep"), 0)
    ranks = np.array(layout.ranks, dtype=np.int64)[along.reshape(along.shape[0], -1)]
    holders: list[list[int]] = np.sort(ranks, axis=1).tolist()
    return holders


def _data_size(axes: Mapping[str, int]) -> int:
    return prod(size for axis, size in axes.items() if axis not in (PP, TP))


def _nests(outer: int, ep: int) -> bool:
    return outer % ep == 0 or ep % outer == 0

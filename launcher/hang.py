"""Which rank did not arrive where the others waited for it.

When collectives time out, every rank that waited fails, and the cause is a rank that has not: it
sleeps, is stopped, or is stuck in its data. Ranks leave records (`parctl.launcher.flight_records`)
of the collectives of each process group, counted, and of where their main thread is. A rank is
stuck when it does not answer, or answers from outside of a step; else it is the one that is behind
in the counts while it is ahead of nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parctl.launcher.flight_records import FlightRecord, read_records
from parctl.topology.layout import Layout

if TYPE_CHECKING:
    from parctl.launcher.attempt import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """`rank` did not arrive at `operation` of the group `axis`, where `waiting` were."""

    rank: int
    doing: str
    stack: tuple[str, ...]
    axis: str
    ranks: tuple[int, ...]  # of the group
    operation: str | None
    waiting: tuple[int, ...]


def find_hang(
    layout: Layout,
    *,
    silent: Sequence[int],  # ranks that had not ended
    halted: Sequence[int],  # of these, in the state of SIGSTOP
    failed: Sequence[int],  # ranks that lost a peer
    records: Mapping[int, FlightRecord],
) -> Hang | None:
    """Name the rank to blame; None when all that are left wait themselves."""
    stuck = [
        rank for rank in silent if rank in halted or rank not in records or not records[rank].trains
    ]
    stuck = stuck or [rank for rank in silent if last_in_all(rank, records)]
    if not stuck or not failed:
        return None
    # a rank that is halted or does not answer tells more than one that is merely elsewhere
    rank = min(stuck, key=lambda rank: (rank not in halted, rank in records))
    record = records.get(rank)
    if rank in halted:
        doing = "it is stopped (SIGSTOP)"
    elif record is None:
        doing = "it does not answer"
    else:
        doing = f"it is in {record.place}"
    axis, ranks, operation = missed(layout, rank, failed, records)
    return Hang(
        rank=rank,
        doing=doing,
        stack=() if record is None else record.stack,
        axis=axis,
        ranks=ranks,
        operation=operation,
        waiting=tuple(other for other in ranks if other != rank and other in failed),
    )


def last_in_all(rank: int, records: Mapping[int, FlightRecord]) -> bool:
    """Whether a rank is behind others in some group, and ahead of nobody in any."""
    own = {group.ranks: group.count for group in records[rank].groups}
    others = {
        (group.ranks, group.count)
        for other, record in records.items()
        if other != rank
        for group in record.groups
        if group.ranks in own
    }
    behind = any(count > own[ranks] for ranks, count in others)
    return behind and not any(count < own[ranks] for ranks, count in others)


def hang_of(outcome: "Outcome", layout: Layout, folder: Path) -> Hang | None:
    """Name the rank to blame for how an attempt ended; None when something else is.

    `folder` holds the records that the attempt left.
    """
    from parctl.launcher.verdict import Kind

    caused = [failure for failure in outcome.failures if failure.kind is not Kind.STOPPED]
    if any(failure.kind is not Kind.PEER_GONE for failure in caused):
        return None
    records = read_records(folder, layout)
    if not records and not outcome.halted:  # a program of the user's, which keeps none
        return None
    return find_hang(
        layout,
        silent=outcome.silent,
        halted=outcome.halted,
        failed=[failure.end.rank for failure in caused],
        records=records,
    )


def missed(
    layout: Layout, rank: int, failed: Sequence[int], records: Mapping[int, FlightRecord]
) -> tuple[str, tuple[int, ...], str | None]:
    """Return the group that waited for `rank`: axis, ranks, operation where it is known."""
    own = {group.ranks: group.count for group in records[rank].groups} if rank in records else {}
    for other in failed:
        if other not in records:
            continue
        for group in reversed(records[other].groups):
            if rank in group.ranks and group.count > own.get(group.ranks, -1):
                return group.axis, group.ranks, group.last
    # sends between two ranks are not recorded: the smallest group in which somebody waited
    for axis in sorted(layout.axes, key=lambda axis: layout.axes[axis]):
        ranks = next(group for group in layout.groups(axis) if rank in group)
        if any(other in ranks for other in failed):
            return axis, tuple(ranks), None
    return "all ranks", tuple(range(layout.world_size)), None

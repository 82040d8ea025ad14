"""Where a schedule's rows send and receive, in an order that cannot hang.

A send is put right behind the action that makes its tensor. Its receive is put into the other
rank's row at the same moment of an imagined run in which everybody works as soon as they can. So
any two ranks post what they exchange in the same order, which is all that one connection between
them needs, and a receive stands as early as its data can exist::

    rank 0   0F0  send  0F1  send        recv  0B0
    rank 1   recv  1F0       recv  1B0  send
"""

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from parctl.planner.schedules import Action, Table, needs, results


class Exchange(NamedTuple):
    """One tensor of one micro-batch on its way: the stream (F) or its gradient (B)."""

    stage: int  # that sends, or that receives
    kind: Literal["send F", "recv F", "send B", "recv B"]
    micro_batch: int
    peer: int  # pipeline rank at the other end


Step = Action | Exchange


def with_exchanges(
    table: Table, num_stages: int, rank_of: Callable[[int], int]
) -> tuple[tuple[Step, ...], ...]:
    """Return the rows with their exchanges; `rank_of` maps a stage to its pipeline rank.

    Raises ValueError when the table cannot be worked through: an action waits for one that comes
    later, or never.
    """
    rows: list[list[Step]] = [[] for _ in table]
    left = [deque(row) for row in table]
    finished: set[Action] = set()
    while any(left):
        ready = [
            row[0] if row and all(need in finished for need in needs(row[0], num_stages)) else None
            for row in left
        ]
        if not any(ready):
            waiting = ", ".join(f"rank {r} at {row[0]}" for r, row in enumerate(left) if row)
            raise ValueError(f"the schedule stands still: {waiting}")
        for rank, action in enumerate(ready):
            if action is None:
                continue
            rows[rank].append(left[rank].popleft())
            finished.update(results(action))
            target = _target(action, num_stages)
            if target is not None and rank_of(target) != rank:
                peer, index = rank_of(target), action.micro_batch
                forward = action.kind == "F"
                rows[rank].append(
                    Exchange(action.stage, "send F" if forward else "send B", index, peer)
                )
                rows[peer].append(Exchange(target, "recv F" if forward else "recv B", index, rank))
    return tuple(tuple(row) for row in rows)


def _target(action: Action, num_stages: int) -> int | None:
    """The stage that takes what an action makes."""
    if action.kind == "F":
        return action.stage + 1 if action.stage + 1 < num_stages else None
    if action.kind == "W":
        return None
    return action.stage - 1 if action.stage > 0 else None

"""How long a schedule takes, and how much of it ranks stand idle: the pipeline bubble.

Every rank works through its row in order and waits for what an action needs. The slowest rank ends
the step, so the idle share is 1 - (work of all ranks) / (ranks x duration).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from parctl.planner.schedules import Action, Kind, Table, needs, results


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Start and end of every action, in the unit of the costs."""

    rows: tuple[tuple[tuple[Action, float, float], ...], ...]  # by pipeline rank

    @property
    def duration(self) -> float:
        return max(row[-1][2] for row in self.rows)

    @property
    def idle_share(self) -> float:
        work = sum(end - start for row in self.rows for _, start, end in row)
        return 1 - work / (len(self.rows) * self.duration)


def timeline(
    table: Table,
    num_stages: int,
    costs: Mapping[Kind, float] | Callable[[Action], float],
    *,
    exchange: float = 0.0,
) -> Timeline:
    """Time a table whose actions cost `costs` each, by kind or one by one where stages differ.

    `exchange` is the way between two ranks.

    Raises ValueError when the table cannot be worked through.
    """
    cost = costs if callable(costs) else lambda action: costs[action.kind]
    rank_of = {action.stage: rank for rank, row in enumerate(table) for action in row}
    ends: dict[Action, float] = {}
    rows: list[list[tuple[Action, float, float]]] = [[] for _ in table]
    while any(len(done) < len(row) for done, row in zip(rows, table, strict=True)):
        moved = False
        for rank, row in enumerate(table):
            while len(rows[rank]) < len(row):
                action = row[len(rows[rank])]
                wanted = needs(action, num_stages)
                if not all(need in ends for need in wanted):
                    break
                arrivals = [
                    ends[need] + (exchange if rank_of[need.stage] != rank else 0.0)
                    for need in wanted
                ]
                start = max([rows[rank][-1][2] if rows[rank] else 0.0, *arrivals])
                end = start + cost(action)
                rows[rank].append((action, start, end))
                ends.update(dict.fromkeys(results(action), end))
                moved = True
        if not moved:
            raise ValueError("the schedule stands still")
    return Timeline(rows=tuple(tuple(row) for row in rows))

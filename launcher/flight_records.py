"""What the ranks of an attempt have left of their collectives, and where they were.

A rank writes `flight-R.json` itself (`parctl.runtime.flight_record`). One whose NCCL collective
timed out is ended by NCCL's watchdog before it can, and the watchdog leaves `nccl-P`: torch's own
flight recorder, pickled, where P is the rank's position in the layout. Both say, of every process
group, how many collectives the rank has begun. Read here without torch; a pickle may hold plain
values only, so nothing in it is ever called.
"""

import ast
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from parctl.topology.layout import Layout

# the innermost frame of a rank that may be waiting for others itself; data comes from no rank
TRAINING = re.compile(r"/torch/|parctl/runtime/(?!data|documents|token)")
FOREIGN = re.compile(r"/lib/python3|site-packages|<frozen")
# what is left out of a file that is absent, cut off, or of another version of torch
BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A process group as one of its ranks saw it."""

    axis: str
    ranks: tuple[int, ...]
    count: int  # of the last collective that it began
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightRecord:
    stack: tuple[str, ...]  # innermost first
    groups: tuple[Group, ...]  # the one used last at the end

    @property
    def trains(self) -> bool:
        """Whether it is inside the step, where it computes or waits."""
        return bool(self.stack) and TRAINING.search(self.stack[0]) is not None

    @property
    def place(self) -> str:
        """The innermost frame of a program's own, else the innermost one."""
        own = [frame for frame in self.stack if not FOREIGN.search(frame)]
        return (own or list(self.stack) or ["an unknown place"])[0]


def flight_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its record, beside its error file."""
    return folder / f"flight-{rank}.json"


def read_records(folder: Path, layout: Layout) -> dict[int, FlightRecord]:
    """Read what the ranks of an attempt left; what is absent or broken is left out."""
    records = {}
    for position, rank in enumerate(layout.ranks):
        record = read_own(flight_file(folder, rank))
        record = record or read_dump(folder / f"nccl-{position}", layout, rank)
        if record is not None:
            records[rank] = record
    return records


def read_own(path: Path) -> FlightRecord | None:
    """Read a rank's own record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = tuple(
            Group(
                axis=group["axis"],
                ranks=tuple(group["ranks"]),
                count=group["count"],
                last=group["last"],
            )
            for group in content["groups"]
        )
        return FlightRecord(stack=tuple(content["stack"]), groups=groups)
    except BROKEN:
        return None


def read_dump(path: Path, layout: Layout, rank: int) -> FlightRecord | None:
    """Read torch's own record of `rank`."""
    try:
        with path.open("rb") as file:
            dump = PlainUnpickler(file).load()
        begun = [entry for entry in dump["entries"] if not entry["is_p2p"]]
        begun.sort(key=lambda entry: int(entry["time_created_ns"]))
        groups: dict[str, Group] = {}
        for entry in begun:
            name, description = entry["process_group"]
            groups.pop(name, None)
            groups[name] = Group(
                axis=axis_of(description),
                ranks=tuple(members(dump["pg_config"].get(name), description, layout, rank)),
                count=int(entry["collective_seq_id"]),
                last=entry["profiling_name"].partition(":")[2],
            )
        waited = [entry for entry in begun if entry["state"] != "completed"]
        frames: Sequence[Mapping[str, Any]] = waited[0].get("frames", ()) if waited else ()
        return FlightRecord(
            stack=tuple(
                f"{frame['filename']}:{frame['line']} in {frame['name']}" for frame in frames
            ),
            groups=tuple(groups.values()),
        )
    except BROKEN:
        return None


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no plain value")


def axis_of(description: str) -> str:
    """What people call a group.

    >>> axis_of("mesh_tp"), axis_of("default_pg")
    ('tp', 'all ranks')
    """
    return "all ranks" if description == "default_pg" else description.removeprefix("mesh_")


def members(
    config: Mapping[str, Any] | None, description: str, layout: Layout, rank: int
) -> Iterator[int]:
    """Yield the ranks of a group: as the dump says, else as the layout does for its axis."""
    positions = ast.literal_eval(config["ranks"]) if config is not None else []
    axis = axis_of(description)
    if positions:
        yield from (layout.ranks[position] for position in positions)
    elif axis in layout.axes:
        yield from next(group for group in layout.groups(axis) if rank in group)
    elif axis == "all ranks":
        yield from layout.ranks

"""What a rank was doing when the others waited for it in vain.

torch keeps a flight recorder: the last collectives of every process group, with a number that
counts them. A rank writes it down, with the stack of its main thread, when a collective fails or
when the launcher asks with SIGUSR1. The answer comes from a thread of its own: the main thread may
sit in a collective, in a read or in a loop. A rank that cannot even answer is stopped, or stuck
inside a call that holds the interpreter.

`parctl.launcher.hang` reads the records of all ranks and names the one that did not arrive.
"""

import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d

from parctl.launcher.flight_records import axis_of
from parctl.topology.layout import Layout

NUM_ENTRIES = "1000"  # collectives that torch remembers, over all groups
ASKED = (signal.SIGUSR1, signal.SIGTERM)
WAKE = b"\0"
SHOWN_FRAMES = 12


def remember_collectives(path: Path) -> None:
    """Turn torch's recorder on. Before the first process group."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", NUM_ENTRIES)
    # NCCL's watchdog ends the process itself and leaves its record here, with torch's rank behind
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(path.with_name("nccl-")))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


class FlightRecord:
    """Writes `path`, a JSON file, when asked; after `close` no more."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._lock = threading.Lock()
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.signal(signal.SIGUSR1, _nothing)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._closed = False
        threading.Thread(
            target=self._answer, args=(read_end,), name="flight-record", daemon=True
        ).start()

    def close(self) -> None:
        self._closed = True
        signal.set_wakeup_fd(-1)
        with suppress(OSError):  # full of signals, which wake it too
            os.write(self._write_end, WAKE)
        os.close(self._write_end)

    def write(self, error: BaseException | None = None) -> None:
        """Write where the main thread is, or was when it raised `error`."""
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)
        else:
            main = sys._current_frames()[threading.main_thread().ident or 0]
            frames = traceback.extract_stack(main)
        content = {
            "time_unix": time.time(),
            "stack": [
                f"{frame.filename}:{frame.lineno} in {frame.name}"
                for frame in reversed(frames[-SHOWN_FRAMES:])
            ],
            "groups": groups(self._layout),
        }
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(content))
            os.replace(partial, self._path)

    def _answer(self, read_end: int) -> None:
        while True:
            numbers = os.read(read_end, 64)
            if self._closed:
                os.close(read_end)
                return
            if any(number in ASKED for number in numbers):
                try:
                    self.write()
                except Exception:  # the next time it may go well
                    traceback.print_exc()


def groups(layout: Layout) -> list[dict[str, Any]]:
    """Return the process groups of this rank, the one that it used last at the end.

    `count` is the number of the last collective that was begun, `last` its name.
    """
    found: dict[str, dict[str, Any]] = {}
    members = {
        group.group_name: positions
        for group, positions in dist.distributed_c10d._world.pg_group_ranks.items()
        if isinstance(group, dist.ProcessGroup)  # of groups without this rank, a number stands here
    }
    for entry in sorted(collectives(), key=lambda entry: entry["time_created_ns"]):
        name, description = entry["process_group"]
        found.pop(name, None)
        found[name] = {
            "axis": axis_of(description),
            "ranks": ranks_of(layout, list(members.get(name, ()))),
            "count": entry["collective_seq_id"],
            "last": entry["profiling_name"].partition(":")[2],
        }
    return list(found.values())


def collectives() -> list[dict[str, Any]]:
    """Return what torch remembers: gloo's and NCCL's recorders are two."""
    found: list[dict[str, Any]] = []
    for name in ("_dump_fr_trace", "_dump_nccl_trace"):
        dump = getattr(_distributed_c10d, name, None)  # a build without NCCL lacks the second
        if dump is not None:
            # pickled by our own process; with collectives, without stacks, not only active ones
            found += pickle.loads(dump(True, False, False))["entries"]
    return found


def ranks_of(layout: Layout, positions: Sequence[int]) -> list[int]:
    return [layout.ranks[position] for position in positions]


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe has already noted the signal."""

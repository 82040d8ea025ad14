"""A rank answers the launcher's signal, however often it is asked."""

import json
import os
import signal
import sys
from pathlib import Path

from tests.launcher.runs import until
from tests.runtime.harness import read_logs, run_ranks
from tests.runtime.plans import plan

from parctl.runtime.flight_record import FlightRecord
from parctl.topology.layout import Layout


def ask_twice(layout: Layout, place: Path) -> list[str]:
    """Ask once where nothing can be written, and again where it can."""
    place.write_text("")
    record = FlightRecord(place / "flight-0.json", layout)
    os.kill(os.getpid(), signal.SIGUSR1)
    until(lambda: told(place.parent))
    place.unlink()
    os.kill(os.getpid(), signal.SIGUSR1)
    until((place / "flight-0.json").exists)
    record.close()
    stack: list[str] = json.loads((place / "flight-0.json").read_text())["stack"]
    return stack


def told(folder: Path) -> bool:
    sys.stderr.flush()
    return "FileExistsError" in read_logs(folder)


def test_an_answer_that_cannot_be_written_is_not_the_last(text: Path, tmp_path: Path) -> None:
    (stack,) = run_ranks(ask_twice, 1, tmp_path, plan(text, {}).layout, tmp_path / "errors")
    assert any("ask_twice" in frame for frame in stack)

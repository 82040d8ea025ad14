"""kill -9 of every pipeline stage in turn, in a step and in a save: who is named, what goes on."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.launcher.runs import BACKEND, directory, launch, left, until
from tests.runtime.plans import plan

from parctl.launcher.backend import State
from parctl.launcher.waiting import wait_for
from parctl.planner.plan import Plan

STEPS = 40


def staged(tmp_path: Path, *, async_save: bool) -> Plan:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: {i} times {i} is {i * i}.\n" for i in range(300)))
    made = plan(
        text,
        {"pp": 2},
        train={"steps": STEPS},
        checkpoint={"every": 10, "at_end": True, "async_save": async_save},
    )
    launched = replace(made.recipe.launch, retries=3)
    topology = {**made.topology, "kind": "cpu"}
    return replace(made, recipe=replace(made.recipe, launch=launched), topology=topology)


def last_step(run_id: str) -> dict[str, Any]:
    return dict(BACKEND.metrics(run_id)[-1])


def test_each_stage_killed_in_turn_is_named_and_the_curve_goes_on(tmp_path: Path) -> None:
    made = staged(tmp_path, async_save=True)
    launch(made, "probe-1")
    run = directory()

    def kill(rank: int, attempt: int, when: str) -> None:
        """Kill a rank in the attempt's own steps, or while a save writes."""
        until(lambda: run.read().attempt == attempt and run.read().state is State.RUNNING,
              seconds=60)  # fmt: skip
        if when == "save":
            until(lambda: list((run.path / "checkpoints").glob(".saving-*")), seconds=60)
        else:
            lines = run.path / "metrics.jsonl"
            until(
                lambda: lines.exists() and f'"attempt": {attempt}' in lines.read_text(), seconds=60
            )
        os.kill(BACKEND.status("probe-1").ranks[rank].pid or 0, signal.SIGKILL)

    kill(0, 1, "step")
    kill(1, 2, "step")
    kill(1, 3, "save")
    status = wait_for(BACKEND, "probe-1", timeout_s=120)
    assert status.state is State.SUCCEEDED
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    failed = [event["sentence"] for event in events if event["event"] == "attempt failed"]
    assert [sentence.partition(" after ")[0] for sentence in failed] == [
        "rank 0 (node here, pp 0) was killed by SIGKILL",
        "rank 1 (node here, pp 1) was killed by SIGKILL",
        "rank 1 (node here, pp 1) was killed by SIGKILL",
    ]
    assert not list((run.path / "checkpoints").glob(".saving-*"))
    until(lambda: not left())

    launch(made, "calm-1")
    assert wait_for(BACKEND, "calm-1", timeout_s=120).state is State.SUCCEEDED
    ours, calm = last_step("probe-1"), last_step("calm-1")
    assert (ours["step"], ours["attempt"], calm["attempt"]) == (STEPS, 4, 1)
    assert (ours["loss"], ours["grad_norm"]) == (calm["loss"], calm["grad_norm"])

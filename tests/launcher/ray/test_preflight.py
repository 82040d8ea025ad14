"""Nodes are tried before the job takes them, and judged beside each other."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.launcher.ray.runs import SMALL_NODES, ended, environment, launch, processes, until

from parctl.launcher.backend import State
from parctl.launcher.nodes.preflight import Trial, bad_nodes
from parctl.launcher.ray.backend import RayBackend


def trial(*tflops: float, gb_per_s: float = 1.0, first: int = 0, device: str = "cuda") -> Trial:
    common = {"gb_per_s": gb_per_s, "right": True, "device": device}
    return Trial(
        measured=[
            {"rank": first + number, "tflops": rate, **common} for number, rate in enumerate(tflops)
        ],
        over=True,
    )


def judged(**trials: Trial) -> dict[str, str]:
    return bad_nodes(trials, dict.fromkeys(trials, 2))


def test_equal_nodes_are_all_sound() -> None:
    assert judged(a=trial(40, 41), b=trial(39, 40), c=trial(38, 44)) == {}


def test_a_node_is_as_slow_as_its_slowest_device() -> None:
    found = judged(a=trial(40, 41), b=trial(39, 12, first=2), c=trial(38, 44))
    assert found == {"b": "rank 3 multiplies at 12 TFLOP/s, half of the nodes reach 38"}


def test_a_slow_exchange_is_told_from_slow_arithmetic() -> None:
    found = judged(a=trial(4, 4), b=trial(4, 4, gb_per_s=0.1, first=2), c=trial(4, 4))
    assert found == {"b": "rank 2 reduces at 0.1 GB/s, half of the nodes reach 1"}


def test_cpus_are_not_called_slow_for_what_else_runs_there() -> None:
    assert judged(a=trial(4, 4, device="cpu"), b=trial(0.1, 4, first=2, device="cpu")) == {}


def test_one_node_alone_is_not_called_slow() -> None:
    assert judged(a=trial(0.001, 0.001)) == {}


def test_a_failure_and_a_missing_answer_are_bad() -> None:
    broken = Trial(measured=[], failure="rank 2 was killed by SIGKILL", over=True)
    found = judged(a=trial(40, 41), b=broken, c=trial(40))
    assert found == {"b": "rank 2 was killed by SIGKILL", "c": "1 of 2 devices answered"}


def script(folder: Path) -> str:
    path = folder / "probe.yaml"
    path.write_text(
        "version: 1\nname: probe\ntask: script\nparallelism: {dp: 2, tp: 2}\n"
        "script: {command: [/bin/true]}\nlaunch: {ray: {preflight: true}}\n"
    )
    return str(path)


def said(backend: RayBackend, run_id: str) -> list[str]:
    lines = backend.logs(run_id, rank=None, since=None, tail=None, follow=False)
    return [line.text for line in lines if line.rank is None]


def test_sound_nodes_are_used_as_planned(backend: RayBackend, tmp_path: Path) -> None:
    launch(script(tmp_path), SMALL_NODES, run_id="sound-1")

    assert ended(backend, "sound-1").state is State.SUCCEEDED
    assert "preflight of pair-0, pair-1" in said(backend, "sound-1")


def test_a_bad_node_is_named_when_no_other_is_free(backend: RayBackend, tmp_path: Path) -> None:
    launch(script(tmp_path), SMALL_NODES, run_id="bad-1")

    def rank_on_pair_1() -> Any:
        for process in processes("bad-1"):
            try:
                given = environment(process.pid)
            except OSError:  # it ended meanwhile
                continue
            if given.get("PARCTL_PREFLIGHT_RANK") == "3":
                return process.pid
        return None

    os.kill(until(rank_on_pair_1), signal.SIGKILL)
    status = ended(backend, "bad-1")

    assert status.state is State.FAILED
    assert status.verdict is not None
    assert status.verdict.sentence == (
        "pair-1 is bad: rank 3 was killed by SIGKILL; no other node is free in its place"
    )
    assert status.verdict.fix == "repair it, or do without: `placement.exclude: [pair-1]`"

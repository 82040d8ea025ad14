"""Run ranks as forks of the test process: torch is imported once, a rank starts in milliseconds.

Trainings that must succeed run on ranks that stay (`tests.runtime.standing`).

The parent must stay free of threads, so it never computes with torch; even one-process references
run in a fork. A rank that raises makes the harness end the others and show the first cause.
"""

import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tests.runtime.standing import Crew

from parctl.launcher.port import hold_port
from parctl.planner.plan import Plan
from parctl.runtime.parallel.shared_memory import SWITCH
from parctl.runtime.worker import run_rank

torch.set_num_threads(1)  # an OpenMP pool in the parent would hang its forks


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    rank: int
    code: int  # exit code, or minus the signal
    value: Any  # what the function returned
    error: str | None  # the traceback


def fork_ranks(
    function: Callable[..., Any],
    world_size: int,
    directory: Path,
    *arguments: Any,
    environment: dict[str, str] | None = None,
    timeout_s: float = 60.0,
    while_running: Callable[[list[int]], None] | None = None,
) -> list[RankResult]:
    """Call `function(*arguments)` in `world_size` forks with torchrun's environment.

    Never raises for a failing rank.

    `while_running` is called once with the pids, for tests that send signals.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        pids = []
        for rank in range(world_size):
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                os.environ.update(rank_environment(rank, world_size, port, directory))
                os.environ.update(environment or {})
                run_child(function, rank, directory, arguments)
            pids.append(pid)
        if while_running:
            while_running(pids)
        codes = wait(pids, timeout_s)
    return [read_result(rank, code, directory) for rank, code in enumerate(codes)]


def rank_environment(rank: int, world_size: int, port: int, directory: Path) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        SWITCH: os.environ.get(SWITCH, "1"),
        "PARCTL_RUN_ID": "test-000000",
        "PARCTL_ATTEMPT": "1",
        "TORCHELASTIC_ERROR_FILE": str(directory / f"error-{rank}.json"),
    }


def run_child(
    function: Callable[..., Any], rank: int, directory: Path, arguments: tuple[Any, ...]
) -> NoReturn:
    log = os.open(directory / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest replaced it
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)  # see `run_rank`
    code = 1
    try:
        value, error = function(*arguments), None
        code = 0
    except BaseException:
        value, error = None, traceback.format_exc()
    with (directory / f"result-{rank}.pickle").open("wb") as file:
        pickle.dump((value, error), file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pids: list[int], timeout_s: float) -> list[int]:
    """Wait for all; kill what is left a little after the first failure, or at the time-out."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid] != 0:
                        deadline = min(deadline, time.monotonic() + 5)
        if time.monotonic() > deadline:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def read_result(rank: int, code: int, directory: Path) -> RankResult:
    path = directory / f"result-{rank}.pickle"
    value, error = None, None
    if path.exists():
        value, error = pickle.loads(path.read_bytes())
        path.unlink()
    return RankResult(rank=rank, code=code, value=value, error=error)


def run_ranks(
    function: Callable[..., Any], world_size: int, directory: Path, *arguments: Any
) -> list[Any]:
    """Like `fork_ranks`, and fails the test with the first rank's traceback when one fails."""
    results = fork_ranks(function, world_size, directory, *arguments)
    for result in results:
        assert result.error is None, f"rank {result.rank}:\n{result.error}"
    for result in results:
        assert result.code == 0, f"rank {result.rank} ended with {result.code}"
    return [result.value for result in results]


def run_plan(
    plan: Plan,
    run_dir: Path,
    *,
    environment: dict[str, str] | None = None,
    while_running: Callable[[list[int]], None] | None = None,
) -> list[int]:
    """Run a plan through the real worker. Returns exit codes by rank."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan_path = run_dir / "plan.json"
    plan_path.write_text(json.dumps(plan.to_json()))
    results = fork_ranks(
        run_rank,
        plan.layout.world_size,
        run_dir,
        plan_path,
        run_dir,
        environment=environment,
        while_running=while_running,
    )
    return [result.code if result.value is None else result.value for result in results]


def train_to_end(plan: Plan, run_dir: Path) -> list[dict[str, Any]]:
    """Run a plan on ranks that stay. It must succeed; return its metrics."""
    codes = run_on_crew(plan, run_dir)
    if any(codes):
        raise AssertionError(describe_failure(run_dir, codes))
    return read_metrics(run_dir)


CREWS: dict[int, Crew] = {}  # by world size


def run_on_crew(plan: Plan, run_dir: Path, timeout_s: float = 60.0) -> list[int]:
    """Run a plan through the real worker. Returns exit codes by rank, those of signals negative."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan_path = run_dir / "plan.json"
    plan_path.write_text(json.dumps(plan.to_json()))
    world_size = plan.layout.world_size
    if world_size not in CREWS:
        CREWS[world_size] = Crew(world_size)
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        # in the order of the layout: a process has the same rank of torch's in every run
        environments = [
            rank_environment(rank, world_size, port, run_dir) for rank in plan.layout.ranks
        ]
        codes = CREWS[world_size].run(plan_path, run_dir, environments, timeout_s)
    if any(codes):
        del CREWS[world_size]
    return codes


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_logs(run_dir: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(run_dir.glob("rank-*.log")))


def describe_failure(run_dir: Path, codes: list[int]) -> str:
    """Exit codes, and the logs: of ranks that signals ended first, of those that succeeded last."""
    told = [f"exit codes {codes}"]
    for rank in sorted(range(len(codes)), key=lambda rank: codes[rank] or sys.maxsize):
        log = run_dir / f"rank-{rank}.log"
        told += [f"rank {rank}:", log.read_text() if log.exists() else "no log"]
    return "\n".join(told)

"""Ranks that stay: forked once per world size, they run one plan after the other.

What a rank does for the first time costs as much as a short training: pages of the forked heap are
copied, caches of torch are filled. A crew whose run fails is ended, and the next one is forked
anew, so that no test meets what another one broke.
"""

import faulthandler
import functools
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from parctl.launcher.processes import die_with_parent
from parctl.runtime.worker import run_rank

CACHE = type(functools.lru_cache(len))
FAREWELL_S = 5.0  # how long ranks have to notice that another one failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One rank, and the pipes to it and from it."""

    pid: int
    orders: IO[str]
    answers: IO[str]


class Crew:
    """`world_size` ranks that wait for plans."""

    def __init__(self, world_size: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._members = [hire() for _ in range(world_size)]

    def run(
        self, plan_path: Path, run_dir: Path, environments: list[dict[str, str]], timeout_s: float
    ) -> list[int]:
        """Run a plan. Returns exit codes by rank, those of signals negative.

        Where one is not 0 all are ended, with SIGKILL what still ran then.
        """
        for member, environment in zip(self._members, environments, strict=True):
            order = {
                "plan": str(plan_path),
                "run_dir": str(run_dir),
                "folder": str(Path.cwd()),
                "environment": dict(os.environ) | environment,
            }
            member.orders.write(json.dumps(order) + "\n")
            member.orders.flush()
        codes: dict[int, int] = {}
        deadline = time.monotonic() + timeout_s
        waiting = {member.answers.fileno(): rank for rank, member in enumerate(self._members)}
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], max(0, deadline - time.monotonic()))
            if not ready:
                break
            for number in ready:
                rank = waiting.pop(number)
                answer = self._members[rank].answers.readline()
                if answer:
                    codes[rank] = int(answer)
                if codes.get(rank) != 0:  # the others find out soon
                    deadline = min(deadline, time.monotonic() + FAREWELL_S)
        if any(codes.get(rank) != 0 for rank in range(len(self._members))):
            codes = self._end() | codes
        return [codes[rank] for rank in range(len(self._members))]

    def _end(self) -> dict[int, int]:
        """Exit codes of the processes, by rank."""
        codes: dict[int, int] = {}
        for rank, member in enumerate(self._members):
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)  # no effect on one that has ended
            _, status = os.waitpid(member.pid, 0)
            codes[rank] = os.waitstatus_to_exitcode(status)
            member.orders.close()
            member.answers.close()
        return codes


def of_torch(cache: Any) -> bool:
    return str(getattr(cache, "__module__", "")).startswith("torch.distributed")


def hire() -> Member:
    """Fork one rank."""
    order_out, order_in = os.pipe()
    answer_out, answer_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(order_in)
        os.close(answer_out)
        try:
            work(os.fdopen(order_out), os.fdopen(answer_in, "w"))
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(1)  # whatever happens, this process is not pytest's
    os.close(order_out)
    os.close(answer_in)
    return Member(pid=pid, orders=os.fdopen(order_in, "w"), answers=os.fdopen(answer_out))


def work(orders: IO[str], answers: IO[str]) -> None:
    """Run what is ordered, until a run fails or the parent is gone."""
    die_with_parent(signal.SIGKILL)
    caches = [found for found in gc.get_objects() if type(found) is CACHE and of_torch(found)]
    gc.freeze()  # what was inherited is no garbage
    faulthandler.enable(2)  # into the log of the rank, where pytest's own would write to pytest's
    torch.set_num_threads(1)  # see `run_rank`
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        run_dir = Path(order["run_dir"])
        log = run_dir / f"rank-{os.environ['RANK']}.log"
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(number, 1)
        os.dup2(number, 2)
        os.close(number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest replaced it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        code = run_rank(Path(order["plan"]), run_dir)
        sys.stdout.flush()
        sys.stderr.flush()
        # torch remembers what it worked out on a mesh, and would find it again for an equal mesh,
        # whose groups have other names now
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]
        for cache in caches:
            cache.cache_clear()
        gc.collect()  # process groups that hang in cycles keep threads and sockets
        answers.write(f"{code}\n")
        answers.flush()
        if code != 0:
            return

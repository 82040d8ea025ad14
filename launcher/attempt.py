"""One attempt at a run: start the ranks, watch them, and stop the rest when one fails.

The port of the attempt's store is held here while rank 0's TCPStore listens on it (see `port`): no
race between picking a port and using it.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from parctl.launcher.backend import RankStatus
from parctl.launcher.children import Children, Exit
from parctl.launcher.log_files import Arrivals
from parctl.launcher.port import hold_port
from parctl.launcher.processes import (
    Process,
    count_oom_kills,
    descendants,
    process,
    processes_of_run,
)
from parctl.launcher.ranks import RankStart, Starter
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import (
    Failure,
    Kind,
    RankEnd,
    classify,
    is_failure,
    signal_name,
    written_before,
)

TICK_S = 1.0  # how often log growth is noted
SETTLE_S = 2.0  # a rank that lost its peer waits so long for the peer's own end to be noticed
HUNG_GRACE_S = 1.0  # who did not come to a collective does not come to a save either
VICTIM_GRACE_S = 5.0  # what is left of a failed attempt has nothing worth a long wait
CANCEL_GRACE_S = 3.0  # cancel promises that nothing is left after 5 s
SWEEP_S = 2.0  # of that time, what is kept for ending whatever the ranks leave behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. Neither `cancelled` nor a failure nor a `complaint`: it succeeded."""

    failures: Sequence[Failure]  # of ranks, in the order of noticing
    silent: Sequence[int]  # ranks that had not ended when we stopped the attempt
    halted: Sequence[int]  # of these, the ones that SIGSTOP held
    complaint: str | None  # what went wrong with no rank to blame
    cancelled: bool
    started_unix: float
    oom_kills: int  # by the kernel, on this machine, meanwhile

    @property
    def succeeded(self) -> bool:
        caused = [failure for failure in self.failures if failure.kind is not Kind.STOPPED]
        return not caused and self.complaint is None and not self.cancelled


class Attempt:
    """Make one per attempt and call `run` once; `changed` is told of every change of the ranks."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        number: int,
        manifest: Mapping[str, Any],
        environment: Mapping[str, str],
        children: Children,
        starter: Starter,
        deadline: float | None,  # monotonic
        changed: Callable[[Sequence[RankStatus], Sequence[Process | None]], None],
        spared: Sequence[int],  # children that outlive the attempt
    ) -> None:
        self._run, self._number, self._manifest = run, number, manifest
        self._environment, self._children, self._starter = environment, children, starter
        self._deadline, self._changed, self._spared = deadline, changed, spared
        self._num_ranks = len(manifest["ranks"])
        self._processes: list[Process | None] = [None] * self._num_ranks
        self._codes: list[int | None] = [None] * self._num_ranks
        self._early: dict[int, Exit] = {}  # exits noticed before we were told whose they are
        self._failures: list[Failure] = []
        self._complaint: str | None = None
        self._stops_seen = 0
        self._stop_at: float | None = None  # when to ask the ranks to stop; monotonic, as all below
        self._kill_at: float | None = None
        self._silent: list[int] = []
        self._halted: list[int] = []
        self._asked = False
        self._asked_unix = float("inf")

    def run(self) -> Outcome:
        started_unix, oom_kills = time.time(), count_oom_kills()
        self._run.logs(self._number).mkdir(parents=True, exist_ok=True)
        self._run.error_file(self._number, 0).parent.mkdir(parents=True, exist_ok=True)
        arrivals = Arrivals(self._run, self._number, self._num_ranks)
        with hold_port(self._environment["MASTER_ADDR"]) as store:
            self._start(store.getsockname()[1])
            next_tick = time.monotonic()
            while not self._over():
                self._wait(next_tick)
                self._decide(time.monotonic())
                if time.monotonic() >= next_tick:
                    with suppress(OSError):  # a full disk must not end a run that needs none
                        arrivals.note()
                    if not self._run.state.exists():
                        self._give_up("the run directory was deleted")
                    next_tick = time.monotonic() + TICK_S
        self._sweep()
        with suppress(OSError):
            arrivals.note()
        return Outcome(
            failures=self._failures,
            silent=self._silent,
            halted=self._halted,
            complaint=self._complaint,
            # who leaves with 0 when told to has been cancelled all the same
            cancelled=self._stops_seen > 0 and bool(self._silent) and not self._has_cause(),
            started_unix=started_unix,
            oom_kills=count_oom_kills() - oom_kills,
        )

    def _start(self, port: int) -> None:
        try:
            self._starter.start([self._rank_start(rank, port) for rank in self._manifest["ranks"]])
        except (OSError, ValueError) as error:  # ValueError: a NUL in the command
            self._give_up(f"{type(error).__name__}: {error}")
        self._note_started()

    def _rank_start(self, rank: Mapping[str, Any], port: int) -> RankStart:
        number = rank["rank"]
        return RankStart(
            rank=number,
            environment={
                **self._environment,
                **rank["env"],
                "MASTER_PORT": str(port),
                "PARCTL_ATTEMPT": str(self._number),
                "TORCHELASTIC_RESTART_COUNT": str(self._number - 1),
                "TORCHELASTIC_ERROR_FILE": str(self._run.error_file(self._number, number)),
            },
            log=self._run.log(self._number, number),
        )

    def _over(self) -> bool:
        # nobody will start the rest any more, or nobody wants it
        given_up = self._complaint is not None and self._starter.fd is None
        no_more = given_up or self._stops_seen > 0
        return all(
            code is not None or (no_more and member is None)
            for code, member in zip(self._codes, self._processes, strict=True)
        )

    def _wait(self, next_tick: float) -> None:
        now = time.monotonic()
        stop_at = None if self._asked else self._stop_at
        times = [next_tick, self._deadline, stop_at, self._kill_at]
        fd = self._starter.fd
        if fd is not None:
            self._children.watch(fd)
        exits = self._children.wait(min(at for at in times if at is not None) - now)
        if fd is not None:
            self._children.unwatch(fd)
            self._note_started()
        for exit_ in exits:
            self._note_exit(exit_)

    def _note_started(self) -> None:
        news = list(self._starter.started())
        for started in news:
            self._processes[started.rank] = process(started.pid)
            if early := self._early.pop(started.pid, None):
                self._note_exit(early)
        if news:
            self._tell()

    def _note_exit(self, exit_: Exit) -> None:
        reason = self._starter.failure(exit_.pid, exit_.code)
        if reason is not None:
            self._give_up(reason)
            return
        rank = next(
            (
                rank
                for rank, member in enumerate(self._processes)
                if member and member.pid == exit_.pid
            ),
            None,
        )
        if rank is None or self._codes[rank] is not None:
            self._early[exit_.pid] = exit_
            return
        self._codes[rank] = exit_.code
        error_file = self._run.error_file(self._number, rank)
        stopped = self._asked and not written_before(error_file, self._asked_unix)
        if is_failure(exit_.code, stopped=stopped):
            end = RankEnd(
                rank=rank,
                code=exit_.code,
                stopped=stopped,
                time_unix=exit_.time_unix,
                log=self._run.log(self._number, rank),
                error_file=error_file,
            )
            self._failures.append(classify(end))
        self._tell()

    def _decide(self, now: float) -> None:
        stop_grace_s = self._manifest["stop_grace_s"]
        if self._children.stops_asked > self._stops_seen:
            self._stops_seen = self._children.stops_asked
            self._stop(now, self._cancel_grace_s())
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            limit = self._manifest["timeout_s"]
            self._give_up(f"the run took longer than launch.timeout_s = {limit:g} s")
        if self._failures and self._stop_at is None:
            # a lost peer is no cause: leave the peer's own end a moment to be noticed
            victims = all(failure.kind is Kind.PEER_GONE for failure in self._failures)
            self._stop_at = now + SETTLE_S if victims else now
            if victims and self._records:
                self._signal_all(signal.SIGUSR1)  # they note where they are
        elif any(failure.kind < Kind.PEER_GONE for failure in self._failures) and not self._asked:
            self._stop_at = now
        if self._stop_at is not None and now >= self._stop_at and not self._asked:
            victims = all(failure.kind is Kind.PEER_GONE for failure in self._failures)
            hung = victims and bool(self._failures) and self._records
            self._stop(now, min(stop_grace_s, HUNG_GRACE_S if hung else VICTIM_GRACE_S))
        if self._kill_at is not None and now >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            self._kill_at = now + TICK_S

    def _cancel_grace_s(self) -> float:
        """How long ranks may save: what `parctl cancel --grace` left, else the recipe's time."""
        try:
            asked = json.loads(self._run.cancel.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return min(float(self._manifest["stop_grace_s"]), CANCEL_GRACE_S)
        grace_s = float(asked["grace_s"])
        return grace_s - min(SWEEP_S, 0.4 * grace_s)

    @property
    def _records(self) -> bool:
        """Whether ranks say where they are when asked; a program of the user's would end."""
        return bool(self._manifest["start"] == "fork")

    def _has_cause(self) -> bool:
        return any(failure.kind is not Kind.STOPPED for failure in self._failures)

    def _give_up(self, complaint: str) -> None:
        self._complaint = self._complaint or complaint
        self._stop_at = time.monotonic()

    def _stop(self, now: float, grace_s: float) -> None:
        """Ask every rank to leave; SIGKILL follows after `grace_s`, or a later call's if sooner."""
        self._kill_at = min(self._kill_at or now + grace_s, now + grace_s)
        if not self._asked:
            self._asked, self._asked_unix = True, time.time()
            self._stop_at = now
            self._silent = [rank for rank, code in enumerate(self._codes) if code is None]
            self._halted = [
                rank
                for rank in self._silent
                if (member := self._processes[rank]) is not None and member.halted
            ]
            # the rank alone: its own helpers (data loaders) are to live while it saves
            self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for member, code in zip(self._processes, self._codes, strict=True):
            if member is not None and code is None:
                member.signal(number)

    def _sweep(self) -> None:
        """End what the ranks left behind: their helpers, and whatever these started."""
        left = self._leftovers()
        for member in left:
            member.signal(signal.SIGTERM)
        until = self._kill_at or time.monotonic() + TICK_S
        while left and time.monotonic() < until:
            self._children.wait(0.05)
            left = [member for member in left if member.alive]
        while left := self._leftovers():
            for member in left:
                member.signal(signal.SIGKILL)
            self._children.wait(0.01)

    def _leftovers(self) -> list[Process]:
        found = {
            *descendants(os.getpid()),
            *processes_of_run(self._run.run_id, self._run.path),
        }
        return [member for member in found if member.pid not in self._spared]

    def _tell(self) -> None:
        self._changed(
            [
                RankStatus(
                    rank=rank["rank"],
                    node=rank["node"],
                    local_rank=rank["local_rank"],
                    pid=member.pid if member else None,
                    state=state_in_words(started=member is not None, code=code),
                )
                for rank, member, code in zip(
                    self._manifest["ranks"], self._processes, self._codes, strict=True
                )
            ],
            self._processes,
        )


def state_in_words(*, started: bool, code: int | None) -> str:
    """What `parctl status` says of one rank."""
    if code is not None:
        return f"exited {code}" if code >= 0 else f"killed {signal_name(-code)}"
    return "running" if started else "starting"

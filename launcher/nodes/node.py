"""The process of one node that starts and watches ranks: `python -m parctl.launcher.nodes.node`.

It is a child of the agent (one of Ray's workers, or a pod's) behind two pipes. It has one thread
and no opinion: it starts ranks, says how they end and stops them when told. Only when nobody
speaks to it any more does it act by itself: the end of stdin, or SILENT_S without a word, means
that agent, driver or head are gone, and then no rank may stay.

::

    agent (Ray's worker) --stdin-->  {"start": ..}, {"stop": ..}, {"beat": ..}
                         <-stdout--  {"started": ..}, {"lines": ..}, {"exit": ..}, {"over": ..},
                                     {"leaving": ..}

One line of JSON each. Imports the standard library and parctl's own modules, no ray and no torch.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from socket import socket
from typing import Any

from parctl.launcher.children import Children, Exit
from parctl.launcher.nodes.tail import Tail
from parctl.launcher.port import hold_port
from parctl.launcher.processes import (
    Process,
    adopt_orphans,
    count_oom_kills,
    descendants,
    process,
    processes_with,
    set_name,
)
from parctl.launcher.ranks import CommandStarter, ForkStarter, RankStart, Starter
from parctl.launcher.run_directory import RunDirectory, write_whole
from parctl.launcher.spawn import start_fork_server
from parctl.launcher.verdict import RankEnd, classify, is_failure, written_before

SILENT_S = 20.0  # while there are ranks
IDLE_S = 180.0  # before there are: the driver waits for other nodes to get ready
TICK_S = 0.1
ORPHAN_GRACE_S = 3.0  # for ranks to save when nobody is left who would restart them
SWEEP_S = 1.0


class NodeProcess:
    """The ranks of one node, attempt after attempt."""

    def __init__(self, hello: Mapping[str, Any]) -> None:
        self._settings: Mapping[str, Any] = hello["settings"]
        self._marks: Mapping[str, str] = hello["marks"]
        self._defaults: Mapping[str, str] = hello["defaults"]
        self._plan = Path(hello["plan"])
        self._run = RunDirectory(Path(hello["run_dir"]))
        self._workdir: str | None = hello["workdir"]
        self._children = Children()
        self._children.watch(0)
        os.set_blocking(0, False)
        self._orders = b""
        self._last_word = time.monotonic()
        self._alone = False  # nobody speaks to us
        self._leave = False
        self._node_leaves = False
        self._server: Starter | None = None  # that starts the ranks of the job
        self._starter: Starter | None = None  # that starts those of this attempt
        self._store: socket | None = None
        self._metrics = Tail(self._run.metrics, from_end=True)
        if self._settings["start"] == "fork":
            self._server = self._new_starter()  # torch is on its way while others are placed
        self._clear()

    def _clear(self) -> None:
        self._attempt = 0
        self._ranks: dict[int, Process | None] = {}
        self._codes: dict[int, int] = {}
        self._tails: dict[int, Tail] = {}
        self._early: dict[int, Exit] = {}  # exits noticed before we were told whose they are
        self._leads = False  # whether rank 0 is here
        self._asked_unix: float | None = None
        self._kill_at: float | None = None
        self._started_oom = count_oom_kills()

    def run(self) -> None:
        while not (self._leave and not self._ranks):
            self._wait()
            self._read_orders()
            silence = time.monotonic() - self._last_word
            if silence > (SILENT_S if self._ranks else IDLE_S):
                self._be_alone("nobody spoke for too long")
            self._forward()
            self._watch_node()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal(signal.SIGKILL)
                self._kill_at = time.monotonic() + 1.0
            if self._ranks and self._over():
                self._end_attempt()
        if isinstance(self._server, ForkStarter):
            self._server.close()
        self._sweep(spare_server=False)

    def _wait(self) -> None:
        fd = self._starter.fd if self._starter else None
        if fd is not None:
            self._children.watch(fd)
        behind = any(tail.has_more for tail in self._tails.values())
        exits = self._children.wait(0.0 if behind else TICK_S)
        if fd is not None:
            self._children.unwatch(fd)
        self._note_started()
        for exit_ in exits:
            self._note_exit(exit_)
        if self._children.stops_asked:
            self._be_alone("told to stop by a signal")

    def _read_orders(self) -> None:
        while not self._alone:
            try:
                data = os.read(0, 2**20)
            except BlockingIOError:
                return
            if not data:
                self._be_alone("the agent is gone")
                return
            self._last_word = time.monotonic()
            *lines, self._orders = (self._orders + data).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))

    def _watch_node(self) -> None:
        """Say once that the node is told to end, and so all ranks of the run should save."""
        if not self._node_leaves and self._run.leaving.exists():
            self._node_leaves = True
            self._tell(leaving=True)

    def _be_alone(self, why: str) -> None:
        if self._alone:
            return
        print(why, file=sys.stderr, flush=True)
        self._alone, self._leave = True, True
        self._children.unwatch(0)
        self._stop(ORPHAN_GRACE_S)

    def _obey(self, order: Mapping[str, Any]) -> None:
        if "bind" in order:
            self._bind(order["bind"])
        if "start" in order:
            self._start(order["start"])
        if "signal" in order:
            self._signal(order["signal"])
        if "stop" in order:
            self._stop(float(order["stop"]))
        if "leave" in order:
            self._leave = True

    def _bind(self, address: str) -> None:
        """Take a port for the attempt's store and keep it, never listening: nobody else gets it."""
        self._unbind()
        try:
            self._store = hold_port(address)
        except OSError as error:
            self._tell(complaint=f"no port at {address}: {error.strerror}")
            return
        self._tell(port=self._store.getsockname()[1])

    def _unbind(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _start(self, order: Mapping[str, Any]) -> None:
        self._clear()
        self._attempt, self._leads = order["attempt"], order["leads"]
        number = self._attempt
        if order["plan"] is not None:
            write_whole(self._plan, order["plan"])
        self._run.logs(number).mkdir(parents=True, exist_ok=True)
        self._run.error_file(number, 0).parent.mkdir(parents=True, exist_ok=True)
        starts = []
        for rank in order["ranks"]:
            self._ranks[rank["rank"]] = None
            log = self._run.log(number, rank["rank"])
            self._tails[rank["rank"]] = Tail(log)
            environment = {**self._common(), **rank["env"]}
            environment["TORCHELASTIC_ERROR_FILE"] = str(self._run.error_file(number, rank["rank"]))
            starts.append(RankStart(rank=rank["rank"], environment=environment, log=log))
        if order.get("command"):  # something else than the job: the preflight
            self._starter = CommandStarter(order["command"], None)
        else:
            if self._server is None or not self._server.usable:
                self._server = self._new_starter()
            self._starter = self._server
        try:
            self._starter.start(starts)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the command
            self._tell(complaint=f"{type(error).__name__}: {error}")
            self._give_up_starting()
        self._note_started()

    def _common(self) -> dict[str, str]:
        """What is the same for every rank of this node."""
        environment = {
            **self._settings["env_defaults"],
            **self._defaults,
            **os.environ,
            **self._given(),
            **{name: os.environ[source] for name, source in self._settings["secrets"].items()},
            **self._marks,
            "PARCTL_ATTEMPT": str(self._attempt),
            "TORCHELASTIC_RESTART_COUNT": str(self._attempt - 1),
        }
        here = os.path.dirname(sys.executable)
        path = environment.get("PATH", os.defpath)
        if here not in path.split(os.pathsep):  # the `python` of a command is the one of the ranks
            environment["PATH"] = here + os.pathsep + path
        return environment

    def _new_starter(self) -> Starter:
        if self._settings["start"] == "command":
            return CommandStarter(self._settings["command"], self._workdir)
        self._run.forkserver_log.parent.mkdir(parents=True, exist_ok=True)
        log = self._run.forkserver_log.with_name(f"forkserver-{self._marks['PARCTL_NODE']}.log")
        server = start_fork_server(self._common_before(), str(log))
        return ForkStarter(server, plan=self._plan, run_dir=self._run.path)

    def _common_before(self) -> dict[str, str]:
        defaults = {**self._settings["env_defaults"], **self._defaults}
        return {**defaults, **os.environ, **self._given(), **self._marks}

    def _given(self) -> dict[str, str]:
        """What the recipe sets. Its PYTHONPATH stands before ours, where parctl itself may be."""
        given: dict[str, str] = dict(self._settings["env"])
        ours = os.environ.get("PYTHONPATH")
        if ours and given.get("PYTHONPATH"):
            given["PYTHONPATH"] += os.pathsep + ours
        return given

    def _note_started(self) -> None:
        if self._starter is None:
            return
        pids = {}
        for started in self._starter.started():
            self._ranks[started.rank] = process(started.pid)
            pids[started.rank] = started.pid
        if pids:
            self._tell(started=pids)
        for pid in pids.values():
            if early := self._early.pop(pid, None):
                self._note_exit(early)

    def _note_exit(self, exit_: Exit) -> None:
        reason = self._server.failure(exit_.pid, exit_.code) if self._server else None
        if reason is not None:
            self._tell(complaint=reason)
            self._give_up_starting()
            return
        rank = next((r for r, m in self._ranks.items() if m and m.pid == exit_.pid), None)
        if rank is None or rank in self._codes:
            self._early[exit_.pid] = exit_
            return
        self._codes[rank] = exit_.code
        error_file = self._run.error_file(self._attempt, rank)
        stopped = self._asked_unix is not None and not written_before(error_file, self._asked_unix)
        end: dict[str, Any] = {
            "rank": rank,
            "code": exit_.code,
            "time": exit_.time_unix,
            "stopped": stopped,
        }
        self._forward(rank)
        if is_failure(exit_.code, stopped=stopped):
            failure = classify(
                RankEnd(
                    rank=rank,
                    code=exit_.code,
                    stopped=stopped,
                    time_unix=exit_.time_unix,
                    log=self._run.log(self._attempt, rank),
                    error_file=error_file,
                )
            )
            end |= {"kind": int(failure.kind), "cause": failure.cause}
        self._tell(exit=end)

    def _give_up_starting(self) -> None:
        """Forget the ranks that will never start."""
        self._ranks = {rank: member for rank, member in self._ranks.items() if member is not None}
        if not self._ranks:
            self._end_attempt()
        else:
            self._stop(ORPHAN_GRACE_S)

    def _over(self) -> bool:
        # who has not started when all is stopped never will
        return all(
            rank in self._codes or (member is None and self._asked_unix is not None)
            for rank, member in self._ranks.items()
        )

    def _end_attempt(self) -> None:
        self._sweep(spare_server=True)
        self._forward(last=True)
        records = self._run.error_file(self._attempt, 0).parent
        flights = {}
        for rank in self._ranks:
            path = records / f"flight-{rank}.json"
            if path.exists():
                flights[rank] = path.read_text(encoding="utf-8", errors="replace")
        self._unbind()
        oom_kills = count_oom_kills() - self._started_oom
        self._clear()
        self._tell(over={"flights": flights, "oom_kills": oom_kills})

    def _stop(self, grace_s: float) -> None:
        """Ask every rank to leave; SIGKILL follows after `grace_s`, or a later call's if sooner."""
        if not self._ranks:
            return
        kill_at = time.monotonic() + grace_s
        self._kill_at = min(self._kill_at or kill_at, kill_at)
        if self._asked_unix is None:
            self._asked_unix = time.time()
            silent = [rank for rank in self._ranks if rank not in self._codes]
            halted = [r for r in silent if (member := self._ranks[r]) and member.halted]
            self._tell(stopping={"silent": silent, "halted": halted})
            # the rank alone: its own helpers (data loaders) are to live while it saves
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for rank, member in self._ranks.items():
            if member is not None and rank not in self._codes:
                member.signal(number)

    def _sweep(self, *, spare_server: bool) -> None:
        """End what the ranks left behind: their helpers, and whatever these started."""
        left = self._leftovers(spare_server)
        for member in left:
            member.signal(signal.SIGTERM)
        until = time.monotonic() + SWEEP_S
        while left and time.monotonic() < until:
            self._children.wait(0.02)
            left = [member for member in left if member.alive]
        while left := self._leftovers(spare_server):
            for member in left:
                member.signal(signal.SIGKILL)
            self._children.wait(0.01)

    def _leftovers(self, spare_server: bool) -> list[Process]:
        server = self._server.pid if isinstance(self._server, ForkStarter) else None
        marked = processes_with(self._marks)
        return [
            member
            for member in {*descendants(os.getpid()), *marked}
            if not (spare_server and member.pid == server)
        ]

    def _forward(self, rank: int | None = None, *, last: bool = False) -> None:
        """Send what the ranks have written since, or what one of them has."""
        tails = self._tails if rank is None else {rank: self._tails[rank]}
        final = last or rank is not None
        for number, tail in tails.items():
            for piece in tail.pieces(final):
                self._tell(lines=[(number, text) for text in piece])
        if self._leads and (rows := list(self._metrics.lines())):
            self._tell(metrics=rows)

    def _tell(self, **news: Any) -> None:
        if self._alone:
            return
        try:
            sys.stdout.write(json.dumps(news) + "\n")
            sys.stdout.flush()
        except OSError:
            self._be_alone("the agent is gone")


def main() -> None:
    """Read who we are, then serve until told to leave or left alone."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        hello = json.loads(stdin.readline())
    set_name("parctl-node")
    adopt_orphans()
    NodeProcess(hello).run()


if __name__ == "__main__":
    main()

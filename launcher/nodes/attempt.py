"""One attempt as the driver sees it: order every node to start its ranks, and judge their ends.

Nodes report, the driver decides, as the supervisor does for one machine: the first failure that is
a cause stops all, one that only lost its peer waits a moment for the peer's own end.
"""

import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parctl.launcher.attempt import (
    HUNG_GRACE_S,
    SETTLE_S,
    VICTIM_GRACE_S,
    Outcome,
    state_in_words,
)
from parctl.launcher.backend import RankStatus
from parctl.launcher.nodes.environment import rank_environments, ranks_by_node
from parctl.launcher.nodes.team import Team
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import Failure, Kind, RankEnd
from parctl.planner.plan import Plan

TICK_S = 0.25
OVER_S = 10.0  # after the kill, until a node that says nothing counts as lost


class NodesAttempt:
    """Make one per attempt and call `run` once."""

    def __init__(
        self,
        *,
        plan: Plan,  # with the layout on the nodes that are there
        team: Team,
        number: int,
        settings: Mapping[str, Any],
        mirror: RunDirectory,  # where the driver keeps what the verdict reads
        deadline: float | None,  # monotonic
        stop_asked: Callable[[], float | None],  # seconds that ranks may save, once it is to end
        changed: Callable[[tuple[RankStatus, ...], bool], None],
        heard: Callable[[int, str], None],  # a line of a rank
        measured: Callable[[list[str]], None],  # lines of metrics.jsonl
    ) -> None:
        self._plan, self._layout, self._team = plan, plan.layout, team
        self._number, self._settings, self._mirror = number, settings, mirror
        self._deadline, self._stop_asked, self._changed = deadline, stop_asked, changed
        self._heard, self._measured = heard, measured
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._open = set(ranks_by_node(plan.layout))  # nodes that have not said that all is over
        self._failures: list[Failure] = []
        self._complaint: str | None = None
        self._silent: list[int] = []
        self._halted: list[int] = []
        self._oom_kills = 0
        self._asked = self._cancelled = self._started = False
        self._stop_at: float | None = None
        self._give_up_at: float | None = None

    def run(self) -> Outcome:
        started_unix = time.time()
        first = self._layout.slots[0].node
        self._mirror.logs(self._number).mkdir(parents=True, exist_ok=True)
        self._mirror.error_file(self._number, 0).parent.mkdir(parents=True, exist_ok=True)
        self._team.tell(first, {"bind": self._team.members[first].address})
        self._tell_changed()
        while self._open:
            for news in self._team.news(TICK_S):
                self._hear(news.node, news.content)
            self._decide(time.monotonic())
        return Outcome(
            failures=self._failures,
            silent=self._silent,
            halted=self._halted,
            complaint=self._complaint,
            cancelled=self._cancelled and not self._has_cause(),
            started_unix=started_unix,
            oom_kills=self._oom_kills,
        )

    def _hear(self, node: str, content: Mapping[str, Any]) -> None:
        if "port" in content:
            self._start(content["port"])
        if "started" in content:
            self._pids |= {int(rank): pid for rank, pid in content["started"].items()}
            self._tell_changed()
        for rank, text in content.get("lines", ()):
            self._heard(rank, text)
        if "metrics" in content:
            self._measured(content["metrics"])
        if "exit" in content:
            self._note_exit(content["exit"])
        if "stopping" in content:
            self._silent = sorted({*self._silent, *content["stopping"]["silent"]})
            self._halted = sorted({*self._halted, *content["stopping"]["halted"]})
        if "complaint" in content:
            self._give_up(f"{node}: {content['complaint']}")
        if "over" in content:
            self._note_over(node, content["over"])
        if "gone" in content:
            self._note_loss(node, f"its node process ended with {content['gone']}")
        if "lost" in content:
            self._note_loss(node, content["lost"])

    def _start(self, port: int) -> None:
        if self._asked:
            return
        self._started = True
        address = self._team.members[self._layout.slots[0].node].address
        environments = rank_environments(
            self._layout,
            run_id=self._settings["run_id"],
            retries=self._settings["retries"],
            kind=self._plan.topology.get("kind"),
        )
        changed = self._plan.hash != self._settings["plan_hash"]
        plan = json.dumps(self._plan.to_json()) if changed else None
        for node, slots in ranks_by_node(self._layout).items():
            ranks = [
                {
                    "rank": slot.rank,
                    "env": {
                        **environments[slot.rank],
                        "MASTER_ADDR": address,
                        "MASTER_PORT": str(port),
                    },
                }
                for slot in slots
            ]
            order = {
                "attempt": self._number,
                "plan": plan,
                "leads": slots[0].rank == 0,
                "ranks": ranks,
            }
            self._team.tell(node, {"start": order})

    def _note_exit(self, end: Mapping[str, Any]) -> None:
        rank = end["rank"]
        self._codes[rank] = end["code"]
        if "kind" in end:
            self._failures.append(
                Failure(
                    end=RankEnd(
                        rank=rank,
                        code=end["code"],
                        stopped=end["stopped"],
                        time_unix=end["time"],
                        log=self._mirror.log(self._number, rank),
                        error_file=self._mirror.error_file(self._number, rank),
                    ),
                    kind=Kind(end["kind"]),
                    cause=end["cause"],
                )
            )
        self._tell_changed()

    def _note_over(self, node: str, content: Mapping[str, Any]) -> None:
        self._open.discard(node)
        self._oom_kills += content["oom_kills"]
        for rank, text in content["flights"].items():
            folder = self._mirror.error_file(self._number, 0).parent
            Path(folder, f"flight-{rank}.json").write_text(text, encoding="utf-8")

    def _note_loss(self, node: str, why: str) -> None:
        self._open.discard(node)
        ranks = [slot.rank for slot in self._layout.slots if slot.node == node]
        if not ranks:  # a smaller job has left it out
            return
        for rank in ranks:
            self._codes.setdefault(rank, -signal.SIGKILL)
        if not self._asked or not (self._failures or self._cancelled):
            shown = _range(ranks)
            self._give_up(f"node {node} was lost with {shown}: {why}")
        self._tell_changed()

    def _give_up(self, complaint: str) -> None:
        self._complaint = self._complaint or complaint
        self._stop_at = time.monotonic()

    def _decide(self, now: float) -> None:
        grace_s = self._stop_asked()
        if grace_s is not None:
            self._cancelled = True
            self._stop(now, grace_s)
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            limit = self._settings["timeout_s"]
            self._give_up(f"the run took longer than launch.timeout_s = {limit:g} s")
        victims = all(failure.kind is Kind.PEER_GONE for failure in self._failures)
        if self._failures and self._stop_at is None:
            # a lost peer is no cause: leave the peer's own end a moment to be noticed
            self._stop_at = now + SETTLE_S if victims else now
            if victims and self._records:
                self._team.tell_all({"signal": int(signal.SIGUSR1)})  # they note where they are
        elif self._failures and not victims and not self._asked:
            self._stop_at = now
        if self._stop_at is not None and now >= self._stop_at and not self._asked:
            hung = victims and bool(self._failures) and self._records
            limit_s = HUNG_GRACE_S if hung else VICTIM_GRACE_S
            self._stop(now, min(float(self._settings["stop_grace_s"]), limit_s))
        if self._give_up_at is not None and now >= self._give_up_at:
            for node in list(self._open):
                self._note_loss(node, "it does not answer")

    @property
    def _records(self) -> bool:
        """Whether ranks say where they are when asked; a program of the user's would end."""
        return bool(self._settings["start"] == "fork")

    def _has_cause(self) -> bool:
        return any(failure.kind is not Kind.STOPPED for failure in self._failures)

    def _stop(self, now: float, grace_s: float) -> None:
        give_up_at = now + grace_s + OVER_S
        if self._asked and self._give_up_at is not None and give_up_at >= self._give_up_at:
            return
        self._asked, self._give_up_at = True, give_up_at
        self._stop_at = self._stop_at or now
        if not self._started:  # no node will say that it is over
            self._open.clear()
            return
        self._team.tell_all({"stop": grace_s})

    def _tell_changed(self) -> None:
        ranks = tuple(
            RankStatus(
                rank=slot.rank,
                node=slot.node,
                local_rank=slot.local_rank,
                pid=self._pids.get(slot.rank),
                state=state_in_words(
                    started=slot.rank in self._pids, code=self._codes.get(slot.rank)
                ),
            )
            for slot in self._layout.slots
        )
        self._changed(ranks, len(self._pids) == len(ranks))


def _range(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {ranks[0]} to {ranks[-1]}"

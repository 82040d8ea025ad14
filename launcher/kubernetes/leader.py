"""The leader of a run: gathers the agents, binds the layout, has the ranks started, judges the end.

::

    gather --> bind --> attempt --> done            native: the process ends with every attempt,
      ^                   |                         the cluster's controllers start new pods
      +-------------------+                         coordinator: the same process goes on

It runs in the first pod of the run (`python -m parctl.launcher.kubernetes.leader`, started by that
pod's agent), or in the coordinator's. Nothing depends on the order in which pods come up: an agent
says which index it is, and all of them have to be there.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from parctl.errors import ParctlError
from parctl.launcher.attempt import Outcome
from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.launcher.hang import hang_of
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.binding import bind_fewer, bind_plan
from parctl.launcher.kubernetes.channel import listen
from parctl.launcher.kubernetes.leader_worker_set import INDEX_VARIABLE
from parctl.launcher.kubernetes.pod_files import read_plan, read_topology, run_folder
from parctl.launcher.kubernetes.report import (
    MARK,
    METRICS,
    SAY,
    Report,
    first_report,
    report_line,
    report_text,
)
from parctl.launcher.kubernetes.settings import kubernetes_spec, run_settings
from parctl.launcher.kubernetes.team import Peer, PodTeam
from parctl.launcher.metrics import step_of_line
from parctl.launcher.nodes.attempt import NodesAttempt
from parctl.launcher.nodes.environment import ranks_by_node
from parctl.launcher.nodes.preflight import bad_nodes, try_nodes
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import Failure, fix_for, plain_verdict, reach_verdict
from parctl.planner.plan import Plan
from parctl.topology.model import Topology

TICK_S = 0.25
STEP_S = 2.0  # how often a mere step is worth a word
KEPT_LINES = 200  # of a failed rank, for the verdict


class Leader:
    """One run, or one attempt of it: `number` is None where the pods know which."""

    def __init__(
        self,
        plan: Plan,
        run_id: str,
        *,
        team: PodTeam,
        topology: Topology | None,
        folder: Path,
        tell: Callable[[Report], None],  # whoever keeps what the leader reports
        say: Callable[[str], None],
    ) -> None:
        self.plan = self._planned = plan
        self.team, self._topology, self._run_id = team, topology, run_id
        self._settings = run_settings(plan, run_id)
        self._folder = folder
        self._tell, self._say = tell, say
        self.report = first_report()
        self._stepped = 0.0
        self._lines: dict[int, list[str]] = {}
        self._fewer: tuple[Plan, tuple[str, ...]] | None = None  # what the pods that are up can do
        self._sound: set[str] = set()  # uids of pods whose nodes passed the preflight
        self.started_unix = 0.0

    # gather

    def gather(
        self,
        *,
        timeout_s: float,
        stopped: Callable[[], bool],
        fewer_after_s: float | None = None,
    ) -> str | None:
        """Wait for an agent of every pod. Returns why that did not succeed, in a sentence.

        After `fewer_after_s`, if that is given, a smaller job on the pods that are up will do.
        """
        self.team.closed_to_new = False
        self._fewer = None
        began = time.monotonic()
        deadline = began + timeout_s
        while True:
            for peer in list(self.team.peers.values()):
                if peer.leaving and peer.lost is None:
                    self.release_one(peer, names.SAVED)
                if peer.leaving or peer.lost is not None:
                    self.team.forget(peer)
            absent = self.absent
            self.change(state=State.PLACING, reason=self._absence(absent) if absent else None)
            if not absent:
                self.team.begin()
                return None
            if stopped():
                return "the run was told to stop"
            if fewer_after_s is not None and time.monotonic() >= began + fewer_after_s:
                self._fewer = self._plan_for_those()
                if self._fewer is not None:
                    self.team.begin()
                    return None
            if time.monotonic() >= deadline:
                return f"{self._absence(absent)} for {timeout_s:g} s"
            self.team.listen(TICK_S)

    def _plan_for_those(self) -> tuple[Plan, tuple[str, ...]] | None:
        places = [peer.place for peer in self.team.peers.values()]
        least = kubernetes_spec(self._planned).min_nodes
        if least is None or len(places) < least:
            return None
        return bind_fewer(self._planned, places, self._topology, min_nodes=least)

    @property
    def num_pods(self) -> int:
        return self._planned.layout.num_nodes

    @property
    def absent(self) -> list[int]:
        return [i for i in range(self.num_pods) if i not in self.team.peers]

    def _absence(self, absent: list[int]) -> str:
        shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        there = self.num_pods - len(absent)
        return f"{there} of {self.num_pods} pods are up; missing: {shown}"

    # one attempt

    def attempt(self, number: int) -> tuple[Outcome | None, Verdict | None]:
        """Bind, start, watch. No outcome: it could not begin; the verdict says why."""
        self.started_unix = time.time()
        peers = [self.team.peers[index] for index in sorted(self.team.peers)]
        missing = [f"pod {peer.place.pod}: {what}" for peer in peers for what in peer.missing]
        if missing:
            return None, plain_verdict(missing[0], cause=missing[0], fix=_image_fix(missing[0]))
        try:
            self.plan, changes = self._fewer or bind_plan(
                self._planned, [peer.place for peer in peers], self._topology
            )
        except ParctlError as error:
            self._say(f"the pods are not where the plan can run: {error.message}")
            return None, plain_verdict(error.message, cause=error.message, fix=error.hint)
        for change in changes:
            self._say(change)
        bad = self._examine()
        if bad is not None:
            return None, bad
        self.change(attempt=number, reason=None, verdict=None, ranks=())
        nodes = list(dict.fromkeys(slot.node for slot in self.plan.layout.slots))
        self._say(f"attempt {number} starts on {', '.join(nodes)}")
        self._lines.clear()
        outcome = NodesAttempt(
            plan=self.plan,
            team=self.team,
            number=number,
            settings=self._settings,
            mirror=RunDirectory(self._folder),
            deadline=None,
            stop_asked=lambda: self.team.leaving_s,
            changed=self._ranks_changed,
            heard=self._hear,
            measured=self._measure,
        ).run()
        if outcome.succeeded or outcome.cancelled:
            return outcome, None
        return outcome, self._verdict(number, outcome)

    def _examine(self) -> Verdict | None:
        """Try nodes that were not tried yet, each alone. Returns a verdict on the first bad one."""
        spec, layout = kubernetes_spec(self.plan), self.plan.layout
        members = {node: self.team.members[node] for node in ranks_by_node(layout)}
        uids = {peer.uid for peer in members.values()}
        if not spec.preflight or uids <= self._sound:
            return None
        self._say(f"preflight of {', '.join(members)}")
        trials = try_nodes(
            self.team,
            layout,
            pythons={node: peer.python for node, peer in members.items()},
            kind=self.plan.topology.get("kind"),
            stopped=lambda: self.team.leaving_s is not None,
        )
        if self.team.leaving_s is not None:  # a pod has to go: the attempt will see to it
            return None
        bad = bad_nodes(trials, {node: len(slots) for node, slots in ranks_by_node(layout).items()})
        if not bad:
            self._sound |= uids
            return None
        for node, why in bad.items():
            self.happened(f"preflight: {node} is bad: {why}")
        node, why = next(iter(bad.items()))
        return plain_verdict(
            f"{node} is bad: {why}",
            cause=why,
            fix=f"repair it, or do without: `placement.exclude: [{node}]`",
        )

    def _ranks_changed(self, ranks: tuple[RankStatus, ...], all_started: bool) -> None:
        self.change(ranks=ranks, state=State.RUNNING if all_started else State.PLACING)

    def _hear(self, rank: int, text: str) -> None:
        kept = self._lines.setdefault(rank, [])
        kept.append(text)
        del kept[:-KEPT_LINES]

    def _measure(self, rows: list[str]) -> None:
        for row in rows:
            self._say_line(f"{MARK}{METRICS}{row}")
        step = step_of_line(rows[-1])
        if step is not None:
            self.report = replace(self.report, step=step)
            if time.monotonic() - self._stepped > STEP_S:
                self._stepped = time.monotonic()
                self.change(step=step, force=True)

    def _verdict(self, number: int, outcome: Outcome) -> Verdict:
        if outcome.complaint is not None or not outcome.failures:
            complaint = outcome.complaint or "the attempt failed"
            return plain_verdict(complaint, cause=complaint, fix=fix_for(complaint))
        run = RunDirectory(self._folder)
        failures: list[Failure] = list(outcome.failures)
        for failure in failures:
            lines = self._lines.get(failure.end.rank, [])
            failure.end.log.write_text("\n".join(lines), encoding="utf-8")
        layout = self.plan.layout
        return reach_verdict(
            layout,
            failures,
            silent=outcome.silent,
            hang=hang_of(outcome, layout, run.error_file(number, 0).parent),
            attempt_started=outcome.started_unix,
            oom_kills=outcome.oom_kills,
            redact=[],  # agents blank secrets before they send
        )

    # the end

    def release(self, code: int) -> None:
        """Let every agent go, with the exit code of its container and the last report."""
        for peer in list(self.team.peers.values()):
            self.release_one(peer, code)

    def release_one(self, peer: Peer, code: int) -> None:
        peer.released = True
        self.team.send(peer, {"done": {"code": code, "report": report_text(self.report)}})

    def change(self, *, force: bool = False, **changes: Any) -> None:
        """Change the report and tell it. An unchanged one is not told again."""
        changed = replace(self.report, **changes)
        if changed != self.report or force:
            self.report = replace(changed, updated_unix=time.time())
            self._tell(self.report)

    def happened(self, sentence: str) -> None:
        self._say(sentence)
        self.change(history=(*self.report.history, sentence)[-20:])

    def _say_line(self, line: str) -> None:
        print(line, flush=True)


def peer_attempts(team: PodTeam) -> int:
    """How many attempts there were: the largest count, for a pod that was replaced has its own."""
    return max((peer.attempts for peer in team.peers.values()), default=0)


def lead_one_attempt(
    leader: Leader, *, gather_timeout_s: float, stopped: Callable[[], bool], endless: bool = False
) -> int:
    """Native recovery: gather, run once, leave. Returns the exit code of every container.

    `endless`: pods start again whatever they leave with, as those of a LeaderWorkerSet do.
    """
    failed = State.RESTARTING if endless else State.FAILED
    why = leader.gather(timeout_s=gather_timeout_s, stopped=stopped)
    if why is not None:
        if stopped():
            leader.release(names.SAVED)
            return names.SAVED
        fix = "`parctl why` says what the absent pods wait for"
        leader.change(state=failed, verdict=plain_verdict(why, cause=why, fix=fix))
        leader.release(names.FAILED)
        return names.FAILED
    earlier = peer_attempts(leader.team)
    leader.change(restarts=earlier)
    outcome, verdict = leader.attempt(earlier + 1)
    if outcome is not None and outcome.succeeded:
        leader.change(state=State.SUCCEEDED)
        code = names.FINISHED
    elif outcome is not None and outcome.cancelled:
        leader.change(state=State.RESTARTING, reason="a pod was told to end; all have saved")
        code = names.SAVED
    else:
        retried = earlier < leader.plan.recipe.launch.retries
        leader.change(state=State.RESTARTING if retried else failed, verdict=verdict)
        code = names.FAILED
    leader.release(code)
    return code


def settle(leader: Leader, timeout_s: float = 5.0) -> None:
    """Give the agents time to take their leave before the connections are closed."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and any(p.lost is None for p in leader.team.peers.values()):
        leader.team.listen(0.05)


class StopRequest:
    """Remembers SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def main() -> int:
    """Lead the attempt that this pod belongs to. The agent reads what is printed."""
    plan, topology = read_plan(), read_topology()
    run_id = os.environ["PARCTL_RUN_ID"]
    stop = StopRequest()
    folder = run_folder() / "leader" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    team = PodTeam(listen(int(os.environ["PARCTL_CONTROL_PORT"])))
    leader = Leader(
        plan,
        run_id,
        team=team,
        topology=topology,
        folder=folder,
        tell=lambda report: print(report_line(report), flush=True),
        say=lambda text: print(f"{MARK}{SAY}{text}", flush=True),
    )
    try:
        code = lead_one_attempt(
            leader,
            gather_timeout_s=kubernetes_spec(plan).gather_timeout_s,
            stopped=lambda: stop.asked or team.leaving_s is not None,
            endless=INDEX_VARIABLE in os.environ,
        )
    except Exception as error:
        traceback.print_exc()
        sentence = f"the leader failed: {type(error).__name__}: {error}"
        verdict = plain_verdict(sentence, cause=sentence, fix="a fault of parctl: report it")
        leader.change(state=State.FAILED, verdict=verdict)
        leader.release(names.FAILED)
        code = names.FAILED
    settle(leader)
    team.close()
    return code


def _image_fix(missing: str) -> str | None:
    return "use an image that has it: `launch.image`" if "not installed" in missing else None


if __name__ == "__main__":
    sys.exit(main())

"""The program that Ray runs as the job of a run: `python3 -m parctl.launcher.ray.driver`.

It takes the nodes, has the ranks started, counts the retries and reaches the verdict. What it
prints is the job's log: its own lines and those of every rank, each with its time and who said it.
It ends with 0 when the run succeeded, so that Ray's own word on the job is right too.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from itertools import count
from types import FrameType

from parctl.errors import CannotPlaceError, ParctlError
from parctl.launcher.attempt import CANCEL_GRACE_S, Outcome
from parctl.launcher.backend import RankStatus, State, Verdict
from parctl.launcher.hang import hang_of
from parctl.launcher.metrics import step_of_line
from parctl.launcher.nodes.attempt import NodesAttempt
from parctl.launcher.nodes.environment import ranks_by_node
from parctl.launcher.nodes.preflight import bad_nodes, try_nodes
from parctl.launcher.ray.actor import give_up_packages
from parctl.launcher.ray.agents import Sent
from parctl.launcher.ray.grace import asked_grace_s
from parctl.launcher.ray.job_log import log_line
from parctl.launcher.ray.placement import Placed, Placer
from parctl.launcher.ray.publish import Publisher
from parctl.launcher.ray.reasons import Reason
from parctl.launcher.ray.run_files import find_run_file, run_directory
from parctl.launcher.ray.team import Member
from parctl.launcher.run_directory import RunDirectory
from parctl.launcher.verdict import fix_for, plain_verdict, reach_verdict
from parctl.planner.plan import Plan, plan_from_json
from parctl.topology.sources.ray_dashboard import Dashboard, find_dashboard

SUCCEEDED, FAILED, CANCELLED = 0, 1, 130


class StopRequest:
    """Remembers SIGTERM, which is how Ray stops a job."""

    def __init__(self) -> None:
        self.asked = False

    def arm(self) -> None:
        """To be called after Ray, which sets a handler of its own."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Driver:
    """One run from its placement to its end."""

    def __init__(self, plan: Plan, sent: Sent, dashboard: Dashboard, stop: StopRequest) -> None:
        settings = sent.settings
        self._plan, self._settings, self._stop = plan, settings, stop
        run = run_directory(settings)
        self._folder = run / "driver"
        self._publisher = Publisher(settings["run_id"], self._folder)
        self._placer = Placer(
            plan, sent, dashboard, waits=self._note_wait, stopped=lambda: stop.asked
        )
        self._placed: Placed | None = None
        self._lines: dict[int, list[str]] = {}  # the last ones of every rank, for the verdict
        self._waits_for: str | None = None
        self._sound: set[str] = set()  # nodes that passed the preflight

    def run(self) -> State:
        try:
            return self._run()
        except ParctlError as error:
            return self._end(
                State.FAILED, plain_verdict(error.message, cause=error.message, fix=error.hint)
            )
        except Exception as error:
            traceback.print_exc()
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            verdict = plain_verdict(
                f"the driver failed: {cause}",
                cause=cause,
                fix=fix_for(str(error)) or "the log of the job has the traceback",
            )
            return self._end(State.FAILED, verdict)

    def _run(self) -> State:
        timeout_s = self._settings["timeout_s"]
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        failures = 0
        for number in count(1):
            self._publisher.change(state=State.PLACING, attempt=number)
            if self._placed is None:
                self._placed = self._place(deadline, again=number > 1)
            if self._placed is not None and self._settings["preflight"]:
                self._placed = self._examined(self._placed)
            if self._placed is None or self._stop.asked:
                return self._end(State.CANCELLED, None)
            outcome = self._attempt(number, self._placed, deadline)
            if outcome.cancelled and not self._stop.asked:
                self._leave(self._placed.team.leaving)
                continue
            verdict = None
            if not (outcome.succeeded or outcome.cancelled):
                verdict = self._verdict(number, outcome)
            if verdict is None:
                return self._end(State.CANCELLED if outcome.cancelled else State.SUCCEEDED, None)
            self._publisher.happened(f"attempt {number}: {verdict.sentence}")
            self._say(f"attempt {number}: {verdict.sentence}")
            late = deadline is not None and time.monotonic() >= deadline
            # a node that was taken away on purpose is nobody's failure
            failures += not any(member.preempted for member in self._placed.team.lost)
            if failures > self._settings["retries"] or late or self._stop.asked:
                state = State.CANCELLED if self._stop.asked else State.FAILED
                return self._end(state, verdict)
            self._publisher.change(state=State.RESTARTING, restarts=number)
            if self._placed.team.lost and not self._placer.mend(self._placed):
                self._release()
        raise AssertionError("attempts are counted without end")

    def _place(self, deadline: float | None, *, again: bool) -> Placed | None:
        now = time.monotonic()
        place_by = now + self._settings["wait_s"]
        may_shrink = again and self._settings["min_nodes"] is not None
        return self._placer.place(
            deadline=min(place_by, deadline or place_by),
            fewer_from=now + self._settings["rejoin_s"] if may_shrink else None,
        )

    def _examined(self, placed: Placed) -> Placed | None:
        """Try nodes that were not tried yet, and do without those that are bad."""
        while (new := set(placed.team.members) - self._sound) and not self._stop.asked:
            layout = placed.plan.layout
            self._say(f"preflight of {', '.join(sorted(new))}")
            trials = try_nodes(
                placed.team,
                layout,
                pythons={name: member.python for name, member in placed.team.members.items()},
                kind=self._plan.topology.get("kind"),
                stopped=lambda: self._stop.asked,
            )
            counts = {node: len(slots) for node, slots in ranks_by_node(layout).items()}
            bad = bad_nodes(trials, counts)
            self._sound.update(set(trials) - set(bad))
            if not bad:
                break
            for node, why in bad.items():
                self._say(f"{node} is bad: {why}")
                self._publisher.happened(f"preflight: {node} is bad: {why}")
            self._placed = placed
            self._release()
            self._placer.avoid(bad)
            try:
                again = self._placer.place(deadline=time.monotonic(), fewer_from=None)
            except CannotPlaceError as error:
                node, why = next(iter(bad.items()))
                raise ParctlError(
                    f"{node} is bad: {why}; no other node is free in its place",
                    hint=f"repair it, or do without: `placement.exclude: [{node}]`",
                ) from error
            if again is None:
                return None
            placed = again
        return placed

    def _attempt(self, number: int, placed: Placed, deadline: float | None) -> Outcome:
        for change in placed.changes:
            self._say(change)
        nodes = {member.node: member.node_id for member in placed.team.members.values()}
        self._publisher.detail(nodes=nodes)
        self._publisher.change(reason=None, fix=None)
        self._lines.clear()
        self._say(f"attempt {number} starts on {', '.join(nodes)}")
        return NodesAttempt(
            plan=placed.plan,
            team=placed.team,
            number=number,
            settings=self._settings,
            mirror=RunDirectory(self._folder),
            deadline=deadline,
            stop_asked=self._grace_s,
            changed=self._ranks_changed,
            heard=self._hear,
            measured=self._measure,
        ).run()

    def _grace_s(self) -> float | None:
        """How long ranks may save, once the run or one of its nodes is told to end."""
        if not self._stop.asked:
            is_leaving = self._placed is not None and self._placed.team.leaving
            return float(self._settings["stop_grace_s"]) if is_leaving else None
        asked = asked_grace_s(self._settings["run_id"])
        if asked is not None:
            return asked
        return min(float(self._settings["stop_grace_s"]), CANCEL_GRACE_S)

    def _leave(self, leaving: Sequence[Member]) -> None:
        """Give all nodes back, since some are about to end. That is nobody's failure."""
        nodes = ", ".join(member.node for member in leaving)
        said = f"{nodes}: told to end; the ranks of all nodes have saved"
        self._publisher.happened(said)
        self._say(said)
        self._publisher.change(state=State.RESTARTING, reason=said)
        self._placer.do_without(leaving)
        self._release()

    def _ranks_changed(self, ranks: tuple[RankStatus, ...], all_started: bool) -> None:
        self._publisher.detail(ranks=ranks)
        self._publisher.change(state=State.RUNNING if all_started else State.PLACING)

    def _hear(self, rank: int, text: str) -> None:
        print(log_line(rank, text), flush=True)
        kept = self._lines.setdefault(rank, [])
        kept.append(text)
        del kept[:-200]

    def _measure(self, rows: list[str]) -> None:
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(f"{row}\n" for row in rows))
        step = step_of_line(rows[-1])
        if step is not None:
            self._publisher.step(step)

    def _verdict(self, number: int, outcome: Outcome) -> Verdict:
        if outcome.complaint is not None or not outcome.failures:
            complaint = outcome.complaint or "the attempt failed"
            return plain_verdict(complaint, cause=complaint, fix=fix_for(complaint))
        assert self._placed is not None
        mirror, layout = RunDirectory(self._folder), self._placed.plan.layout
        for failure in outcome.failures:
            text = "\n".join(self._lines.get(failure.end.rank, []))
            failure.end.log.write_text(text, encoding="utf-8")
        return reach_verdict(
            layout,
            outcome.failures,
            silent=outcome.silent,
            hang=hang_of(outcome, layout, mirror.error_file(number, 0).parent),
            attempt_started=outcome.started_unix,
            oom_kills=outcome.oom_kills,
            redact=[],
        )

    def _note_wait(self, reason: Reason) -> None:
        self._publisher.change(state=State.PENDING, reason=reason.sentence, fix=reason.fix)
        if reason.sentence != self._waits_for:
            self._waits_for = reason.sentence
            self._say(f"waiting: {reason.sentence}")

    def _release(self) -> None:
        """Give the nodes back: who is told of the end finds nothing left."""
        placed, self._placed = self._placed, None
        if placed is not None:
            self._placer.release(placed)

    def _end(self, state: State, verdict: Verdict | None) -> State:
        self._release()
        self._say(f"the run is {state}")
        if verdict is not None:
            self._say(verdict.sentence)
            if verdict.fix:
                self._say(f"fix: {verdict.fix}")
        self._publisher.change(
            state=state, verdict=verdict, ended_unix=time.time(), reason=None, fix=None
        )
        return state

    def _say(self, text: str) -> None:
        print(log_line(None, text), flush=True)


def main() -> int:
    settings = json.loads(find_run_file("run.json").read_text(encoding="utf-8"))
    text = find_run_file("plan.json").read_text(encoding="utf-8")
    plan = plan_from_json(json.loads(text))
    sent = Sent(package=give_up_packages(), settings=settings, plan=text)
    stop = StopRequest()
    stop.arm()
    import ray

    # workers' output comes through the agents, whole and by rank
    context = ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    stop.arm()
    state = Driver(plan, sent, find_dashboard(context.dashboard_url), stop).run()
    return {State.SUCCEEDED: SUCCEEDED, State.CANCELLED: CANCELLED}.get(state, FAILED)


if __name__ == "__main__":
    sys.exit(main())

"""The state of a run from its row in Ray's job table and its driver's own word. Pure.

The driver's word counts as long as the driver lives, and after it when it said how the run ended.
A driver that ended without saying so was killed. A head that was started again is another node, and
still lists the jobs of the one before as running, which nobody watches: such a driver is lost.
"""

import re

from parctl.launcher.backend import RankStatus, RunStatus, State, Verdict
from parctl.launcher.ray.jobs import Job
from parctl.launcher.ray.record import OWNER_KEY, PLAN_KEY, STEPS_KEY, Details, Record, read_record
from parctl.launcher.verdict import fix_for, plain_verdict

FINISHED_ROW = {"SUCCEEDED": State.SUCCEEDED, "STOPPED": State.CANCELLED, "FAILED": State.FAILED}
KILLED = (-9, 137)
LAUNCH_AGAIN = "launch it again: training resumes from the newest checkpoint in `checkpoint.dir`"


def status_of(
    job: Job, details: Details | None, *, where: str, driver_lost: bool = False
) -> RunStatus:
    """Put the two together. `details` None: they cannot be read, or were not asked for.

    `driver_lost`: the cluster has the driver's node no more, whatever Ray's table says.
    """
    record = read_record(job.metadata)
    state, verdict = _state(job, record, driver_lost)
    ranks = details.ranks if details else ()
    if state.ended:
        ranks = tuple(_ended(rank) for rank in ranks)
    ended_unix = record.ended_unix if record and record.state.ended else job.ended_unix
    steps = job.metadata.get(STEPS_KEY)
    return RunStatus(
        run_id=job.job_id,
        name=job.metadata.get("name", ""),
        backend="ray",
        state=state,
        plan_hash=job.metadata.get(PLAN_KEY, ""),
        created_unix=job.created_unix,
        ended_unix=ended_unix if state.ended else None,
        restarts=record.restarts if record else 0,
        step=record.step if record else None,
        steps=int(steps) if steps else None,
        verdict=verdict,
        ranks=ranks,
        where=where,
        owner=job.metadata.get(OWNER_KEY) or None,
    )


def _state(job: Job, record: Record | None, driver_lost: bool) -> tuple[State, Verdict | None]:
    over = job.ended or driver_lost
    if record is not None and (record.state.ended or not over):
        return record.state, record.verdict
    if not over:
        return State.PENDING, None
    if not job.ended:
        return State.FAILED, _loss(record)
    state = FINISHED_ROW.get(job.status, State.UNKNOWN)
    if state is not State.FAILED:
        return state, None
    return state, _death(job, record)


def _loss(record: Record | None) -> Verdict:
    """What is known of a run whose driver's node is not in the cluster any more."""
    return plain_verdict(
        f"the driver was lost with its node {_stage(record)}",
        cause="death of the driver",
        fix=LAUNCH_AGAIN,
    )


def _death(job: Job, record: Record | None) -> Verdict:
    """What is known of a run whose driver did not live to tell it."""
    stage = _stage(record)
    last = _last_words(job.message)
    if job.driver_exit in KILLED or "JobSupervisor" in job.message or not last:
        # who was killed said nothing of it: the last line is any rank's
        said = f": {last}" if last and job.driver_exit not in KILLED else ""
        return plain_verdict(
            f"the driver was killed {stage}{said}",
            cause="death of the driver",
            fix=f"the head node may be out of memory or was restarted; {LAUNCH_AGAIN}",
        )
    return plain_verdict(f"the driver failed {stage}: {last}", cause=last, fix=fix_for(job.message))


def _stage(record: Record | None) -> str:
    return f"while the run was {record.state}" if record else "before it said anything"


def _last_words(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
    return (named or lines or [""])[-1][:300]


def _ended(rank: RankStatus) -> RankStatus:
    if rank.state not in ("running", "starting"):
        return rank
    return RankStatus(
        rank=rank.rank, node=rank.node, local_rank=rank.local_rank, pid=rank.pid, state="lost"
    )

"""Why a run on Ray waits, goes on or failed. Pure: from what was read of it."""

from parctl.launcher.backend import Diagnosis, RunStatus, State
from parctl.launcher.ray.jobs import Job
from parctl.launcher.ray.record import Details, read_record


def diagnose(job: Job, status: RunStatus, details: Details | None) -> Diagnosis:
    """Say what is the matter with a run."""
    record = read_record(job.metadata)
    history = details.history if details else ()
    if status.state is State.FAILED and status.verdict is not None:
        return Diagnosis(
            sentence=status.verdict.sentence,
            fix=status.verdict.fix,
            # the last attempt is the verdict itself
            evidence=(*status.verdict.last_lines, *history[:-1]),
        )
    if status.state.ended:
        return Diagnosis(sentence=f"the run is {status.state}", fix=None, evidence=history)
    if record is None:
        return Diagnosis(
            sentence=f"Ray has not started the driver yet: {job.message or job.status}",
            fix=None,
            evidence=(),
        )
    if record.reason is not None:
        return Diagnosis(sentence=record.reason, fix=record.fix, evidence=history)
    done = "" if status.step is None else f", step {status.step} of {status.steps}"
    counts: dict[str, int] = {}
    for rank in status.ranks:
        counts[rank.state] = counts.get(rank.state, 0) + 1
    shown = ", ".join(f"{count} {state}" for state, count in counts.items())
    going = "going on" if status.state is State.RUNNING else str(status.state)
    return Diagnosis(
        sentence=f"the run is {going}{done}" + (f"; ranks: {shown}" if shown else ""),
        fix=None,
        evidence=history,
    )

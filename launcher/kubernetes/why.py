"""Why a run waits, goes on or failed: one sentence with the fix, most likely cause first.

Pure: facts in, a diagnosis out. Causes are tried in the order in which they stand in the way of a
run, from its end backwards: what has ended it, what keeps objects from being made, what keeps pods
from being admitted, placed and started, what is wrong with those that run. The first that applies
is the sentence; the others are evidence.
"""

from collections.abc import Callable, Sequence

from parctl.launcher.backend import Diagnosis, State
from parctl.launcher.kubernetes.causes import Cause
from parctl.launcher.kubernetes.causes_container import container_causes
from parctl.launcher.kubernetes.causes_create import creation_causes
from parctl.launcher.kubernetes.causes_end import end_causes, loss_causes
from parctl.launcher.kubernetes.causes_node import node_causes
from parctl.launcher.kubernetes.causes_queue import queue_causes
from parctl.launcher.kubernetes.causes_running import running_causes
from parctl.launcher.kubernetes.causes_schedule import schedule_causes
from parctl.launcher.kubernetes.facts import Facts
from parctl.launcher.kubernetes.state import status_of

ORDER: Sequence[Callable[[Facts], Sequence[Cause]]] = (
    end_causes,
    creation_causes,
    queue_causes,
    node_causes,
    schedule_causes,
    container_causes,
    loss_causes,
    running_causes,
)


def diagnose(facts: Facts) -> Diagnosis:
    """Say what is the matter."""
    causes: list[Cause] = []
    for find in ORDER:
        causes += find(facts)
        if causes and causes[0].final:
            break
    state = status_of(facts.run, facts.report, server="").state
    if not causes:
        causes = [Cause(sentence=_plain(state, facts), fix=None)]
    first = causes[0]
    rest = dict.fromkeys(each.sentence for each in causes if each.sentence != first.sentence)
    history = facts.report.history if facts.report else ()
    return Diagnosis(
        sentence=first.sentence,
        fix=first.fix,
        evidence=(
            *first.evidence,
            *(f"also: {sentence}" for sentence in list(rest)[:5]),
            *history,
            *(f"not read: {each}" for each in facts.unread),
            f"looked at: {facts.looked_at}",
        ),
    )


def _plain(state: State, facts: Facts) -> str:
    verdict = facts.report.verdict if facts.report else None
    if state is State.RESTARTING and verdict is not None:
        return f"the run starts again, since {verdict.sentence}"
    if state is State.RESTARTING:
        return "the run starts again: a pod of it ended, and the new one is coming up"
    if state is State.PENDING:
        return "the run waits, and nothing in the cluster says why: are its controllers running?"
    return f"the run is {state}"

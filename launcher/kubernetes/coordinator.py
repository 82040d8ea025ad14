"""The coordinator of a run: `python -m parctl.launcher.kubernetes.coordinator`, a pod of its own.

It is the leader, and stays while pods come and go. What the cluster's controllers cannot do is
decided here: starting the ranks again in the pods that are left, counting which failures were the
run's own, and giving up a pod that cannot leave a dead node, so that a new one may be made.

Its own death costs one save: agents stop their ranks, wait for it, and it goes on from the report
that it left in the workload's annotation.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from parctl.launcher.backend import State, Verdict
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.channel import listen
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.housekeeping import Housekeeping
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.leader import Leader, StopRequest, settle
from parctl.launcher.kubernetes.pod_files import read_plan, read_topology, run_folder
from parctl.launcher.kubernetes.report import MARK, SAY, Report, report_line
from parctl.launcher.kubernetes.settings import kubernetes_spec
from parctl.launcher.kubernetes.team import Peer, PodTeam
from parctl.launcher.verdict import plain_verdict


def coordinate(
    leader: Leader,
    *,
    retries: int,
    gather_timeout_s: float,
    rejoin_s: float,
    stopped: Callable[[], bool],
    disrupted: Callable[[Peer], str | None],
    earlier: Report | None,
) -> State:
    """See the run to its end. `disrupted`: why the cluster took a pod, None: it did not.

    `earlier`: what a coordinator before this one has reported.
    """
    attempt, counted = 0, 0
    if earlier is not None:
        attempt, counted = earlier.attempt, earlier.restarts
        leader.report = replace(earlier, state=State.PLACING, ranks=(), verdict=None)
        leader.happened(f"the coordinator was replaced in attempt {attempt}")
    while True:
        leader.team.leaving_s = None
        why = leader.gather(
            timeout_s=gather_timeout_s,
            stopped=stopped,
            fewer_after_s=rejoin_s if attempt else None,
        )
        if stopped():
            return leader.report.state  # by whoever ended the workload, or this pod
        if why is not None:
            return _give_up(leader, plain_verdict(why, cause=why, fix=None))
        attempt += 1
        leader.change(restarts=counted)
        outcome, verdict = leader.attempt(attempt)
        if outcome is not None and outcome.succeeded:
            leader.change(state=State.SUCCEEDED)
            leader.release(names.FINISHED)
            return State.SUCCEEDED
        taken = [
            f"pod {peer.place.pod} {reason}"
            for peer in leader.team.peers.values()
            if (peer.lost is not None or peer.leaving) and (reason := _taken(peer, disrupted))
        ]
        for peer in list(leader.team.peers.values()):
            if peer.leaving and peer.lost is None:
                leader.release_one(peer, names.SAVED)
                leader.team.forget(peer)
        if stopped():
            return leader.report.state
        if outcome is None:  # it could not begin, and would not the next time
            assert verdict is not None
            return _give_up(leader, verdict)
        if taken:
            leader.happened(f"attempt {attempt}: not counted, {'; '.join(taken)}")
        else:
            sentence = verdict.sentence if verdict else "its ranks left"
            leader.happened(f"attempt {attempt}: {sentence}")
            counted += 1
            if counted > retries:
                failure = verdict or plain_verdict(sentence, cause=sentence, fix=None)
                return _give_up(leader, failure)
        leader.change(state=State.RESTARTING, restarts=counted, verdict=verdict)


def _taken(peer: Peer, disrupted: Callable[[Peer], str | None]) -> str | None:
    return disrupted(peer) or ("was told to end" if peer.leaving else None)


def _give_up(leader: Leader, verdict: Verdict) -> State:
    leader.change(state=State.FAILED, verdict=verdict)
    leader.release(names.FAILED)
    return State.FAILED


def main() -> int:
    plan, topology = read_plan(), read_topology()
    run_id = os.environ["PARCTL_RUN_ID"]
    spec = kubernetes_spec(plan)
    stop = StopRequest()
    access = find_access(None, namespace=os.environ["PARCTL_NAMESPACE"])
    team = PodTeam(listen(int(os.environ["PARCTL_CONTROL_PORT"])))
    keeping = Housekeeping(Client(access), run_id, team, dead_node_s=spec.dead_node_s)
    earlier = keeping.earlier_report()
    keeping.start()

    def say(text: str) -> None:
        print(f"{MARK}{SAY}{text}", flush=True)

    def tell(report: Report) -> None:
        print(report_line(report), flush=True)
        keeping.publish(report)

    folder = run_folder() / "leader" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    leader = Leader(plan, run_id, team=team, topology=topology, folder=folder, tell=tell, say=say)
    try:
        state = coordinate(
            leader,
            retries=plan.recipe.launch.retries,
            gather_timeout_s=spec.gather_timeout_s,
            rejoin_s=spec.rejoin_s,
            stopped=lambda: stop.asked or keeping.over,
            disrupted=keeping.disruption_of,
            earlier=earlier,
        )
    except Exception as error:
        traceback.print_exc()
        sentence = f"the coordinator failed: {type(error).__name__}: {error}"
        state = _give_up(leader, plain_verdict(sentence, cause=sentence, fix="report it"))
    settle(leader)
    team.close()
    keeping.finish()
    say(f"the run is {state}")
    # told to end with its node: the Job makes a new one, which goes on
    return 1 if stop.asked and not keeping.over else 0


if __name__ == "__main__":
    sys.exit(main())

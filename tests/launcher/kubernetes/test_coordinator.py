"""A coordinator restarts ranks in the pods that are left, counts, and takes new pods in."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.coordinated import Coordinated, coordinated
from tests.launcher.kubernetes.pods import RUN
from tests.launcher.kubernetes.test_pod import WAITS, script

from parctl.launcher.backend import State
from parctl.launcher.processes import processes_with
from parctl.recipes.kubernetes_spec import KubernetesSpec

SPEC = KubernetesSpec(kind="job", recovery="coordinator", gather_timeout_s=60.0)
FAILS_TWICE = (
    "import os\n"
    "print('attempt', os.environ['PARCTL_ATTEMPT'])\n"
    "if os.environ['RANK'] == '1' and os.environ['PARCTL_ATTEMPT'] < '3': raise ValueError('no')"
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Any], Coordinated]]:
    with coordinated(tmp_path / "run", ("gpu-1", "gpu-2")) as make:
        yield make


def test_ranks_start_again_in_the_same_pods_and_failures_are_counted(
    run: Callable[[Any], Coordinated],
) -> None:
    job = run(script(FAILS_TWICE, SPEC, retries=3))
    job.start()
    job.pods.start_all()
    assert job.pods.codes() == [0, 0]
    job.join()
    assert job.state is State.SUCCEEDED
    last = job.reports[-1]
    assert (last.attempt, last.restarts) == (3, 2)
    assert [sentence.split(":")[0] for sentence in last.history] == ["attempt 1", "attempt 2"]
    log = job.pods.pods[0].log
    assert [f"[rank 1] attempt {n}" in log for n in (1, 2, 3)] == [True, True, True]


def test_when_the_budget_is_used_up_every_pod_ends_with_the_verdict(
    run: Callable[[Any], Coordinated],
) -> None:
    job = run(script(FAILS_TWICE, SPEC, retries=1))
    job.start()
    job.pods.start_all()
    assert job.pods.codes() == [1, 1]
    job.join()
    assert job.state is State.FAILED
    assert job.reports[-1].restarts == 1
    assert "ValueError: no" in job.pods.pods[1].last_words["verdict"]["sentence"]


def test_a_lost_pod_is_waited_for_and_not_counted_when_the_cluster_took_it(
    run: Callable[[Any], Coordinated],
) -> None:
    once = f"import os\nif os.environ['PARCTL_ATTEMPT'] == '2': raise SystemExit(0)\n{WAITS}"
    job = run(script(once, SPEC, retries=0))
    job.start()
    job.pods.start_all()
    job.pods.wait_for("waiting", index=1)
    job.taken[f"{RUN}-1"] = "was evicted"
    for member in processes_with({"PARCTL_POD": f"{RUN}-1"}):
        member.signal(signal.SIGKILL)
    job.wait_for(lambda report: "missing: 1" in (report.reason or "") and report.attempt == 1)
    job.pods.start(1)
    assert job.pods.pods[0].wait() == 0 and job.pods.pods[1].wait() == 0
    job.join()
    assert job.state is State.SUCCEEDED
    assert job.reports[-1].restarts == 0
    assert job.reports[-1].history == (f"attempt 1: not counted, pod {RUN}-1 was evicted",)


def test_a_pod_that_is_told_to_end_saves_and_leaves_while_the_other_stays(
    run: Callable[[Any], Coordinated],
) -> None:
    once = f"import os\nif os.environ['PARCTL_ATTEMPT'] == '2': raise SystemExit(0)\n{WAITS}"
    job = run(script(once, SPEC, retries=0))
    job.start()
    job.pods.start_all()
    for index in (0, 1):
        job.pods.wait_for("waiting", index=index)
    job.pods.pods[1].process.send_signal(signal.SIGTERM)
    assert job.pods.pods[1].wait() == 143
    job.pods.start(1)
    assert job.pods.pods[0].wait() == 0 and job.pods.pods[1].wait() == 0
    job.join()
    assert job.state is State.SUCCEEDED and job.reports[-1].restarts == 0


def test_a_new_coordinator_goes_on_where_the_one_before_it_was(
    run: Callable[[Any], Coordinated],
) -> None:
    once = f"import os\nif os.environ['PARCTL_ATTEMPT'] == '2': raise SystemExit(0)\n{WAITS}"
    job = run(script(once, SPEC, retries=0))
    job.start()
    job.pods.start_all()
    for index in (0, 1):
        job.pods.wait_for("waiting", index=index)
    job.stop = True  # as SIGTERM does
    job.pods.pods[0].process.poll()
    _sever(job)
    job.join()
    earlier = job.reports[-1]
    assert earlier.attempt == 1
    job.start(earlier)
    assert job.pods.codes() == [0, 0]
    job.join()
    assert job.state is State.SUCCEEDED
    assert job.reports[-1].attempt == 2
    assert "the coordinator was replaced in attempt 1" in job.reports[-1].history


def test_ranks_that_end_while_nobody_leads_are_run_again_by_the_next_one(
    run: Callable[[Any], Coordinated],
) -> None:
    job = run(script("import time; time.sleep(2)", SPEC, retries=0))
    job.start()
    job.pods.start_all()
    job.wait_for(lambda report: report.state is State.RUNNING)
    agents = [pod.process for pod in job.pods.pods.values()]
    for agent in agents:
        agent.send_signal(signal.SIGSTOP)  # what the ranks' end makes of them waits with them
    while processes_with({"TORCHELASTIC_RUN_ID": RUN}):
        time.sleep(0.05)
    job.stop = True
    job.join()  # it has not heard from anybody for too long

    job.start(job.reports[-1])
    for agent in agents:
        agent.send_signal(signal.SIGCONT)

    assert job.pods.codes() == [0, 0]
    job.join()
    assert job.state is State.SUCCEEDED and job.reports[-1].attempt == 2


def _sever(job: Coordinated) -> None:
    """End the attempt under way the way the death of a coordinator does: ranks are told to stop."""
    for member in processes_with({"PARCTL_RUN_ID": RUN, "RANK": "0"}):
        member.signal(signal.SIGTERM)

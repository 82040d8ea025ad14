"""Pods find each other in any order, run the ranks of the layout, and leave with the right code."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.cases import TARGET, plan_of
from tests.launcher.kubernetes.pods import Pods

from parctl.launcher.kubernetes.report import last_report, metrics_rows
from parctl.launcher.processes import processes_with
from parctl.recipes.kubernetes_spec import KubernetesSpec

SAYS = "import os; e = os.environ; print('I am', e['RANK'], e['LOCAL_RANK'], e['PARCTL_NODE'])"
MEETS = """
import os, time, torch.distributed as dist
dist.init_process_group("gloo")
import torch
x = torch.tensor([int(os.environ["RANK"])])
dist.all_reduce(x)
print("sum", x.item())
dist.destroy_process_group()  # gloo aborts a rank that leaves later than its peers
"""
WAITS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("waiting", flush=True)
time.sleep(600)
"""


def script(program: str, spec: KubernetesSpec | None = None, **choices: Any) -> Any:
    plan = plan_of(spec or KubernetesSpec(kind="job", gather_timeout_s=30.0), **choices)
    assert plan.recipe.script
    command = (sys.executable, "-c", program)
    return replace(
        plan, recipe=replace(plan.recipe, script=replace(plan.recipe.script, command=command))
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    made: list[Pods] = []

    def start(plan: Any, nodes: Sequence[str] = ("gpu-1", "gpu-2")) -> Pods:
        pods = Pods(plan=plan, folder=tmp_path / str(len(made)), nodes=nodes, target=TARGET)
        made.append(pods)
        return pods

    yield start
    for pods in made:
        pods.end()
    deadline = time.monotonic() + 30
    while left := processes_with({"PARCTL_RUN_ID": "probe-run"}):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_are_where_the_layout_says_whoever_comes_first(
    start: Any, order: Sequence[int]
) -> None:
    pods = start(script(SAYS))
    pods.start(order[0])
    time.sleep(0.5)
    pods.start(order[1])
    assert pods.codes() == [0, 0]
    first, second = pods.pods[0].log, pods.pods[1].log
    assert "[rank 0] I am 0 0 gpu-1" in first and "[rank 1] I am 1 1 gpu-1" in first
    assert "[rank 2] I am 2 0 gpu-2" in second and "[rank 3] I am 3 1 gpu-2" in second
    report = last_report(first.splitlines())
    assert report is not None and report.state == "Succeeded" and report.attempt == 1
    assert [(rank.rank, rank.node, rank.state) for rank in report.ranks] == [
        (0, "gpu-1", "exited 0"),
        (1, "gpu-1", "exited 0"),
        (2, "gpu-2", "exited 0"),
        (3, "gpu-2", "exited 0"),
    ]


def test_the_index_of_a_pod_decides_nothing_its_node_does(start: Any) -> None:
    pods = start(script(SAYS), nodes=("gpu-2", "gpu-1"))
    pods.start_all()
    assert pods.codes() == [0, 0]
    assert "[rank 2] I am 2 0 gpu-2" in pods.pods[0].log
    assert "[rank 0] I am 0 0 gpu-1" in pods.pods[1].log


def test_nodes_that_were_not_planned_are_laid_out_anew_and_said(start: Any) -> None:
    pods = start(script(SAYS), nodes=("gpu-9", "gpu-7"))
    pods.start_all()
    assert pods.codes() == [0, 0]
    assert "[rank 0] I am 0 0 gpu-7" in pods.pods[1].log
    assert "[rank 2] I am 2 0 gpu-9" in pods.pods[0].log
    assert "there, but not planned: gpu-7, gpu-9" in pods.pods[0].log


def test_ranks_meet_over_the_address_of_the_pod(start: Any) -> None:
    pods = start(script(MEETS))
    pods.start_all()
    assert pods.codes() == [0, 0]
    assert "[rank 0] sum 6" in pods.pods[0].log and "[rank 3] sum 6" in pods.pods[1].log


def test_two_pods_on_one_node_are_refused_with_their_names(start: Any) -> None:
    pods = start(script(SAYS), nodes=("gpu-1", "gpu-1"))
    pods.start_all()
    assert pods.codes() == [1, 1]
    verdict = pods.pods[1].last_words["verdict"]
    assert verdict["sentence"].startswith("pods probe-run-0 and probe-run-1 are both on node gpu-1")


def test_every_pod_leaves_with_the_verdict_on_the_rank_that_failed(start: Any) -> None:
    fails = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '2': raise ValueError('no luck')\n"
        "time.sleep(600)"
    )
    pods = start(script(fails))
    pods.start_all()
    assert pods.codes() == [1, 1]
    for pod in pods.pods.values():
        verdict = pod.last_words["verdict"]
        assert verdict["rank"] == 2 and verdict["node"] == "gpu-2"
        assert "ValueError: no luck" in verdict["sentence"]
        assert pod.last_words["state"] == "Failed"


def test_a_killed_rank_is_named_with_its_signal(start: Any) -> None:
    dies = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '3': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(600)"
    )
    pods = start(script(dies))
    pods.start_all()
    assert pods.codes() == [1, 1]
    sentence = pods.pods[0].last_words["verdict"]["sentence"]
    assert sentence.startswith("rank 3 (node gpu-2, dp 3) was killed by SIGKILL")


def test_a_pod_that_is_told_to_end_takes_all_ranks_along_after_a_save(start: Any) -> None:
    pods = start(script(WAITS))
    pods.start_all()
    for index in (0, 1):
        pods.wait_for("waiting", index=index)
    pods.pods[1].process.send_signal(signal.SIGTERM)
    assert pods.codes() == [143, 143]


def test_a_retry_is_said_to_be_one(start: Any) -> None:
    pods = start(script("import os; print('attempt', os.environ['PARCTL_ATTEMPT'])", retries=3))
    pods.start(0, attempts=2)
    pods.start(1, attempts=1)
    assert pods.codes() == [0, 0]
    assert "[rank 0] attempt 3" in pods.pods[0].log
    report = last_report(pods.pods[0].log.splitlines())
    assert report is not None and report.restarts == 2


def test_when_the_leaders_pod_dies_the_others_stop_their_ranks_and_may_be_retried(
    start: Any,
) -> None:
    pods = start(script(WAITS))
    pods.start_all()
    for index in (0, 1):
        pods.wait_for("waiting", index=index)
    for member in processes_with({"PARCTL_POD": "probe-run-0"}):
        member.signal(signal.SIGKILL)
    assert pods.codes() == [-signal.SIGKILL, 75]
    assert pods.pods[1].last_words == "the pod that leads the run is gone"


def test_when_another_pod_dies_the_leader_names_its_node_and_ranks(start: Any) -> None:
    pods = start(script(WAITS))
    pods.start_all()
    for index in (0, 1):
        pods.wait_for("waiting", index=index)
    for member in processes_with({"PARCTL_POD": "probe-run-1"}):
        member.signal(signal.SIGKILL)
    assert pods.pods[0].wait() == 1
    sentence = pods.pods[0].last_words["verdict"]["sentence"]
    assert sentence == "node gpu-2 was lost with ranks 2 to 3: its pod ended"


def test_a_gang_that_stays_incomplete_says_who_is_missing(start: Any) -> None:
    pods = start(script(SAYS, KubernetesSpec(kind="job", gather_timeout_s=1.0)))
    assert pods.start(0).wait() == 1
    verdict = pods.pods[0].last_words["verdict"]
    assert verdict["sentence"] == "1 of 2 pods are up; missing: 1 for 1 s"


def test_a_torn_program_says_so_in_words(start: Any) -> None:
    plan = script(SAYS)
    recipe = replace(plan.recipe, script=replace(plan.recipe.script, command=("no-such-program",)))
    pods = start(replace(plan, recipe=recipe))
    pods.start_all()
    assert pods.codes() == [1, 1]
    assert "no-such-program" in pods.pods[0].last_words["verdict"]["sentence"]


def test_the_value_of_a_secret_is_in_no_message(start: Any) -> None:
    from parctl.recipes.spec import SecretSpec

    prints = "import os; print('key', os.environ['KEY']); raise ValueError(os.environ['KEY'])"
    secrets = {"KEY": SecretSpec(from_env=None, secret="store", key="key")}
    pods = start(script(prints, secrets=secrets))
    for index in (0, 1):
        pods.start(index, KEY="canary-77af")
    assert pods.codes() == [1, 1]
    assert "********" in str(pods.pods[1].last_words)
    for pod in pods.pods.values():
        assert "canary-77af" not in str(pod.last_words)


def test_the_last_report_is_near_the_end_of_a_chatty_log(start: Any) -> None:
    pods = start(script("for i in range(2000): print(i)\nimport time; time.sleep(1)"))
    pods.start_all()
    assert pods.codes() == [0, 0]
    lines = pods.pods[0].log.splitlines()
    marked = [i for i, line in enumerate(lines) if line.startswith("[parctl] report")]
    assert max(b - a for a, b in pairwise(marked)) <= 202
    assert metrics_rows(lines) == ""


def test_no_process_outlives_its_pod(start: Any) -> None:
    leaves = "import subprocess, sys; subprocess.Popen(['sleep', '600'])"
    pods = start(script(leaves))
    pods.start_all()
    assert pods.codes() == [0, 0]
    assert not processes_with({"PARCTL_RUN_ID": "probe-run"})
    assert os.getpid()

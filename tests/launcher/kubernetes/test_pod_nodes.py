"""Pods try their nodes before the job takes them, and a job goes on with those that are left."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.kubernetes.cases import TARGET, plan_of
from tests.launcher.kubernetes.coordinated import Coordinated, coordinated
from tests.launcher.kubernetes.pods import RUN, Pods
from tests.launcher.kubernetes.test_pod import SAYS, script

from parctl.errors import UsageError
from parctl.launcher.backend import State
from parctl.launcher.kubernetes.binding import Place, bind_fewer
from parctl.launcher.kubernetes.render import render
from parctl.launcher.processes import processes_with
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec, VolumeSpec
from parctl.recipes.loader import load_recipe
from parctl.topology.discover import discover

TRIED = KubernetesSpec(kind="job", gather_timeout_s=60.0, preflight=True)
BROKEN = "raise RuntimeError('no such device')"


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(plan=script(SAYS, TRIED), folder=tmp_path, nodes=("gpu-1", "gpu-2"), target=TARGET)
    yield made
    made.end()


def test_sound_nodes_run_the_job_after_they_were_tried(pods: Pods) -> None:
    pods.start_all()

    assert pods.codes() == [0, 0]
    log = pods.pods[0].log
    assert log.index("preflight of gpu-1, gpu-2") < log.index("[rank 0] I am 0 0 gpu-1")


def test_a_bad_node_is_named_and_the_job_does_not_start(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(BROKEN)
    pods.start(0)
    pods.start(1, PYTHONPATH=str(tmp_path / "broken"))

    assert pods.codes() == [1, 1]
    verdict = pods.pods[0].last_words["verdict"]
    assert verdict["sentence"].startswith("gpu-2 is bad: rank ")
    assert "no such device" in verdict["sentence"]
    assert verdict["fix"] == "repair it, or do without: `placement.exclude: [gpu-2]`"
    assert "I am" not in pods.pods[0].log


def training(folder: Path, spec: KubernetesSpec) -> Plan:
    """Two nodes with a replica each, saving into a folder that both see."""
    changes = {
        "parallelism": "DP2",
        "train.steps": 150,
        "train.seq_len": 32,
        "train.global_batch": 8,
        "train.micro_batch": 2,
        "train.validate_every": 0,
        "train.log_every": 1,
        "checkpoint.every": 10,
        "checkpoint.dir": folder,
    }
    recipe = load_recipe("tiny-llama", [f"{key}={value}" for key, value in changes.items()])
    volume = VolumeSpec(
        mount=str(folder),
        claim=None,
        host_path=str(folder),
        config_map=None,
        secret=None,
        empty=None,
        read_only=False,
        sub_path=None,
    )
    launch = replace(
        recipe.launch,
        backend="kubernetes",
        kubernetes=replace(spec, volumes={"shared": volume}),
    )
    return make_plan(replace(recipe, launch=launch), discover("cpu:2x1"), backend="kubernetes")


COORDINATED = KubernetesSpec(
    kind="job", recovery="coordinator", gather_timeout_s=60.0, min_nodes=1, rejoin_s=1.0
)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[[Plan], Coordinated]]:
    with coordinated(tmp_path / "run", ("node-0", "node-1")) as make:
        yield make


def test_training_goes_on_with_the_pods_that_are_left(
    job: Callable[[Plan], Coordinated], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    run = job(training(saved, COORDINATED))
    run.start()
    run.pods.start_all()
    run.wait_for(lambda report: (report.step or 0) >= 12)
    run.taken[f"{RUN}-1"] = "was on a node that does not answer"

    for member in processes_with({"PARCTL_POD": f"{RUN}-1"}):
        member.signal(signal.SIGKILL)
    run.join()

    assert run.state is State.SUCCEEDED
    assert run.pods.pods[0].wait() == 0
    last = run.reports[-1]
    assert [rank.node for rank in last.ranks] == ["node-0"]
    assert (last.attempt, last.restarts) == (2, 0)
    assert "resumed" in run.pods.pods[0].log or "step-000000" in run.pods.pods[0].log


def places(*nodes: str) -> list[Place]:
    return [Place(pod=f"pod-{node}", node=node, hardware=None) for node in nodes]


def test_less_data_parallelism_never_goes_below_the_limit(tmp_path: Path) -> None:
    plan = training(tmp_path, COORDINATED)

    found = bind_fewer(plan, places("node-1"), None, min_nodes=1)

    assert found is not None
    smaller, (sentence,) = found
    assert [slot.node for slot in smaller.layout.slots] == ["node-1"]
    assert sentence == "going on with dp 1 in place of 2: 1 nodes are there, 2 were planned"
    assert bind_fewer(plan, places("node-1"), None, min_nodes=2) is None
    assert bind_fewer(plan, [], None, min_nodes=1) is None


def test_fewer_nodes_need_somebody_who_decides() -> None:
    with pytest.raises(UsageError, match="min_nodes = 1, and recovery is native"):
        render(plan_of(KubernetesSpec(kind="job", min_nodes=1)), "a-run", TARGET)


def test_pods_that_never_came_do_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    workload: Any = render(training(tmp_path, COORDINATED), "a-run", TARGET).documents[-1]

    assert workload["spec"]["successPolicy"] == {"rules": [{"succeededCount": 1}]}

"""Ranks sit where the plan says, by Ray's own word."""

import os
import sys
from pathlib import Path

import pytest
from tests.launcher.ray.cluster import RayCluster
from tests.launcher.ray.runs import (
    SMALL_NODES,
    agents,
    ancestry,
    ended,
    environment,
    in_state,
    launch,
    processes,
    script,
    until,
    waiting_group,
)

from parctl.launcher.backend import State
from parctl.launcher.ray.agents import INLINE_BYTES
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.run_id import new_run_id
from parctl.planner.plan import Plan

SLEEP = ["/bin/sleep", "300"]
MATRIX = "PARCTL_MATRIX" in os.environ


def assert_exact(plan: Plan, cluster: RayCluster, backend: RayBackend, run_id: str) -> None:
    """Every rank is below the agent that Ray has on its node, with its GPUs in the plan's order."""
    assert_below_its_agent(cluster, backend, run_id)
    status = backend.status(run_id)
    masks = {
        node: ",".join(
            str(slot.gpu)
            for slot in sorted(plan.layout.slots, key=lambda slot: slot.local_rank)
            if slot.node == node
        )
        for node in plan.topology["nodes"]
    }
    assert [rank.rank for rank in status.ranks] == list(range(len(plan.layout.ranks)))
    for rank, slot in zip(status.ranks, plan.layout.slots, strict=True):
        assert rank.pid is not None
        assert rank.node == slot.node
        given = environment(rank.pid)
        assert given["RANK"] == str(slot.rank)
        assert given["LOCAL_RANK"] == str(slot.local_rank)
        assert given["CUDA_VISIBLE_DEVICES"] == masks[slot.node]


def assert_below_its_agent(cluster: RayCluster, backend: RayBackend, run_id: str) -> None:
    """Ray's state API has an agent on the node that `status` names, and the rank is below it."""
    node_of_agent = agents(backend, run_id)
    for rank in backend.status(run_id).ranks:
        assert rank.pid is not None
        (agent,) = [pid for pid in ancestry(rank.pid) if pid in node_of_agent]
        assert node_of_agent[agent] == cluster.nodes[rank.node]["id"], rank


@pytest.mark.parametrize("number", range(20 if MATRIX else 1))
def test_32_ranks_are_exactly_where_the_plan_says(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, number: int
) -> None:
    run_id = f"exact-{number}"
    plan = launch(script(tmp_path, SLEEP, {"dp": 4, "tp": 8}), run_id=run_id)
    in_state(backend, run_id, State.RUNNING)
    assert_exact(plan, cluster, backend, run_id)
    backend.cancel(run_id)

    assert backend.status(run_id).state is State.CANCELLED
    assert processes(run_id) == []


def test_a_script_is_given_torchruns_variables(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path
) -> None:
    show = [
        sys.executable,
        "-S",
        "-c",
        "import os; print(*(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', "
        "'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'GROUP_WORLD_SIZE', 'PARCTL_NODE')), "
        "len(os.environ['LONG_3']))",
    ]
    # what is this long goes to the agents as an object of Ray's
    long = {f"LONG_{number}": "x" * (INLINE_BYTES // 4) for number in range(4)}
    source = script(tmp_path, show, {"dp": 2, "tp": 2}, env=long)
    launch(source, SMALL_NODES, run_id="env-1")

    assert ended(backend, "env-1").state is State.SUCCEEDED
    lines = backend.logs("env-1", rank=None, since=None, tail=None, follow=False)
    said = sorted(line.text for line in lines if line.rank is not None)
    assert said == [
        "0 4 0 2 0 2 pair-0 25000",
        "1 4 1 2 0 2 pair-0 25000",
        "2 4 0 2 1 2 pair-1 25000",
        "3 4 1 2 1 2 pair-1 25000",
    ]


def test_a_working_directory_is_there_on_every_node(backend: RayBackend, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "word.py").write_text("WORD = 'found'")
    (code / "show.py").write_text(
        "import os, word\nimport parctl\nprint(word.WORD, os.environ['PARCTL_NODE'])"
    )
    (code / "run.sh").write_text("#!/bin/sh\nexec python3 show.py")
    (code / "run.sh").chmod(0o755)
    source = script(tmp_path, ["./run.sh"], {"dp": 2, "tp": 2}, workdir=str(code))
    launch(source, SMALL_NODES, run_id="code-1")

    assert ended(backend, "code-1").state is State.SUCCEEDED
    lines = backend.logs("code-1", rank=None, since=None, tail=None, follow=False)
    said = sorted(line.text for line in lines if line.rank is not None)
    assert said == ["found pair-0"] * 2 + ["found pair-1"] * 2


@pytest.mark.parametrize("number", range(20 if MATRIX else 2))
def test_ranks_are_exact_beside_another_job_and_on_fragmented_nodes(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, number: int
) -> None:
    # a job that holds three GPUs of node-1 and three of node-2
    beside = new_run_id("beside")
    only = "placement.exclude=[node-0,node-3,pair-0,pair-1]"
    launch(script(tmp_path, SLEEP, {"dp": 3}), f"{only[:-1]},node-2]", run_id=beside)
    in_state(backend, beside, State.RUNNING)

    # whole nodes: the plan's node-1 is not free, so the job goes to one that is
    moved = new_run_id("moved")
    plan = launch(script(tmp_path, SLEEP, {"dp": 3, "tp": 8}), run_id=moved)
    assert plan.topology["nodes"] == ["node-0", "node-1", "node-2"]
    status = in_state(backend, moved, State.RUNNING)
    nodes = [rank.node for rank in status.ranks]
    assert nodes == ["node-0"] * 8 + ["node-2"] * 8 + ["node-3"] * 8
    assert_below_its_agent(cluster, backend, moved)
    masks = {environment(rank.pid or 0)["CUDA_VISIBLE_DEVICES"] for rank in status.ranks}
    assert masks == {"0,1,2,3,4,5,6,7"}
    backend.cancel(moved, grace_s=0)

    # part of a node: Ray chooses the GPUs, the layout follows
    part = new_run_id("part")
    launch(script(tmp_path, SLEEP, {"tp": 4}), f"{only[:-1]},node-2]", run_id=part)
    status = in_state(backend, part, State.RUNNING)
    assert {rank.node for rank in status.ranks} == {"node-1"}
    assert_below_its_agent(cluster, backend, part)
    (given,) = {environment(rank.pid or 0)["CUDA_VISIBLE_DEVICES"] for rank in status.ranks}
    (taken,) = {
        environment(rank.pid or 0)["CUDA_VISIBLE_DEVICES"] for rank in backend.status(beside).ranks
    }
    assert len(given.split(",")) == 4
    assert not set(given.split(",")) & set(taken.split(","))


def test_nodes_that_do_not_exist_yet_are_asked_for_and_bound_when_they_come(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path
) -> None:
    run_id = new_run_id("grow")
    # larger than any node that is there: only an autoscaler could make such ones
    plan = launch(
        script(tmp_path, SLEEP, {"dp": 2, "tp": 10}), run_id=run_id, planned_for="a100-40g:2x10"
    )
    until(lambda: "10 GPUs are needed and it has 8" in backend.why(run_id).sentence)
    until(lambda: waiting_group(f"parctl-{run_id}-open") == [{"CPU": 1.0, "GPU": 10.0}] * 2)
    try:
        for name in ("new-x", "new-y"):
            cluster.add(name, num_gpus=10, num_cpus=4)
        status = in_state(backend, run_id, State.RUNNING)

        assert plan.topology["nodes"] == ["node-0", "node-1"]
        assert [rank.node for rank in status.ranks] == ["new-x"] * 10 + ["new-y"] * 10
        assert waiting_group(f"parctl-{run_id}-open") is None
        backend.cancel(run_id, grace_s=0)
    finally:
        for name in ("new-x", "new-y"):
            cluster.forget(name)

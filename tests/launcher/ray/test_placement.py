"""Ranks sit where the plan says, by Ray's own word."""

import sys
from pathlib import Path

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
)

from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend
from parctl.planner.plan import Plan

SLEEP = ["/bin/sleep", "300"]


def assert_exact(plan: Plan, cluster: RayCluster, backend: RayBackend, run_id: str) -> None:
    """Every rank is below the agent that Ray has on its node, with its GPUs in the plan's order."""
    status = backend.status(run_id)
    node_of_agent = agents(backend, run_id)
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
        (agent,) = [pid for pid in ancestry(rank.pid) if pid in node_of_agent]
        assert node_of_agent[agent] == cluster.nodes[slot.node]["id"], slot
        given = environment(rank.pid)
        assert given["RANK"] == str(slot.rank)
        assert given["LOCAL_RANK"] == str(slot.local_rank)
        assert given["CUDA_VISIBLE_DEVICES"] == masks[slot.node]


def test_32_ranks_are_exactly_where_the_plan_says(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path
) -> None:
    plan = launch(script(tmp_path, SLEEP, {"dp": 4, "tp": 8}), run_id="exact-1")
    in_state(backend, "exact-1", State.RUNNING)
    assert_exact(plan, cluster, backend, "exact-1")
    backend.cancel("exact-1")

    assert backend.status("exact-1").state is State.CANCELLED
    until(lambda: not processes("exact-1"), seconds=10)


def test_a_script_is_given_torchruns_variables(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path
) -> None:
    show = [
        sys.executable,
        "-S",
        "-c",
        "import os; print(*(os.environ[k] for k in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', "
        "'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'GROUP_WORLD_SIZE', 'PARCTL_NODE')))",
    ]
    source = script(tmp_path, show, {"dp": 2, "tp": 2})
    launch(source, SMALL_NODES, run_id="env-1")

    assert ended(backend, "env-1").state is State.SUCCEEDED
    lines = backend.logs("env-1", rank=None, since=None, tail=None, follow=False)
    said = sorted(line.text for line in lines if line.rank is not None)
    assert said == [
        "0 4 0 2 0 2 pair-0",
        "1 4 1 2 0 2 pair-0",
        "2 4 0 2 1 2 pair-1",
        "3 4 1 2 1 2 pair-1",
    ]

"""Nothing of a cluster stays on the machine, however the one who made it ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cluster import cluster as clusters
from tests.cluster.cluster import Cluster, machine_of, remove_abandoned, up
from tests.cluster.node import NodeSpec
from tests.cluster.pods import pod, python

pytestmark = pytest.mark.cluster
ONE_NODE = (NodeSpec(name="only", index=1, gpus=2),)


@pytest.mark.usefixtures("session_cluster")
def test_down_leaves_no_process_mount_cgroup_or_namespace() -> None:
    made = up("leftovers", ONE_NODE)
    machine = made.machine
    try:
        with made.inside(), made.namespace() as namespace:
            sleeper = pod("sleeper", python("import time", "time.sleep(600)"))
            made.api.apply(sleeper, namespace=namespace)
            made.api.wait("Pod", "sleeper", lambda found: found["status"].get("podIP"), namespace)
            there = machine.remains()
    finally:
        made.api.close()
        machine.remove()

    assert {line.split()[0] for line in there} == {
        "process",
        "mount",
        "cgroup",
        "network",
        "folder",
    }
    assert machine.remains() == []


def test_what_a_killed_session_leaves_is_removed_by_the_next(session_cluster: Cluster) -> None:
    held = session_cluster.machine.name
    source = (
        "from tests.cluster.cluster import session\nwith session() as made: print(made, input())"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 120
        while not (others := not_kept() - {held}) or not any(
            machine_of(name).alive("gpu-3-kubelet") for name in others
        ):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    orphans = [machine_of(name) for name in others]
    assert any(machine.remains() for machine in orphans)

    remove_abandoned()

    assert [machine.remains() for machine in orphans] == [[] for _ in orphans]
    assert session_cluster.machine.alive("kube-apiserver")


def not_kept() -> set[str]:
    return {name for name in clusters.names() if not clusters.kept(name)}

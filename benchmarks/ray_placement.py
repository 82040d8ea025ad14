"""Where Ray's own packing puts the ranks that parctl keeps together, and what placing costs.

First, how many tensor parallel groups of eight ranks lie on one node each, for parctl and for a
placement group of one bundle per rank, on four nodes of eight GPUs: empty, and with a job beside
that holds three of them. Then, for as many fake nodes as the machine holds, how long it takes to
submit a run, and until one rank runs on every node.

    python -m benchmarks.ray_placement [--nodes 4 8 16]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ray_launch import job, settle, wait_for
from tests.launcher.ray.cluster import start_cluster

if TYPE_CHECKING:
    from parctl.launcher.ray.backend import RayBackend

# as a launcher with an actor per rank asks for its places
PACK = """\
import json, os
import ray
from ray.util.placement_group import placement_group, placement_group_table

ray.init()
group = placement_group([{{"GPU": 1}}] * {ranks}, strategy="PACK")
ray.get(group.ready())
nodes = placement_group_table(group)["bundles_to_node_id"]
with open("{folder}/nodes.part", "w") as file:
    json.dump([nodes[index] for index in range({ranks})], file)
os.rename("{folder}/nodes.part", "{folder}/nodes")
"""
GROUP = 8  # ranks of a tensor parallel group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[4, 8, 16])
    options = parser.parse_args()
    with start_nodes(4, gpus=GROUP):
        _count_groups()
    for nodes in options.nodes:
        with start_nodes(nodes, gpus=1):
            submitted, running = _place_everywhere(nodes)
        print(f"{nodes:>5} nodes: submitted in {submitted:.1f} s, all ranks after {running:.1f} s")


@contextmanager
def start_nodes(nodes: int, *, gpus: int) -> Iterator[None]:
    """Start a cluster of so many nodes, and point the environment to it."""
    resources = {"num_gpus": gpus, "num_cpus": gpus}
    cluster = start_cluster({f"node-{n}": resources for n in range(nodes)})
    try:
        os.environ.update(cluster.environment)
        yield
    finally:
        cluster.close()


def _count_groups() -> None:
    """How many groups of consecutive ranks lie on one node each."""
    print(f"{'groups of 8 on one node':<26}{'parctl':>10}{'PACK':>10}")
    for beside, groups in ((0, 4), (3, 3)):
        with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
            folder = Path(name)
            if beside:
                _launch_sleep(folder, "beside-1", {"dp": beside})
            _launch_sleep(folder, "groups-1", {"dp": groups, "tp": GROUP})
            ours = [rank.node for rank in _backend().status("groups-1").ranks]
            _remove("groups-1")
            (folder / "pack.py").write_text(PACK.format(ranks=groups * GROUP, folder=folder))
            # the second: without it `ray` shows no token
            environment = {**os.environ, "RAY_AUTH_MODE": "token"}
            subprocess.run(
                job(folder / "pack.py"), check=True, capture_output=True, env=environment
            )
            packed = json.loads(wait_for(folder / "nodes"))
            if beside:
                _remove("beside-1")
        case = f"{groups} on 4 nodes" + (f", {beside} GPUs taken" if beside else "")
        print(f"{case:<26}{_whole(ours):>10}{_whole(packed):>10}")
        settle()


def _whole(nodes: Sequence[str]) -> str:
    groups = [set(nodes[first : first + GROUP]) for first in range(0, len(nodes), GROUP)]
    return f"{sum(len(group) == 1 for group in groups)} of {len(groups)}"


def _place_everywhere(nodes: int) -> tuple[float, float]:
    """One rank on each of many nodes: the client's part, and until all of them run."""
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        began = time.monotonic()
        submitted = _launch_sleep(Path(name), "many-1", {"dp": nodes}) - began
        running = time.monotonic() - began
    _remove("many-1")
    return submitted, running


def _launch_sleep(folder: Path, run_id: str, axes: Mapping[str, int]) -> float:
    """Launch ranks that sleep, and wait until all run; returns when they were submitted."""
    from parctl.launcher.backend import State
    from parctl.launcher.launch import prepared_launch

    recipe = folder / f"{run_id}.yaml"
    recipe.write_text(
        f"version: 1\nname: sleep\ntask: script\nparallelism: {json.dumps(axes)}\n"
        "script: {command: [/bin/sleep, '600']}\n"
    )
    with prepared_launch(
        str(recipe),
        overrides=[],
        num_devices=None,
        backend="ray",
        run_id=run_id,
        force=False,
        ahead=True,
    ) as prepared:
        prepared.backend.submit(prepared.manifests)
    submitted = time.monotonic()
    while (status := _backend().status(run_id)).state is not State.RUNNING:
        if status.state.ended:
            raise RuntimeError(f"{run_id} is {status.state}: {status.verdict}")
        time.sleep(0.1)
    return submitted


def _backend() -> "RayBackend":
    from parctl.launcher.ray.backend import RayBackend

    return RayBackend()


def _remove(run_id: str) -> None:
    _backend().cancel(run_id, grace_s=0)
    _backend().delete(run_id)


if __name__ == "__main__":
    main()

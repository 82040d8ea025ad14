"""What a launch on Ray costs until the first collective, beside Ray Train v2 and an actor per rank.

Every side gets the same warm cluster of two nodes with four fake GPUs each, started here, and is
timed from the command to the end of the first all-reduce of the last of its eight ranks. All go
through Ray's job table, as a user's would. parctl is there twice: with a script, whose ranks import
torch one by one as the others' do, and with its own runtime, whose ranks are forked from one
process per node that has; there the mark is the line that rank 0 writes once the model is built,
which is later than the first all-reduce. `moved` counts ranks that did not sit where RANK says they
should: 0 to 3 on one node, 4 to 7 on another, each on the GPU of its local rank.

Then, with `--nodes`, how long it takes to submit a run, and to place one rank on every node of so
many fake nodes.

    python -m benchmarks.ray_launch [--rounds 3] [--nodes 4 8 16]

Goal: at most half of the best of the others. Ray runs in the peers' environment, which `make bench`
installs; without it Ray Train fails for want of pandas.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.launcher.ray.cluster import RayCluster, start_cluster

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"  # has what Ray Train wants, and no parctl
RANKS = 8
TIMEOUT_S = 300.0
# what every rank does, whoever started it
RANK = """\
import json, os, time
import torch, torch.distributed as dist
if not dist.is_initialized():
    dist.init_process_group("gloo")
value = torch.ones(1)
dist.all_reduce(value)
now = time.time()
assert value.item() == {ranks}
mask = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
fact = {{"time": now, "rank": dist.get_rank(), "node": node, "gpu": gpu(mask)}}
path = f"{folder}/rank-{{dist.get_rank()}}"
with open(path + ".part", "w") as file:
    json.dump(fact, file)
os.rename(path + ".part", path)
"""
PARCTL = """\
import os
node = os.environ["PARCTL_NODE"]
gpu = lambda mask: mask[int(os.environ["LOCAL_RANK"])]
"""
TRAIN = """\
import ray, ray.train
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

def rank(config):
    import torch.distributed as dist
    node = ray.get_runtime_context().get_node_id()
    gpu = lambda mask: ray.get_gpu_ids()[0]
    exec({rank!r}, {{"node": node, "gpu": gpu}})

TorchTrainer(
    rank,
    scaling_config=ScalingConfig(num_workers={ranks}, use_gpu=True),
    torch_config=TorchConfig(backend="gloo"),
    run_config=ray.train.RunConfig(storage_path="{folder}"),
).fit()
"""
ACTORS = """\
import os, socket
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

@ray.remote(num_gpus=1, num_cpus=0)
class Rank:
    def port(self):
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]
    def run(self, rank, address, port):
        os.environ.update(
            RANK=str(rank), WORLD_SIZE="{ranks}", MASTER_ADDR=address, MASTER_PORT=str(port)
        )
        node = ray.get_runtime_context().get_node_id()
        exec({rank!r}, {{"node": node, "gpu": lambda mask: ray.get_gpu_ids()[0]}})

ray.init()
group = placement_group([{{"GPU": 1}}] * {ranks}, strategy="PACK")
ray.get(group.ready())
ranks = [
    Rank.options(
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=index
        )
    ).remote()
    for index in range({ranks})
]
address, port = ray.get(ranks[0].port.remote())
ray.get([actor.run.remote(rank, address, port) for rank, actor in enumerate(ranks)])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    seconds: float
    moved: int | None  # ranks that are not where they should be; None: not looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    options = parser.parse_args()
    python = str(PEERS) if PEERS.exists() else sys.executable
    nodes = {f"node-{n}": {"num_gpus": 4, "num_cpus": 4} for n in range(2)}
    cluster = start_cluster(nodes, python=python)
    try:
        os.environ.update(cluster.environment)
        _compare(options.rounds)
    finally:
        cluster.close()
    for nodes in options.nodes:
        _scale(nodes)


def _compare(rounds: int) -> None:
    sides: Mapping[str, Callable[[], Measured]] = {
        "parctl": _measure_runtime,
        "parctl, a script": lambda: _measure(_parctl),
        "Ray Train v2": lambda: _measure(_train),
        "an actor per rank": lambda: _measure(_actors),
    }
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    for number in range(rounds + 1):  # the first one warms every side up
        for name, side in sides.items():
            if name in failed:
                continue
            try:
                measured = side()
            except RuntimeError as error:
                failed[name] = str(error)
                continue
            print(f"round {number} {name} {measured.seconds:.1f} s", file=sys.stderr, flush=True)
            if number:
                found[name].append(measured)
    print(f"{'side':<20}{'first collective s':>20}{'moved ranks':>14}{'ratio':>8}")
    times = {name: median(m.seconds for m in values) for name, values in found.items() if values}
    for name, values in found.items():
        if name in failed:
            print(f"{name:<20}{'failed':>20}  {failed[name]}")
            continue
        moved = ", ".join("-" if m.moved is None else str(m.moved) for m in values)
        ratio = "" if name == "parctl" else f"{times['parctl'] / times[name]:.2f}"
        print(f"{name:<20}{times[name]:>20.1f}{moved:>14}{ratio:>8}")


def _measure(side: Callable[[Path], Sequence[str]]) -> Measured:
    """Launch once, wait for all ranks' marks, and clean up."""
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        folder = Path(name)
        command = side(folder)
        began = time.time()
        launcher = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # the second: without it `ray` shows no token
            env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), "RAY_AUTH_MODE": "token"},
        )
        said, _ = launcher.communicate(timeout=TIMEOUT_S)
        if launcher.returncode:
            raise RuntimeError(said.strip().splitlines()[-1][:200])
        facts = [json.loads(_wait_for(folder / f"rank-{rank}")) for rank in range(RANKS)]
    first = facts[0]["node"], facts[4]["node"]
    moved = sum(
        fact["node"] != first[rank // 4] or int(fact["gpu"]) != rank % 4
        for rank, fact in enumerate(facts)
    )
    _settle()
    return Measured(seconds=max(fact["time"] for fact in facts) - began, moved=moved)


def _measure_runtime() -> Measured:
    """Launch the bundled runtime, and cancel it once its model is built."""
    from parctl.launcher.launch import prepared_launch
    from parctl.launcher.run_id import new_run_id

    run_id = new_run_id("bench")
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        began = time.time()
        with prepared_launch(
            "tiny-llama",
            overrides=[
                "parallelism=TP4+SP+FSDP2",
                "train.steps=100000",
                f"checkpoint.dir={name}/saved",
            ],
            num_devices=None,
            backend="ray",
            run_id=run_id,
            force=False,
            ahead=True,
        ) as prepared:
            backend = prepared.backend
            backend.submit(prepared.manifests)
        lines = backend.logs(run_id, rank=0, since=None, tail=None, follow=True)
        if not next(lines).text.startswith("training tiny-llama"):
            raise RuntimeError("rank 0 begins with another line")
        seconds = time.time() - began
        backend.cancel(run_id, grace_s=0)
    _settle()
    return Measured(seconds=seconds, moved=None)


def _parctl(folder: Path) -> Sequence[str]:
    (folder / "rank.py").write_text(PARCTL + RANK.format(ranks=RANKS, folder=folder))
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: bench\ntask: script\nparallelism: {dp: 2, tp: 4}\n"
        f"script: {{command: [python3, {folder}/rank.py]}}\n"
    )
    return [sys.executable, "-m", "parctl", "launch", f"{folder}/recipe.yaml", "-b", "ray"]


def _train(folder: Path) -> Sequence[str]:
    rank = RANK.format(ranks=RANKS, folder=folder)
    (folder / "train.py").write_text(TRAIN.format(rank=rank, ranks=RANKS, folder=folder))
    return _job(folder / "train.py")


def _actors(folder: Path) -> Sequence[str]:
    rank = RANK.format(ranks=RANKS, folder=folder)
    (folder / "actors.py").write_text(ACTORS.format(rank=rank, ranks=RANKS))
    return _job(folder / "actors.py")


def _job(program: Path) -> Sequence[str]:
    """Submit a program as `ray job submit` would."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
        *("--address", os.environ["PARCTL_ADDRESS"], "--no-wait"),
        *("--", "python3", str(program)),
    ]


def _wait_for(path: Path) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} did not come")
        time.sleep(0.02)
    return path.read_text()


def _settle() -> None:
    """Wait until no job runs, so that the next side has the cluster to itself."""
    from parctl.launcher.ray.jobs import list_jobs
    from parctl.topology.sources.ray_dashboard import find_dashboard

    dashboard = find_dashboard(os.environ["PARCTL_ADDRESS"])
    deadline = time.monotonic() + TIMEOUT_S
    while not all(job.ended for job in list_jobs(dashboard)) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)  # workers that ended with it


def _scale(nodes: int) -> None:
    """One rank on each of many nodes: the client's part, and until all of them run."""
    cluster = start_cluster({f"node-{n}": {"num_gpus": 1, "num_cpus": 1} for n in range(nodes)})
    try:
        os.environ.update(cluster.environment)
        submitted, running = _place_everywhere(cluster, nodes)
        print(f"{nodes:>5} nodes: submitted in {submitted:.1f} s, all ranks after {running:.1f} s")
    finally:
        cluster.close()


def _place_everywhere(cluster: RayCluster, nodes: int) -> tuple[float, float]:
    from parctl.launcher.backend import State
    from parctl.launcher.launch import prepared_launch

    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        recipe = Path(name, "recipe.yaml")
        recipe.write_text(
            f"version: 1\nname: many\ntask: script\nparallelism: {{dp: {nodes}}}\n"
            "script: {command: [/bin/sleep, '600']}\n"
        )
        began = time.monotonic()
        with prepared_launch(
            str(recipe),
            overrides=[],
            num_devices=None,
            backend="ray",
            run_id="many-1",
            force=False,
            ahead=True,
        ) as prepared:
            backend = prepared.backend
            backend.submit(prepared.manifests)
        submitted = time.monotonic() - began
        while backend.status("many-1").state is not State.RUNNING:
            time.sleep(0.1)
        running = time.monotonic() - began
        backend.cancel("many-1", grace_s=0)
    return submitted, running


if __name__ == "__main__":
    main()

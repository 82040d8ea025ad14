"""What a launch on Ray costs until the first collective, beside Ray Train v2 and an actor per rank.

Every side gets the same warm cluster of two nodes with four fake GPUs each, started here, and is
timed from the command to the end of the first all-reduce of the last of its eight ranks. All go
through Ray's job table, as a user's would. parctl is there twice: with its own runtime, whose ranks
are forked from one process per node that has imported torch and the trainer, and with a script,
whose ranks import torch one by one as the others' do. `moved` counts ranks that did not sit where
RANK says they should: 0 to 3 on one node, 4 to 7 on another, each on the GPU of its local rank.

    python -m benchmarks.ray_launch [--rounds 3]

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

from tests.launcher.ray.cluster import start_cluster

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
# on the PYTHONPATH of all sides: does the same with the first all-reduce of parctl's own runtime
HOOK = """\
import importlib.abc, importlib.machinery, os, sys

def stamp_first_collective():
    import torch.distributed as dist
    join = dist.init_process_group
    def joined(*args, **kwargs):
        join(*args, **kwargs)
        node = os.environ["PARCTL_NODE"]
        gpu = lambda mask: mask[int(os.environ["LOCAL_RANK"])]
        exec({rank!r}.replace("MARKS", os.environ["MARKS"]), {{"node": node, "gpu": gpu}})
        dist.barrier()
        os._exit(0)
    dist.init_process_group = joined

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "parctl.runtime.worker":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            stamp_first_collective()
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
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
    moved: int  # ranks that are not where they should be


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    nodes = {f"node-{n}": {"num_gpus": 4, "num_cpus": 4} for n in range(2)}
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as hook:
        mark = RANK.format(ranks=RANKS, folder="MARKS")
        Path(hook, "sitecustomize.py").write_text(HOOK.format(rank=mark))
        os.environ["PYTHONPATH"] = hook
        cluster = start_cluster(nodes, python=str(PEERS) if PEERS.exists() else sys.executable)
        del os.environ["PYTHONPATH"]
        try:
            os.environ.update(cluster.environment)
            _compare(options.rounds)
        finally:
            cluster.close()


def _compare(rounds: int) -> None:
    sides: Mapping[str, Callable[[], Measured]] = {
        "parctl": lambda: _measure(_runtime),
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
        if name not in times:
            continue
        moved = ", ".join(str(m.moved) for m in values)
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
        facts = [json.loads(wait_for(folder / f"rank-{rank}")) for rank in range(RANKS)]
    first = facts[0]["node"], facts[4]["node"]
    moved = sum(
        fact["node"] != first[rank // 4] or int(fact["gpu"]) != rank % 4
        for rank, fact in enumerate(facts)
    )
    settle()
    return Measured(seconds=max(fact["time"] for fact in facts) - began, moved=moved)


def _runtime(folder: Path) -> Sequence[str]:
    changes = ["parallelism=TP4+SP+FSDP2", f"checkpoint.dir={folder}/saved"]
    changes.append(f"launch.env={{MARKS: {folder}}}")
    words = [word for change in changes for word in ("--set", change)]
    return [sys.executable, "-m", "parctl", "launch", "tiny-llama", "-b", "ray", *words]


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
    return job(folder / "train.py")


def _actors(folder: Path) -> Sequence[str]:
    rank = RANK.format(ranks=RANKS, folder=folder)
    (folder / "actors.py").write_text(ACTORS.format(rank=rank, ranks=RANKS))
    return job(folder / "actors.py")


def job(program: Path) -> Sequence[str]:
    """Submit a program as `ray job submit` would."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
        *("--address", os.environ["PARCTL_ADDRESS"], "--no-wait"),
        *("--", "python3", str(program)),
    ]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} did not come")
        time.sleep(0.02)
    return path.read_text()


def settle() -> None:
    """Wait until no job runs, so that the next side has the cluster to itself."""
    from parctl.launcher.ray.jobs import list_jobs
    from parctl.topology.sources.ray_dashboard import find_dashboard

    dashboard = find_dashboard(os.environ["PARCTL_ADDRESS"])
    deadline = time.monotonic() + TIMEOUT_S
    while not all(job.ended for job in list_jobs(dashboard)) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)  # workers that ended with it


if __name__ == "__main__":
    main()

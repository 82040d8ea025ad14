"""What a launch costs before the work begins, beside torchrun, in one run.

Two marks, each the time from the command to the moment when the last rank has got there, and the
CPU seconds that all processes together had used by the end:

    script       the first line of a user's script (`task: script`; it imports nothing)
    collective   the end of the first all-reduce of the bundled runtime, whose rank function
                 torchrun starts too

Goals: script no slower than torchrun, collective at most half of it. The two take turns, so that
other work on the machine hits both; medians are printed.

    python benchmarks/launch_cost.py [--rounds 5] [--ranks 2 4 8]
"""

import argparse
import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

PYTHON = Path(sys.executable)
GOALS = {"script": 1.0, "collective": 0.5}
SCRIPT = """\
import os, time
now = time.time()
path = f"{os.environ['MARKS']}/rank-{os.environ['RANK']}"
with open(path + ".part", "w") as file:
    file.write(repr(now))
os.rename(path + ".part", path)
"""
# given to both sides through PYTHONPATH: stamps the time after a first all-reduce, and leaves
HOOK = """\
import importlib.abc, importlib.machinery, os, sys, time

def stamp_first_collective():
    import torch, torch.distributed as dist
    join = dist.init_process_group
    def joined(*args, **kwargs):
        join(*args, **kwargs)
        dist.all_reduce(torch.ones(1))
        now = time.time()
        path = f"{os.environ['MARKS']}/rank-{os.environ['RANK']}"
        with open(path + ".part", "w") as file:
            file.write(repr(now))
        os.rename(path + ".part", path)
        dist.barrier()
        dist.destroy_process_group()
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
TORCHRUN_RANK = """\
import os, sys
from pathlib import Path
from parctl.runtime.worker import run_rank
# torchrun's own store listens on its MASTER_PORT
os.environ.update(MASTER_PORT=os.environ["STORE_PORT"], PARCTL_RUN_ID="bench", PARCTL_ATTEMPT="1")
sys.exit(run_rank(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    _adopt_orphans()
    print(f"{'mark':<12}{'ranks':>5}{'parctl s':>10}{'torchrun s':>12}{'ratio':>7}", end="")
    print(f"{'goal':>7}{'parctl CPU':>12}{'torchrun CPU':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for mark, sides in (("script", script_sides), ("collective", collective_sides)):
            for num_ranks in options.ranks:
                _compare(mark, num_ranks, options.rounds, sides(Path(folder), num_ranks))


def script_sides(folder: Path, num_ranks: int) -> list[list[str]]:
    """The commands of parctl and of torchrun that run one script on `num_ranks` ranks."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    recipe = folder / f"script-{num_ranks}.yaml"
    command = json.dumps([str(PYTHON), str(script)])
    recipe.write_text(
        f"version: 1\nname: bench\ntask: script\nparallelism: DP{num_ranks}\n"
        f"script: {{command: {command}}}\n"
    )
    return [
        [str(PYTHON), "-m", "parctl", "launch", str(recipe)],
        [str(PYTHON.with_name("torchrun")), f"--nproc-per-node={num_ranks}", str(script)],
    ]


def collective_sides(folder: Path, num_ranks: int) -> list[list[str]]:
    """The commands that start the bundled runtime; torchrun gets a plan that is made beforehand."""
    from parctl.planner.cluster import cluster_for
    from parctl.planner.make import make_plan
    from parctl.recipes.loader import load_recipe

    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(HOOK)
    rank = folder / "rank.py"
    rank.write_text(TORCHRUN_RANK)
    overrides = [f"parallelism=TP2+SP+FSDP{num_ranks // 2}", "train.micro_batch=1"]
    recipe = load_recipe("tiny-llama", overrides)
    plan = make_plan(recipe, cluster_for(recipe, None))
    plan_file = folder / f"plan-{num_ranks}.json"
    plan_file.write_text(json.dumps(plan.to_json()))
    sets = [word for override in overrides for word in ("--set", override)]
    environment = ["/usr/bin/env", f"PYTHONPATH={hook}", f"STORE_PORT={_free_port()}"]
    return [
        [*environment, str(PYTHON), "-m", "parctl", "launch", "tiny-llama", *sets],
        [
            *environment,
            str(PYTHON.with_name("torchrun")),
            f"--nproc-per-node={num_ranks}",
            str(rank),
            str(plan_file),
            str(folder),
        ],
    ]


def _compare(mark: str, num_ranks: int, rounds: int, sides: list[list[str]]) -> None:
    walls: list[list[float]] = [[], []]
    cpus: list[list[float]] = [[], []]
    for round_ in range(rounds + 1):
        for side, command in enumerate(sides):
            wall, cpu = _measure(command, num_ranks)
            if round_ > 0:  # the first round warms the file cache
                walls[side].append(wall)
                cpus[side].append(cpu)
    ours, theirs = median(walls[0]), median(walls[1])
    print(
        f"{mark:<12}{num_ranks:>5}{ours:>10.2f}{theirs:>12.2f}{ours / theirs:>7.2f}"
        f"{GOALS[mark]:>7.2f}{median(cpus[0]):>12.2f}{median(cpus[1]):>14.2f}",
        flush=True,
    )


def _measure(command: list[str], num_ranks: int) -> tuple[float, float]:
    """Return the seconds until the last rank's mark, and the CPU seconds of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        marks.mkdir()
        environment = {
            **os.environ,
            "MARKS": str(marks),
            "XDG_STATE_HOME": folder,
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "",  # compiled files are kept, as they are for users
        }
        used, began = _cpu_of_children(), time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
        _until(lambda: len(list(marks.glob("rank-*[0-9]"))) == num_ranks)
        _reap()
        times = [float(mark.read_text()) for mark in marks.glob("rank-*[0-9]")]
        return max(times) - began, _cpu_of_children() - used


def _adopt_orphans() -> None:
    """Have detached supervisors end as our children, so that their CPU time is counted."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap() -> None:
    """Wait for every child, adopted ones included."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit("a rank never got to its mark")
        time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()

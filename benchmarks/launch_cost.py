"""What a launch costs before the work begins, beside torchrun, in one run.

Three marks, each the time from the command to the moment when the last rank has got there, and the
CPU seconds that all processes together had used by the end:

    script       the first line of a user's script (`task: script`; it imports nothing)
    collective   the end of the first all-reduce of the bundled runtime, whose rank function
                 torchrun starts too
    step         the end of the first training step of the same: what the first all-reduce did not
                 need yet has been imported by then, so no cost can hide behind the mark

Goals: script no slower than torchrun, collective at most half of it. The two take turns, so that
other work on the machine hits both; medians are printed. `floor` is what the ratio would be if all
of a launch but one import of the runtime cost nothing: one process that only imports it is timed in
every round. At the first training step the memory of a rank is read too: its proportional set size,
in which a page shared by n processes counts 1/n.

    python benchmarks/launch_cost.py [--rounds 5] [--ranks 2 4 8] [--marks script collective step]
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
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

PYTHON = Path(sys.executable)
GOALS: dict[str, float | None] = {"script": 1.0, "collective": 0.5, "step": None}
IMPORT = """\
import gc, os
gc.disable()
from parctl.runtime.execution import symbolic_shapes
symbolic_shapes.put_off()
import parctl.runtime.worker
os._exit(0)
"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # users keep compiled files
}
SCRIPT = """\
import os, time
now = time.time()
path = f"{os.environ['MARKS']}/rank-{os.environ['RANK']}"
with open(path + ".part", "w") as file:
    file.write(f"{now!r} 0")
os.rename(path + ".part", path)
"""
# given to both sides through PYTHONPATH: stamps the time at the mark, and leaves
HOOK = """\
import importlib.abc, importlib.machinery, os, sys, time

def stamp():
    now = time.time()
    import torch.distributed as dist
    rollup = open("/proc/self/smaps_rollup").read().split()
    path = f"{os.environ['MARKS']}/rank-{os.environ['RANK']}"
    dist.barrier()
    with open(path + ".part", "w") as file:
        file.write(f"{now!r} {rollup[rollup.index('Pss:') + 1]}")  # KiB
    os.rename(path + ".part", path)
    dist.destroy_process_group()
    os._exit(0)

def stamp_first_collective(worker):
    import torch, torch.distributed as dist
    join = dist.init_process_group
    def joined(*args, **kwargs):
        join(*args, **kwargs)
        dist.all_reduce(torch.ones(1))
        stamp()
    dist.init_process_group = joined

def stamp_first_step(metrics):
    metrics.Reporter.count_step = lambda reporter: stamp()

MODULES = {
    "collective": ("parctl.runtime.worker", stamp_first_collective),
    "step": ("parctl.runtime.metrics", stamp_first_step),
}
MODULE, change = MODULES[os.environ["MARK"]]

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            change(module)
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
sys.exit(run_rank(Path(sys.argv[1]), Path(os.environ["XDG_STATE_HOME"])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--marks", choices=list(GOALS), nargs="+", default=list(GOALS))
    options = parser.parse_args()
    _adopt_orphans()
    print(f"{'mark':<12}{'ranks':>5}{'parctl s':>10}{'torchrun s':>12}{'ratio':>7}", end="")
    print(f"{'goal':>7}{'floor':>7}{'parctl CPU':>12}{'torchrun CPU':>14}", end="")
    print(f"{'parctl MiB':>12}{'torchrun MiB':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for mark in options.marks:
            for num_ranks in options.ranks:
                sides = script_sides if mark == "script" else runtime_sides
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


def runtime_sides(folder: Path, num_ranks: int) -> list[list[str]]:
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
    overrides.append("train.global_batch=4")  # a step that is no work to speak of
    recipe = load_recipe("tiny-llama", overrides)
    plan = make_plan(recipe, cluster_for(recipe, None))
    plan_file = folder / f"plan-{num_ranks}.json"
    plan_file.write_text(json.dumps(plan.to_json()))
    sets = [word for override in overrides for word in ("--set", override)]
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    environment = ["/usr/bin/env", f"PYTHONPATH={path}", f"STORE_PORT={_free_port()}"]
    return [
        [*environment, str(PYTHON), "-m", "parctl", "launch", "tiny-llama", *sets],
        [
            *environment,
            str(PYTHON.with_name("torchrun")),
            f"--nproc-per-node={num_ranks}",
            str(rank),
            str(plan_file),
        ],
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one command took: seconds until the last rank's mark, CPU seconds of all processes."""

    wall_s: float
    cpu_s: float
    rank_mib: float  # mean proportional set size of the ranks at the mark


def _compare(mark: str, num_ranks: int, rounds: int, sides: list[list[str]]) -> None:
    costs: list[list[Cost]] = [[], []]
    imports: list[float] = []
    for round_ in range(rounds + 1):
        for side, command in enumerate(sides):
            cost = _measure(command, mark, num_ranks)
            if round_ > 0:  # the first round warms the file cache
                costs[side].append(cost)
        if mark != "script":  # which imports nothing
            imports.append(_time_import())
    walls = [median(cost.wall_s for cost in side) for side in costs]
    cpus = [median(cost.cpu_s for cost in side) for side in costs]
    memory = [median(cost.rank_mib for cost in side) for side in costs]
    goal = GOALS[mark]
    floor = f"{median(imports[1:]) / walls[1]:.2f}" if imports else "--"
    print(
        f"{mark:<12}{num_ranks:>5}{walls[0]:>10.2f}{walls[1]:>12.2f}{walls[0] / walls[1]:>7.2f}"
        f"{'--' if goal is None else goal:>7}{floor:>7}{cpus[0]:>12.2f}{cpus[1]:>14.2f}"
        + (f"{memory[0]:>12.0f}{memory[1]:>14.0f}" if mark == "step" else ""),
        flush=True,
    )


def _measure(command: list[str], mark: str, num_ranks: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        marks.mkdir()
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "MARK": mark,
            "MARKS": str(marks),
            "XDG_STATE_HOME": folder,
        }
        used, began = _cpu_of_children(), time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
        _until(lambda: len(list(marks.glob("rank-*[0-9]"))) == num_ranks)
        _reap()
        stamps = [path.read_text().split() for path in marks.glob("rank-*[0-9]")]
        return Cost(
            wall_s=max(float(stamp[0]) for stamp in stamps) - began,
            cpu_s=_cpu_of_children() - used,
            rank_mib=mean(int(stamp[1]) for stamp in stamps) / 1024,
        )


def _time_import() -> float:
    """Seconds that one process takes to import what a rank needs."""
    began = time.perf_counter()
    subprocess.run([PYTHON, "-P", "-c", IMPORT], env={**os.environ, **ENVIRONMENT}, check=True)
    return time.perf_counter() - began


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

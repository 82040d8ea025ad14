"""CPU seconds of `parctl --help` beside the same of its neighbours, in one run.

Goal: 0.12 CPU s for parctl (Typer alone costs 0.085 on the machine where the goal was set).
Programs that are not installed are left out and said so; `make bench` installs them. Best of
several runs each, in turn, because other work on the machine only adds.

    python benchmarks/startup.py [--runs 7]
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

PEERS = (
    ["parctl", "--help"],
    ["python", "-c", "import typer"],
    ["kubectl", "--help"],
    ["torchx", "--help"],
    ["torchrun", "--help"],
    ["ray", "--help"],
    ["accelerate", "--help"],
)


def cpu_seconds(program: str, arguments: list[str]) -> float:
    """CPU time of one finished process, its children included."""
    pid = os.posix_spawn(
        program,
        [program, *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"`{program} {' '.join(arguments)}` failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    here = [Path(sys.executable).parent, Path(__file__).parents[1] / ".venv-peers/bin"]
    os.environ["PATH"] = os.pathsep.join([*map(str, here), os.environ["PATH"]])
    programs = [(shutil.which(name), rest, name) for name, *rest in PEERS]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users keep compiled files
    best: dict[str, float] = {}
    for _ in range(runs + 1):  # the first round warms the file cache
        for program, rest, name in programs:
            if program:
                best[name] = min(best.get(name, float("inf")), cpu_seconds(program, rest))
    print(f"{'command':<24}{'CPU s':>8}{'against parctl':>16}")
    for program, rest, name in programs:
        words = f"{name} {' '.join(rest)}"
        if program:
            print(f"{words:<24}{best[name]:>8.3f}{best[name] / best['parctl']:>15.1f}x")
        else:
            print(f"{words:<24}{'not installed':>8}")


if __name__ == "__main__":
    main()

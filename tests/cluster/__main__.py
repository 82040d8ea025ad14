"""`make cluster`, `make cluster-down`, and a command run in the cluster's network.

    python -m tests.cluster up [CONTROLLER ...]     # bring up the cluster `dev` and keep it
    python -m tests.cluster controllers NAME ...    # start these too: jobset kueue lws kuberay kwok
    python -m tests.cluster down                    # remove it, and what killed test runs left
    python -m tests.cluster run kubectl get nodes   # any command, with KUBECONFIG set

Tests use a kept cluster, instead of one of their own, where `PARCTL_CLUSTER` names it.
"""

import os
import sys
import time
from collections.abc import Callable

from tests.cluster import cluster, programs
from tests.cluster.machine import MachineError, enter

NAME = os.environ.get("PARCTL_CLUSTER") or "dev"


def up(words: list[str]) -> None:
    start = time.monotonic()
    cluster.remove_abandoned()
    made = cluster.up(NAME)
    with made.inside():
        made.controllers.ensure(*words)
    cluster.keep(NAME)
    seconds = time.monotonic() - start
    nodes = ", ".join(made.nodes)
    print(f"cluster {NAME} is up after {seconds:.0f} s: {nodes}", file=sys.stderr)
    print(f"export KUBECONFIG={made.kubeconfig}")
    print(f"nsenter --net={made.machine.namespace} {programs.path('kubectl')} get nodes")


def controllers(words: list[str]) -> None:
    there = cluster.assemble(cluster.machine_of(NAME))
    with there.inside():
        there.controllers.ensure(*words)


def down(words: list[str]) -> None:
    cluster.remove_abandoned()
    machine = cluster.machine_of(NAME)
    machine.remove()
    left = machine.remains()
    if left:
        raise MachineError(f"left behind: {', '.join(left)}")


def run(words: list[str]) -> None:
    there = cluster.assemble(cluster.machine_of(NAME))
    links = there.machine.folder / "bin"
    links.mkdir(exist_ok=True)
    if not (links / "kubectl").exists():
        (links / "kubectl").symlink_to(programs.path("kubectl"))
    enter(there.machine.namespace)
    os.environ["KUBECONFIG"] = str(there.kubeconfig)
    os.environ["PATH"] = f"{links}:{os.environ['PATH']}"
    os.execvp(words[0], words)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "up": up,
    "controllers": controllers,
    "down": down,
    "run": run,
}


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS or (words[0] == "run" and len(words) == 1):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        COMMANDS[words[0]](words[1:])
    except (programs.ProgramsMissing, MachineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

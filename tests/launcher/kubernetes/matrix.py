"""`make matrix-kubernetes`: twenty placements, every model in every shape, and the faults.

    python -m tests.launcher.kubernetes.matrix [placement] [parity] [faults]

`make test` runs a sample of it. Prints one line per case, and ends with 1 where one failed.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.cluster import Cluster, assemble, machine_of, session
from tests.launcher.kubernetes.faults import FAULTS, Fault, suffer
from tests.launcher.kubernetes.parity import RUNS, SHAPES, equal, run_here, run_on_cluster
from tests.launcher.kubernetes.placement import disorder, launch_into
from tests.launcher.kubernetes.real import Here

NUM_PLACEMENTS = 20


def placements(cluster: Cluster) -> Iterator[tuple[str, Callable[[], None]]]:
    for seed in range(NUM_PLACEMENTS):

        def case(seed: int = seed) -> None:
            with place(cluster) as here:
                launch_into(here, seed)

        yield f"placement {seed}: {disorder(seed)}", case


def parities(cluster: Cluster) -> Iterator[tuple[str, Callable[[], None]]]:
    for model in RUNS:
        wanted: list[float] = []
        for shape in SHAPES:

            def case(model: str = model, shape: str = shape, wanted: list[float] = wanted) -> None:
                with place(cluster) as here:
                    wanted.extend([] if wanted else run_here(here, model))
                    ours = run_on_cluster(here, model, shape)
                assert equal(ours, wanted), (ours, wanted)

            yield f"{model} {RUNS[model]} as {shape}", case


def faults(cluster: Cluster) -> Iterator[tuple[str, Callable[[], None]]]:
    for fault in FAULTS:

        def case(fault: Fault = fault) -> None:
            with place(cluster) as here:
                print(suffer(here, fault), flush=True)

        yield fault.name, case


@contextmanager
def place(cluster: Cluster) -> Iterator[Here]:
    """A namespace, with the environment pointing at it."""
    with cluster.namespace() as namespace, tempfile.TemporaryDirectory() as folder:
        here = Here(cluster=cluster, namespace=namespace, folder=Path(folder))
        os.environ.update(here.environment)
        os.environ.update(XDG_STATE_HOME=f"{folder}/state", XDG_CONFIG_HOME=f"{folder}/config")
        yield here


@contextmanager
def some_cluster() -> Iterator[Cluster]:
    """The kept cluster that PARCTL_CLUSTER names, or one of our own."""
    name = os.environ.get("PARCTL_CLUSTER")
    if name:
        yield assemble(machine_of(name))
    else:
        with session() as cluster:
            yield cluster


def main() -> int:
    kinds = {"placement": placements, "parity": parities, "faults": faults}
    wanted = sys.argv[1:] or list(kinds)
    failed = 0
    with some_cluster() as cluster, cluster.inside():
        cluster.controllers.ensure("jobset")
        for kind in wanted:
            for name, case in kinds[kind](cluster):
                cluster.heal()
                start = time.monotonic()
                outcome = "equal" if kind == "parity" else "right"
                try:
                    case()
                except Exception as error:
                    failed += 1
                    outcome = f"FAILED {type(error).__name__}: {error}"
                print(f"{name}: {outcome}, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

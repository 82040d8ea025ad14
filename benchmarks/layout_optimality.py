"""Try the layout engine against brute force on as many small clusters as wanted.

    python -m benchmarks.layout_optimality [--clusters 600] [--jobs 8] [--seed 0] [--beyond]

Run it from the root of the repository: the family of clusters and the oracle are those of the
tests. Prints every job whose cost is not the optimum, and the counts. `--beyond` tries clusters for
which no optimum is promised, and says how far from it the layouts are.
"""

import argparse
from math import inf, isclose

from tests.topology.placement.brute_force import (
    Job,
    clusters,
    optimum,
    placed,
    requests,
    usable_places,
)

from parctl.errors import CannotPlaceError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clusters", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=8, help="per cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beyond", action="store_true")
    options = parser.parse_args()
    optimal = refused = 0
    wrong: list[str] = []
    ratios: list[float] = []
    family = clusters(options.seed, options.clusters, beyond=options.beyond)
    for number, topology in enumerate(family):
        places = usable_places(topology)
        for request in requests(1000 * options.seed + number, options.jobs, len(places)):
            best = optimum(topology, request)
            try:
                found = Job(places, request).cost_of(placed(topology, request))
            except CannotPlaceError:
                found = inf
            if found == best == inf:
                refused += 1
            elif isclose(found, best, rel_tol=1e-9):
                optimal += 1
            else:
                wrong.append(f"{topology.name}: {request}: cost {found}, optimum {best}")
                ratios.append(found / best)
    if options.beyond:
        ratios.sort()
        print(f"optimal {optimal}, rightly refused {refused}, above the optimum {len(ratios)}")
        if ratios:
            print(
                f"by a factor of {ratios[len(ratios) // 2]:.2f} (median), {ratios[-1]:.2f} at most"
            )
        return
    print(*wrong, sep="\n")
    print(f"optimal {optimal}, rightly refused {refused}, wrong {len(wrong)}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

"""The engine against brute force: every placement of a small job on a small cluster is tried.

The suite takes a seeded sample of the family; `python -m benchmarks.layout_optimality` tries more.
"""

from math import inf, isclose

import pytest
from tests.topology.placement.brute_force import (
    Job,
    clusters,
    optimum,
    placed,
    requests,
    usable_places,
)

from parctl.errors import CannotPlaceError
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.synthetic import parse_cluster


@pytest.mark.parametrize("seed", range(8))
def test_the_cost_equals_the_optimum_over_all_permutations(seed: int) -> None:
    for number, topology in enumerate(clusters(seed, 5)):
        places = usable_places(topology)
        for request in requests(1000 * seed + number, 5, len(places)):
            best = optimum(topology, request)
            if best == inf:
                with pytest.raises(CannotPlaceError):
                    lay_out(request, topology)
            else:
                found = Job(places, request).cost_of(placed(topology, request))
                assert isclose(found, best, rel_tol=1e-9), (topology, request, found, best)


def test_the_oracle_knows_two_costs_worked_out_by_hand() -> None:
    two_nodes = parse_cluster("h100:2x2")
    dp = LayoutRequest(axes={"dp": 2}, traffic={"dp": 4.5e9})
    both = LayoutRequest(axes={"pp": 2, "dp": 2}, traffic={"pp": 5e9, "dp": 4.5e9})

    # 4.5 GB over 450 GB/s of NVLink and 2 us
    assert isclose(optimum(two_nodes, dp), 0.01 + 2e-6)
    # pp takes NVLink, for it has more to say; dp 4.5 GB over the NIC's 50 GB/s and 10 us
    assert isclose(optimum(two_nodes, both), 5 / 450 + 2e-6 + 0.09 + 10e-6)

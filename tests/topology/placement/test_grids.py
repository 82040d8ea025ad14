"""Grids of ranks inside one node."""

from itertools import pairwise

from parctl.topology.placement.grids import Rule, pack_grids
from parctl.topology.synthetic import parse_cluster

DGX_1V = parse_cluster("v100:1x8").nodes[0].hardware.matrix
NV2 = frozenset({"NV2"})
NVLINK = frozenset({"NV1", "NV2"})


def matrix_of(size: int, links: dict[tuple[int, int], str], rest: str) -> list[list[str]]:
    return [
        ["X" if i == j else links.get((i, j)) or links.get((j, i)) or rest for j in range(size)]
        for i in range(size)
    ]


def test_without_rules_devices_are_taken_in_turn() -> None:
    assert pack_grids(DGX_1V, range(8), (3,), ()) == ((0, 1, 2), (3, 4, 5))


def test_rows_on_double_links() -> None:
    rows = Rule(parts=(1,), codes=NV2)

    assert pack_grids(DGX_1V, range(8), (4, 2), [rows]) == ((0, 3, 1, 2, 4, 7, 5, 6),)


def test_rows_and_columns_of_a_cube_mesh() -> None:
    # rows and columns of each grid of 2 x 2 x 2 all on NVLink: the cube itself
    rules = [Rule(parts=(part,), codes=NVLINK) for part in range(3)]

    (grid,) = pack_grids(DGX_1V, range(8), (2, 2, 2), rules)

    assert sorted(grid) == list(range(8))
    for cell in range(8):
        for step in (1, 2, 4):
            assert DGX_1V[grid[cell]][grid[cell ^ step]] in NVLINK


def test_no_clique_of_eight_on_a_cube_mesh() -> None:
    assert pack_grids(DGX_1V, range(8), (8,), [Rule(parts=(0,), codes=NVLINK)]) == ()
    assert len(pack_grids(DGX_1V, range(8), (4,), [Rule(parts=(0,), codes=NVLINK)])) == 2


def test_a_path_is_enough_for_neighbours() -> None:
    chain = matrix_of(4, {(0, 2): "NV2", (2, 1): "NV2", (1, 3): "NV2"}, "SYS")
    stages = Rule(parts=(0,), codes=NV2, neighbours=True)

    assert pack_grids(chain, range(4), (4,), [stages]) == ((0, 2, 1, 3),)
    assert pack_grids(chain, range(4), (4,), [Rule(parts=(0,), codes=NV2)]) == ()


def test_nested_sets_are_filled_set_by_set() -> None:
    # switches {0,1} {2,3} in NUMA node 0, {4,5} and 6 alone in NUMA node 1
    links = {(0, 1): "PIX", (2, 3): "PIX", (4, 5): "PIX"}
    links |= {(i, j): "NODE" for i in range(4) for j in range(i) if (j, i) not in links}
    links |= {(4, 6): "NODE", (5, 6): "NODE"}
    tree = matrix_of(7, links, "SYS")
    pairs = Rule(parts=(1,), codes=frozenset({"PIX"}))
    inside = Rule(parts=(0,), codes=frozenset({"PIX", "NODE"}))

    assert pack_grids(tree, range(7), (2, 2), [pairs, inside]) == ((0, 1, 2, 3),)
    assert pack_grids(tree, range(7), (3, 2), [pairs]) == ((0, 1, 2, 3, 4, 5),)


def test_a_link_must_be_seen_from_both_ends() -> None:
    one_way = [["X", "NV2"], ["SYS", "X"]]

    assert pack_grids(one_way, range(2), (2,), [Rule(parts=(0,), codes=NV2)]) == ()


def test_large_odd_nodes_are_searched_greedily() -> None:
    # a ring of 16: pairs along it, and each pair a neighbour of the next
    ring = matrix_of(16, {(i, (i + 1) % 16): "NV2" for i in range(16)}, "SYS")
    stages = Rule(parts=(0,), codes=NV2, neighbours=True)

    grids = pack_grids(ring, range(16), (4,), [stages])

    assert len(grids) >= 3
    for grid in grids:
        assert all(ring[a][b] == "NV2" for a, b in pairwise(grid))

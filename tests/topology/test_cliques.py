"""Full meshes inside a node: what tensor parallelism may use."""

import time
from collections.abc import Callable

import pytest

from parctl.topology.cliques import (
    cliques_are_known,
    connected_groups,
    full_mesh_cliques,
    groups_are_known,
    largest_mesh,
    pack_meshes,
)
from parctl.topology.links import link_count
from parctl.topology.synthetic import parse_cluster

Matrix = list[list[str]]


def matrix_of(size: int, links: dict[tuple[int, int], str], other: str = "SYS") -> Matrix:
    return [
        ["X" if i == j else links.get((i, j)) or links.get((j, i)) or other for j in range(size)]
        for i in range(size)
    ]


def nvlink(code: str) -> bool:
    return link_count(code) > 0


DGX_1V = parse_cluster("v100:1x8").nodes[0].hardware.matrix
H100 = parse_cluster("h100:1x8").nodes[0].hardware.matrix
# a path 2 - 1 - 0 - 3: taking 0-1 first would leave 2 and 3 alone
PATH = matrix_of(4, {(1, 2): "NV2", (0, 1): "NV2", (0, 3): "NV2"})
# Azure NC96ads: two bridged pairs
PAIRS = matrix_of(4, {(0, 1): "NV12", (2, 3): "NV12"})
# eight B200, GPU 2 has lost all its links
BROKEN = matrix_of(
    8, {(i, j): "NV18" for i in range(8) for j in range(i) if 2 not in (i, j)}, other="NODE"
)


def test_a_dgx_1v_is_connected_but_its_full_meshes_are_two_quads() -> None:
    assert connected_groups(DGX_1V) == ((0, 1, 2, 3, 4, 5, 6, 7),)
    assert full_mesh_cliques(DGX_1V) == (((0, 1, 2, 3), 1), ((4, 5, 6, 7), 1))


def test_eight_h100_are_one_clique_of_18_links() -> None:
    assert full_mesh_cliques(H100) == (((0, 1, 2, 3, 4, 5, 6, 7), 18),)


def test_a_gpu_without_nvlink_is_in_no_clique() -> None:
    assert connected_groups(BROKEN) == ((0, 1, 3, 4, 5, 6, 7), (2,))
    assert full_mesh_cliques(BROKEN) == (((0, 1, 3, 4, 5, 6, 7), 18),)


def test_bridged_pairs_are_two_cliques() -> None:
    assert full_mesh_cliques(PAIRS) == (((0, 1), 12), ((2, 3), 12))


def test_pcie_gpus_form_no_clique() -> None:
    assert connected_groups(matrix_of(2, {})) == ((0,), (1,))
    assert full_mesh_cliques(matrix_of(2, {})) == ()


def test_a_link_seen_from_one_end_only_does_not_count() -> None:
    assert full_mesh_cliques([["X", "NV4"], ["SYS", "X"]]) == ()


def test_packing_finds_the_most_groups_where_greedy_would_not() -> None:
    assert pack_meshes(PATH, 2, nvlink, range(4)) == ((0, 3), (1, 2))


def test_packing_takes_the_better_links_when_that_loses_no_group() -> None:
    # NV2 pairs of the DGX-1V: 0-3, 1-2, 4-7, 5-6; 0-1 and 2-3 would have one link somewhere
    assert pack_meshes(DGX_1V, 2, nvlink, range(8)) == ((0, 3), (1, 2), (4, 7), (5, 6))


def test_packing_uses_only_the_devices_it_is_given() -> None:
    assert pack_meshes(H100, 3, nvlink, (0, 2, 4, 6, 7)) == ((0, 2, 4),)


def test_a_uniform_node_is_cut_into_neighbours() -> None:
    assert pack_meshes(H100, 4, nvlink, range(8)) == ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize(
    ("matrix", "size"), [(DGX_1V, 4), (H100, 8), (PATH, 2), (PAIRS, 2), (BROKEN, 7)]
)
def test_largest_mesh(matrix: Matrix, size: int) -> None:
    assert largest_mesh(matrix, nvlink, range(len(matrix))) == size


def test_hundreds_of_cpu_slots_are_packed_at_once() -> None:
    host = parse_cluster("cpu:1x512").nodes[0].hardware.matrix

    groups = pack_meshes(host, 128, lambda code: code == "HOST", range(512))

    assert [group[0] for group in groups] == [0, 128, 256, 384]


# 0 - 1 - 2 joined by NVLink: what is unknown decides what is known of the sets
@pytest.mark.parametrize(
    ("unknown", "groups_known", "cliques_known"),
    [
        ([], True, True),
        # the three are connected anyhow, but a link 0-2 would make them one mesh
        ([(0, 2)], True, False),
        # gpu 3 might join the others
        ([(1, 3)], False, False),
    ],
)
def test_sets_are_known_when_no_unknown_link_can_change_them(
    unknown: list[tuple[int, int]], groups_known: bool, cliques_known: bool
) -> None:
    links = {(0, 1): "NV2", (1, 2): "NV2"} | dict.fromkeys(unknown, "?")
    matrix = matrix_of(4, links)

    assert groups_are_known(matrix) is groups_known
    assert cliques_are_known(matrix) is cliques_known


def test_an_unknown_link_between_others_does_not_hide_a_known_mesh() -> None:
    # 0-3 are a mesh; 4 hangs on 0 alone, so that 1-4 cannot be part of a larger one
    links = {(i, j): "NV2" for i in range(4) for j in range(i)} | {(0, 4): "NV1", (1, 4): "?"}

    assert groups_are_known(matrix_of(5, links))
    assert cliques_are_known(matrix_of(5, links))


@pytest.mark.parametrize(
    ("joined", "largest", "meshes"),
    [
        (lambda i, j: True, 1000, 1),
        (lambda i, j: {i, j} != {0, 1}, 999, 1),
        (lambda i, j: i // 2 == j // 2, 2, 500),
    ],
    ids=["all", "all but one pair", "pairs"],
)
def test_a_thousand_devices_are_no_trouble(
    joined: Callable[[int, int], bool], largest: int, meshes: int
) -> None:
    size = range(1000)
    matrix = [["X" if i == j else "NV1" if joined(i, j) else "SYS" for j in size] for i in size]
    begin = time.process_time()

    assert largest_mesh(matrix, nvlink, size) == largest
    assert len(full_mesh_cliques(matrix)) == meshes
    # about half a second; the bound catches recursion and cubic work
    assert time.process_time() - begin < 10


def test_a_node_of_many_devices_with_many_meshes_ends() -> None:
    # each of 48 devices is joined with all but two: 3 ** 16 largest meshes of 16
    matrix = [
        ["X" if i == j else "SYS" if i // 3 == j // 3 else "NV1" for j in range(48)]
        for i in range(48)
    ]

    assert largest_mesh(matrix, nvlink, range(48)) == 16
    assert [len(members) for members, _ in full_mesh_cliques(matrix)] == [16, 16, 16]

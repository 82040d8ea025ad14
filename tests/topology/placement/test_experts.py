"""The expert view of the mesh."""

import numpy as np
import pytest

from parctl.errors import UsageError
from parctl.topology.placement import LayoutRequest, lay_out
from parctl.topology.placement.experts import expert_axes, expert_grid, expert_groups
from parctl.topology.synthetic import parse_cluster


def test_dp2_tp2_ep2_on_four_ranks() -> None:
    layout = lay_out(LayoutRequest(axes={"dp": 2, "tp": 2}, ep=2), parse_cluster("h100:1x4"))

    assert layout.expert_axes == {"edp": 1, "ep": 2, "tp": 2}
    assert expert_groups(layout, "ep") == [[0, 2], [1, 3]]
    assert expert_groups(layout, "edp") == [[0], [1], [2], [3]]


def test_experts_split_as_tp_is() -> None:
    assert expert_axes({"pp": 2, "dp": 2, "tp": 2}, 2, 2) == {"pp": 2, "edp": 1, "ep": 2, "etp": 2}


def test_ep_is_the_innermost_part_of_the_data_axes() -> None:
    axes = {"dp": 2, "fsdp": 4}
    experts = expert_axes(axes, 2, 1)
    assert experts == {"edp": 4, "ep": 2, "etp": 1}

    grid = expert_grid(axes, experts, np.arange(8))

    assert grid[:, :, 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_ep_larger_than_the_data_axes_takes_tp_ranks() -> None:
    axes = {"dp": 2, "tp": 4}
    experts = expert_axes(axes, 4, 1)
    assert experts == {"edp": 2, "ep": 4, "etp": 1}

    grid = expert_grid(axes, experts, np.arange(8))

    assert grid[..., 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_pp_stays_outside_whatever_the_order() -> None:
    axes = {"dp": 2, "pp": 2, "tp": 2}
    experts = expert_axes(axes, 2, 2)
    assert experts is not None

    grid = expert_grid(axes, experts, np.arange(8))

    # stage 0 holds ranks 0 1 4 5 of the mesh order dp, pp, tp
    assert grid[0].tolist() == [[[0, 1], [4, 5]]]


def test_ep_that_does_not_divide_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(UsageError) as error:
        expert_axes({"dp": 4, "tp": 2}, 3, 1)

    assert "ep(3) x etp(1) does not divide" in error.value.message
    assert "data axes 4 x tp(2) = 8" in error.value.message


def test_ep_prefers_the_nvlink_domain() -> None:
    # ep(16) needs four nodes of one domain; edp crosses domains
    layout = lay_out(LayoutRequest(axes={"fsdp": 32}, ep=16), parse_cluster("gb200:2x4x4"))
    proofs = {proof.axis: proof for proof in layout.proofs}

    assert (proofs["ep"].worst_link, proofs["ep"].scope) == ("nvlink", "domain")
    assert (proofs["edp"].worst_link, proofs["edp"].scope) == ("network", "cluster")
    assert proofs["ep"].nodes_per_group == 4

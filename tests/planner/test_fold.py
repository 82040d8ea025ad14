"""Folding keeps every axis of a shape, and takes it in parts where ranks are too few."""

import pytest

from parctl.errors import UsageError
from parctl.planner.fold import fold
from parctl.recipes.parallelism import build_parallelism
from parctl.recipes.shorthand import read_form
from parctl.recipes.spec import ParallelismSpec
from parctl.topology.placement.experts import expert_axes


def spec(form: str) -> ParallelismSpec:
    return build_parallelism(read_form(form).values)


def forms(form: str, max_ranks: int = 8) -> list[str]:
    return [part.parallelism.text for part in fold(spec(form), max_ranks)]


@pytest.mark.parametrize(
    ("form", "folded"),
    [
        ("TP2+SP+FSDP2", "TP2+SP+FSDP2"),  # fits: stays
        ("TP+SP+FSDP", "TP2+SP+FSDP2"),  # left open: 2
        ("TP8", "TP8"),
        ("DP64+TP2+SP+PP8@interleaved-1f1b:4+EP64", "DP2+TP2+SP+PP2@interleaved-1f1b+EP2"),
        ("TP8+SP+CP8@ulysses+FSDP2", "TP2+SP+CP2@ulysses+FSDP2"),
        ("HSDP16x8", "DP2+FSDP4"),  # spare ranks go to the shards
        ("FSDP6", "FSDP6"),  # 2, then 3, then 6 of 8 ranks
        ("ZERO116", "ZERO18"),
        ("OP2+DP16", "DP4+OP2"),
        ("DP1", "DP1"),
    ],
)
def test_degrees_fold_and_axes_stay(form: str, folded: str) -> None:
    assert forms(form) == [folded]


def test_four_axes_on_eight_ranks_are_taken_in_parts_of_three() -> None:
    parts = fold(spec("TP8+SP+PP16@zbv+CP16@ring+FSDP8"), 8)
    assert [(part.parallelism.text, part.left_out) for part in parts] == [
        ("PP2@zbv+CP2+FSDP2", ("tp",)),
        ("TP2+SP+PP2@zbv+FSDP2", ("cp",)),
        ("TP2+SP+PP2@zbv+CP2", ("fsdp",)),
        ("TP2+SP+CP2+FSDP2", ("pp",)),
    ]
    assert forms("TP8+SP+PP16@zbv+CP16@ring+FSDP8", 16) == ["TP2+SP+PP2@zbv+CP2+FSDP2"]


@pytest.mark.parametrize(
    ("form", "folded", "experts"),
    [
        # etp stays with tp, and what was replicated (edp 2) stays replicated
        ("DP16+TP4+SP+EP8+ETP4", "DP4+TP2+SP+EP2+ETP2", {"edp": 2, "ep": 2, "etp": 2}),
        ("DP64+TP2+EP64", "DP4+TP2+EP4", {"edp": 1, "ep": 4, "tp": 2}),
        ("TP4+EP4", "TP4+EP4", {"edp": 1, "ep": 4, "etp": 1}),  # ep over tp ranks
        ("CP2+EP2", "CP2+EP2", {"edp": 1, "ep": 2, "etp": 1}),
        ("FSDP+EP", "EP2+FSDP2", {"edp": 1, "ep": 2, "etp": 1}),
    ],
)
def test_expert_degrees_fold_to_a_shape_that_divides(
    form: str, folded: str, experts: dict[str, int]
) -> None:
    (part,) = fold(spec(form), 8)
    chosen = part.parallelism
    assert chosen.text == folded
    assert expert_axes(part.degrees, chosen.ep or 1, chosen.etp or 1) == experts


def test_changes_say_from_what_to_what() -> None:
    (part,) = fold(spec("TP+SP+FSDP16+PP8"), 8)
    assert part.changes(spec("TP+SP+FSDP16+PP8")) == {
        "tp": (None, 2),
        "fsdp": (16, 2),
        "pp": (8, 2),
    }


def test_auto_names_no_axis() -> None:
    with pytest.raises(UsageError, match="names no axis that could be folded"):
        fold(spec("auto"), 8)

"""What guides to parallelism say on when to use what, held against what the search finds.

Where it finds something else, the row says what, and the number that explains it is asserted.
"""

from collections.abc import Callable

import pytest

from parctl.planner.search.choice import Choice
from parctl.planner.search.found import Found
from parctl.planner.search.run import search
from parctl.planner.search.space import Kept
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def found(line: str, cluster: str, *overrides: str, keep: Kept | None = None) -> Found:
    return search(load_recipe(line, overrides), parse_cluster(cluster), keep=keep or {}, top=1)


def best(line: str, cluster: str, *overrides: str, keep: Kept | None = None) -> Choice:
    first = found(line, cluster, *overrides, keep=keep).best
    assert first is not None
    return first.choice


LONG = ["train.seq_len=1048576", "model.max_seq_len=1048576", "train.global_batch=4"]
GUIDES: list[tuple[str, str, str, list[str], Callable[[Choice], bool]]] = [
    ("the model fits one GPU: DP", "gpt-2: DP", "h100:1x8", ["train.global_batch=512"],
     lambda c: c.dp == 8 and c.zero_stage == 0),
    ("optimizer states are too large: FSDP or ZeRO", "llama-3-8b: DP", "h100:1x8", [],
     lambda c: c.zero_stage > 0),
    ("a deep model over several nodes: PP", "llama-3.1-405b: FSDP", "h100:128x8",
     ["train.global_batch=1024"], lambda c: c.pp > 1),
    ("100B and more: data x tensor x pipeline", "gpt-3-175b: FSDP", "h100:32x8",
     ["train.global_batch=512"], lambda c: c.tp > 1 and c.pp > 1 and c.dp * c.fsdp > 1),
    ("fast NVLink and activations that do not fit: TP", "llama-3-70b: FSDP", "h100:8x8",
     ["train.global_batch=128"], lambda c: c.tp > 1),
    ("100k to 1M tokens: CP", "llama-3-8b: FSDP", "h100:16x8", LONG, lambda c: c.cp > 1),
    ("a mixture of experts: EP", "mixtral-8x7b: FSDP", "h100:4x8", ["train.global_batch=128"],
     lambda c: c.ep > 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "cluster", "overrides", "holds"),
    [row[1:] for row in GUIDES],
    ids=[row[0] for row in GUIDES],
)
def test_the_search_agrees_with_the_guides(
    line: str, cluster: str, overrides: list[str], holds: Callable[[Choice], bool]
) -> None:
    chosen = best(line, cluster, *overrides)
    assert holds(chosen), chosen


def test_4k_to_128k_tokens_sp_beside_tp() -> None:
    # every tp of the search comes with sp: it needs less memory and sends as much
    result = found("llama-3-8b: FSDP", "h100:2x8", "train.global_batch=64", keep={"tp": 4})
    assert result.best is not None
    assert result.best.recipe.parallelism.sp


def test_30b_to_1t_fsdp_where_it_is_as_fast() -> None:
    """Guides say FSDP for 30B to 1T. On 80 GB devices it has to recompute everything."""
    result = found("llama-3-70b: FSDP", "h100:16x8")
    assert result.best is not None and result.best.choice.zero_stage > 0
    (alone,) = (form.best for form in result.forms if form.axes == "data axes only")
    assert alone is not None and alone.choice.zero_stage == 3
    assert alone.choice.recompute == "full" and result.best.choice.recompute == "selective"
    # at most a third more: larger micro-batches win some of it back
    assert 1.1 < alone.time.compute / result.best.time.compute < 4 / 3


def test_without_nvlink_there_is_no_tp() -> None:
    assert best("llama-3-8b: FSDP", "l40s:4x8", "train.global_batch=64").tp == 1

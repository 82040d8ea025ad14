"""The sampler, against distributions worked out by hand and an independent, literal one."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parctl.runtime.inference.request import Sampled, SampleRow, Sampling
from parctl.runtime.inference.sampling import (
    BatchSampler,
    TokenCounts,
    draw,
    penalise,
    probabilities,
    uniform,
)

# e^0, e^1, e^2, e^3 over their sum 1 + 2.718282 + 7.389056 + 20.085537 = 31.192875
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
QUARTERS = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()


def row(
    *, index: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **fields: object
) -> SampleRow:
    sampling = replace(Sampling(temperature=1.0, seed=7), **fields)  # type: ignore[arg-type]
    return SampleRow(
        request_id="r",
        sample_index=index,
        sampling=sampling,
        prompt_tokens=prompt,
        output_tokens=output,
    )


def kept(logits: torch.Tensor, **fields: Any) -> list[float]:
    return [round(float(p), 6) for p in probabilities(logits, [row(**fields)])[0]]


def test_temperature_divides_the_logits() -> None:
    assert kept(LOGITS) == [0.032059, 0.087144, 0.236883, 0.643914]
    # at temperature 2: e^0, e^.5, e^1, e^1.5 over 9.848692
    assert kept(LOGITS, temperature=2.0) == [0.101536, 0.167405, 0.276004, 0.455054]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert kept(QUARTERS, top_k=2) == [0.571429, 0.428571, 0.0, 0.0]
    assert kept(QUARTERS, top_k=99) == [0.4, 0.3, 0.2, 0.1]


def test_top_p_keeps_the_fewest_that_hold_the_share() -> None:
    assert kept(QUARTERS, top_p=0.69) == [0.571429, 0.428571, 0.0, 0.0]
    assert kept(QUARTERS, top_p=0.75) == [0.444444, 0.333333, 0.222222, 0.0]
    assert kept(QUARTERS, top_p=0.01) == [1.0, 0.0, 0.0, 0.0]


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    assert kept(QUARTERS, min_p=0.45) == [0.444444, 0.333333, 0.222222, 0.0]


def test_before_the_least_number_of_tokens_nothing_ends_a_text() -> None:
    fields: dict[str, Any] = {"temperature": 0.0, "stop_tokens": (3, 2), "min_tokens": 2}
    rows = [row(output=output, **fields) for output in ((), (1,), (1, 1))] + [row(temperature=0.0)]
    sampler = BatchSampler()
    assert [one.token for one in sampler(LOGITS.repeat(4, 1), rows)] == [1, 1, 3, 3]


def test_top_k_cuts_before_top_p() -> None:
    """Of the two that are left the first holds 4/7, which is less than 0.6."""
    assert kept(QUARTERS, top_k=2, top_p=0.6) == [0.571429, 0.428571, 0.0, 0.0]
    assert kept(QUARTERS, top_k=2, top_p=0.5) == [1.0, 0.0, 0.0, 0.0]


def test_penalties_lower_what_was_there() -> None:
    scores = torch.tensor([2.0, -2.0, 3.0, 1.0, 0.5])
    one = row(prompt=(0,), output=(1, 2, 2), repetition_penalty=2.0)
    counts = TokenCounts(one.prompt_tokens)
    counts.advance(one.output_tokens)
    penalise(scores, counts, one)
    assert scores.tolist() == [1.0, -4.0, 1.5, 1.0, 0.5]
    scores = torch.tensor([2.0, -2.0, 3.0, 1.0, 0.5])
    penalise(scores, counts, row(presence_penalty=1.0, frequency_penalty=0.25))
    assert scores.tolist() == [2.0, -3.25, 1.5, 1.0, 0.5]


def test_counts_go_on_from_where_they_were() -> None:
    counts = TokenCounts((9,))
    counts.advance((1, 1))
    counts.advance((1, 1))  # the same row again, after a pre-emption
    counts.advance((1, 1, 2))
    assert counts.output == Counter({1: 2, 2: 1})
    assert counts.seen == {1, 2, 9}


def test_greedy_takes_the_largest_logit() -> None:
    sampler = BatchSampler()
    assert sampler(LOGITS, [row(temperature=0.0, seed=None)]) == [
        Sampled(token=3, logprob=None, top_logprobs=())
    ]


def test_log_probabilities_are_before_temperature_and_cutting() -> None:
    (one,) = BatchSampler()(LOGITS, [row(temperature=0.5, top_k=1, logprobs=2)])
    assert one.token == 3
    assert one.logprob is not None
    assert round(one.logprob, 5) == round(math.log(0.643914), 5)
    assert [(token, round(value, 4)) for token, value in one.top_logprobs] == [
        (3, round(math.log(0.643914), 4)),
        (2, round(math.log(0.236883), 4)),
    ]


def test_half_precision_logits_are_sampled_in_single() -> None:
    (one,) = BatchSampler()(LOGITS.to(torch.bfloat16), [row(logprobs=0, temperature=0.0)])
    assert one.logprob is not None and round(one.logprob, 4) == -0.4402


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    """4,000 draws: a share p is found within 4 standard deviations, 4 sqrt(p (1 - p) / 4000)."""
    rows = [row(index=index, top_p=0.75) for index in range(4000)]
    wanted = probabilities(QUARTERS.expand(4000, 4), rows)
    found = Counter(draw(wanted, rows).tolist())
    for token, share in enumerate((4 / 9, 3 / 9, 2 / 9, 0.0)):
        assert abs(found[token] / 4000 - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


def test_a_row_draws_the_same_in_any_batch() -> None:
    rows = [row(index=index, output=tuple(range(index))) for index in range(20)]
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    together = [one.token for one in BatchSampler()(logits, rows)]
    alone = [BatchSampler()(logits[i : i + 1], [rows[i]])[0].token for i in range(20)]
    assert together == alone


def test_seed_sample_and_position_each_change_the_number() -> None:
    numbers = [
        uniform(row()),
        uniform(row(seed=8)),
        uniform(row(index=1)),
        uniform(row(output=(1,))),
    ]
    assert len(set(numbers)) == 4
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(row()) == numbers[0]


def literal(scores: list[float], sampling: Sampling) -> list[float]:
    """The distribution by the definitions, one token at a time."""
    top = max(scores)
    weights = [math.exp((score - top) / sampling.temperature) for score in scores]
    share = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(scores)), key=lambda token: (-share[token], token))
    keep = order[: sampling.top_k or len(order)]
    keep = [token for token in keep if share[token] >= sampling.min_p * share[order[0]]]
    total, held = sum(share[token] for token in keep), 0.0
    nucleus: list[int] = []
    for token in keep:
        if sampling.top_p < 1 and nucleus and held >= sampling.top_p:
            break
        nucleus.append(token)
        held += share[token] / total
    total = sum(share[token] for token in nucleus)
    return [share[token] / total if token in nucleus else 0.0 for token in range(len(scores))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True),
    st.sampled_from([0.2, 0.7, 1.0, 1.9]),
    st.integers(0, 14),
    st.sampled_from([0.0, 0.01, 0.31]),
    st.sampled_from([0.03, 0.5, 0.93, 1.0]),
)
def test_any_row_has_the_literal_distribution(
    scores: list[int], temperature: float, top_k: int, min_p: float, top_p: float
) -> None:
    """Also beside a row of other parameters."""
    one = row(temperature=temperature, top_k=top_k, min_p=min_p, top_p=top_p)
    logits = torch.tensor([scores, scores], dtype=torch.float64) / 8
    found = probabilities(logits, [one, row(top_k=1, top_p=0.5)])
    wanted = literal([score / 8 for score in scores], one.sampling)
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-9)
    assert sorted(found[1].tolist())[-1] == 1.0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**63), st.integers(2, 2000), st.integers(0, 3))
def test_a_draw_never_falls_on_what_was_cut(seed: int, size: int, kind: int) -> None:
    weights = torch.zeros(1, size, dtype=torch.float64)
    live = sorted({0, size // 2, size - 1 - kind % size})
    weights[0, live] = 1.0 / len(live)
    assert int(draw(weights, [row(seed=seed)])[0]) in live


def test_a_bias_is_added_to_the_logits_of_its_tokens() -> None:
    rows = [row(temperature=0.0, logit_bias=((0, 3.5),), logprobs=1), row(temperature=0.0)]
    favoured, plain = BatchSampler()(LOGITS.repeat(2, 1), rows)
    assert (favoured.token, plain.token) == (0, 3)
    # e^3.5 over e^1 + e^2 + e^3 + e^3.5
    assert favoured.logprob == pytest.approx(math.log(33.115452 / 63.308327), abs=1e-6)
    (banned,) = BatchSampler()(LOGITS, [row(temperature=0.0, logit_bias=((3, -100.0),))])
    assert banned.token == 2

"""From logits to tokens, for all rows of a step at once, each by its own parameters.

In this order, as Hugging Face's processors and vLLM have it::

    constraint          tokens that the grammar forbids are out
    least length        before `min_tokens` stop tokens are out
    bias                what the request adds to logits of single tokens
    penalties           repetition (prompt and output), presence and frequency (output)
    temperature         0: the token with the largest logit, and that is all
    top-k, min-p, top-p the tail is out; at least the likeliest token stays
    draw                by a number that follows from seed, sample and position alone

The draw: with u uniform in [0, 1), the first token whose cumulated probability exceeds u, tokens in
order of their ids. One number per row, so a row's token is the same in any batch and on any layout
that computes the same logits.

Log-probabilities that are told are those of the model itself, after constraint, bias and penalties
and before temperature and cutting: what OpenAI's interface means by them.

Shapes: R rows, V vocabulary.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from parctl.runtime.inference.constraints import Matcher
from parctl.runtime.inference.request import Sampled, SampleRow

Key = tuple[str, int]  # of a sample: request, sample index
Compile = Callable[[SampleRow], Matcher]


class BatchSampler:
    """The `Sampler` of the engine. `compile_constraint` makes a row's grammar, if there are any.

    What is kept per sample is its matcher and the counts of its tokens.
    """

    def __init__(self, compile_constraint: Compile | None = None) -> None:
        self._compile = compile_constraint
        self._matchers: dict[Key, Matcher] = {}
        self._counts: dict[Key, TokenCounts] = {}

    def __call__(self, logits_RV: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
        """Return one token per row; logits may be in any type, and are not changed."""
        assert logits_RV.shape[0] == len(rows)
        scores_RV = logits_RV.to(
            torch.float64 if logits_RV.dtype == torch.float64 else torch.float32
        )
        if any(row.sampling.constraint is not None for row in rows):
            scores_RV = self._constrain(scores_RV, rows)
        if any(is_too_short(row) for row in rows):
            scores_RV = forbid_stops(scores_RV, rows)
        if any(row.sampling.logit_bias for row in rows):
            scores_RV = add_bias(scores_RV, rows)
        if any(is_penalised(row) for row in rows):
            scores_RV = self._penalise(scores_RV, rows)
        chosen_R = choose(scores_RV, rows)
        told = log_probabilities(scores_RV, chosen_R, rows)
        return [
            Sampled(token=int(token), logprob=logprob, top_logprobs=top)
            for token, (logprob, top) in zip(chosen_R.tolist(), told, strict=True)
        ]

    def forget(self, request_id: str, sample_index: int) -> None:
        self._matchers.pop((request_id, sample_index), None)
        self._counts.pop((request_id, sample_index), None)

    def _constrain(self, scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
        allowed_RV = torch.ones(scores_RV.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            if row.sampling.constraint is not None:
                key = (row.request_id, row.sample_index)
                if key not in self._matchers:
                    assert self._compile is not None, "the endpoint lets no constraint through"
                    self._matchers[key] = self._compile(row)
                allowed_RV[index] = self._matchers[key].allowed(
                    row.output_tokens, scores_RV.shape[1]
                )
        return scores_RV.masked_fill(~allowed_RV.to(scores_RV.device), -torch.inf)

    def _penalise(self, scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
        scores_RV = scores_RV.clone()
        for index, row in enumerate(rows):
            if not is_penalised(row):
                continue
            key = (row.request_id, row.sample_index)
            counts = self._counts.setdefault(key, TokenCounts(row.prompt_tokens))
            counts.advance(row.output_tokens)
            penalise(scores_RV[index], counts, row)
        return scores_RV


class TokenCounts:
    """How often each token came in a sample's output, and which were there at all."""

    def __init__(self, prompt_tokens: Sequence[int]) -> None:
        self.output: Counter[int] = Counter()
        self.seen = set(prompt_tokens)
        self._num_counted = 0

    def advance(self, output_tokens: Sequence[int]) -> None:
        """Count the tokens that are new since the last call."""
        new = output_tokens[self._num_counted :]
        self.output.update(new)
        self.seen.update(new)
        self._num_counted = len(output_tokens)


def is_too_short(row: SampleRow) -> bool:
    return len(row.output_tokens) < row.sampling.min_tokens


def forbid_stops(scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    scores_RV = scores_RV.clone()
    for index, row in enumerate(rows):
        if is_too_short(row):
            scores_RV[index, list(row.sampling.stop_tokens)] = -torch.inf
    return scores_RV


def add_bias(scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    scores_RV = scores_RV.clone()
    for index, row in enumerate(rows):
        for token, value in row.sampling.logit_bias:
            scores_RV[index, token] += value
    return scores_RV


def is_penalised(row: SampleRow) -> bool:
    sampling = row.sampling
    return (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (
        1.0,
        0.0,
        0.0,
    )


def penalise(scores_V: Tensor, counts: TokenCounts, row: SampleRow) -> None:
    """Lower the scores of one row in place."""
    sampling, device = row.sampling, scores_V.device
    if sampling.repetition_penalty != 1.0 and counts.seen:
        seen = torch.tensor(sorted(counts.seen), device=device)
        found = scores_V[seen]
        factor = sampling.repetition_penalty
        scores_V[seen] = torch.where(found > 0, found / factor, found * factor)
    if counts.output and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens = torch.tensor(list(counts.output), device=device)
        times = torch.tensor(list(counts.output.values()), device=device, dtype=scores_V.dtype)
        scores_V[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times


def choose(scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Return the chosen tokens `[R]`, on the host."""
    chosen_R = scores_RV.argmax(dim=-1).cpu()
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        own = [rows[index] for index in drawn]
        chosen_R[drawn] = draw(probabilities(scores_RV[drawn], own), own).cpu()
    return chosen_R


def probabilities(scores_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Return what rows with a temperature are drawn from, in float64."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores_RV.device).unsqueeze(1)

    sampling = [row.sampling for row in rows]
    scores_RV = scores_RV.double() / column([one.temperature for one in sampling])
    all_RV = torch.softmax(scores_RV, dim=-1)
    cut_k, cut_min, cut_p = (
        any(one.top_k > 0 for one in sampling),
        any(one.min_p > 0 for one in sampling),
        any(one.top_p < 1 for one in sampling),
    )
    if not (cut_k or cut_min or cut_p):
        return all_RV
    sorted_RV, order_RV = all_RV.sort(dim=-1, descending=True, stable=True)
    keep_RV = torch.ones_like(sorted_RV, dtype=torch.bool)
    places_V = torch.arange(sorted_RV.shape[1], device=sorted_RV.device)
    if cut_k:
        keep_RV &= places_V < column([one.top_k or sorted_RV.shape[1] for one in sampling])
    if cut_min:
        keep_RV &= sorted_RV >= column([one.min_p for one in sampling]) * sorted_RV[:, :1]
    if cut_p:
        left_RV = sorted_RV * keep_RV
        left_RV = left_RV / left_RV.sum(dim=-1, keepdim=True)
        before_RV = left_RV.cumsum(dim=-1) - left_RV
        # where nothing is cut, rounding must not cut either
        whole_R1 = column([one.top_p for one in sampling]) >= 1
        keep_RV &= (before_RV < column([one.top_p for one in sampling])) | whole_R1
    keep_RV[:, 0] = True
    kept_RV = torch.zeros_like(all_RV).scatter_(1, order_RV, sorted_RV * keep_RV)
    return kept_RV / kept_RV.sum(dim=-1, keepdim=True)


def draw(probabilities_RV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Return one token per row, `[R]`."""
    uniform_R1 = torch.tensor(
        [[uniform(row)] for row in rows], dtype=torch.float64, device=probabilities_RV.device
    )
    cumulated_RV = probabilities_RV.cumsum(dim=-1)
    # the sum is 1 but for rounding: the scale makes its end exact, so no draw falls behind it
    tokens_R1 = torch.searchsorted(cumulated_RV, uniform_R1 * cumulated_RV[:, -1:], right=True)
    last_R1 = (
        (probabilities_RV > 0)
        .long()
        .mul_(torch.arange(probabilities_RV.shape[1], device=probabilities_RV.device))
    )
    return torch.minimum(tokens_R1.squeeze(1), last_R1.amax(dim=-1))


def uniform(row: SampleRow) -> float:
    """Return the number in [0, 1) that decides a row's next token.

    A hash, since a generator per row would have to be wound forward after every pre-emption.
    """
    assert row.sampling.seed is not None
    place = np.array([row.sampling.seed, row.sample_index, len(row.output_tokens)], np.uint64)
    digest = hashlib.blake2b(place.tobytes(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def log_probabilities(
    scores_RV: Tensor, chosen_R: Tensor, rows: Sequence[SampleRow]
) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
    """Return for each row what it asks for: its token's, and the likeliest tokens'."""
    told: list[tuple[float | None, tuple[tuple[int, float], ...]]] = [(None, ()) for _ in rows]
    asking = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not asking:
        return told
    logs_RV = torch.log_softmax(scores_RV[asking], dim=-1)
    most = max(rows[index].sampling.logprobs or 0 for index in asking)
    values_RK, tokens_RK = logs_RV.topk(min(most, logs_RV.shape[1]), dim=-1)
    own_R = logs_RV.gather(1, chosen_R[asking].to(logs_RV.device).unsqueeze(1)).squeeze(1)
    for place, index in enumerate(asking):
        count = rows[index].sampling.logprobs or 0
        top = zip(tokens_RK[place, :count].tolist(), values_RK[place, :count].tolist(), strict=True)
        told[index] = (float(own_R[place]), tuple(top))
    return told

"""The schedule by hand, and clipping to the norm asked for."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.runtime.plans import OPTIMIZER
from torch import nn

from parctl.runtime.optimizer import clip, learning_rate, make_optimizer

SPEC = replace(OPTIMIZER, lr=1.0, min_lr=0.2, warmup_steps=4)


def test_the_rate_warms_up_and_ends_at_the_minimum() -> None:
    rates = [learning_rate(SPEC, step, 12) for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.6)  # half way down: the mean of 1.0 and 0.2
    assert rates[11] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[3:]))


def test_no_warm_up_begins_at_the_full_rate() -> None:
    assert learning_rate(replace(SPEC, warmup_steps=0), 1, 1000) == pytest.approx(1.0, abs=1e-4)


def test_clipping_scales_to_the_norm_and_never_up() -> None:
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    clip(gradients, norm=torch.tensor(5.0), max_norm=1.0)
    assert gradients["a"].tolist() == pytest.approx([0.6, 0.0])
    assert gradients["b"].tolist() == [[pytest.approx(0.8)]]
    clip(gradients, norm=torch.tensor(1.0), max_norm=2.0)
    clip(gradients, norm=torch.tensor(1.0), max_norm=0.0)
    assert gradients["b"].tolist() == [[pytest.approx(0.8)]]


def test_matrices_decay_and_norms_do_not() -> None:
    """A zero gradient leaves decay alone: 1 - lr x 0.1."""
    matrix, norm = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer({"m.weight": matrix, "norm.weight": norm}, SPEC)
    matrix.grad, norm.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert matrix.tolist() == [[pytest.approx(0.9)] * 2] * 2
    assert norm.tolist() == [1.0, 1.0]

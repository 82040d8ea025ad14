"""Goodput by formula, beside the same story played many times with seeded dice."""

from math import inf

import numpy as np
import pytest

from parctl.planner.goodput import Failures, job_failures

# Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 GPUs (2407.21783)
LLAMA_3 = Failures(mtbf_s=54 * 86_400 / 419, checkpoint_s=60, restart_s=600)


def played(failures: Failures, interval_s: float, *, seed: int, segments: int = 20_000) -> float:
    """Progress over wall time of one long run whose failures are drawn one by one."""
    random = np.random.default_rng(seed)
    wall = 0.0
    until_failure = random.exponential(failures.mtbf_s)
    for _ in range(segments):
        needed = interval_s + failures.checkpoint_s
        while until_failure < needed:  # lost: everything since the last save, and a restart
            wall += until_failure
            until_failure = random.exponential(failures.mtbf_s)
            needed = failures.restart_s + interval_s + failures.checkpoint_s
        wall += needed
        until_failure -= needed
    return segments * interval_s / wall


@pytest.mark.parametrize(
    ("failures", "interval_s"),
    [
        (LLAMA_3, 600.0),
        (LLAMA_3, 1200.0),
        (LLAMA_3, 6000.0),
        (Failures(mtbf_s=3600, checkpoint_s=120, restart_s=300), 900.0),
        (Failures(mtbf_s=3600, checkpoint_s=120, restart_s=300), 7200.0),
        (Failures(mtbf_s=86_400, checkpoint_s=10, restart_s=60), 1300.0),
    ],
)
def test_the_expected_wall_time_is_what_dice_give(failures: Failures, interval_s: float) -> None:
    dice = np.mean([played(failures, interval_s, seed=seed) for seed in range(3)])

    assert failures.goodput(interval_s) == pytest.approx(dice, rel=0.01)


@pytest.mark.parametrize("checkpoint_s", [1.0, 30.0, 120.0, 600.0])
@pytest.mark.parametrize("mtbf_s", [3600.0, 10_800.0, 86_400.0])
def test_dalys_interval_is_as_good_as_the_best(mtbf_s: float, checkpoint_s: float) -> None:
    failures = Failures(mtbf_s=mtbf_s, checkpoint_s=checkpoint_s, restart_s=300)
    best = max(failures.goodput(interval) for interval in np.geomspace(10, 10 * mtbf_s, 4000))

    assert failures.goodput(failures.daly_s) >= best * (1 - 1e-3)


def test_intervals_by_hand() -> None:
    failures = job_failures(node_mtbf_hours=6000, num_nodes=2000, checkpoint_s=54, restart_s=300)
    assert failures.mtbf_s == 10_800
    assert failures.young_s == pytest.approx(1080)  # sqrt(2 x 54 x 10800)
    # ratio 54 / 21600 = 0.0025, its root 0.05: 1080 x (1 + 0.05/3 + 0.0025/9) - 54
    assert failures.daly_s == pytest.approx(1044.3)


def test_saves_as_long_as_the_time_between_failures_leave_no_better_interval() -> None:
    assert Failures(mtbf_s=100, checkpoint_s=300, restart_s=0).daly_s == 100


def test_goodput_falls_from_one_to_nothing() -> None:
    assert Failures(mtbf_s=1e12, checkpoint_s=1, restart_s=1).goodput(1e5) == pytest.approx(
        1, abs=1e-4
    )
    hopeless = Failures(mtbf_s=60, checkpoint_s=60, restart_s=600)
    assert hopeless.wall_s(1e6) == inf
    assert hopeless.goodput(1e6) == 0


def test_more_nodes_fail_more_often() -> None:
    def at(num_nodes: int) -> float:
        failures = job_failures(
            node_mtbf_hours=6000, num_nodes=num_nodes, checkpoint_s=30, restart_s=300
        )
        return failures.goodput(failures.daly_s)

    assert at(10) > at(100) > at(1000) > at(10_000)

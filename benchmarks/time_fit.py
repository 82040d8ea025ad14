"""Fit the constants of the time model to published runs, and judge the fit by families left out.

The fit makes the logarithms of predicted over measured step time small: by Huber's loss, since a
few rows are of software that no model knows; by weights, since a source with fifty rows is not
fifty times as true as one with one; and drawn towards the expected values. It is a
Levenberg-Marquardt iteration of a dozen steps over at most 20 constants.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from benchmarks.published_runs import Run

from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.pipeline import even_waiting
from parctl.planner.time.step import step_time

Vector = np.ndarray[Any, np.dtype[np.float64]]

TURN = 0.08  # of a relative error, where Huber's loss turns from square to straight
DRAWN = 0.4  # how strongly a constant is drawn to its expected value
CROWDED = -0.35  # a row counts (rows of its source and family) ** this
NAMES = tuple(field.name for field in fields(Constants))
EXPECTED, LOW, HIGH = (
    np.array([field.metadata[key] for field in fields(Constants)], dtype=np.float64)
    for key in ("expected", "low", "high")
)
SPAN = HIGH - LOW


def errors(values: Vector, runs: Sequence[Run]) -> Vector:
    """Logarithms of predicted over measured step time."""
    constants = of_vector(values)
    return np.array(
        [
            np.log(step_time(run.job, constants, wait=even_waiting).total / run.step_time_s)
            for run in runs
            if run.step_time_s is not None
        ]
    )


def fit(runs: Sequence[Run], start: Constants = FITTED, steps: int = 12) -> Constants:
    """Return the constants that predict `runs` best."""
    runs = [run for run in runs if run.step_time_s is not None]
    weights = row_weights(runs)
    values = to_vector(start)
    residual = errors(values, runs)
    cost, damping = loss(values, residual, weights), 1e-2
    for _ in range(steps):
        jacobian = slopes(values, residual, runs)
        pull = weights * np.minimum(1.0, TURN / np.maximum(np.abs(residual), 1e-9))
        normal = jacobian.T @ (pull[:, None] * jacobian) + DRAWN * np.eye(len(values))
        gradient = jacobian.T @ (pull * residual) + DRAWN * (values - EXPECTED) / SPAN
        before = cost
        for _ in range(6):
            damped = normal + damping * np.diag(np.diag(normal))
            candidate = np.clip(values - np.linalg.solve(damped, gradient) * SPAN, LOW, HIGH)
            found = errors(candidate, runs)
            if (reached := loss(candidate, found, weights)) < cost:
                values, residual, cost, damping = candidate, found, reached, damping / 3
                break
            damping *= 4
        if before - cost < 1e-4 * before:
            break
    return of_vector(values)


def left_out(runs: Sequence[Run], start: Constants = FITTED) -> dict[str, Constants]:
    """For every family, the constants fitted without it."""
    families = sorted({run.family for run in runs})
    return {
        family: fit([run for run in runs if run.family != family], start, steps=6)
        for family in families
    }


def loss(values: Vector, residual: Vector, weights: Vector) -> float:
    size = np.abs(residual)
    huber = np.where(size < TURN, residual**2 / 2, TURN * (size - TURN / 2))
    return float((weights * huber).sum() + DRAWN / 2 * (((values - EXPECTED) / SPAN) ** 2).sum())


def slopes(values: Vector, residual: Vector, runs: Sequence[Run]) -> Vector:
    """How every error changes when a constant moves through its whole interval."""
    columns = []
    for place, span in enumerate(SPAN):
        moved = values.copy()
        forward = values[place] + 1e-3 * span <= HIGH[place]
        moved[place] += 1e-3 * span if forward else -1e-3 * span
        change = (moved[place] - values[place]) / span
        columns.append((errors(moved, runs) - residual) / change)
    return np.stack(columns, axis=1)


def row_weights(runs: Sequence[Run]) -> Vector:
    crowd = Counter((run.family, run.source) for run in runs)
    return np.array([crowd[run.family, run.source] ** CROWDED for run in runs])


def to_vector(constants: Constants) -> Vector:
    return np.array([getattr(constants, name) for name in NAMES], dtype=np.float64)


def of_vector(values: Vector) -> Constants:
    return Constants(**{name: float(value) for name, value in zip(NAMES, values, strict=True)})

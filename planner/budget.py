"""What a number of tokens costs: steps, days, device-hours and money.

Restarts, evaluations and waiting in queues are not in it: it is the time of the steps alone.
"""

import re
from dataclasses import dataclass
from math import ceil

from parctl.errors import UsageError
from parctl.planner.plan import Plan

SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    tokens: int
    steps: int
    seconds: float
    device_hours: float
    cost: float | None  # in the currency of `launch.price_per_gpu_hour`; None: it is not given

    @property
    def days(self) -> float:
        return self.seconds / 86400


def read_tokens(text: str) -> int:
    """Read a number of tokens. Raises UsageError.

    >>> read_tokens("15T"), read_tokens("2e9"), read_tokens("500M")
    (15000000000000, 2000000000, 500000000)
    """
    match = re.fullmatch(r"([0-9.]+(?:[eE]\+?[0-9]+)?)\s*([KMBGT]?)", text.strip(), re.IGNORECASE)
    try:
        tokens = int(float(match[1]) * SCALES[match[2].upper()]) if match else 0
    except (ValueError, OverflowError):
        tokens = 0
    if tokens < 1:
        raise UsageError(f"--tokens {text}: found no number of tokens", hint="as in 15T or 300B")
    return tokens


def count_text(number: int) -> str:
    """Write a number of tokens for people.

    >>> count_text(15_000_000_000_000), count_text(4_194_304_000), count_text(8192)
    ('15T', '4.19B', '8.19K')
    """
    for letter in ("T", "B", "M", "K"):
        if number >= SCALES[letter]:
            return f"{number / SCALES[letter]:.3g}{letter}"
    return str(number)


def budget_of(plan: Plan, tokens: int | None = None) -> Budget | None:
    """What `tokens` cost, else what the recipe's own steps do. None: time is not predicted."""
    step, train = plan.time.get("step_time_s"), plan.recipe.train
    if step is None or train is None:
        return None
    per_step: int = plan.time["tokens_per_step"]
    steps = train.steps if tokens is None else ceil(tokens / per_step)
    seconds = steps * step
    hours = seconds / 3600 * plan.layout.world_size
    price = plan.recipe.launch.price_per_gpu_hour
    return Budget(
        tokens=steps * per_step,
        steps=steps,
        seconds=seconds,
        device_hours=hours,
        cost=None if price is None else price * hours,
    )

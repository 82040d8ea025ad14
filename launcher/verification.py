"""Verify a recipe: train it small, in its parallel shape and in one process, and compare.

A split that is right computes the same sums in another order. So in float64 loss and gradient norm
agree to 1e-10 of their size, step after step, and a wrong scale, a lost or doubled gradient or a
stale weight does not. The gradient norm is the one before clipping: Adam would hide a wrong scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parctl.errors import RunFailedError
from parctl.launcher.trials import Trial
from parctl.planner.fold import fold
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.planner.shrink import Shrunk, shrink
from parctl.recipes.spec import ModelSpec, ParallelismSpec, Precision, Recipe
from parctl.runtime.supported import refuse_unbuilt_forms
from parctl.topology.model import Node, Topology

COMPARED = ("loss", "grad_norm", "validation_loss")
# relative; bfloat16 keeps 8 bits (0.4%) of every product, and rounds partial sums
TOLERANCE: Mapping[Precision, Mapping[str, float]] = {
    "fp64": dict.fromkeys(COMPARED, 1e-10),
    "fp32": dict.fromkeys(COMPARED, 1e-5),
    "bf16": {"loss": 1e-3, "grad_norm": 5e-3, "validation_loss": 1e-3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number of one step, from both sides."""

    step: int
    name: str  # one of COMPARED
    one_process: float
    parallel: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Relative; infinite when either side is not finite."""
        size = max(abs(self.one_process), abs(self.parallel))
        difference = abs(self.one_process - self.parallel) / size if size else 0.0
        return difference if difference == difference else float("inf")

    @property
    def equal(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One folded shape of the recipe beside one process."""

    form: str
    num_ranks: int
    changes: Mapping[str, tuple[int | None, int]]  # degree in the recipe (None: inferred), here
    numbers: Sequence[Number]
    failure: str | None  # why it did not train to the end
    seconds_one_process: float
    seconds: float

    @property
    def equal(self) -> bool:
        return self.failure is None and all(number.equal for number in self.numbers)

    @property
    def worst(self) -> float:
        return max((number.difference for number in self.numbers), default=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    recipe: str
    form: str
    precision: Precision
    model: ModelSpec  # as given
    small: ModelSpec
    parts: Sequence[Part]

    @property
    def equal(self) -> bool:
        return all(part.equal for part in self.parts)


class Trying(Protocol):
    """What trains a plan to its end: `Trials`, or the ranks of a test."""

    def run(self, plan: Plan) -> Trial: ...


class Verifier:
    """Verifies recipes one after the other. A one-process run serves all that compare with it."""

    def __init__(self, trials: Trying, text: Path) -> None:
        """`text` is a file that `write_text` has filled."""
        self._trials, self._text = trials, text
        self._done: dict[str, Trial] = {}

    def verify(
        self,
        recipe: Recipe,
        *,
        precision: Precision,
        max_ranks: int,
        say: Callable[[str], None],
    ) -> Verification:
        """Train every part. UsageError and NotBuiltError come before anything is started."""
        refuse_unbuilt_forms(recipe, {})  # what shrinking takes away, such as its precision
        parts = fold(recipe.parallelism, max_ranks)
        cases = shrink(recipe, parts, precision=precision, text=self._text)
        plans = [(small, _plan(small.parallel), _plan(small.one_process)) for small in cases]
        assert recipe.model and cases[0].parallel.model
        results = []
        for small, parallel, one_process in plans:
            say(f"{small.folded.parallelism.text} on {small.folded.num_ranks} ranks")
            results.append(self._compare(small, parallel, one_process, recipe.parallelism))
        return Verification(
            recipe=recipe.name,
            form=recipe.parallelism.text,
            precision=precision,
            model=recipe.model,
            small=cases[0].parallel.model,
            parts=results,
        )

    def _compare(
        self, small: Shrunk, parallel: Plan, one_process: Plan, given: ParallelismSpec
    ) -> Part:
        assert small.parallel.train
        alone, ours, failure = None, None, None
        try:
            alone = self._one_process(one_process)
            ours = self._trials.run(parallel)
        except RunFailedError as error:
            failure = error.message
        return Part(
            form=small.folded.parallelism.text,
            num_ranks=small.folded.num_ranks,
            changes=small.folded.changes(given),
            numbers=_numbers(alone, ours, small.parallel.train.precision) if alone and ours else (),
            failure=failure,
            seconds_one_process=alone.seconds if alone else 0.0,
            seconds=ours.seconds if ours else 0.0,
        )

    def _one_process(self, plan: Plan) -> Trial:
        if plan.hash not in self._done:
            self._done[plan.hash] = self._trials.run(plan)
        return self._done[plan.hash]


def write_text(path: Path, seed: int = 0) -> None:
    """Write what trials train on: short documents that differ, about 24 kB."""
    lines = (f"{i}: {i} times {i + seed} is {i * (i + seed)}, no more.\n" for i in range(800))
    path.write_text("".join(lines), encoding="utf-8")


def _numbers(alone: Trial, ours: Trial, precision: Precision) -> list[Number]:
    return [
        Number(
            step=reference["step"],
            name=name,
            one_process=reference[name],
            parallel=line[name],
            tolerance=TOLERANCE[precision][name],
        )
        for reference, line in zip(alone.metrics, ours.metrics, strict=True)
        for name in COMPARED
        if reference[name] is not None
    ]


def _plan(recipe: Recipe) -> Plan:
    """Plan for the CPUs of this machine, and refuse what cannot run."""
    from parctl.launcher.launch import check_plan
    from parctl.planner.degrees import devices_asked_for

    count = devices_asked_for(recipe.parallelism)
    assert count is not None, "fold leaves no degree open"
    plan = make_plan(recipe, cpus(count))
    check_plan(plan, force=True)
    return plan


def cpus(count: int) -> Topology:
    """This machine's CPUs as `count` devices, also where it has GPUs."""
    from parctl.topology.sources.local import cpu_hardware

    hardware, _ = cpu_hardware(count)
    node = Node(name="here", hardware=hardware, domain=None, tiers=(), sources={})
    return Topology(name="here", source="local", tiers=(), nodes=(node,), warnings=(), unknown=())

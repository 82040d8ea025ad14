"""What a search found: candidates in the order of their time, and why each is not the first.

A loser is told by the part of the step that makes it slower, or by what forbids it: memory. The
best of every set of model axes is there too, so that "why no pipeline?" has a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parctl.planner.memory import Memory
from parctl.planner.search.choice import Choice
from parctl.planner.sizes import size_text
from parctl.planner.time.step import StepTime
from parctl.recipes.spec import Recipe

WORDS: Mapping[str, str] = {
    "compute": "it computes longer",
    "tensor": "exchanges of tp",
    "context": "exchanges of cp",
    "experts": "exchanges of ep",
    "data": "exchanges of the data axes",
    "bubble": "waiting in the pipeline",
    "optimizer": "the optimizer has more to update",
    "stragglers": "more nodes to wait for",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A choice that fits, with what it costs."""

    choice: Choice
    recipe: Recipe  # with the choice in it
    time: StepTime
    memory: Memory

    @property
    def seconds(self) -> float:
        return self.time.total

    @property
    def ranked_seconds(self) -> float:
        """What it is ranked by."""
        return self.time.total * self.choice.handicap

    @property
    def text(self) -> str:
        """`TP8+SP+PP4+FSDP16, micro-batch 1, recompute full`."""
        spec = self.recipe.parallelism
        sync = ""
        if spec.zero_stage >= 2 and spec.grad_sync == "last":
            sync = ", gradients once per step"
        return (
            f"{spec.text}, micro-batch {self.choice.micro_batch}, "
            f"recompute {self.choice.recompute}{sync}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FormResult:
    """The best with one set of model axes, or why there is none."""

    axes: str
    best: Candidate | None
    bound: float | None  # nothing that was not opened is faster; None: all of them were
    least: Memory | None  # of those that do not fit: what the smallest needs

    def order(self) -> tuple[int, float]:
        """By time, then by bound, then by memory."""
        if self.best is not None:
            return 0, self.best.ranked_seconds
        if self.bound is not None:
            return 1, self.bound
        return 2, self.least.worst.total if self.least else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything a search has to say. `ranked` is empty when nothing fits."""

    ranked: tuple[Candidate, ...]
    forms: tuple[FormResult, ...]  # fastest first, then what does not fit
    # of what was priced, nothing is both faster and smaller; by time. It ends where the search does
    front: tuple[Candidate, ...]
    looked_at: int  # choices, or whole branches of them, that were priced

    @property
    def best(self) -> Candidate | None:
        return self.ranked[0] if self.ranked else None

    def reason(self, candidate: Candidate) -> str:
        """Why `candidate` is not the first."""
        best = self.best
        assert best is not None
        if candidate is best:
            fastest = min(item.seconds for item in self.ranked)
            behind = best.seconds / fastest - 1
            return "the fastest" if behind == 0 else f"within {behind:.1%} of the fastest, plainer"
        slower = candidate.seconds / best.seconds - 1
        if slower < 0:
            return f"{-slower:.1%} faster, which is not worth what it involves"
        own, other = asdict(best.time), asdict(candidate.time)
        worse = {part: other[part] - own[part] for part in own if other[part] > own[part]}
        if slower < 0.0005 or not worse:
            return "as fast, and more involved" if slower < 0.0005 else f"{slower:.1%} slower"
        most = sorted(worse, key=lambda part: -worse[part])
        named = [part for part in most if worse[part] >= 0.25 * worse[most[0]]][:2]
        told = " and ".join(f"{WORDS[part]} (+{worse[part] / best.seconds:.1%})" for part in named)
        return f"{slower:.1%} slower: {told}"

    def form_text(self, form: FormResult) -> str:
        """One line on a set of model axes."""
        if form.best is not None:
            return f"{form.best.text}: {self.reason(form.best)}"
        if form.bound is not None:
            if self.best is None:
                return f"nothing that fits was found; if it is there, it takes {form.bound:.3g} s"
            slower = form.bound / self.best.seconds - 1
            return f"at least {slower:.1%} slower, if it fits"
        if form.least is None:
            return "no degrees divide this job so"
        usable = form.least.usable_bytes
        assert usable is not None
        needs = size_text(form.least.worst.total)
        return f"does not fit: at least {needs} per rank of {size_text(usable)}"

    def to_json(self, recipe: Recipe) -> dict[str, Any]:
        """`recipe`: what the options change."""
        return {
            "looked_at": self.looked_at,
            "ranked": [self._candidate(item, recipe) for item in self.ranked],
            "model_axes": [
                {
                    "axes": form.axes,
                    "text": self.form_text(form),
                    "best": None if form.best is None else self._candidate(form.best, recipe),
                    "bound_s": None if form.best is not None else form.bound,
                    "least_bytes": None if form.least is None else form.least.worst.total,
                }
                for form in self.forms
            ],
            "front": [self._candidate(item, recipe) for item in self.front],
        }

    def _candidate(self, item: Candidate, recipe: Recipe) -> dict[str, Any]:
        return {
            "choice": asdict(item.choice),
            "grad_sync": item.recipe.parallelism.grad_sync,
            "num_devices": item.choice.degrees.world_size,
            "options": list(item.choice.options(recipe)),
            "step_time_s": item.seconds,
            "step_parts_s": asdict(item.time),
            "memory_bytes": item.memory.worst.total,
            "reason": self.reason(item),
        }


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those of which none is both faster and smaller, fastest first."""
    front: list[Candidate] = []
    for item in sorted(candidates, key=lambda item: (item.seconds, item.memory.worst.total)):
        if not front or item.memory.worst.total < front[-1].memory.worst.total:
            front.append(item)
    return tuple(front)

"""The search: always look next where a choice could be fastest.

Branches wait in a heap by their bound (`parctl.planner.search.costs`); the smallest is taken out
and opened. What comes out as a finished candidate can be beaten by nothing that is still inside,
so the first K of them are the K fastest, exactly, and most of the space is never priced::

    heap: 11.2 s unit A | 11.9 s choice B, least | 12.4 s unit C ...
          pop A -> its shapes go in -> pop the smallest of them -> ...

There is one heap for every set of model axes, so that the best of each can be found, too. What
ranks is the time with the handicap of what is involved (`Choice.handicap`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from parctl.planner.memory import Memory
from parctl.planner.search.choice import Choice
from parctl.planner.search.costs import Costs, with_sync
from parctl.planner.search.found import Candidate, FormResult, Found, pareto
from parctl.planner.search.space import Flow, Shape, Split, Unit, choice
from parctl.recipes.spec import Recompute

PLAIN, ALONE = Flow("none", "1f1b", 1), Split(1, 1, 0)
PATIENCE = 120  # branches opened to find a form's own best, and to go on towards less memory
FRONT = 1.25  # of the fastest: how slow the list of time against memory goes at most


@dataclass(slots=True)
class _Form:
    """Branches with one set of model axes."""

    heap: list[tuple[float, int, Any]] = field(default_factory=list)
    done: list[Candidate] = field(default_factory=list)
    least: Memory | None = None

    def misfit(self, memory: Memory) -> None:
        if self.least is None or memory.worst.total < self.least.worst.total:
            self.least = memory


@dataclass(slots=True, kw_only=True)
class Search:
    costs: Costs
    top: int
    forms: dict[str, _Form] = field(default_factory=dict)
    ticket: Iterator[int] = field(default_factory=count)
    looked_at: int = 0

    def run(self, *, every_form: bool = True, front: bool = True) -> Found:
        """Find the `top` fastest choices, the best of every form and the front towards memory."""
        for unit in self.costs.space.units():
            bound = self.costs.unit_bound(unit)
            for pipelined in (False, True):
                least = bound * choice(Shape(unit, 1 + pipelined, 1), PLAIN, ALONE).handicap
                self._push(_axes(unit, 1 + pipelined), least, (unit, pipelined))
        ranked: list[Candidate] = []
        while len(ranked) < self.top and (form := self._nearest()) is not None:
            if (done := self._open(form)) is not None:
                ranked.append(done)
        finished = list(ranked)
        if every_form:
            for form in self.forms.values():  # no branch leads from one form to another
                for _ in range(PATIENCE):
                    if form.done or not form.heap:
                        break
                    if (done := self._open(form)) is not None:
                        finished.append(done)
        if front and ranked:
            self._towards_less_memory(finished)
        return Found(
            ranked=tuple(ranked),
            forms=self._form_results() if every_form else (),
            front=pareto(finished),
            looked_at=self.looked_at,
        )

    def _towards_less_memory(self, finished: list[Candidate]) -> None:
        """Go on for slower candidates, but only such as need less memory than faster ones."""
        limit = min(item.ranked_seconds for item in finished) * FRONT
        for _ in range(PATIENCE):
            form = self._nearest()
            if form is None or form.heap[0][0] > limit:
                break
            bound = form.heap[0][0]
            room = min(
                (item.memory.worst.total for item in finished if item.ranked_seconds <= bound),
                default=None,
            )
            if (done := self._open(form, room=room)) is not None:
                finished.append(done)

    def _nearest(self) -> _Form | None:
        waiting = [form for form in self.forms.values() if form.heap]
        return min(waiting, key=lambda form: form.heap[0][0], default=None)

    def _push(self, axes: str, bound: float, branch: Any) -> None:
        self.looked_at += 1
        heap = self.forms.setdefault(axes, _Form()).heap
        heappush(heap, (bound, next(self.ticket), branch))

    def _open(self, form: _Form, *, room: int | None = None) -> Candidate | None:
        """Take the most promising branch of `form`; return it if it is a finished candidate.

        Nothing that needs `room` bytes or more is of interest.
        """
        bound, _, branch = heappop(form.heap)
        costs = self.costs
        match branch:
            case Candidate():
                if room is None or branch.memory.worst.total < room:
                    form.done.append(branch)
                    return branch
            case (Unit() as unit, bool() as pipelined):
                for shape in costs.space.shapes(unit):
                    if (shape.pp > 1) == pipelined:
                        self._push_shape(bound, shape, 0)
            case (Shape() as shape, int() as stronger):
                self._open_shape(form, bound, shape, stronger, room)
            case (Shape() as shape, Flow() as flow):
                self._open_flow(form, bound, shape, flow, room)
            case (Choice() as chosen, sync, memory):
                if room is None or memory.worst.total < room:
                    recipe = with_sync(chosen.put_into(costs.space.recipe), sync)
                    time = costs.time(chosen, recipe)
                    done = Candidate(choice=chosen, recipe=recipe, time=time, memory=memory)
                    self._push(_axes_of(chosen), max(bound, done.ranked_seconds), done)
        return None

    def _push_shape(self, bound: float, shape: Shape, stronger: int) -> None:
        recompute = self.costs.space.recomputes()[stronger]
        handicap = choice(shape, PLAIN, ALONE).handicap
        least = max(bound, self.costs.shape_bound(shape, recompute) * handicap)
        self._push(_axes(shape.unit, shape.pp), least, (shape, stronger))

    def _open_shape(
        self, form: _Form, bound: float, shape: Shape, stronger: int, room: int | None
    ) -> None:
        """Open a shape with one way to recompute, and put the next stronger one back."""
        costs = self.costs
        modes = costs.space.recomputes()
        if stronger == 0 and not self._can_fit(form, shape, modes[-1], room):
            return  # not even with the strongest
        if stronger + 1 < len(modes):
            self._push_shape(bound, shape, stronger + 1)
        # that the strongest can has been seen when the shape was opened first
        if stronger + 1 < len(modes) and not self._can_fit(form, shape, modes[stronger], room):
            return
        for schedule, virtual in costs.space.schedules(shape):
            flow = Flow(modes[stronger], schedule, virtual)
            ranked = costs.flow_bound(shape, flow) * choice(shape, flow, ALONE).handicap
            self._push(_axes(shape.unit, shape.pp), max(bound, ranked), (shape, flow))

    def _can_fit(self, form: _Form, shape: Shape, recompute: Recompute, room: int | None) -> bool:
        # no schedule keeps less than 1F1B
        least = self.costs.least_memory(shape, Flow(recompute, "1f1b", 1))
        if least.fits is False:
            form.misfit(least)
        return least.fits is not False and (room is None or least.worst.total < room)

    def _open_flow(
        self, form: _Form, bound: float, shape: Shape, flow: Flow, room: int | None
    ) -> None:
        costs = self.costs
        least = costs.least_memory(shape, flow)
        if least.fits is False:
            form.misfit(least)
            return
        if room is not None and least.worst.total >= room:
            return
        for split in costs.space.splits(shape):
            sync, memory = costs.memory(shape, flow, split)
            if memory.fits is False:
                form.misfit(memory)
                continue
            if split.zero_stage == 2 and sync == "last":
                continue  # this is ZeRO-1
            chosen = choice(shape, flow, split)
            seconds = costs.least_seconds(shape, flow, split, sync)
            ranked = max(bound, seconds * chosen.handicap)
            self._push(_axes_of(chosen), ranked, (chosen, sync, memory))

    def _form_results(self) -> tuple[FormResult, ...]:
        found = [
            FormResult(
                axes=axes,
                best=form.done[0] if form.done else None,
                bound=form.heap[0][0] if form.heap else None,
                least=form.least,
            )
            for axes, form in self.forms.items()
        ]
        return tuple(sorted(found, key=FormResult.order))


def _axes(unit: Unit, pp: int) -> str:
    sizes = {"TP": unit.tp, "PP": pp, "CP": unit.cp, "EP": unit.ep}
    return "+".join(name for name, size in sizes.items() if size > 1) or "data axes only"


def _axes_of(chosen: Choice) -> str:
    return chosen.model_axes

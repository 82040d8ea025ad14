"""The chart of a schedule: its own table of actions, timed, beside the closed form of its paper.

Nothing is drawn from memory. The rows are those that the runtime executes
(`parctl.planner.schedules`), a unit of time is the forward pass of one micro-batch in one
(virtual) stage, and a backward pass takes two: I for the input, W for the weights. All stages take
equally long, which is what the closed forms assume; `with_seconds` gives each stage its own time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from parctl.errors import UsageError
from parctl.planner.bubble import Timeline, timeline
from parctl.planner.schedules import Action, Kind, Table, action_table, most_held, named_table
from parctl.planner.stages import V_SHAPED
from parctl.recipes.spec import ParallelismSpec, Schedule

Name = Schedule | Literal["layer"]
NAMES: tuple[Name, ...] = ("layer", *get_args(Schedule))
UNITS: Mapping[Kind, float] = {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}
SEVERAL_STAGES = ("interleaved-1f1b", "zero-bubble")  # whose ranks may hold any number of stages
MOST_ACTIONS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """Idle share of a step as a paper gives it, all ranks beginning and ending together."""

    formula: str
    idle_share: Fraction
    source: str
    # from how many micro-batches per rank on the schedule reaches its steady state
    least: int

    def holds(self, pp: int, num_micro_batches: int) -> bool:
        return num_micro_batches >= self.least * pp


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    name: str
    pp: int
    virtual_stages: int  # per rank
    num_micro_batches: int
    timeline: Timeline
    held: tuple[int, ...]  # most forwards in memory at once, by rank; each of one virtual stage
    closed_form: ClosedForm | None  # None: a schedule of the user's own
    unit: Literal["units of time", "ms"] = "units of time"

    @property
    def even(self) -> bool:
        """Whether all stages take equally long, as in the closed form."""
        return self.unit != "ms"

    @property
    def idle_share(self) -> float:
        return self.timeline.idle_share

    @property
    def num_stages(self) -> int:
        return self.pp * self.virtual_stages

    def chunk(self, stage: int) -> int:
        """Which of its rank's stages a stage is, from 0."""
        return stage // self.pp

    def label(self, action: Action) -> str:
        """`F3`; with several stages per rank a letter says which: `F3b`."""
        chunk = chr(ord("a") + self.chunk(action.stage)) if self.virtual_stages > 1 else ""
        return f"{action.kind}{action.micro_batch}{chunk}"

    def to_json(self) -> dict[str, Any]:
        closed = self.closed_form
        return {
            "schedule": self.name,
            "pp": self.pp,
            "virtual_stages": self.virtual_stages,
            "micro_batches": self.num_micro_batches,
            "units": dict(UNITS) if self.even else self.unit,
            "duration": self.timeline.duration,
            "idle_share": self.idle_share,
            "closed_form": closed
            and {
                "formula": closed.formula,
                "idle_share": float(closed.idle_share),
                "source": closed.source,
                "holds": closed.holds(self.pp, self.num_micro_batches),
            },
            "most_held": list(self.held),
            "ranks": [
                [
                    {
                        "stage": action.stage,
                        "kind": action.kind,
                        "micro_batch": action.micro_batch,
                        "start": start,
                        "end": end,
                    }
                    for action, start, end in row
                ]
                for row in self.timeline.rows
            ],
        }


def chart_of(
    name: str, *, pp: int, num_micro_batches: int, virtual_stages: int | None = None
) -> Chart:
    """Time the table of a schedule. UsageError says what a schedule cannot take.

    >>> chart = chart_of("1f1b", pp=4, num_micro_batches=8)
    >>> chart.timeline.duration, chart.closed_form.idle_share
    (33.0, Fraction(3, 11))
    """
    known = _known(name)
    v = _virtual_stages(known, virtual_stages)
    _check(known, pp, num_micro_batches, v)
    return _timed(
        known,
        named_table(known, pp, v, num_micro_batches),
        v,
        num_micro_batches,
        closed_form(known, pp, v, num_micro_batches),
    )


def chart_of_spec(spec: ParallelismSpec, *, pp: int, num_micro_batches: int) -> Chart:
    """Time the table that a recipe asks for, a schedule of its own included."""
    if spec.schedule_table is None:
        name = "layer" if spec.layer else spec.schedule
        return chart_of(
            name,
            pp=pp,
            num_micro_batches=num_micro_batches,
            virtual_stages=None if spec.layer else spec.virtual_stages,
        )
    table = action_table(spec, pp, num_micro_batches)
    return _timed("schedule of its own", table, spec.virtual_stages, num_micro_batches, None)


def with_seconds(chart: Chart, seconds: Callable[[Action], float], exchange: float) -> Chart:
    """Time the actions of a chart by what each takes. `exchange`: seconds from rank to rank."""
    table = tuple(tuple(action for action, _, _ in row) for row in chart.timeline.rows)
    timed = timeline(
        table, chart.num_stages, lambda action: 1e3 * seconds(action), exchange=1e3 * exchange
    )
    return replace(chart, timeline=timed, unit="ms")


def _timed(name: str, table: Table, v: int, m: int, closed: ClosedForm | None) -> Chart:
    return Chart(
        name=name,
        pp=len(table),
        virtual_stages=v,
        num_micro_batches=m,
        timeline=timeline(table, len(table) * v, UNITS),
        held=tuple(most_held(row) for row in table),
        closed_form=closed,
    )


def closed_form(name: Name, pp: int, v: int, m: int) -> ClosedForm:
    """Return the paper's idle share for `m` micro-batches, where F, I and W take equally long."""
    waits = pp - 1

    def form(formula: str, work: int, source: str, least: int = 0) -> ClosedForm:
        return ClosedForm(
            formula=formula, idle_share=Fraction(waits, work + waits), source=source, least=least
        )

    forms: Mapping[Name, Callable[[], ClosedForm]] = {
        "layer": lambda: ClosedForm(
            formula="(p - 1) / p",
            idle_share=Fraction(waits, pp),
            source="one rank works at a time",
            least=0,
        ),
        "gpipe": lambda: form("(p - 1) / (m + p - 1)", m, "1811.06965"),
        "1f1b": lambda: form("(p - 1) / (m + p - 1)", m, "2104.04473"),
        "interleaved-1f1b": lambda: form("(p - 1) / (v m + p - 1)", v * m, "2104.04473"),
        "zero-bubble": lambda: form(
            "(p - 1) / (3 v m + p - 1)", 3 * v * m, "ZB-H1 of 2401.10241", 2
        ),
        "zbv": lambda: form("(p - 1) / (6 m + p - 1)", 6 * m, "2405.15362", 2),
        "dualpipev": lambda: form("(p - 1) / (6 m + p - 1)", 6 * m, "DualPipe of 2412.19437", 2),
    }
    return forms[name]()


def _known(name: str) -> Name:
    found = next((known for known in NAMES if known == name.lower()), None)
    if found is None:
        raise UsageError(f"no schedule `{name}`", hint=f"one of {', '.join(NAMES)}")
    return found


def _virtual_stages(name: Name, asked: int | None) -> int:
    usual = 2 if name in (*V_SHAPED, "interleaved-1f1b") else 1
    given = usual if asked is None else asked
    if given != usual and name not in SEVERAL_STAGES:
        raise UsageError(
            f"{name} has {usual} stage{'s' * (usual > 1)} per rank, not {given}",
            hint=f"{' and '.join(SEVERAL_STAGES)} take any number of virtual stages",
        )
    return given


def _check(name: Name, pp: int, m: int, v: int) -> None:
    if name == "interleaved-1f1b" and m % pp:
        raise UsageError(
            f"{m} micro-batches, expected a multiple of pp ({pp}): interleaved-1f1b sends them "
            "through a rank's stages in groups of pp",
            hint=f"take {-(-m // pp) * pp} micro-batches",
        )
    if name == "dualpipev" and m < 2 * pp:
        raise UsageError(
            f"{m} micro-batches, expected at least 2 x pp ({pp}) = {2 * pp}: dualpipev fills a "
            "pipeline from both of its ends",
            hint=f"take {2 * pp} micro-batches",
        )
    count = 3 * pp * v * m
    if count > MOST_ACTIONS:
        raise UsageError(
            f"{pp} ranks x {v} stages x {m} micro-batches are {count:,} actions, at most "
            f"{MOST_ACTIONS:,} are drawn"
        )

"""What every back end does, and the values that pass between it and the command line.

One state machine serves all of them::

    Pending -> Placing -> Running -> Succeeded
                  ^          |  +---> Failed | Cancelled
                  |          v
                  +---- Restarting          Unknown: the back end cannot say
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from parctl.planner.plan import Plan
    from parctl.recipes.spec import Recipe
    from parctl.topology.model import Topology


class State(StrEnum):
    PENDING = "Pending"
    PLACING = "Placing"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNKNOWN = "Unknown"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """All that would be submitted, as plain documents.

    Rendering is pure: the same plan and id give the same bytes.
    """

    run_id: str
    backend: str
    plan: "Plan"
    documents: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()  # what whoever submits them should know


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    run_id: str
    backend: str
    created: bool  # False: the same id and plan were already there


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The first cause of a failure, apart from its victims."""

    sentence: str
    rank: int | None
    node: str | None
    coordinates: Mapping[str, int]  # mesh coordinates of that rank
    groups: Mapping[str, Sequence[int]]  # axis -> the ranks of its group
    cause: str  # "signal SIGKILL", "exit 3", "RuntimeError: ..."
    victims: tuple[int, ...]
    last_lines: tuple[str, ...]
    fix: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    rank: int
    node: str
    local_rank: int
    pid: int | None
    state: str  # running | exited 0 | exited 1 | killed SIGKILL | ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    run_id: str
    name: str
    backend: str
    state: State
    plan_hash: str
    created_unix: float
    ended_unix: float | None
    restarts: int
    step: int | None  # last step that was logged
    steps: int | None  # how many it will make
    verdict: Verdict | None
    ranks: tuple[RankStatus, ...]
    where: str  # run directory, job address, ...
    owner: str | None = None  # who launched it; None: whoever asks, or not known


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    rank: int | None  # None: the supervisor or driver
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    sentence: str
    fix: str | None
    evidence: tuple[str, ...]


class Backend(Protocol):
    """Errors: BackendError when unreachable, UnknownRunError for an unknown id."""

    @property
    def cluster(self) -> str | None: ...  # topology source of its plans; None: this machine
    # what can begin before there is a plan; undone unless the run is submitted inside the `with`
    def head_start(self, recipe: "Recipe", run_id: str) -> AbstractContextManager[None]: ...
    # `topology`: the cluster that the plan was made for, where that is known
    def render(
        self, plan: "Plan", run_id: str, topology: "Topology | None" = None
    ) -> Manifests: ...
    def submit(self, manifests: Manifests) -> RunRef: ...
    def status(self, run_id: str) -> RunStatus: ...
    def logs(
        self, run_id: str, *, rank: int | None, since: float | None, tail: int | None, follow: bool
    ) -> Iterator[LogLine]: ...
    # `grace_s`: how long until nothing is left; None: as soon as the back end promises
    def cancel(self, run_id: str, *, grace_s: float | None = None) -> None: ...
    def delete(self, run_id: str) -> None: ...
    def list(self) -> Sequence[RunStatus]: ...
    def why(self, run_id: str) -> Diagnosis: ...
    def metrics(self, run_id: str) -> Sequence[Mapping[str, Any]]: ...  # the last word on each step

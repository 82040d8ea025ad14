"""The gate before a launch: refuse what does not fit, and name the smallest changes that would.

Changes are tried alone and then in pairs, the mildest first: what costs only speed, then what
shares the state among more ranks, then what moves ranks about. What is named lies in the space of
the search, so the runtime can build it. Where nothing helps, the number of devices that would.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from shlex import quote
from typing import NamedTuple

from parctl.errors import DoesNotFitError
from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.devices import Devices
from parctl.planner.inference_fit import inference_advice
from parctl.planner.memory import estimate_memory
from parctl.planner.plan import Plan
from parctl.planner.rules import sp_divides, tp_divides
from parctl.planner.search.choice import choice_of, form_option
from parctl.planner.search.space import Space
from parctl.planner.sizes import distinct_size_texts, size_text
from parctl.recipes.shorthand import INFER, format_form, read_form
from parctl.recipes.spec import AXES, Recipe, Recompute, TrainSpec

STRONGER: dict[Recompute, tuple[Recompute, ...]] = {
    "none": ("selective", "full"),
    "selective": ("full",),
}
MOST_CHANGES = 3  # that are named


class Change(NamedTuple):
    """A recipe that differs in one field or two, and how to ask for it on the command line."""

    options: tuple[str, ...]
    recipe: Recipe
    degrees: Degrees
    kind: str  # of the last one: changes of one kind are alternatives, the mildest is enough

    @property
    def text(self) -> str:
        return " ".join(f"--set {quote(option)}" for option in self.options)


def refuse_misfit(plan: Plan) -> None:
    """Raise DoesNotFitError when the plan's worst stage needs more than a device offers.

    Unknown memory passes.
    """
    memory = plan.memory
    if memory.get("fits") is not False:
        return
    needs, room = distinct_size_texts(memory["total_bytes"], memory["usable_bytes"])
    raise DoesNotFitError(
        f"{plan.recipe.name} does not fit: a rank of pipeline stage {memory['worst_stage']} needs "
        f"{needs}, a device has {room} usable of {size_text(memory['device_bytes'])}",
        hint=f"{advice(plan)}; `parctl plan` shows every term, `--force` launches all the same",
    )


def advice(plan: Plan) -> str:
    """Say which changes would fit, the mildest first, or how many devices it takes."""
    if plan.recipe.inference is not None:
        return inference_advice(plan)
    changes = smallest_changes(plan)
    if changes:
        first, *others = (f"`{change.text}`" for change in changes)
        return f"{first} fits" + (f", and so does {' or '.join(others)}" if others else "")
    if (count := devices_needed(plan)) is not None:
        return f"no change of one or two fields fits here; {count:,} devices would do"
    return "no change of one or two fields fits here"


def smallest_changes(plan: Plan, *, most: int = MOST_CHANGES) -> list[Change]:
    """Find up to `most` changes of one field that fit, each of another kind, the mildest first.

    Where none does, the mildest pair.
    """
    if plan.memory.get("device_bytes") is None or plan.recipe.train is None:
        return []
    start = Change((), plan.recipe, degrees_of(plan), "")
    largest_tp: int = plan.topology["largest_tp"]
    buildable = _buildable(plan)
    found: dict[str, Change] = {}
    single = [change for change in _changes(start, largest_tp) if buildable(change)]
    for change in single:
        if change.kind not in found and fits(plan, change):
            found[change.kind] = _pinned(change)
        if len(found) == most:
            break
    if found:
        return list(found.values())
    for first in single:
        for second in _changes(first, largest_tp):
            if len({option.split("=")[0] for option in second.options}) != 2:
                continue
            if buildable(second) and fits(plan, second):
                return [_pinned(second)]
    return []


def fits(plan: Plan, change: Change) -> bool:
    """Whether the plan would fit its devices with `change`."""
    memory = estimate_memory(
        change.recipe,
        change.degrees,
        device_bytes=plan.memory["device_bytes"],
        kind=plan.memory["kind"],
    )
    return memory.fits is True


def devices_needed(plan: Plan) -> int | None:
    """How many devices hold the job when the data axes shard everything; None: no number does."""
    degrees = degrees_of(plan)
    most = 1
    if plan.recipe.train is not None:
        most = plan.recipe.train.global_batch // plan.recipe.train.micro_batch
    data = degrees.num_data_ranks
    while (data := data * 2) <= most:
        shared = replace(degrees, fsdp=data, dp=1)
        change = _with_degrees(Change((), plan.recipe, degrees, ""), shared)
        if fits(plan, change):
            return shared.world_size
    return None


def _buildable(plan: Plan) -> Callable[[Change], bool]:
    """Whether the runtime can build a change, by the rules of the search's space.

    Recipes that are outside of that space themselves are not held to it.
    """
    largest_tp: int = plan.topology["largest_tp"]
    count = plan.layout.world_size
    mesh = max(1, largest_tp)
    devices = Devices(
        count=count,
        kind=plan.memory["kind"],
        memory_bytes=plan.memory["device_bytes"],
        islands={mesh: -(-count // mesh)},
        products=(),
    )

    def in_space(recipe: Recipe) -> bool:
        space = Space(
            recipe=recipe,
            devices=devices,
            largest_tp=mesh,
            max_devices=None,
            keep=asdict(choice_of(recipe)),
        )
        return next(space.all(), None) is not None

    if not in_space(plan.recipe):
        return lambda change: True
    return lambda change: in_space(change.recipe)


def _pinned(change: Change) -> Change:
    """State the degrees too where memory decided them: they would come out otherwise."""
    spec = change.recipe.parallelism
    given = read_form(spec.text).values
    if not any(given.get(axis) in (True, INFER) for axis in ("auto", "pp", "cp", "ep")):
        return change
    return change._replace(options=(*change.options, form_option(spec)))


def degrees_of(plan: Plan) -> Degrees:
    """Read the degrees back from a plan, whose recipe has all of them."""
    spec = plan.recipe.parallelism
    return Degrees(**{axis: getattr(spec, axis) or 1 for axis in (*AXES, "ep", "etp")})


def _changes(start: Change, largest_tp: int) -> Iterator[Change]:
    recipe, degrees, train = start.recipe, start.degrees, start.recipe.train
    assert train is not None and recipe.model is not None
    for mode in STRONGER.get(train.recompute, ()):
        yield _with_train(start, f"train.recompute={mode}", replace(train, recompute=mode))
    size = train.micro_batch
    while size > 1 and size % 2 == 0:
        size //= 2
        yield _with_train(start, f"train.micro_batch={size}", replace(train, micro_batch=size))
    if degrees.dp > 1:
        # share the state among the replicas
        yield _with_degrees(start, replace(degrees, fsdp=degrees.dp * degrees.fsdp, dp=1))
    elif 0 < recipe.parallelism.zero_stage < 3:
        yield _with_degrees(start, degrees)
    for moved in _moves(recipe, degrees, largest_tp):
        if moved.num_data_ranks * moved.cp % moved.ep == 0:
            yield _with_degrees(start, moved)


def _moves(recipe: Recipe, degrees: Degrees, largest_tp: int) -> Iterator[Degrees]:
    """Give half of a data axis to tp, or to pp."""
    model, tp, pp = recipe.model, degrees.tp * 2, degrees.pp * 2
    assert model is not None
    for moved in (
        replace(degrees, fsdp=degrees.fsdp // 2),
        replace(degrees, dp=degrees.dp // 2),
    ):
        if moved.world_size * 2 != degrees.world_size:
            continue  # that axis is odd
        if tp <= largest_tp and tp_divides(model, tp) and sp_divides(recipe, tp):
            yield replace(moved, tp=tp)
        if pp * recipe.parallelism.virtual_stages <= model.num_layers:
            yield replace(moved, pp=pp)


def _with_train(start: Change, option: str, train: TrainSpec) -> Change:
    recipe = replace(start.recipe, train=train)
    return Change((*start.options, option), recipe, start.degrees, option.partition("=")[0])


def _with_degrees(start: Change, degrees: Degrees) -> Change:
    spec = replace(
        with_degrees(start.recipe.parallelism, degrees),
        sp=start.recipe.parallelism.sp or degrees.tp > start.degrees.tp,
        zero_stage=3 if degrees.fsdp > 1 else 0,
        grad_sync="auto",
    )
    spec = replace(spec, text=format_form(spec))
    recipe = replace(start.recipe, parallelism=spec)
    options = tuple(option for option in start.options if not option.startswith("parallelism"))
    grown = [axis for axis in ("tp", "pp") if degrees.of(axis) > start.degrees.of(axis)]
    kind = grown[0] if grown else "data"
    return Change((*options, form_option(spec)), recipe, degrees, kind)

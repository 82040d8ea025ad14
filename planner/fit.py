"""The gate before a launch: refuse what does not fit, and name the smallest change that would.

Changes are tried alone and then in pairs, the mildest first: what costs only speed, then what
shares the state among more ranks, then what moves ranks about, and last what needs more devices.
"""

from collections.abc import Iterator
from dataclasses import replace
from shlex import quote
from typing import NamedTuple

from parctl.errors import DoesNotFitError
from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.memory import estimate_memory
from parctl.planner.plan import Plan
from parctl.planner.rules import sp_divides, tp_divides
from parctl.planner.sizes import distinct_size_texts, size_text
from parctl.recipes.shorthand import INFER, format_form, read_form
from parctl.recipes.spec import AXES, ParallelismSpec, Recipe, Recompute, TrainSpec

STRONGER: dict[Recompute, tuple[Recompute, ...]] = {
    "none": ("selective", "full"),
    "selective": ("full",),
}


class Change(NamedTuple):
    """A recipe that differs in one field or two, and how to ask for it on the command line."""

    options: tuple[str, ...]
    recipe: Recipe
    degrees: Degrees

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
    change = smallest_change(plan)
    needs, room = distinct_size_texts(memory["total_bytes"], memory["usable_bytes"])
    found = f"`{change.text}` fits" if change else "no change of one or two fields fits here"
    raise DoesNotFitError(
        f"{plan.recipe.name} does not fit: a rank of pipeline stage {memory['worst_stage']} needs "
        f"{needs}, a device has {room} usable of {size_text(memory['device_bytes'])}",
        hint=f"{found}; `parctl plan` shows every term, `--force` launches all the same",
    )


def smallest_change(plan: Plan) -> Change | None:
    """Find the mildest change, or pair of changes, at which the plan fits on the same devices."""
    device_bytes = plan.memory.get("device_bytes")
    if device_bytes is None or plan.recipe.model is None or plan.recipe.train is None:
        return None

    def fits(change: Change) -> bool:
        memory = estimate_memory(
            change.recipe, change.degrees, device_bytes=device_bytes, kind=plan.memory["kind"]
        )
        return memory.fits is True

    largest_tp: int = plan.topology["largest_tp"]
    single = list(_changes(Change((), plan.recipe, degrees_of(plan)), largest_tp))
    for change in single:
        if fits(change):
            return _pinned(change)
    for first in single:
        for second in _changes(first, largest_tp):
            if len({option.split("=")[0] for option in second.options}) == 2 and fits(second):
                return _pinned(second)
    return None


def _pinned(change: Change) -> Change:
    """State the degrees too where memory decided them: they would come out otherwise."""
    spec = change.recipe.parallelism
    given = read_form(spec.text).values
    if not any(given.get(axis) in (True, INFER) for axis in ("auto", "pp", "cp", "ep")):
        return change
    if spec.fsdp == 1 and spec.zero_stage:
        spec = replace(spec, fsdp=None)  # it takes the rest, which is 1, and shards over cp too
    return change._replace(options=(*change.options, _option(spec, format_form(spec))))


def _option(spec: ParallelismSpec, form: str) -> str:
    """How to ask for a form and keep the settings that stand beside the present one."""
    switches = ("allow_cross_node_tp", "allow_pcie_tp", "strict_node")
    settings = [f"{name}: true" for name in switches if getattr(spec, name)]
    for name, usual in (("prefetch", 1), ("reshard", "auto")):
        if getattr(spec, name) != usual and spec.fsdp != 1:
            settings.append(f"{name}: {getattr(spec, name)}")
    if spec.order != AXES:
        order = [axis for axis in spec.order if axis != "operator" or spec.operator > 1]
        settings.append(f"order: [{', '.join(order)}]")
    if not settings:
        return f"parallelism={form}"
    return f"parallelism={{{', '.join((f'form: {form}', *settings))}}}"


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
    return Change((*start.options, option), replace(start.recipe, train=train), start.degrees)


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
    return Change((*options, _option(spec, spec.text)), recipe, degrees)

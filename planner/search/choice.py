"""One point of the search space: everything that the search may decide, as one value.

A choice is put into a recipe and taken out of one again, and it can say itself on the command line
(`--set parallelism=TP8+SP+PP4+FSDP16 --set train.recompute=full`), so what was found can be used.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from parctl.planner.degrees import Degrees, with_degrees
from parctl.recipes.shorthand import format_form
from parctl.recipes.spec import AXES, ParallelismSpec, Recipe, Recompute, Schedule

RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full", "partitioned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Degrees, and how the job is run with them. 1 means that the axis splits nothing."""

    tp: int
    cp: int
    pp: int
    dp: int
    fsdp: int
    ep: int
    etp: int
    zero_stage: Literal[0, 1, 2, 3]
    cp_kind: Literal["ring", "ulysses"]
    schedule: Schedule
    virtual_stages: int
    micro_batch: int
    recompute: Recompute

    @property
    def degrees(self) -> Degrees:
        return Degrees(
            pp=self.pp,
            dp=self.dp,
            fsdp=self.fsdp,
            cp=self.cp,
            tp=self.tp,
            ep=self.ep,
            etp=self.etp,
        )

    @property
    def model_axes(self) -> str:
        """Which axes split the model or the sequence; the data axes share what is left.

        >>> EXAMPLE.model_axes
        'TP+PP'
        """
        sizes = {"TP": self.tp, "PP": self.pp, "CP": self.cp, "EP": self.ep}
        return "+".join(name for name, size in sizes.items() if size > 1) or "data axes only"

    @property
    def handicap(self) -> float:
        """By how much its time is lengthened when choices are ranked.

        Predictions are within a few percent, so what is more involved has to be worth it: 1% for
        every axis that splits the model and for sharding states at all, 0.5% for a schedule other
        than 1F1B, 0.1% for each further virtual stage and each stage of ZeRO, 0.2% for replicas of
        shards (HSDP).
        """
        axes = sum(size > 1 for size in (self.tp, self.pp, self.cp, self.ep))
        points = 10 * axes + 5 * (self.schedule != "1f1b") + self.virtual_stages - 1
        points += 10 * (self.zero_stage > 0) + self.zero_stage
        points += 2 * (self.dp > 1 and self.fsdp > 1)
        return 1 + points / 1000

    def put_into(self, recipe: Recipe) -> Recipe:
        """The recipe with this choice, `grad_sync` left to be settled."""
        assert recipe.train is not None and recipe.model is not None
        sharded = self.zero_stage > 0
        spec = replace(
            with_degrees(recipe.parallelism, self.degrees),
            sp=self.tp > 1 and recipe.model.vision is None,
            layer=False,
            zero_stage=self.zero_stage,
            grad_sync="auto",
            prefetch=recipe.parallelism.prefetch if sharded else 1,
            reshard=recipe.parallelism.reshard if sharded else "auto",
            cp_kind=self.cp_kind,
            schedule=self.schedule,
            virtual_stages=self.virtual_stages,
            schedule_table=None,
        )
        train = replace(recipe.train, micro_batch=self.micro_batch, recompute=self.recompute)
        if self.recompute != recipe.train.recompute:
            train = replace(train, recompute_layers=())
        return replace(
            recipe, parallelism=replace(spec, text=format_form(named(spec))), train=train
        )

    def options(self, recipe: Recipe) -> tuple[str, ...]:
        """What `--set` needs to make `recipe` this choice; fields that stay are left out."""
        assert recipe.train is not None
        changed = self.put_into(recipe)
        options = [
            f"train.{name}={getattr(self, name)}"
            for name in ("micro_batch", "recompute")
            if getattr(self, name) != getattr(recipe.train, name)
        ]
        if recipe.train.recompute_layers and self.recompute != recipe.train.recompute:
            options.append("train.recompute_layers=[]")
        if (form := form_option(changed.parallelism)) != form_option(recipe.parallelism):
            options.append(form)
        return tuple(options)


EXAMPLE = Choice(
    tp=8, cp=1, pp=4, dp=1, fsdp=16, ep=1, etp=1, zero_stage=3, cp_kind="ring",
    schedule="1f1b", virtual_stages=1, micro_batch=1, recompute="full",
)  # fmt: skip
FIELDS = tuple(field.name for field in fields(Choice))


def choice_of(recipe: Recipe) -> Choice:
    """Take the choice out of a recipe with all its degrees."""
    spec, train = recipe.parallelism, recipe.train
    assert train is not None
    return Choice(
        tp=spec.tp or 1,
        cp=spec.cp or 1,
        pp=spec.pp or 1,
        dp=spec.dp or 1,
        fsdp=spec.fsdp or 1,
        ep=spec.ep or 1,
        etp=spec.etp or 1,
        zero_stage=spec.zero_stage,
        cp_kind=spec.cp_kind,
        schedule=spec.schedule,
        virtual_stages=spec.virtual_stages,
        micro_batch=train.micro_batch,
        recompute=train.recompute,
    )


def named(spec: ParallelismSpec) -> ParallelismSpec:
    """Leave a degree of fsdp open that came out as 1, where its shards lie along cp.

    Written as 1 the axis would not be there.
    """
    return replace(spec, fsdp=None) if spec.zero_stage and spec.fsdp == 1 else spec


def form_option(spec: ParallelismSpec) -> str:
    """How to ask for a form on the command line, with the settings that stand beside it."""
    form = format_form(named(spec))
    switches = ("allow_cross_node_tp", "allow_pcie_tp", "strict_node")
    settings = [f"{name}: true" for name in switches if getattr(spec, name)]
    for name, usual in (("prefetch", 1), ("reshard", "auto")):
        if getattr(spec, name) != usual and spec.zero_stage:
            settings.append(f"{name}: {getattr(spec, name)}")
    if spec.order != AXES:
        order = [axis for axis in spec.order if axis != "operator" or spec.operator > 1]
        settings.append(f"order: [{', '.join(order)}]")
    if not settings:
        return f"parallelism={form}"
    return f"parallelism={{{', '.join((f'form: {form}', *settings))}}}"

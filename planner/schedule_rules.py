"""What a pipeline schedule asks of the batch and the number of ranks, checked with arithmetic."""

from parctl.errors import UsageError
from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.exchanges import with_exchanges
from parctl.planner.schedules import read_table, stage_ranks
from parctl.recipes.spec import ParallelismSpec, Recipe


def check_schedule(recipe: Recipe, degrees: Degrees) -> None:
    """Raise UsageError when the schedule cannot run so many micro-batches on so many ranks."""
    spec, pp = recipe.parallelism, degrees.pp
    if recipe.train is None or recipe.model is None or pp == 1:
        return
    count = num_micro_batches(recipe, degrees)
    unit = recipe.train.micro_batch * degrees.num_data_ranks
    found = (
        f"{recipe.source}: train.global_batch ({recipe.train.global_batch}) / (micro_batch "
        f"({recipe.train.micro_batch}) x dp ({degrees.dp}) x fsdp ({degrees.fsdp})) = {count} "
        "micro-batches"
    )
    if spec.schedule_table is not None:
        _check_table(spec, pp, count, found, unit, recipe.source)
        return
    if spec.schedule == "interleaved-1f1b" and count % pp:
        near = -(-count // pp) * pp
        raise UsageError(
            f"{found}, expected a multiple of pp ({pp}): interleaved-1f1b sends them through a "
            "rank's stages in groups of pp",
            hint=f"set train.global_batch to {near * unit}, or write PP{pp}@zero-bubble:"
            f"{spec.virtual_stages}, which takes any number",
        )
    if spec.schedule == "dualpipev" and count < 2 * pp:
        raise UsageError(
            f"{found}, expected at least 2 x pp ({pp}) = {2 * pp}: dualpipev fills a pipeline from "
            "both of its ends",
            hint=f"set train.global_batch to {2 * pp * unit}, or write PP{pp}@zbv, which takes "
            "any number",
        )


def _check_table(
    spec: ParallelismSpec, pp: int, count: int, found: str, unit: int, source: str
) -> None:
    assert spec.schedule_table is not None
    table, ranks = read_table(spec.schedule_table), stage_ranks(spec, pp)
    assert (len(table), len(ranks)) == (pp, pp * spec.virtual_stages), "checked by the loader"
    written = 1 + max(action.micro_batch for row in table for action in row)
    if written != count:
        raise UsageError(
            f"{found}, but parallelism.schedule_file schedules {written}",
            hint=f"set train.global_batch to {written * unit}",
        )
    try:
        with_exchanges(table, len(ranks), ranks.__getitem__)
    except ValueError as error:
        raise UsageError(
            f"{source}: parallelism.schedule_file cannot be worked through: {error}",
            hint="a rank works through its row in order: an action stands behind all it needs",
        ) from error

"""Small spaces that can be searched one choice after the other."""

from parctl.planner.search.costs import Costs
from parctl.planner.search.run import costs_of, survey_space
from parctl.planner.search.space import Kept
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def costs(line: str, cluster: str, *overrides: str, keep: Kept | None = None) -> Costs:
    recipe = load_recipe(line, overrides)
    space, fabric = survey_space(
        recipe, parse_cluster(cluster), keep=keep or {}, max_devices=None
    )
    return costs_of(space, fabric)

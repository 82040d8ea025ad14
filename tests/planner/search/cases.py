"""Small spaces that can be searched one choice after the other."""

from parctl.planner.search.costs import Costs, Pace
from parctl.planner.search.run import pace_of, survey_space
from parctl.planner.search.space import Kept
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster


def costs(line: str, cluster: str, *overrides: str, keep: Kept | None = None) -> Costs:
    recipe = load_recipe(line, overrides)
    topology = parse_cluster(cluster)
    space = survey_space(recipe, topology, keep=keep or {}, max_devices=None)
    pace = pace_of(recipe, topology, space.devices, space.largest_tp, None)
    assert isinstance(pace, Pace)
    return Costs(space=space, pace=pace)

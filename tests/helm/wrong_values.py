"""Values files that are wrong in one place, by a seed: an unknown key, or a wrong type."""

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from tests.helm.chart import CHART, Object, merged, values_of

# maps whose keys are people's own
OPEN = (
    "global",
    "commonLabels",
    "commonAnnotations",
    "annotations",
    "podLabels",
    "podAnnotations",
    "nodeSelector",
    "nodeLabels",
    "quotas",
    "requests",
    "limits",
)
# values that may be a number as well as text
NUMBER_OR_TEXT = ("quotas", "requests", "limits", "maxUnavailable")

Path = tuple[str | int, ...]


class Wrong(NamedTuple):
    values: Object
    key: str  # the name that the refusal has to hold
    what: str


def full_values() -> Object:
    """Values in which every list has something in it."""
    base = yaml.safe_load((CHART / "values.yaml").read_text())
    more = values_of(CHART / "ci" / "everything-values.yaml")
    affinity = values_of(CHART / "ci" / "driver-root-values.yaml")["discovery"]["affinity"]
    return merged(merged(base, more), {"discovery": {"affinity": affinity}})


def wrong_values(seed: int) -> Wrong:
    """One wrong values file; equal seeds give equal files."""
    rng = random.Random(seed)
    values = copy.deepcopy(full_values())
    places = [place for place in _places(values) if not _inside_open(place)]
    if rng.random() < 0.4:
        path = rng.choice([place for place in places if _is_closed(values, place)])
        near = _at(values, path)
        key = rng.choice([*near, "enable", "namespace"]) + rng.choice(["s", "X", "_"])
        near[key] = rng.choice([True, 1, "text", [], {}])
        return Wrong(values, key, f"unknown key {'.'.join(map(str, (*path, key)))}")
    path = rng.choice([place for place in places if place])
    right = _at(values, path)
    wrong = rng.choice(_of_other_types(right, path))
    _at(values, path[:-1])[path[-1]] = wrong
    key = next(part for part in reversed(path) if isinstance(part, str))
    return Wrong(values, key, f"{'.'.join(map(str, path))} = {wrong!r}")


def _of_other_types(right: Any, path: Path) -> list[Any]:
    if isinstance(right, dict):
        return [[1], "text", 7, True]
    if isinstance(right, list):
        return [{"a": 1}, "text", 7, True]
    if isinstance(right, bool):
        return ["yes", 1, [True], {"a": True}]
    if any(part in NUMBER_OR_TEXT for part in path):
        return [True, [right], {"a": right}]
    if isinstance(right, int):
        return [str(right), right + 0.5, -right, [right], True]
    return [7, True, [right], {"a": right}]


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _places(inside, (*path, key))
    elif isinstance(value, list):
        for i, inside in enumerate(value):
            yield from _places(inside, (*path, i))


def _inside_open(path: Path) -> bool:
    """Whether a place lies inside an object that is not ours to check. Its values may be."""
    return path[:1] == ("global",) and len(path) > 1


def _is_closed(values: Object, path: Path) -> bool:
    return isinstance(_at(values, path), dict) and not any(part in OPEN for part in path)


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value

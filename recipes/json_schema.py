"""The JSON Schema (draft 2020-12) of recipes, for editors: the pydantic models plus the shorthand
spellings.

The one idea: it is generated, so it cannot differ from what the loader accepts in names and types.
Checks across fields, and aliases of names, are the loader's alone.
"""

from typing import Any

from parctl.recipes.schema import RecipeFields
from parctl.recipes.shorthand import SCHEDULES

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_json_schema() -> dict[str, Any]:
    """Build the schema: a recipe in full, or one line `MODEL: FORM`."""
    schema = RecipeFields.model_json_schema(ref_template="#/$defs/{model}")
    definitions = schema.pop("$defs")
    form = {"type": "string", "pattern": form_pattern()}
    name = {"type": "string", "minLength": 1}
    for key, spelling in (("model", name), ("parallelism", form)):
        schema["properties"][key]["anyOf"].insert(0, spelling)
    definitions["ParallelismFields"]["properties"]["form"]["anyOf"][0] = form
    definitions["RecipeFields"] = schema
    _close(definitions)
    return {
        "$schema": DRAFT,
        "title": "parctl recipe",
        "anyOf": [
            {"$ref": "#/$defs/RecipeFields"},
            {
                "title": "A recipe in one line, MODEL: FORM",
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "propertyNames": {"not": {"enum": list(schema["properties"])}},
                "additionalProperties": form,
            },
        ],
        "$defs": definitions,
    }


def _close(node: Any) -> None:
    """Refuse names that no pattern allows; pydantic writes only the pattern of dict keys."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)


def form_pattern() -> str:
    """Write the grammar of the shorthand as a regular expression that needs no flags.

    >>> import re
    >>> bool(re.search(form_pattern(), "tp8 + SP + FSDP"))
    True
    """
    degree = "([1-9][0-9]{0,6})"
    schedules = "|".join(_any_case(schedule) for schedule in SCHEDULES)
    kinds = "|".join(_any_case(kind) for kind in ("ring", "ulysses"))
    plain = "|".join(_any_case(name) for name in ("FSDP", "DDP", "DP", "ETP", "EP", "TP", "LAYER"))
    terms = [
        f"({plain}){degree}?",
        _any_case("SP"),
        f"{_any_case('HSDP')}({degree}[xX]{degree})?",
        f"{_any_case('ZERO')}[123]{degree}?",
        f"{_any_case('CP')}{degree}?(@({kinds}))?",
        f"{_any_case('PP')}{degree}?(@({schedules})(:{degree})?)?",
        f"{_any_case('OP')}{degree}",
    ]
    term = "(" + "|".join(terms) + ")"
    return rf"^\s*({_any_case('AUTO')}|{term}(\s*\+\s*{term})*)\s*$"


def _any_case(word: str) -> str:
    return "".join(
        f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else letter for letter in word
    )

"""From what pydantic found to faults in plain words: what was found, what was expected, and an
example.

The one idea: the hint is made from the field itself - its example and meaning stand in the schema -
so every field has a hint and none can be forgotten.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from parctl.recipes.faults import Fault, did_you_mean, listed, nearest
from parctl.recipes.fields import VARIABLE, Fields

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "keys with values",
    "model": "keys with values",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def schema_faults(error: ValidationError, schema: type[BaseModel]) -> list[Fault]:
    """Turn every error of a validation into a fault with path, message and hint."""
    return [
        _fault(dict(detail), schema)
        for detail in error.errors(include_url=False, include_context=True)
    ]


def _fault(detail: Mapping[str, Any], schema: type[BaseModel]) -> Fault:
    kind, found = detail["type"], detail["input"]
    steps = [str(step) for step in detail["loc"]]
    bad_key = bool(steps) and steps[-1] == "[key]"
    if bad_key:
        steps.pop()
    path = ".".join(steps)
    parent, field = _find(schema, steps)
    if kind == "extra_forbidden":
        known = list(parent.model_fields)
        where = f" of {'.'.join(steps[:-1])}" if len(steps) > 1 else ""
        hint = did_you_mean(steps[-1], known, f"keys{where} are")
        return Fault(path=path, message="unknown key", hint=hint, at_key=True)
    if kind == "missing":
        meaning = field.description if field is not None else None
        message = f"missing{f': {meaning}' if meaning else ''}"
        return Fault(path=path, message=message, hint=_example(steps[-1], field, "add "))
    if bad_key:
        if kind == "literal_error":
            message = f"found the key `{steps[-1]}`, expected {detail['ctx']['expected']}"
            hint = _example(steps[-2], field, "for example ")
            return Fault(path=path, message=message, hint=hint, at_key=True)
        pattern = (detail.get("ctx") or {}).get("pattern")
        if pattern == VARIABLE:
            expected, hint = "a name of letters, digits and underscores", "for example `HF_TOKEN`"
        else:
            expected = f"a name that matches {pattern}"
            hint = _example(steps[-2], field, "for example ")
        message = f"found the key {show(steps[-1])}, expected {expected}"
        return Fault(path=path, message=message, hint=hint, at_key=True)
    named = [step for step in steps if not step.isdecimal()]  # an item has its list's example
    hint = _example(named[-1] if named else "", field, "for example ")
    context = detail.get("ctx", {})
    if kind == "literal_error":
        allowed = _allowed(field, context)
        near = nearest(str(found), allowed)
        hint = f"did you mean `{near}`?" if near else hint
        message = f"found {show(found)}, expected one of {listed(allowed)}"
    else:
        message = f"found {show(found)}, expected {_expected(kind, context, detail['msg'])}"
    return Fault(path=path, message=message, hint=hint)


def _expected(kind: str, context: Mapping[str, Any], otherwise: str) -> str:
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        return f"{words} {bound:,}" if isinstance(bound, int) else f"{words} {bound:g}"
    if kind in ("degree", "reshard"):
        return str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if kind in ("string_too_short", "too_short"):
        return "something here" if context["min_length"] == 1 else f"{context['min_length']} items"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind.startswith("string") else "items"
        return f"at most {context['max_length']:,} {unit}"
    if kind == "finite_number":
        return "a finite number"
    for name, words in _TYPES.items():
        if kind.startswith(name + "_"):
            return words
    return otherwise[:1].lower() + otherwise[1:]


def _find(
    schema: type[BaseModel], steps: Sequence[str]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """Walk the schema along a path; return the innermost model met and the last field."""
    parent, field = schema, None
    current: type[BaseModel] | None = schema
    skip = False  # this step is a name that the user chose, not a field
    for step in steps:
        if current is None or skip:
            skip = False
            continue
        parent = current
        field = current.model_fields.get(step)
        if field is None:
            return parent, None
        current, skip = _inner(field.annotation)
    return parent, field


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Find the model inside an annotation, and whether it is the value of a dict."""
    if isinstance(annotation, type) and issubclass(annotation, Fields):
        return annotation, False
    if get_origin(annotation) is dict:
        return _inner(get_args(annotation)[1])[0], True
    for arm in get_args(annotation):
        model, is_dict = _inner(arm)
        if model is not None:
            return model, is_dict
    return None, False


def _allowed(field: FieldInfo | None, context: Mapping[str, Any]) -> list[str]:
    """The allowed words, read from the annotation, else from pydantic's own list."""
    words = [
        arm for arm in _flatten(field.annotation if field is not None else None)
        if isinstance(arm, (str, int))
    ]  # fmt: skip
    return [str(word) for word in words] or [str(context.get("expected", ""))]


def _flatten(annotation: Any) -> list[Any]:
    arms = get_args(annotation)
    return [annotation] if not arms else [leaf for arm in arms for leaf in _flatten(arm)]


def _example(key: str, field: FieldInfo | None, lead: str) -> str:
    """Write `for example `seq_len: 8192` (tokens per sequence)` from the schema."""
    if field is None or not field.examples:
        return f"{lead}a value for `{key}`; `parctl schema` describes every field"
    return f"{lead}`{key}: {flow(field.examples[0])}` ({field.description})"


def show(value: Any) -> str:
    """Show a value that was found, with its type when that is the point.

    >>> show("eight"), show(None), show({"a": 1}), show(8)
    ('"eight"', 'nothing', 'keys with values', '8')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else f'"{value[:37]}..."'
    if isinstance(value, Mapping):
        return "keys with values"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def flow(value: Any) -> str:
    """Write a value as YAML on one line.

    >>> flow({"train": ["a", "b"], "every": 1e-5, "on": True})
    '{train: [a, b], every: 1e-05, on: true}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

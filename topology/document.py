"""Read the JSON or YAML text of a source: one value, or several one after the other.

Text from outside may be hostile or cut short. Nesting is bounded before anything is built (the C
parser of PyYAML recurses on the C stack), merge keys are refused (they grow exponentially), and a
text that ends too early gives the items that are whole, with a sentence that says so.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from parctl.errors import UsageError

MAX_DEPTH = 64
_SPACE = re.compile(r"\s*")
# a quote alone is a string that does not end: nothing behind it can be told apart
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The values of a text, and what is missing at its end."""

    values: tuple[Any, ...]
    cut: str | None  # a sentence for `Topology.unknown`; None: the text is whole


def read_documents(text: str, name: str) -> Documents:
    """Parse JSON (one or several values) or YAML. Raises UsageError with the place."""
    body = text.lstrip("\ufeff")
    if body.lstrip()[:1] in ("{", "["):
        return _read_json(body, name)
    return _read_yaml(body, name)


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, without what is no object; an empty list for anything else.

    >>> mappings([{"a": 1}, 5])
    [{'a': 1}]
    """
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def mapping(value: Any, *path: str) -> Mapping[str, Any]:
    """The object at a path of keys, empty where there is none.

    >>> mapping({"spec": {"a": {"b": 1}}}, "spec", "a")
    {'b': 1}
    """
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        return {}
    if all(isinstance(key, str) for key in value):
        return value
    return {str(key): inside for key, inside in value.items()}  # YAML has keys of any kind


def text_of(value: Any) -> str | None:
    """A scalar as text, the way labels are compared; None for nothing, lists and objects."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole_number(value: Any, *, most: int) -> int | None:
    """A count written as a number or as digits; None when it is not one, or absurd.

    >>> whole_number("8", most=100), whole_number("-1", most=100), whole_number(True, most=100)
    (8, None, None)
    """
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    return None


def _read_json(text: str, name: str) -> Documents:
    _check_depth(text, name)
    values: list[Any] = []
    position = _skip_space(text, 0)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            whole = _whole_items(text, position)
            if whole is not None:
                sentence = f"the end of {name}: cut in the middle, what is whole before it is read"
                return Documents(values=(*values, whole), cut=sentence)
            if isinstance(error, json.JSONDecodeError):
                place = f":{error.lineno}:{error.colno}"
                raise UsageError(f"{name}{place}: not JSON: {error.msg}") from error
            raise UsageError(f"{name}: not JSON: a number is too long") from error
        values.append(value)
        position = _skip_space(text, position)
    return Documents(values=tuple(values), cut=None)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] == '"':
            return
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, token.start()) + 1
            raise UsageError(f"{name}:{line}: not JSON: nested too deep")


def _whole_items(text: str, start: int) -> Any | None:
    """Close a JSON value that was cut, behind the last whole item of its outermost list."""
    closing: list[str] = []
    end, tail = None, ""
    list_depth = None
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        if mark == '"':
            break
        if mark in ("{", "["):
            closing.append("}" if mark == "{" else "]")
            if mark == "[" and list_depth is None:
                list_depth = len(closing)
        elif mark in ("}", "]"):
            if not closing or closing.pop() != mark:
                return None
            if len(closing) == list_depth:  # an item of the list has ended
                end, tail = token.end(), "".join(reversed(closing))
            if not closing:
                return None  # the value is whole, and wrong inside
    if end is None:
        return None
    try:
        return json.loads(text[start:end] + tail)
    except (json.JSONDecodeError, RecursionError, ValueError):
        return None


def _read_yaml(text: str, name: str) -> Documents:
    import yaml

    try:
        return Documents(values=_parse_yaml(text), cut=None)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        line = place.line + 1 if place else 1
        lines = text.rstrip().count("\n") + 1
        message = f"{name}:{line}: not YAML: {error.problem or error.context}"
        if line < lines - 1 or "\n" not in text.rstrip():
            raise UsageError(message) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(f"{name}: not YAML: {_first_line(error)}") from error
    try:  # the last line is damaged: it was cut
        values = _parse_yaml(text.rstrip().rpartition("\n")[0])
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UsageError(message) from error
    return Documents(
        values=values, cut=f"the end of {name}: cut in line {lines}, what is before it is read"
    )


def _parse_yaml(text: str) -> tuple[Any, ...]:
    """Build plain values. Depth is checked on the event stream, which does not recurse."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        None, None, "merge keys (<<) are not read", key.start_mark
                    )

    depth = 0
    for event in yaml.parse(text, Loader=base):
        if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            depth += 1
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem="nested too deep", problem_mark=cast(Any, event.start_mark)
            )
    return tuple(yaml.load_all(text, Loader=Loader))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unreadable"])[0][:200]

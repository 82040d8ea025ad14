"""Frozen values as plain data that JSON can hold, and back.

Apart from the specs: who asks for the state of a run needs no spec, and is answered sooner.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Turn a frozen value into what `json.dumps` takes: dicts, lists, strings, numbers, None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any) -> T:
    """Rebuild a frozen value of dataclass `kind` from what `to_json` made of it."""
    result: T = _build(kind, data)
    return result


def _build(kind: Any, data: Any) -> Any:
    if data is None:
        return None
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        # what is younger than the data has a default
        known = [field for field in fields(kind) if field.default is MISSING or field.name in data]
        return kind(**{field.name: _build(hints[field.name], data[field.name]) for field in known})
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _build(next(arm for arm in get_args(kind) if arm is not type(None)), data)
    if origin is tuple:
        arms = get_args(kind)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_build(arms[0], item) for item in data)
        return tuple(_build(arm, item) for arm, item in zip(arms, data, strict=True))
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        return {key: _build(get_args(kind)[1], item) for key, item in data.items()}
    return data

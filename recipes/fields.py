"""The kinds of values that recipe fields have: bounded numbers, texts, lists, variables, degrees.

The one idea: every number has bounds and every conversion is explicit, so a slip of the finger is
an error and not a surprise on a thousand GPUs.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from parctl.recipes.shorthand import INFER, MAX_DEGREE

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
SizeOrZero = Annotated[int, Field(ge=0, le=1 << 24)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
VariableName = Annotated[str, Field(pattern=VARIABLE)]
# The loader keeps the text as written, so that `007` and `true` need no quotes.
VariableText = Annotated[
    str, Field(max_length=32768), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})
]
Environment = dict[VariableName, VariableText]
RESHARD = ("auto", "always", "never")
Axis = Literal["pp", "dp", "fsdp", "cp", "operator", "tp"]


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _degree(value: Any) -> Any:
    """Refuse in one sentence: a union would report each of its arms."""
    if value is None or value == INFER or (type(value) is int and 1 <= value <= MAX_DEGREE):
        return value
    expected = f"a whole number from 1 to {MAX_DEGREE:,}, or `auto`"
    raise PydanticCustomError("degree", "expected {expected}", {"expected": expected})


DegreeOrNone = Annotated[
    Annotated[int, Field(ge=1, le=MAX_DEGREE)] | Literal["auto"] | None, BeforeValidator(_degree)
]


def _reshard(value: Any) -> Any:
    if value in (None, *RESHARD) or (type(value) is int and value >= 2):
        return value
    expected = f"one of {', '.join(RESHARD)}, or a whole number from 2 on"
    raise PydanticCustomError("reshard", "expected {expected}", {"expected": expected})


Reshard = Annotated[
    Literal["auto", "always", "never"] | Annotated[int, Field(ge=2)], BeforeValidator(_reshard)
]

OneOrMore = Annotated[
    Annotated[list[Text], Field(min_length=1)],
    BeforeValidator(as_list, json_schema_input_type=Text | list[Text]),
]
ZeroOrMore = Annotated[
    list[Text], BeforeValidator(as_list, json_schema_input_type=Text | list[Text])
]


class Fields(BaseModel):
    """Base of all: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

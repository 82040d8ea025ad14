"""torch's symbolic shapes, and sympy with them, are left out until something has one.

DTensor, FSDP and fake tensors ask of the sizes that they compare what is known of them. Outside of
a trace they are plain numbers, and so is the answer; but to import what gives it, and sympy, takes
a fifth of the time of all that a rank imports.
"""

import sys
from collections.abc import Callable
from functools import reduce
from operator import and_, or_
from types import ModuleType
from typing import Any

import torch
import torch.fx.experimental
import torch.utils._sympy

from parctl.runtime.execution.stand_in import StandIn

SHAPES = "torch.fx.experimental.symbolic_shapes"
FUNCTIONS = "torch.utils._sympy.functions"
ERROR = "GuardOnDataDependentSymNode"  # caught by DTensor, raised by the real one only


def put_off() -> None:
    """Put stand-ins in their places, unless real ones are there. Costs nothing."""
    if not {SHAPES, FUNCTIONS, "sympy"} & sys.modules.keys():
        UntilSymbolic().put()
        UntilCalled().put()
        StandIn("sympy").put()  # fake tensors import it, and ask nothing of it


class NeverRaised(RuntimeError):
    """In the place of an exception until there can be one."""


class UntilCalled(StandIn):
    """Has the one function that fake tensors import without calling it."""

    def __init__(self) -> None:
        super().__init__(FUNCTIONS)
        self.Max = lambda *values: self.load().Max(*values)

    def leave(self, real: ModuleType) -> None:
        del self.Max  # whoever asks again gets the real one


class UntilSymbolic(StandIn):
    """What torch asks of symbolic shapes where all are plain."""

    def __init__(self) -> None:
        super().__init__(SHAPES)
        for name, answer in ANSWERS.items():
            setattr(self, name, self._where_plain(name, answer))
        setattr(self, ERROR, NeverRaised)

    def compute_unbacked_bindings(self, shape_env: object, *args: Any, **options: Any) -> Any:
        """None for a fake tensor that has no environment for symbols."""
        if shape_env is None:
            return None
        return self.load().compute_unbacked_bindings(shape_env, *args, **options)

    def leave(self, real: ModuleType) -> None:
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            if names.get(ERROR) is NeverRaised and module is not self:
                setattr(module, ERROR, getattr(real, ERROR))

    def _where_plain(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        """This answer where nothing that is asked about is symbolic, else the real one's."""

        def ask(*args: Any, **options: Any) -> Any:
            if args and all(map(_is_plain, args)):
                return answer(*args)  # options say what to do with symbols
            return getattr(self.load(), name)(*args, **options)

        return ask


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, torch.Tensor):
        return not value._has_symbolic_sizes_strides
    return value is None or isinstance(value, bool | int)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


ANSWERS: dict[str, Callable[..., Any]] = {
    "guard_bool": lambda value: value,
    "guard_int": lambda value: value,
    "guard_or_false": lambda value: value,
    "guard_or_true": lambda value: value,
    "guard_size_oblivious": lambda value: value,
    "guarding_hint_or_throw": lambda value: value,
    "optimization_hint": lambda value, fallback=None: value,
    "expect_true": lambda value, skip=0: value,
    "statically_known_true": lambda value: value,
    "sym_eq": _equal,
    "sym_and": lambda *values: reduce(and_, values),
    "sym_or": lambda *values: reduce(or_, values),
    "has_guarding_hint": lambda value: True,
    "is_nested_int": lambda value: False,
    "has_free_unbacked_symbols": lambda value: False,
    "free_unbacked_symbols": lambda value: set(),
    "_iterate_exprs": lambda value: (),
    "_iterate_nodes": lambda value: (),
}

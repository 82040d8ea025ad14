"""torch._dynamo, the tracer of torch.compile, is left out until something needs it.

Importing it takes nearly as long as all the rest of torch. DTensor, FSDP and optimizers import it
only to say which of their functions it is not to trace (`disable`, `graph_break`), and as long as
nothing is traced that means nothing.
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch  # noqa: F401  what it imports of dynamo itself comes first

from parctl.runtime.execution.stand_in import StandIn

NAME = "torch._dynamo"
CONFIG = "torch._dynamo.config"  # plain values


def put_off() -> None:
    """Put the stand-in in its place, unless the real one is there. Costs nothing."""
    if NAME not in sys.modules:
        UntilTraced().put()


class UntilTraced(StandIn):
    """What torch asks of dynamo in a run that compiles nothing."""

    def __init__(self) -> None:
        super().__init__(NAME, apart={CONFIG})
        self.disabled: set[Callable[..., Any]] = set()
        # what `init_process_group` asks, for the sake of traces made before it
        self.trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **options: Any) -> Any:
        """As a call, or as a decorator with arguments."""
        if fn is None:
            return lambda function: self.disable(function, *args, **options)
        self.disabled.add(fn)
        return fn

    def graph_break(self, msg: str = "") -> None:
        pass

    def leave(self, real: ModuleType) -> None:
        for function in self.disabled:  # the real one is asked again
            function.__dict__.pop("__dynamo_disable", None)

"""torch._dynamo, the tracer of torch.compile, is left out until something needs it.

Importing it takes nearly as long as all the rest of torch. DTensor, FSDP and optimizers import it
only to say which of their functions it is not to trace (`disable`, `graph_break`), and as long as
nothing is traced that means nothing. So an empty module stands in its place. Whatever else is asked
of it imports the real one, which then finds everything as if it had been there from the start.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAME = "torch._dynamo"
CONFIG = "torch._dynamo.config"  # plain values, which need nothing of the rest


def put_off() -> None:
    """Put the empty module in its place, unless the real one is there. Costs nothing."""
    if NAME not in sys.modules:
        sys.modules[NAME] = EmptyModule()
        sys.meta_path.insert(0, OnDemand())


def load() -> ModuleType:
    """Import the real one."""
    empty = sys.modules.get(NAME)
    if isinstance(empty, EmptyModule):
        del sys.modules[NAME]
        sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, OnDemand)]
        for function in empty.disabled:  # the real one is asked again
            function.__dict__.pop("__dynamo_disable", None)
    return import_module(NAME)


class EmptyModule(ModuleType):
    """What torch asks of dynamo in a run that compiles nothing."""

    def __init__(self) -> None:
        super().__init__(NAME)
        spec = PathFinder.find_spec(NAME, torch.__path__)
        self.__path__ = list(spec.submodule_search_locations or ()) if spec else []
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

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules wants nothing of this one
            raise AttributeError(name)
        return getattr(load(), name)


class OnDemand(MetaPathFinder):
    """Imports the real one before any module inside of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{NAME}.") or fullname == CONFIG:
            return None
        load()
        return ModuleSpec(fullname, Found()) if fullname in sys.modules else None


class Found(Loader):
    """Returns a module that is there already, as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._module = sys.modules[spec.name]
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec

"""A module in the place of one that costs much to import, until that is asked for something.

Parts of torch import others that a run needs only if something is compiled or traced. A stand-in
answers the few questions that are asked in any case. Whatever else is asked of it imports the real
one, which then finds everything as if it had been there from the start.
"""

import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class StandIn(ModuleType):
    """In the place of `name`, which is not imported yet.

    Its submodules `apart` need nothing of the rest.
    """

    def __init__(self, name: str, apart: Collection[str] = ()) -> None:
        super().__init__(name)
        self.__spec__ = find_spec(name)
        if self.__spec__ and self.__spec__.submodule_search_locations:
            self.__path__ = list(self.__spec__.submodule_search_locations)
        self._finder = OnDemand(self, apart)

    def put(self) -> None:
        """Put it in its place."""
        parent, _, name = self.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], name, self)
        sys.modules[self.__name__] = self
        sys.meta_path.insert(0, self._finder)

    def load(self) -> ModuleType:
        """Import the real one, if it is not there yet."""
        try:
            sys.meta_path.remove(self._finder)
        except ValueError:  # it was loaded before, or another thread is at it
            return import_module(self.__name__)
        del sys.modules[self.__name__]
        real = import_module(self.__name__)
        self.leave(real)
        return real

    def leave(self, real: ModuleType) -> None:
        """Take back what was said in its name."""

    def __getattr__(self, name: str) -> Any:
        # whoever looks through all modules wants nothing of this one
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)
        return getattr(self.load(), name)


class OnDemand(MetaPathFinder):
    """Imports the real one before any module inside of it."""

    def __init__(self, stand_in: StandIn, apart: Collection[str]) -> None:
        self._stand_in = stand_in
        self._apart = apart

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{self._stand_in.__name__}.") or fullname in self._apart:
            return None
        self._stand_in.load()
        return ModuleSpec(fullname, Found()) if fullname in sys.modules else None


class Found(Loader):
    """Returns a module that is there already, as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._module = sys.modules[spec.name]
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec

"""Imports of libraries without the parts of them that never run here.

BentoML's modules import each other whole: its cloud's client, its supervisor in every
worker, the proxy of services in other languages, and with them aiohttp, rich, zmq,
pyparsing and jinja2: a fifth of a worker's memory, and a third of its start.

What is imported inside of `deferring` gets a stand-in for each of these modules, or of
others that are named, which imports the real one as soon as one of its names is called
or looked into. Nothing is missing, then: what is used is there, only later. Whoever
imports such a module afterwards gets the real one, or, from the package that it is in,
a stand-in all of whose names are the real ones.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["DEFERRED", "deferring"]

# Of these, BentoML, uvicorn and we take names only, as types or to call them later: no
# name is a base class, or is caught. Of packages only `__init__` is deferred: modules
# below are imported as they are. The parent of workers never runs a model.
DEFERRED = frozenset(
    {
        "_bentoml_impl.server.proxy",
        "_bentoml_impl.server.serving",
        "aiohttp",
        "bentoml._internal.cloud",
        "bentoml._internal.cloud.client",
        "dateutil.parser",
        "fsspec",
        "fsspec.registry",
        "httpx",
        "jinja2",
        "jinja2.loaders",
        "jinja2.sandbox",
        "onnxruntime",
        "watchfiles",
    }
)


@contextmanager
def deferring(names: Set[str] = DEFERRED) -> Iterator[None]:
    """Import these modules later, as far as they are not imported yet.

    >>> with deferring():
    ...     import fsspec

    For this thread, while no other one imports: at the start of a process.

    Args:
        names: of modules of which no name is a base class where they are imported.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in names:
            if isinstance(sys.modules.get(name), _Module):
                del sys.modules[name]
        # A package still has them as attributes. Who takes a name there from now on may
        # derive from it, or catch it.
        finder.asked.update(names)


class _Finder(MetaPathFinder):
    """Finds stand-ins, but for modules that were asked for something already."""

    def __init__(self, names: Set[str]) -> None:
        self.asked: set[str] = set()
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname not in self._names or fullname in self.asked:
            return None
        if threading.get_ident() != self._thread:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None:
            return None
        spec = ModuleSpec(fullname, _Later(self), origin=found.origin)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


class _Later(Loader):
    def __init__(self, finder: _Finder) -> None:
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name, self._finder)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed yet."""


class _Module(ModuleType):
    """Stands for a module until something is asked of one of its names."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ not in self._finder.asked:
            return _Name(self, name)
        # Found here from now on, without asking again.
        found = getattr(self._real(), name)
        self.__dict__[name] = found
        return found

    def ask(self, name: str) -> Any:
        """What the module has under a name; it is imported now if it was not."""
        self._finder.asked.add(self.__name__)
        return getattr(self, name)

    def _real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


class _Name:
    """Stands for what a module has under a name."""

    def __init__(self, module: _Module, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module.ask(self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module.ask(self._name), name)

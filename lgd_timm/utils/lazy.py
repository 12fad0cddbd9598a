"""Import the public names of a package when they are first used (PEP 562), and act once another package is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        modules: public name -> the module below the package that has it; "" where the name is itself a module.

    Returns:
        A function that imports the module of a name and keeps the name in the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name] or name}")
        value = getattr(module, name) if modules[name] else module
        setattr(sys.modules[package], name, value)
        return value

    return get


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call a function as soon as a package is imported: now, if it is already.

    Args:
        name: the package, which need not be installed.
        then: called once, within the import; what it raises ends the import.
    """
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Notice(name, then))


class _Notice(MetaPathFinder):
    """Finds one package as the other finders do, and calls a function after it was loaded, once."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _NoticeLoader(spec.loader, self._loaded)
        return spec

    def _loaded(self) -> None:
        if self in sys.meta_path:
            self._then()  # where it raises, the next import raises as well
            sys.meta_path.remove(self)


class _NoticeLoader(Loader):
    """Loads a module by its own loader, puts that in this one's place, and calls a function."""

    def __init__(self, loader: Loader, then: Callable[[], None]) -> None:
        self._loader, self._then = loader, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # whoever only looks a package up asks its loader for other things

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then()

"""Doing something as soon as another package is imported, and not importing it for that.

``import eckart`` teaches transformers to load compressed models, and must itself cost nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["after_import"]


def after_import(module: str, action: Callable[[], object]) -> None:
    """Call `action` once a module has been imported: at once if it has.

    Parameters
    ----------
    module : str
        Full name.
    action : callable
    """
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(module, action))


class _Watcher(MetaPathFinder):
    """Finds the module as Python would, and has its loader call the action when it is done."""

    def __init__(self, module: str, action: Callable[[], object]) -> None:
        self._module, self._action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                self._action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

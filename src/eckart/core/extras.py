"""Packages that only some of what eckart does needs, imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["needed"]


def needed(package: str, extra: str) -> Any:
    """Import a package of one of the extras.

    Parameters
    ----------
    package, extra : str
        What to import, and which extra of eckart brings it.

    Raises
    ------
    ImportError
        It is not installed; the sentence says how to.

    Examples
    --------
    >>> needed("no_such_package", "images")
    Traceback (most recent call last):
        ...
    ImportError: no_such_package is not installed: pip install 'eckart[images]'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        root = package.partition(".")[0]
        if error.name not in (root, package):  # it is there, and lacks something itself
            raise
        raise ImportError(f"{root} is not installed: pip install 'eckart[{extra}]'", name=root) from None

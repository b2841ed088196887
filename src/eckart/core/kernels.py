"""The compiled loops, built once per instruction set; the best this processor runs is chosen here.

Every build gives the same functions (see ``kernels/kernels.h``); results agree to float32 rounding between
instruction sets and to the bit between numbers of threads.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

__all__ = ["available", "kernel_info", "kernels", "load_kernels", "resolve_threads"]

_BUILDS = ("x86_64", "avx2", "avx512", "neon", "generic")  # worst first within an architecture


def load_kernels(isa: str) -> ModuleType:
    """Kernels built for one instruction set, e.g. to compare them; ValueError if it cannot run here."""
    if isa not in available():
        raise ValueError(f"no kernels for {isa!r} on this machine: choose one of {', '.join(available())}")
    return importlib.import_module(f"eckart._kernels_{isa}")


def available() -> tuple[str, ...]:
    """Instruction sets that were built and that this processor runs, best last."""
    built = [isa for isa in _BUILDS if importlib.util.find_spec(f"eckart._kernels_{isa}") is not None]
    if not built:
        raise ImportError("eckart's compiled kernels are missing: install the package (pip install .)")
    supported = importlib.import_module(f"eckart._kernels_{built[0]}").supported()
    return tuple(isa for isa in built if isa in supported)


def kernel_info() -> dict[str, Any]:
    """Which kernels run here.

    Returns
    -------
    dict
        ``isa``: the instruction set in use, the best one, or what the environment variable ``ECKART_ISA``
        asks for; ``available``: all that could be used; ``threads``: what ``threads=None`` means here.

    Examples
    --------
    >>> sorted(kernel_info())
    ['available', 'isa', 'threads']
    """
    return {"isa": kernels.isa, "available": available(), "threads": resolve_threads(None)}


def resolve_threads(threads: int | None) -> int:
    """Turn None into the number of cores this process may use; ValueError unless 1 to 4096."""
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not 1 <= threads <= 4096:
        raise ValueError(f"threads is {threads}, expected 1 to 4096, or None for the cores of this process")
    return int(threads)


kernels: Any = load_kernels(os.environ.get("ECKART_ISA") or available()[-1])

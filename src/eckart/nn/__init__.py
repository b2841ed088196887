"""Networks with weights of low rank: compress them. Extra ``[torch]``; for language models ``[hf]``.

ek.nn.compress(network, batches, keep=0.8)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eckart.core.extras import needed

if TYPE_CHECKING:
    from eckart.nn.compress import compress
    from eckart.nn.language import perplexity
    from eckart.nn.linear import LowRankConv2d, LowRankLinear

__all__ = ["LowRankConv2d", "LowRankLinear", "compress", "perplexity"]

_HOME = {"LowRankConv2d": "linear", "LowRankLinear": "linear", "compress": "compress", "perplexity": "language"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eckart.nn' has no attribute {name!r}")
    needed("torch", "torch")
    value = getattr(importlib.import_module(f"eckart.nn.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

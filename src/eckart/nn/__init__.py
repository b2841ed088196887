"""Networks with weights of low rank: compress them, adapt them. Extra ``[torch]``; for language models ``[hf]``.

ek.nn.compress(network, batches, keep=0.8)
ek.nn.add_lora(network, rank=16)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eckart.core.extras import needed

if TYPE_CHECKING:
    from eckart.nn.adapters.adapter import adapter_of, put_adapter
    from eckart.nn.adapters.files import load_adapter, save_adapter
    from eckart.nn.adapters.lora import add_lora, merge_lora
    from eckart.nn.adapters.many import adapters_by_row, put_adapters
    from eckart.nn.compress import compress
    from eckart.nn.language import perplexity
    from eckart.nn.linear import LowRankConv2d, LowRankLinear

__all__ = [
    "LowRankConv2d",
    "LowRankLinear",
    "adapter_of",
    "adapters_by_row",
    "add_lora",
    "compress",
    "load_adapter",
    "merge_lora",
    "perplexity",
    "put_adapter",
    "put_adapters",
    "save_adapter",
]

_HOME = {
    "LowRankConv2d": "linear",
    "LowRankLinear": "linear",
    "adapter_of": "adapters.adapter",
    "adapters_by_row": "adapters.many",
    "add_lora": "adapters.lora",
    "compress": "compress",
    "load_adapter": "adapters.files",
    "merge_lora": "adapters.lora",
    "perplexity": "language",
    "put_adapter": "adapters.adapter",
    "put_adapters": "adapters.many",
    "save_adapter": "adapters.files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eckart.nn' has no attribute {name!r}")
    needed("torch", "torch")
    value = getattr(importlib.import_module(f"eckart.nn.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

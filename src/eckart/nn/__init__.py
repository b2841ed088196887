"""Networks with weights of low rank: compress them, adapt them. Extra ``[torch]``; for language models ``[hf]``.

ek.nn.compress(network, batches, keep=0.8)
ek.nn.add_lora(network, rank=16)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eckart.core.extras import needed

if TYPE_CHECKING:
    from eckart.nn.adapter import adapter_of, put_adapter
    from eckart.nn.adapter_files import load_adapter, save_adapter
    from eckart.nn.compress import compress
    from eckart.nn.language import perplexity
    from eckart.nn.linear import LowRankConv2d, LowRankLinear
    from eckart.nn.lora import add_lora, merge_lora
    from eckart.nn.many import adapters_by_row, put_adapters

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
    "adapter_of": "adapter",
    "adapters_by_row": "many",
    "add_lora": "lora",
    "compress": "compress",
    "load_adapter": "adapter_files",
    "merge_lora": "lora",
    "perplexity": "language",
    "put_adapter": "adapter",
    "put_adapters": "many",
    "save_adapter": "adapter_files",
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

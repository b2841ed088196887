"""Layers of a network with other matrices in their place, for a while: what would be lost by storing them otherwise.

    W  ->  X,   b' = b + (W - X) mu

where mu is the mean of the layer's inputs: whatever X is, the mean of the outputs stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from eckart.nn.calibrate import Decomposition
from eckart.nn.surgery import bias_of, weight_of

__all__ = ["approximated"]


@contextmanager
def approximated(
    layers: Mapping[str, Any],
    found: Decomposition,
    matrix: Callable[[str, torch.Tensor], torch.Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[None]:
    """Have layers of a network compute with other matrices meanwhile.

    Parameters
    ----------
    layers : mapping of str to Module
        Of `found`, in a network, by their names there.
    found : Decomposition
        Says the mean of a layer's inputs, and how its weight is laid out.
    matrix : callable
        Gives other numbers for a layer's name and its weight, outputs first: (m, n) or (m, c, kh, kw).
    progress : callable, optional
        Called with layers done and in all.
    """
    before = {name: (layer.weight.data, bias_of(layer)) for name, layer in layers.items()}
    try:
        for done, (name, layer) in enumerate(layers.items()):
            W = weight_of(layer)
            X = matrix(name, W).reshape(W.shape)
            if layer.bias is not None:
                layer.bias.data = layer.bias.data + (W - X).flatten(1) @ found.cut(name, 0)[1].to(W)
            layer.weight.data = (X.T if found.layers[name].transposed else X).contiguous()
            if progress:
                progress(done + 1, len(layers))
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data, bias = before[name]
            if bias is not None:
                layer.bias.data = bias

"""Which layers of a network are matrices, and putting others in their place.

A linear layer is its (m, n) weight; GPT-2's Conv1D the transpose of its; a convolution with one group the
(m, c kh kw) matrix that acts on patches, though another may be cut (linear.py). (Layers are typed as
Any: the three kinds share no class that has a weight.)
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eckart.core.lowrank import LowRank, Pivoted
from eckart.nn.linear import LowRankConv2d, LowRankLinear

__all__ = [
    "bias_of",
    "chosen",
    "empty_low_rank",
    "is_conv1d",
    "is_matrix",
    "is_transposed",
    "layers_of",
    "low_rank_tensors",
    "matches",
    "matrix_of",
    "outputs_as_rows",
    "replace_layer",
    "rows_of",
    "weight_of",
]


def layers_of(
    network: nn.Module, patterns: Sequence[str] = ("*",), skip: Sequence[str] = (), embeddings: bool = False
) -> dict[str, Any]:
    """Find the layers that are matrices, in the order of the network.

    Parameters
    ----------
    network : Module
    patterns, skip : sequence of str
        Names as ``named_modules`` gives them, or parts after a dot; ``*`` stands for anything. A layer is taken when
        one of `patterns` matches and none of `skip`.
    embeddings : bool
        Whether an embedding counts: the matrix that acts on tokens as unit vectors.

    Returns
    -------
    dict of str to Module

    Raises
    ------
    ValueError
        A pattern matches nothing.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> list(layers_of(network)), list(layers_of(network, skip=["0"]))
    (['0', '2'], ['2'])
    """
    every = {name: layer for name, layer in network.named_modules() if is_matrix(layer, embeddings)}
    if not every:
        raise ValueError(f"{type(network).__name__} has no layer of a kind that can be compressed: Linear, Conv2d")
    return {name: every[name] for name in chosen(list(every), patterns, skip)}


def chosen(every: Sequence[str], patterns: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Choose names of layers by patterns, as in `layers_of`.

    Raises
    ------
    ValueError
        A pattern matches nothing.
    """
    for pattern in (*patterns, *skip):
        if not any(matches(name, pattern) for name in every):
            last = sorted({name.rpartition(".")[2] for name in every})
            near = difflib.get_close_matches(pattern, [*last, *every], 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"no layer matches {pattern!r}: {hint}The network has {', '.join(last[:12])}")
    return [
        name for name in every if any(matches(name, p) for p in patterns) and not any(matches(name, p) for p in skip)
    ]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern is the name of a layer or the part of it after a dot; ``*`` stands for anything."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def is_matrix(layer: Any, embeddings: bool = False) -> bool:
    """Whether a layer is one of `layers_of`."""
    if type(layer) is nn.Embedding:
        return embeddings and layer.max_norm is None  # (with one, reading it changes its weights)
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    # A subclass may compute something else; transformers' Conv1D is one class of its own.
    return type(layer) is nn.Linear or is_conv1d(layer)


def is_conv1d(layer: Any) -> bool:
    """Whether a layer is the linear one of GPT-2, whose weight is (n, m)."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"


def is_transposed(layer: Any) -> bool:
    """Whether the weight of a layer is (n, m): inputs, or tokens, are its rows."""
    return is_conv1d(layer) or isinstance(layer, nn.Embedding)


def weight_of(layer: Any) -> torch.Tensor:
    """Give the weight of a layer with its outputs first: (m, n) or (m, c, kh, kw); it shares memory."""
    weight = layer.weight.detach()
    return weight.T if is_transposed(layer) else weight


def matrix_of(layer: Any) -> torch.Tensor:
    """Give the (m, n) matrix that acts on the rows of `rows_of`; it shares memory with the weight."""
    return weight_of(layer).flatten(1)


def bias_of(layer: Any) -> torch.Tensor | None:
    """Give the bias of a layer, (m,), if it has one."""
    return None if layer.bias is None else layer.bias.detach()


def rows_of(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Lay the inputs of a layer out as the rows that its matrix acts on: (rows, n)."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    # A slice of the image for every place in the kernel: unfold, on a CPU, took more time than all the
    # rest of a calibration. The kernel's layout is (c, kh, kw); rows are places, one image after another.
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    x = F.pad(x, layer._reversed_padding_repeated_twice)  # left, right, top, bottom; also what "same" means here
    high, wide = (x.shape[2] - dh * (kh - 1) - 1) // sh, (x.shape[3] - dw * (kw - 1) - 1) // sw
    places = [
        x[:, :, dh * i : dh * i + sh * high + 1 : sh, dw * j : dw * j + sw * wide + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    patches = torch.stack(places, dim=2).flatten(1, 2)  # (images, c kh kw, high, wide)
    return patches.flatten(2).transpose(1, 2).reshape(-1, patches.shape[1])


def outputs_as_rows(layer: Any, y: torch.Tensor) -> torch.Tensor:
    """Lay the outputs of a layer out as rows, in the order of `rows_of`: (rows, m)."""
    if isinstance(layer, nn.Conv2d):
        y = y.movedim(-3, -1)
    return y.reshape(-1, y.shape[-1])


def empty_low_rank(layer: Any, rank: int, pivoted: bool = True) -> LowRankLinear | LowRankConv2d:
    """Make the layer of low rank that can take the place of another: zeros, on its device, in its dtype.

    Parameters
    ----------
    layer : Module
        One of `layers_of`.
    rank : int
    pivoted : bool
    """
    like: dict[str, Any] = {"bias": layer.bias is not None, "pivoted": pivoted}
    like |= {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Conv2d):
        like |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        size: Any = layer.kernel_size
        return LowRankConv2d(layer.in_channels, layer.out_channels, size, rank, **like)
    n, m = layer.weight.shape if is_conv1d(layer) else reversed(layer.weight.shape)
    return LowRankLinear(n, m, rank, **like)


def low_rank_tensors(factors: LowRank, pivoted: bool = True) -> dict[str, torch.Tensor]:
    """Give the tensors of a layer of low rank but its bias, by name: left, right and, if pivoted, order.

    Parameters
    ----------
    factors : LowRank
        Of an (m, n) matrix, torch.
    pivoted : bool
    """
    if not pivoted:
        return {"left": factors.left, "right": factors.right.T}
    found = Pivoted.of(LowRank(factors.left.numpy(force=True), factors.right.numpy(force=True)))
    place = torch.empty(len(found.order), dtype=torch.int32)
    place[torch.from_numpy(found.order)] = torch.arange(len(found.order), dtype=torch.int32)
    return {"left": torch.from_numpy(found.rest), "right": torch.from_numpy(found.pivots), "order": place}


def replace_layer(network: nn.Module, name: str, new: nn.Module) -> None:
    """Put a layer in the place of the one of that name."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)

"""Layers of low rank refitted one after another: each makes up for what the ones before it have lost.

A layer was cut to y ~ U z, z = V x, for the inputs x of the original network. In the compressed one it gets other
inputs, x~. In the order of the network, with what came before already compressed and refitted, U becomes

    U + argmin_D  E|e - D z|^2 + a |D|^2,    z = V x~,   e = W x - (U z + b),

least squares towards the original's outputs: D = E[e z'] (E[z z'] + a)^-1. A bias, where there is one, takes up the
means. The error of a layer's outputs, as measured on the batches, never rises; V stays, and so does every size.

Both networks run as one: the batch is there twice, and each layer computes its outputs W x from the first half of its
inputs and U z + b from the second. One pass refits them all.

Source: Zhang, Zou, He, Sun 2015, "Accelerating very deep convolutional networks for classification and detection", for
the order and the asymmetric inputs. They refit W before it is cut; here only U is, after the cut. Doing both gained
nothing more (docs/decisions.md).

Symbols: U, V as in linear.py; a, a share of the median of z's squares. See docs/notation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eckart.core.lowrank import LowRank
from eckart.nn.blocks import WholeNetwork
from eckart.nn.calibrate import damped, hooked
from eckart.nn.linear import LowRankConv2d, LowRankLinear
from eckart.nn.surgery import low_rank_tensors, outputs_as_rows, rows_of

__all__ = ["refit"]

LowRankLayer = LowRankLinear | LowRankConv2d


@torch.no_grad()
def refit(network: nn.Module, new: Mapping[str, LowRankLayer], batches: Sequence[Any], damping: float = 0.01) -> None:
    """Refit layers, in place, that are to stand in a network which is still the original.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    new : mapping of str to layer of low rank
        By the name of the layer whose place each is to take.
    batches : sequence
        As for `eckart.nn.compress`; their first axis is the batch. They run at once, twice: so much memory is needed.
    damping : float
        a.

    Raises
    ------
    ValueError
        Batches that cannot be joined, or a network that does not keep the batch as first axis.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(4, 4, bias=False))
    >>> network[0].weight.data = 2 * torch.eye(4)
    >>> half = LowRankLinear(4, 4, rank=2, bias=False, pivoted=False)
    >>> half.right.data = torch.eye(4)[:2]
    >>> refit(network, {"0": half}, [torch.randn(50, 4)], damping=0)
    >>> bool(torch.allclose(half.left[:2], 2 * torch.eye(2)))
    True
    """
    fitted = set[str]()

    def compute(name: str, layer: Any, arguments: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        (x, apart), (y, _) = arguments[0].chunk(2), out.chunk(2)
        if not fitted and not torch.equal(x, apart):
            raise ValueError(f"{name} does not get the batch as its first axis, which a sequential pass needs")
        if name not in fitted:  # (a layer that runs twice is fitted once)
            _fit(layer, new[name], apart, y, damping)
            fitted.add(name)
        return torch.cat([y, new[name](apart)])

    with hooked({name: network.get_submodule(name) for name in new}, compute):
        WholeNetwork(network).run(0, network, _twice(batches))


def _fit(dense: nn.Module, layer: LowRankLayer, x: torch.Tensor, y: torch.Tensor, damping: float) -> None:
    sums: Any = [0, 0, 0, 0, 0]
    for part, target in zip(x.split(128), y.split(128), strict=True):
        z = _features(layer, part)
        e = outputs_as_rows(dense, target - layer(part))
        new = z.T @ z, e.T @ z, z.sum(0), e.sum(0), torch.tensor(len(z))
        sums = [total + more.double() for total, more in zip(sums, new, strict=True)]
    G, C, z, e = (total / sums[-1] for total in sums[:-1])
    if layer.bias is not None:
        G, C = G - torch.outer(z, z), C - torch.outer(e, z)
    D = C @ torch.linalg.pinv(damped(G, damping), hermitian=True)
    if layer.bias is not None:
        layer.bias += (e - D @ z).to(layer.bias)
    # Features are k at every place of a row; rows of U are outputs at every place.
    D = D.unflatten(1, (layer.rank, -1)).transpose(1, 2).flatten(0, 1)
    matrix = LowRank(layer.combined().double() + D, layer.right.double().flatten(1).T)
    for name, tensor in low_rank_tensors(matrix, layer.pivoted).items():
        held = getattr(layer, name)
        held.copy_(tensor.reshape(held.shape))


def _features(layer: LowRankLayer, x: torch.Tensor) -> torch.Tensor:
    """Lay z out as rows that the outputs are linear in: (rows, k), or (rows, k kw)."""
    if isinstance(layer, LowRankLinear):
        return F.linear(x, layer.right).flatten(0, -2)
    mix = nn.Conv2d(layer.rank, layer.out_channels, *layer.second, device="meta")  # only says which rows
    return rows_of(mix, layer.filtered(x))


def _twice(batches: Sequence[Any]) -> Any:
    """Join all batches, and that with itself."""

    def joined(parts: Sequence[Any]) -> Any:
        if not isinstance(parts[0], torch.Tensor):
            return parts[0]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError("a sequential pass joins the batches: they must have one shape beside the first axis")
        return torch.cat([*parts, *parts])

    first = batches[0]
    if isinstance(first, Mapping):
        return {key: joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple):
        return tuple(joined(parts) for parts in zip(*batches, strict=True))
    return joined(batches)

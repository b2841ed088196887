"""Compressing a network: decompose its layers, plan their ranks, put layers of low rank in their place.

    W  ->  X of rank k,   b' = b + (W - X) mu

and, if asked, let each make up for the ones before it (refit.py).

For any torch network in memory. A model directory that is larger than memory: directory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from eckart.core.lowrank import LowRank
from eckart.nn.blocks import WholeNetwork
from eckart.nn.calibrate import Decomposition, decompose
from eckart.nn.linear import LowRankConv2d, LowRankLinear, folded
from eckart.nn.lookup import decompose_lookups, low_rank_lookups
from eckart.nn.plan import RankPlan, check_keep, plan_ranks
from eckart.nn.refit import refit
from eckart.nn.surgery import bias_of, empty_low_rank, low_rank_tensors, replace_layer

__all__ = ["compress", "compressed_tensors", "low_rank_layers"]


def compress(
    network: nn.Module,
    batches: Sequence[Any],
    keep: float = 0.8,
    *,
    patterns: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    gradients: int = 8,
    draw: Callable[[Any, torch.Generator], torch.Tensor] | None = None,
    damping: tuple[float, float] = (0.1, 0.01),
    pivoted: bool = True,
    sequential: bool = False,
    embeddings: bool = False,
    seed: int = 0,
) -> RankPlan:
    """Compress a network in place: linear layers and convolutions become ones of low rank.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    batches : sequence
        Inputs to calibrate with: a mapping (passed as keywords), a tuple (as arguments) or a tensor each.
    keep : float
        Share of the numbers of these layers that stays, above 0 and at most 1.
    patterns, skip : sequence of str
        Names of layers, or their last parts, with ``*`` for anything: which ones are compressed.
    gradients : int
        How many batches also say what a layer's error does to the network's output; with 0 it counts by its size.
    draw : callable, optional
        ``draw(output, generator)``, a number whose gradient is a draw from the loss's curvature at the output. By
        default that of half the squared distance between outputs.
    damping : pair of float
        As in `eckart.nn.calibrate.decompose`: less where the batches are many and like what comes.
    pivoted : bool
        Store k (m + n - k) numbers a layer, not (m + n) k.
    sequential : bool
        Whether layers are then refitted in their order, to the original's outputs from the inputs that the compressed
        network gives them: `eckart.nn.refit`. Takes the memory of all batches at once, twice.
    embeddings : bool
        Whether embeddings are compressed too, in groups of tokens: `eckart.nn.lookup` says which. `patterns` and `skip`
        do not choose among them. Not with `sequential`.
    seed : int

    Returns
    -------
    RankPlan
        What was done, with the predicted loss, which knows of no refit.

    Raises
    ------
    ValueError
        No such layers, an argument out of range, a budget that cannot be met, `sequential` with `embeddings`; the
        network is then as it was.

    References
    ----------
    See `eckart.nn.calibrate` and `eckart.core.lowrank`.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> plan = compress(network, [torch.randn(64, 16)], keep=0.7, gradients=0)
    >>> 0.6 < plan.keep <= 0.7, type(network[0]).__name__
    (True, 'LowRankLinear')
    """
    check_keep(keep)
    if sequential and embeddings:
        raise ValueError("a sequential pass knows nothing of embeddings: leave out sequential=True or embeddings=True")
    with TemporaryDirectory() as folder:
        found = decompose(
            WholeNetwork(network, draw),
            batches,
            folder,
            patterns=patterns,
            skip=skip,
            gradients=gradients,
            damping=damping,
            seed=seed,
        )
        if embeddings:
            more: dict[str, Any] = {"gradients": gradients, "draw": draw, "damping": damping[0], "seed": seed}
            found = decompose_lookups(network, batches, folder, **more)
        plan = plan_ranks(found.layers, keep, pivoted=pivoted)
        new, lookups = low_rank_layers(network, found, plan), low_rank_lookups(network, found, plan)
    if sequential:
        refit(network, new, batches, damping[1])
    for name, layer in [*new.items(), *lookups.items()]:
        replace_layer(network, name, layer)
    return plan


def low_rank_layers(
    network: nn.Module, found: Decomposition, plan: RankPlan
) -> dict[str, LowRankLinear | LowRankConv2d]:
    """Make the layers that take the places of those that a plan gives a rank, by name; but embeddings."""
    new = {}
    rows = {layer for of in found.groups.values() for layer in of.layers}
    for name, layer_plan in plan.layers.items():
        if layer_plan.rank is None or name in rows:
            continue
        layer: Any = network.get_submodule(name)
        new[name] = empty_low_rank(layer, layer_plan.rank, plan.pivoted)
        new[name].load_state_dict(compressed_tensors(layer.weight.detach(), bias_of(layer), found, name, plan))
    return new


def compressed_tensors(
    weight: torch.Tensor, bias: torch.Tensor | None, found: Decomposition, name: str, plan: RankPlan
) -> dict[str, torch.Tensor]:
    """Give the tensors of one layer at the rank that a plan gives it, in float32: left, right, order, bias.

    Parameters
    ----------
    weight : Tensor
        As the layer has it: (m, n), (n, m) or (m, c, kh, kw).
    bias : Tensor of shape (m,), optional
    found : Decomposition
    name : str
        Of a layer of both; its rank is not None.
    plan : RankPlan
    """
    rank = plan.layers[name].rank
    assert rank is not None
    factors, mean = found.cut(name, rank)
    tensors = low_rank_tensors(factors, plan.pivoted)
    tensors = {part: x if x.dtype == torch.int32 else x.float().contiguous() for part, x in tensors.items()}
    if weight.ndim > 2:
        tensors["right"] = tensors["right"].reshape(rank, *weight.shape[1:3], -1)
    if bias is not None:
        W = weight.T if found.layers[name].transposed else weight
        cut = W.double().cpu() - folded(LowRank(factors.left.double(), factors.right.double()).dense(), W.shape)
        tensors["bias"] = (bias.double().cpu() + cut.flatten(1) @ mean.double()).float()
    return tensors

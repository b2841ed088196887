"""Adapters: updates of low rank for layers by name, apart from any network.

    delta_l = s_l B_l A_l,   s = alpha / r,  or alpha / sqrt(r) for rsLoRA

One is put into a network, or taken from one; resized, layer by layer, to the best approximation of a smaller rank;
added to others. What has magnitudes (DoRA) is no sum of products: it is resized, magnitudes as they are, and not added.

Symbols: A (r x n), B (m x r), s scale. See docs/notation.md.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from eckart.core.lowrank import LowRank
from eckart.core.resize import FactorSVD, factor_svd, sum_of
from eckart.nn.adapters.lora import LoRA, adapted_layers
from eckart.nn.surgery import is_matrix, matrix_of, replace_layer

__all__ = [
    "Adapter",
    "Update",
    "adapter_of",
    "add_adapters",
    "check_fits",
    "cut_update",
    "filled",
    "is_target",
    "put_adapter",
    "resize_adapter",
]


@dataclass(frozen=True)
class Update:
    """The update of one layer.

    Parameters
    ----------
    factors : LowRank
        left B (m, r) and right A' (n, r); torch.
    alpha : float
    magnitude : Tensor of shape (m,), optional
        Norms that rows of the merged matrix get.
    kernel : triple of int, optional
        (c, kh, kw) of a convolution; n is their product.
    embedding : bool
    """

    factors: LowRank
    alpha: float
    magnitude: torch.Tensor | None = None
    kernel: tuple[int, ...] | None = None
    embedding: bool = False


@dataclass(frozen=True)
class Adapter:
    """Updates by name of layer, at least one.

    Parameters
    ----------
    layers : mapping of str to Update
        All of them with magnitudes, or none.
    rslora : bool
    base, task : str, optional
        Name of the model they were trained on, and of what it does: as peft writes them.
    targets : sequence of str
        Names, or last parts of names, of layers that must all have updates; () for no such claim.
    embeddings : mapping of str to Tensor
        Weights that the adapter was trained on, of layers that it changes: files hold those of embeddings and softmax.
    """

    layers: Mapping[str, Update]
    rslora: bool = False
    base: str | None = None
    task: str | None = None
    targets: Sequence[str] = ()
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("the adapter has no updates")
        if len({update.magnitude is None for update in self.layers.values()}) > 1:
            raise ValueError("some layers of the adapter have magnitudes (DoRA) and some have not: make two adapters")

    @property
    def dora(self) -> bool:
        """Whether rows have magnitudes."""
        return next(iter(self.layers.values())).magnitude is not None

    def scale(self, name: str) -> float:
        """Give s of a layer."""
        update = self.layers[name]
        return update.alpha / (math.sqrt(update.factors.rank) if self.rslora else update.factors.rank)

    def delta(self, name: str) -> LowRank:
        """Give s B A of a layer, in float32 or more."""
        factors, scale = self.layers[name].factors, self.scale(name)
        dtype = torch.promote_types(factors.left.dtype, torch.float32)
        return LowRank(factors.left.to(dtype) * scale, factors.right.to(dtype))


def check_fits(
    adapter: Adapter, network: nn.Module, weight_of: Callable[[str], torch.Tensor] | None = None
) -> dict[str, Any]:
    """Find the layers of a network that an adapter is for; all must be there, of the right kinds and shapes.

    Parameters
    ----------
    adapter : Adapter
    network : Module
        Without updates; its weights need not be there (device "meta") if `weight_of` gives them.
    weight_of : callable, optional
        Gives the weight of a layer by its name.

    Returns
    -------
    dict of str to Module

    Raises
    ------
    ValueError
    """
    if adapted_layers(network):
        raise ValueError("the network has updates already: merge them first")
    modules, found = dict(network.named_modules()), dict[str, Any]()
    for name, update in adapter.layers.items():
        layer: Any = modules.get(name)
        if layer is None:
            near = difflib.get_close_matches(name, modules, 1)
            hint = f": is it {near[0]!r} there?" if near else ", it was made for another one"
            raise ValueError(f"the adapter has an update for {name!r}, which the network has not{hint}")
        if not is_matrix(layer, embeddings=True):
            raise ValueError(f"{name} is a layer of the kind {type(layer).__name__}, which cannot be adapted")
        if update.embedding != isinstance(layer, nn.Embedding):
            was = "an embedding" if update.embedding else "no embedding"
            raise ValueError(f"the update of {name} is of {was}, and the layer is of the kind {type(layer).__name__}")
        kernel = tuple(layer.weight.shape[1:]) if isinstance(layer, nn.Conv2d) else None
        shape = tuple(matrix_of(layer).shape)
        if update.factors.shape != shape or update.kernel != kernel:
            got, expected = (
                (update.kernel or update.factors.shape, kernel or shape)
                if update.factors.shape == shape
                else (update.factors.shape, shape)
            )
            raise ValueError(f"the update of {name} has the shape {got}, and the layer {expected}: another network")
        if name in adapter.embeddings:
            weight = weight_of(name) if weight_of else layer.weight
            stored = adapter.embeddings[name]
            if stored.shape != weight.shape or not torch.equal(stored, weight.detach().to(stored)):
                raise ValueError(f"the adapter was trained on another weight of {name}: give it that model")
        found[name] = layer
    parts = [target for target in adapter.targets if target not in adapter.layers]  # a whole name is one layer's
    for name, layer in modules.items():
        if name not in found and is_matrix(layer, embeddings=True) and any(is_target(name, part) for part in parts):
            raise ValueError(f"the adapter is for layers like {name}, and has no update for this one: it is damaged")
    return found


def is_target(name: str, target: str) -> bool:
    """Whether a layer is one that a target names: all of its name, or a part after a dot."""
    return name == target or name.endswith(f".{target}")


def put_adapter(network: nn.Module, adapter: Adapter) -> dict[str, LoRA]:
    """Put an adapter into a network, in place; the network is frozen, the updates can be trained on.

    Returns
    -------
    dict of str to LoRA
        The new layers, by name.

    Raises
    ------
    ValueError
        The two do not fit; the network is then as it was. See `check_fits`.
    """
    layers = check_fits(adapter, network)
    network.requires_grad_(False)
    new = {name: filled(layers[name], adapter, name) for name in adapter.layers}
    for name, layer in new.items():
        replace_layer(network, name, layer)
    return new


@torch.no_grad()
def filled(layer: Any, adapter: Adapter, name: str) -> LoRA:
    """Make the layer that has an adapter's update, over the one of a network that it fits."""
    update = adapter.layers[name]
    new = LoRA(layer, update.factors.rank, update.alpha, rslora=adapter.rslora, dora=adapter.dora)
    new.A.copy_(update.factors.right.T)
    new.B.copy_(update.factors.left)
    if new.magnitude is not None and update.magnitude is not None:
        new.magnitude.copy_(update.magnitude)
    return new


def adapter_of(network: nn.Module, base: str | None = None, task: str | None = None) -> Adapter:
    """Take the updates of a network, for the weights that it had before: copies on the CPU.

    Where an update began as a part of the weight, s (B A - B_0 A_0) is what it adds to the old one, of twice the rank.

    Parameters
    ----------
    network : Module
        After `eckart.nn.adapters.lora.add_lora`.
    base, task : str, optional
        See `Adapter`; "CAUSAL_LM" for language models.

    Raises
    ------
    ValueError
        There are none.
    """
    layers, found = adapted_layers(network), {}
    for name, layer in layers.items():
        factors, alpha = LowRank(layer.B.detach(), layer.A.detach().T), layer.alpha
        if layer.moved:
            factors = sum_of([factors, LowRank(layer.B_start, layer.A_start.T)], [layer.scale, -layer.scale])
            alpha = math.sqrt(factors.rank) if layer.rslora else factors.rank
        found[name] = Update(
            LowRank(factors.left.cpu().clone(), factors.right.cpu().clone()),
            alpha,
            None if layer.magnitude is None else layer.magnitude.detach().cpu().clone(),
            tuple(layer.base.weight.shape[1:]) if isinstance(layer.base, nn.Conv2d) else None,
            isinstance(layer.base, nn.Embedding),
        )
    return Adapter(found, any(layer.rslora for layer in layers.values()), base, task)


def resize_adapter(
    adapter: Adapter, rank: int | None = None, energy: float | None = None
) -> tuple[Adapter, dict[str, float]]:
    """Give every update its best approximation of a smaller rank, found from the factors.

    Parameters
    ----------
    adapter : Adapter
    rank : int, optional
        Of every layer whose rank is larger.
    energy : float, optional
        In place of `rank`: the share of each update's sum of squares to keep.

    Returns
    -------
    Adapter
        In float32, alpha = r and no rsLoRA: the scale is in the factors.
    dict of str to float
        Share of each update's sum of squares that was kept.

    Raises
    ------
    ValueError
        Neither or both of `rank` and `energy`, or one that is out of range.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give one of rank and energy")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    layers, kept = {}, {}
    for name, update in adapter.layers.items():
        found = factor_svd(adapter.delta(name))
        k = min(rank, len(found.s)) if rank is not None else found.rank_of(energy or 0.0)
        layers[name], kept[name] = cut_update(found, k, update), found.kept(k)
    return replace(adapter, layers=layers, rslora=False), kept


def add_adapters(
    adapters: Sequence[Adapter], weights: Sequence[float] | None = None, rank: int | None = None
) -> tuple[Adapter, dict[str, float]]:
    """Add adapters of one network: the sum of their updates, exactly or as its best approximation.

    Parameters
    ----------
    adapters : sequence of Adapter
        A layer that some of them leave as it is counts as 0 there.
    weights : sequence of float, optional
        1 by default; 1 / len(adapters) gives the average.
    rank : int, optional
        The largest rank that a layer may keep; by default all of it, which is at most the sum of the ranks.

    Returns
    -------
    Adapter
        In float32, alpha = r and no rsLoRA.
    dict of str to float
        Share of each sum's squares that was kept.

    Raises
    ------
    ValueError
        Shapes or embeddings that differ, magnitudes (DoRA), weights that do not fit, or nothing left of it.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights, expected as many, and at least one")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if any(adapter.dora for adapter in adapters):
        raise ValueError("an adapter with magnitudes (DoRA) is no sum of products and cannot be added: merge it")
    embeddings: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for name, stored in adapter.embeddings.items():
            if name in embeddings and not torch.equal(embeddings[name], stored):
                raise ValueError(f"the adapters were trained on different weights of {name}")
            embeddings[name] = stored
    layers, kept = {}, {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.layers):
        parts = [(x, w) for x, w in zip(adapters, weights, strict=True) if name in x.layers]
        forms = {(x.layers[name].factors.shape, x.layers[name].kernel, x.layers[name].embedding) for x, _ in parts}
        if len(forms) > 1:
            shapes = " and ".join(sorted(str(form[1] or form[0]) for form in forms))
            raise ValueError(f"the updates of {name} have the shapes {shapes}: they are of different networks")
        total = factor_svd(sum_of([x.delta(name) for x, _ in parts], [w for _, w in parts]))
        k = total.rank_of(1.0) if rank is None else min(rank, len(total.s))
        layers[name], kept[name] = cut_update(total, k, parts[0][0].layers[name]), total.kept(k)
    return Adapter(layers, False, adapters[0].base, adapters[0].task, (), embeddings), kept


def cut_update(found: FactorSVD, rank: int, like: Update) -> Update:
    """Give the best approximation of a decomposed update, of the kind of another: float32, with a scale of 1."""
    cut = found.cut(rank)
    return replace(like, factors=LowRank(cut.left.float(), cut.right.float()), alpha=float(rank))

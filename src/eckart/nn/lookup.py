"""Embeddings of a network in memory, decomposed by how often each of their rows is read.

A row d of the error costs 1/2 d' G d whenever its token is read, with G = E[g g'] of the gradients at the output:

    1/2 tr(diag(f) D G D'),     f: how often each token is read, a sample

An embedding is a layer whose inputs are unit vectors: their second moments are diag(f). Its rows are taken in groups of
tokens, as those of a language model (vocabulary.py), whose f comes from predictions; here tokens are counted, and a
tenth of them is spread evenly. Without gradients G = 1: the squared error of what is looked up.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eckart.nn.blocks import WholeNetwork
from eckart.nn.calibrate import Decomposition, damped, hooked
from eckart.nn.embedding import LowRankEmbedding
from eckart.nn.plan import RankPlan
from eckart.nn.vocabulary import EVEN, grouped_ranks, grouped_tensors, write_groups

__all__ = ["decompose_lookups", "lookups_of", "low_rank_lookups"]


def lookups_of(network: nn.Module) -> dict[str, nn.Embedding]:
    """Find the embeddings whose rows may be of low rank.

    Not one that shares its weight with another layer, that changes it as it reads (max_norm), or whose padding is to
    stay zero (padding_idx).
    """
    uses = Counter(id(p) for module in network.modules() for p in module._parameters.values())
    every = {name: layer for name, layer in network.named_modules() if type(layer) is nn.Embedding}
    return {
        name: layer
        for name, layer in every.items()
        if layer.max_norm is None and layer.padding_idx is None and uses[id(layer.weight)] == 1
    }


def decompose_lookups(
    network: nn.Module,
    batches: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    gradients: int = 8,
    draw: Callable[[Any, torch.Generator], torch.Tensor] | None = None,
    damping: float = 0.1,
    seed: int = 0,
) -> Decomposition:
    """Decompose the embeddings of a network, after `eckart.nn.calibrate.decompose`.

    Parameters
    ----------
    network, batches, draw, gradients, seed
        As in `eckart.nn.compress.compress`.
    folder : path
        That of `decompose`.
    damping : float
        How much of the identity is added to G, in medians of its diagonal.

    Returns
    -------
    Decomposition
        Of the other layers and of the embeddings, which are among its ``groups``.

    Raises
    ------
    ValueError
        Gradients that are not finite.
    """
    blocks, layers = WholeNetwork(network, draw), lookups_of(network)
    counts = {name: torch.zeros(layer.num_embeddings, dtype=torch.float64) for name, layer in layers.items()}
    G: dict[str, torch.Tensor] = {}
    rows, read = Counter[str](), list[tuple[str, torch.Tensor]]()

    def watch(name: str, layer: Any, arguments: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor | None:
        counts[name] += torch.bincount(arguments[0].flatten(), minlength=len(counts[name])).cpu()
        if not torch.is_grad_enabled():
            return None
        read.append((name, out.detach().requires_grad_()))
        return read[-1][1].clone()  # which the network may change in place

    for j, batch in enumerate(batches if layers else ()):
        with torch.set_grad_enabled(j < gradients), hooked(layers, watch):
            out = blocks.run(0, network, blocks.start(batch))
            if not read:
                continue
            loss = blocks.draw(batch, out, torch.Generator().manual_seed(seed * 1_000_003 + j))
            found = torch.autograd.grad(loss, [x for _, x in read], allow_unused=True)
            for (name, _), g in zip(read, found, strict=True):
                if g is not None:
                    g = g.flatten(0, -2)
                    G[name] = G.get(name, 0) + (g.T @ g).double().cpu()
                    rows[name] += len(g)
            read.clear()
    samples = sum(map(blocks.samples, batches))
    for i, (name, layer) in enumerate(layers.items()):
        f = counts[name] / samples
        f = (1 - EVEN) * f + EVEN * f.mean()
        R = damped(G[name] / rows[name], damping) if name in G else None
        if bool(f.any()) and (R is not None or not gradients):  # else nothing is known of it
            write_groups(Path(folder) / f"block-{i + 1}.safetensors", f, {name: (layer.weight.detach().cpu(), R)})
    return Decomposition(folder)


def low_rank_lookups(network: nn.Module, found: Decomposition, plan: RankPlan) -> dict[str, LowRankEmbedding]:
    """Make the embeddings that take the places of those that a plan gives a rank, by name."""
    new = {}
    for name in found.groups:
        layer: Any = network.get_submodule(name)
        W = layer.weight.detach()
        if ranks := grouped_ranks(found, plan, name):
            new[name] = LowRankEmbedding(W.shape[1], *ranks, plan.pivoted, W.device, W.dtype)
            new[name].load_state_dict(grouped_tensors(W, found, plan, name))
    return new

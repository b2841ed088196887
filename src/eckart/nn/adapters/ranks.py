"""What some examples say of the layers to adapt: their gradients, their inputs, and the ranks that a budget buys.

    e_l(k) = sum over i > k of s_i^2,     s the singular values of G_l = dL/dW_l

An update of rank k can follow at most the k largest directions of its layer's gradient, and one step of gradient
descent lowers the loss by its length times what it follows, |G_k|^2. So e_l(k) is what the layer's first step lacks, in
one unit for all layers; k (m + n) trained numbers are what it costs; and a knapsack chooses. A layer may get rank 0: it
is then left as it is.

Source: Wang et al. 2024, "LoRA-GA", for the gradient as what an update follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from eckart.core.budget import allocate
from eckart.nn.surgery import is_transposed, matrix_of, rows_of

__all__ = ["gradients_of", "moments_of", "ranks_within"]


def gradients_of(layers: Mapping[str, Any], parts: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a loss with respect to the matrices of layers.

    Parameters
    ----------
    layers : mapping of str to Module
        Of a network; see `eckart.nn.adapters.lora.adaptable_layers`. Afterwards the same parameters need gradients.
    parts : iterable of Tensor
        What the loss is the sum of; each part's graph is gone before the next is asked for.

    Returns
    -------
    dict of str to Tensor
        (m, n), by layer, on the CPU.
    """
    weights = {name: layer.weight for name, layer in layers.items()}
    before = {name: weight.requires_grad for name, weight in weights.items()}
    total = {name: torch.zeros(matrix_of(layer).shape) for name, layer in layers.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for part in parts:
            found = torch.autograd.grad(part, list(weights.values()), allow_unused=True)
            for (name, layer), g in zip(layers.items(), found, strict=True):
                if g is not None:
                    total[name] += (g.T if is_transposed(layer) else g).flatten(1).float().cpu()
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
    return total


@torch.no_grad()
def moments_of(layers: Mapping[str, Any], run: Callable[[], object]) -> dict[str, torch.Tensor]:
    """Second moments of the inputs of layers, R = X'X / rows, while something runs.

    Parameters
    ----------
    layers : mapping of str to Module
        Linear ones and convolutions.
    run : callable
        Runs the network on the inputs that count.

    Returns
    -------
    dict of str to Tensor
        (n, n), by layer, on the CPU.
    """
    sums = {name: torch.zeros(matrix_of(layer).shape[1], matrix_of(layer).shape[1]) for name, layer in layers.items()}
    rows = dict.fromkeys(layers, 0)

    def watch(name: str, layer: Any) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            X = rows_of(layer, arguments[0]).float()
            sums[name] += (X.T @ X).cpu()
            rows[name] += len(X)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name, layer)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(1, rows[name]) for name, total in sums.items()}


def ranks_within(gradients: Mapping[str, torch.Tensor], numbers: int, dora: bool = False) -> dict[str, int]:
    """Choose the ranks of updates so that they have at most so many numbers and follow the gradients best.

    Parameters
    ----------
    gradients : mapping of str to Tensor of shape (m, n)
    numbers : int
        Of all updates' A and B together, and of magnitudes.
    dora : bool
        Whether an adapted layer has magnitudes as well, m of them.

    Returns
    -------
    dict of str to int
        0 to min(m, n), by layer.

    Raises
    ------
    ValueError
        Not one layer can be adapted with so few, or every gradient is 0.

    Examples
    --------
    >>> much, little = torch.diag(torch.tensor([3.0, 2.0])), torch.diag(torch.tensor([1.0, 0.1]))
    >>> ranks_within({"a": much, "b": little}, numbers=12)
    {'a': 2, 'b': 1}
    """
    costs, losses = [], []
    for G in gradients.values():
        squares = torch.linalg.svdvals(G.double()).square().numpy()
        ranks = np.arange(len(squares) + 1)
        costs.append(ranks * sum(G.shape) + (ranks > 0) * (G.shape[0] if dora else 0))
        losses.append(np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]]))
    if not any(loss[0] > 0 for loss in losses):
        raise ValueError("every gradient is 0: ranks cannot be told from these examples")
    chosen = dict(zip(gradients, allocate(costs, losses, numbers), strict=True))
    if not any(chosen.values()):
        least = min(int(cost[1]) for cost in costs)
        raise ValueError(f"a budget of {numbers:,} numbers adapts no layer, expected at least {least:,}")
    return chosen

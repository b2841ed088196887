"""Layer weights that are measured: what one layer's error does to the predictions, beside what was predicted of it.

    weight_l = KL( p || p with layer l cut )  /  predicted loss of that cut

with p the model's predictions on a window of text. It corrects what the prediction leaves out: terms beyond the second
order, and that gradients and inputs of a layer depend on each other. A forward pass a layer; the plan multiplies each
layer's losses by its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from eckart.core.lowrank import pivoted_numbers
from eckart.nn.approximate import approximated
from eckart.nn.calibrate import Decomposition
from eckart.nn.language import divergence
from eckart.nn.linear import folded

__all__ = ["measured_weights"]


@torch.no_grad()
def measured_weights(
    network: Any,
    found: Decomposition,
    window: torch.Tensor,
    keep: float = 0.7,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Measure the weight of every decomposed layer of a language model.

    Parameters
    ----------
    network : Module
        The model that was decomposed, in memory.
    found : Decomposition
    window : (context,) int64
        Tokens to predict.
    keep : float
        Share of a layer's numbers that stays while it is cut, above 0 and below 1.
    progress : callable, optional

    Returns
    -------
    dict of str to float
        For `eckart.nn.plan.plan_ranks`; 1 where a cut loses nothing, and for groups of tokens.

    Raises
    ------
    ValueError
        A share out of range.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep is {keep}, expected a share between 0 and 1")
    before = network(window[None], use_cache=False).logits
    weights = {name: 1.0 for of in found.groups.values() for name in of.layers}  # (groups are not layers of the model)
    layers = {name: layer for name, layer in found.layers.items() if name not in weights}
    for done, (name, layer) in enumerate(layers.items()):
        m, n = layer.shape
        every = range(len(layer.squares) + 1)
        rank = max(k for k in every if k == 0 or pivoted_numbers(m, n, k) <= keep * m * n)
        X = found.cut(name, rank)[0].dense()
        with approximated({name: network.get_submodule(name)}, found, lambda name, W, X=X: folded(X.to(W), W.shape)):
            measured = float(divergence(network(window[None], use_cache=False).logits, before))
        predicted = float(layer.losses[rank])
        weights[name] = measured / predicted if predicted > 0 and measured > 0 else 1.0
        if progress:
            progress("weighing layers", done + 1, len(layers))
    return weights

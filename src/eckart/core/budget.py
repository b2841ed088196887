"""Choices under a budget: which layer keeps how many numbers.

Layer l may be stored in several ways (its ranks, and as it is), the c-th of them costing p_lc numbers and losing e_lc.
The least total loss for a total cost is a knapsack. Its relaxation, which may mix two choices of a layer, is solved by
the lower convex hull of each layer's points (p, e) and one sort of all edges by what they gain a number; it mixes in
at most one layer. Edges are taken in that order while they fit; then what is left is spent on those that still do.
The loss found is above the least one by at most one edge's.

Source: Sinha, Zoltners 1979, "The multiple-choice knapsack problem", for the relaxation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

__all__ = ["allocate"]


def allocate(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], budget: float) -> list[int]:
    """Choose one way for each layer so that the costs stay in the budget and the losses are small.

    Parameters
    ----------
    costs : sequence of ndarray of shape (c_l,)
        p_l, at least one choice a layer, in any order.
    losses : sequence of ndarray of shape (c_l,)
        e_l, finite, in one unit for all layers.
    budget : float
        Of the sum of the costs.

    Returns
    -------
    list of int
        Position of each layer's choice.

    Raises
    ------
    ValueError
        The cheapest choices together cost more than the budget, or a loss is not finite.

    Examples
    --------
    >>> allocate([np.array([0, 1, 2])] * 2, [np.array([4.0, 1.0, 0.0]), np.array([9.0, 3.0, 0.0])], budget=3)
    [1, 2]
    """
    chosen, edges = [], []
    for layer, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        if not np.isfinite(loss).all():
            raise ValueError(f"a loss of layer {layer} is not finite")
        corners = _hull(np.asarray(cost, np.float64), np.asarray(loss, np.float64))
        chosen.append(corners[0])
        for before, after in itertools.pairwise(corners):
            price = float(cost[after] - cost[before])
            edges.append((float(loss[after] - loss[before]) / price, layer, after, price))
    left = budget - sum(float(cost[c]) for cost, c in zip(costs, chosen, strict=True))
    if left < 0:
        raise ValueError(f"the cheapest choices cost {budget - left:,.0f} together, and the budget is {budget:,.0f}")
    edges.sort(key=lambda edge: edge[:2])  # along one layer slopes rise: its edges stay in order
    ended: set[int] = set()
    for _, layer, after, price in edges:
        if layer in ended:
            continue
        if price > left:
            ended.add(layer)
            continue
        chosen[layer], left = after, left - price
    return chosen


def _hull(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Corners of the lower convex hull, from the cheapest on, while the loss falls."""
    corners: list[int] = []
    for i in np.lexsort((loss, cost)):
        i = int(i)
        if corners and loss[i] >= loss[corners[-1]]:
            continue  # no better, and no cheaper
        while len(corners) > 1:
            a, b = corners[-2:]
            if (loss[i] - loss[b]) * (cost[b] - cost[a]) > (loss[b] - loss[a]) * (cost[i] - cost[b]):
                break
            corners.pop()
        corners.append(i)
    return corners

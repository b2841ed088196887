"""The ranking metrics of a random order, in expectation: the baseline where nothing is popular yet.

Symbols: n targets among N items, places j = 1, 2, ..., k.
"""

from __future__ import annotations

import numpy as np

__all__ = ["random_order"]


def random_order(n: np.ndarray, items: int, k: int) -> dict[str, np.ndarray]:
    """Expectation of every ranking metric where the lists are drawn at random: what there is to beat.

    Of n targets among N items, place j holds one with probability p = n / N, the first of all with probability
    p_1(j) = n / (N - j + 1) prod_{i < j} (N - n - i + 1) / (N - i + 1), and one more beside it among the j - 1 before
    in expectation (j - 1) (n - 1) / (N - 1) times.

    Parameters
    ----------
    n : ndarray of shape (users,), integers, 1 to `items`
        Number of targets of each user.
    items : int >= 1
        N, how many compete.
    k : int >= 1

    Returns
    -------
    dict of ndarray of shape (users,), float64
        Names and definitions are those of `ranking_metrics`.

    Examples
    --------
    >>> expected = random_order(np.array([1, 2]), items=4, k=1)
    >>> expected["hit_rate"], expected["recall"]
    (array([0.25, 0.5 ]), array([0.25, 0.25]))
    """
    n = np.asarray(n, dtype=np.float64)[:, None]
    j = np.arange(1, min(k, items) + 1)  # places
    p, capped = n / items, np.minimum(k, n)
    missed = np.cumprod(np.maximum(items - n - j + 1, 0) / (items - j + 1), axis=1)  # no hit in places 1..j
    before = np.hstack([np.ones_like(n), missed[:, :-1]])
    gain = 1 / np.log2(np.arange(k) + 2)
    found = p * (1 + (j - 1) * (n - 1) / max(items - 1, 1))  # E[hit_j (hits in places 1..j)]
    expected = {
        "recall": len(j) * p / n,
        "recall_capped": len(j) * p / capped,
        "precision": len(j) * p / k,
        "ndcg": p * gain[: len(j)].sum() / np.cumsum(gain)[capped.astype(np.int64) - 1],
        "map": (found / j).sum(1, keepdims=True) / capped,
        "mrr": (before * n / (items - j + 1) / j).sum(1, keepdims=True),
        "hit_rate": 1 - missed[:, -1:],
    }
    return {name: x[:, 0] for name, x in expected.items()}

"""Which items a batch is scored against beside its own entries: one pool for all its users, drawn anew each time.

    uniform      N of the m trained items, each at most once
    popularity   N draws with replacement, q_i in proportion to n_i^exponent
    in-batch     N of the batch's own entries: as popular as popularity draws them at exponent 1, and free for an MLP
    hard         a uniform pool, of which each user keeps the `hardest` best-scored ones

Drawn items weigh omega = (times drawn) / (times expected), so that a sum over the pool estimates the sum over all
trained items without bias, whatever the way of drawing; only its variance differs. ("In-batch" expects of item i
what the batch's other users bring, (b - 1) n_i / (n - 1): an item that a user has is masked for that user.) "hard"
means to be biased: its losses are those of a user's closest calls, and omega stays what it was in the pool.

An item that the user has in training is masked, so no negative is ever a positive. Items without an entry in
training are never drawn: nobody's silence about them is evidence.

Symbols: b users in the batch of n, m items, n_i entries of item i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["NEGATIVES", "Pool", "draw_pool", "hits"]

NEGATIVES = ("uniform", "popularity", "in-batch", "hard")


class Pool(NamedTuple):
    """Items drawn, each once."""

    items: np.ndarray  # (N,) int64, ascending
    omega: np.ndarray  # (N,) float32, how often drawn over how often expected


def draw_pool(
    how: str,
    draws: int,
    exponent: float,
    counts: np.ndarray,
    batch: np.ndarray,
    users: tuple[int, int],
    rng: np.random.Generator,
) -> Pool:
    """Draw a pool.

    Parameters
    ----------
    how : str
        One of `NEGATIVES`.
    draws : int >= 1
        N; as many as there are at most, except for "popularity".
    exponent : float >= 0
        Of "popularity".
    counts : ndarray of shape (items,), int64
        n_i; what has none is never drawn.
    batch : ndarray of shape (p,), int64
        Items of the batch's entries, for "in-batch".
    users : (int, int)
        b and n.
    rng : Generator
    """
    if how == "popularity":
        q = np.where(counts > 0, counts.astype(np.float64) ** exponent, 0)
        q /= q.sum()
        drawn = np.searchsorted(np.cumsum(q), rng.random(draws), side="right")
        drawn = np.minimum(drawn, np.flatnonzero(counts)[-1])  # the sum of q may fall short of 1 by rounding
        items, times = np.unique(drawn, return_counts=True)
        return Pool(items, (times / (draws * q[items])).astype(np.float32))
    if how == "in-batch":
        kept = rng.choice(batch, min(draws, len(batch)), replace=False)
        items, times = np.unique(kept, return_counts=True)
        b, n = users
        share = len(kept) / len(batch) * (max(b - 1, 1) / max(n - 1, 1))
        return Pool(items, (times / (share * counts[items])).astype(np.float32))
    trained = np.flatnonzero(counts)
    size = min(draws, len(trained))
    items = np.sort(rng.choice(trained, size, replace=False, shuffle=False))
    return Pool(items, np.full(size, len(trained) / size, np.float32))


def hits(pool: np.ndarray, items: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Find the cells of a batch's scores (users x pool) that are entries: row * len(pool) + column, int64.

    Parameters
    ----------
    pool : ndarray of shape (N,), int64, ascending
    items, user : ndarray of shape (p,), int64
        The entries of the batch: item, and row in the batch.

    Examples
    --------
    >>> hits(np.array([2, 5, 9]), np.array([5, 7, 9]), np.array([0, 0, 1]))
    array([1, 5])
    """
    place = np.minimum(np.searchsorted(pool, items), len(pool) - 1)
    there = pool[place] == items
    return user[there] * len(pool) + place[there]

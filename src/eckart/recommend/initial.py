"""Starting factors that depend on the ratings and the seed, and not on what anybody is called.

Rows are numbered in the order of their ids, so noise drawn by row number would give another model when ids are
renamed. Instead each user gets a colour, a hash of the ratings it gave and of those its items got (one round of
Weisfeiler-Leman refinement); noise is drawn in the order of the colours. Users of the same colour, which in
practice have the same history, are told apart by row number.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

__all__ = ["colours", "initial_factors"]


def initial_factors(matrix: csr_array, by_item: csr_array, rank: int, seed: int) -> np.ndarray:
    """Gaussian noise of standard deviation 0.1 / sqrt(rank), a row per user; renaming ids moves rows along.

    Parameters
    ----------
    matrix : csr_array of shape (n, m), float32
    by_item : csr_array of shape (m, n)
        Its transpose.
    rank, seed : int

    Returns
    -------
    ndarray of shape (n, rank), float32
    """
    noise = np.random.default_rng(seed).standard_normal((matrix.shape[0], rank), dtype=np.float32)
    noise *= np.float32(0.1 / np.sqrt(rank))
    factors = np.empty_like(noise)
    factors[np.argsort(colours(matrix, by_item), kind="stable")] = noise
    return factors


def colours(matrix: csr_array, by_item: csr_array) -> np.ndarray:
    """Hash each user's history, and those of its items, to uint64 (n,): who is whom, whatever the names."""
    item_colours = _sums(by_item, _mix(_bits(by_item.data)))
    return _sums(matrix, _mix(item_colours[matrix.indices] + _bits(matrix.data)))


def _bits(values: np.ndarray) -> np.ndarray:
    return (values + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0: -0 and 0 are one rating


def _mix(x: np.ndarray) -> np.ndarray:
    """Finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of x reaches every bit of the result."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sums(matrix: csr_array, values: np.ndarray) -> np.ndarray:
    """Sum of each row's values modulo 2^64, whatever their order."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return total[matrix.indptr[1:]] - total[matrix.indptr[:-1]]

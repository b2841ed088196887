"""How far a rating may lie from its prediction: the law of total variance over kept samples.

    Var(r_ui) = Var_s( E[w|s] . h_s )  +  E_s( h_s' A_s^-1 h_s )  +  E_s( 1 / alpha_s ),
    A_s = L_s + alpha_s sum_t y_t y_t',

between the samples, within each (the row's own posterior, exact given the sample) and the rating's own noise.

Symbols: s a sample, y_t the item factors of the user's history in it. See docs/notation.md and posterior.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy.sparse import csr_array

from eckart.recommend.solver import ItemSide

__all__ = ["coverage", "half_width", "predictive_variance"]


def predictive_variance(
    W: np.ndarray, seen: csr_array, rows: np.ndarray, columns: np.ndarray, items: ItemSide, k: int, noise: bool
) -> np.ndarray:
    """Variance of the score of each (row, column) pair.

    Parameters
    ----------
    W : ndarray of shape (n, S k), float32
        Users' factors as `Gibbs.solve_users` leaves them: (E[w|s] - m_s) / S side by side.
    seen : csr_array of shape (n, m), float32
        What they were solved from.
    rows, columns : ndarray of shape (pairs,), int64
        -1: a user nobody knows, who has the prior; of an unknown item nothing is known, and the variance is NaN.
    items : ItemSide
    k : int
        Rank of a sample.
    noise : bool
        Add that of a rating.

    Returns
    -------
    ndarray of shape (pairs,), float64
    """
    mean, L, alpha = (items.extra[name] for name in ("mean", "precision", "alpha"))
    S = len(alpha)
    H = items.H.reshape(-1, S, k)
    variance = np.full(len(rows), np.nan)
    order = np.argsort(rows, kind="stable")
    order = order[columns[order] >= 0]
    starts = np.flatnonzero(np.diff(rows[order], prepend=-2))
    for pairs in np.split(order, starts[1:]) if len(order) else []:
        u = rows[pairs[0]]
        history = seen.indices[seen.indptr[u] : seen.indptr[u + 1]] if u >= 0 else np.zeros(0, np.int32)
        Y = H[history].transpose(1, 0, 2)  # (S, n_u, k)
        A = L + alpha[:, None, None] * (Y.transpose(0, 2, 1) @ Y)
        w = mean + S * W[u].reshape(S, k) if u >= 0 else mean
        T = H[columns[pairs]].transpose(1, 2, 0).astype(np.float64)  # (S, k, targets)
        scores = np.einsum("sk,skt->st", w, T)
        within = np.sum(T * np.linalg.solve(A.astype(np.float64), T), axis=(0, 1)) / S
        variance[pairs] = within + (scores.var(axis=0, ddof=1) if S > 1 else 0)
    return variance + (np.mean(1 / alpha.astype(np.float64)) if noise else 0)


def half_width(level: float) -> float:
    """Standard deviations on either side of the mean that hold `level` of a Gaussian; ValueError outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share above 0 and below 1, such as 0.9")
    return NormalDist().inv_cdf((1 + level) / 2)


def coverage(errors: np.ndarray, std: np.ndarray, levels: Sequence[float]) -> list[float]:
    """Share of ratings that lie in their intervals, for each nominal level.

    Parameters
    ----------
    errors : ndarray of shape (entries,)
        Rating less prediction.
    std : ndarray of shape (entries,)
        Of the predictions, noise included.
    levels : sequence of float, each above 0 and below 1

    Examples
    --------
    >>> coverage(np.array([0.5, 3.0]), np.array([1.0, 1.0]), [0.5, 0.9])
    [0.5, 0.5]
    """
    return [float(np.mean(np.abs(errors) <= half_width(level) * std)) for level in levels]

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

from eckart.core.csr import csr, kernel_arrays, take_rows
from eckart.core.kernels import kernels
from eckart.recommend.solver import ItemSide

__all__ = ["coverage", "half_width", "predictive_variance"]


def predictive_variance(
    W: np.ndarray,
    seen: csr_array,
    rows: np.ndarray,
    columns: np.ndarray,
    items: ItemSide,
    k: int,
    noise: bool,
    threads: int,
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
    threads : int
        The result does not depend on it.

    Returns
    -------
    ndarray of shape (pairs,), float64

    Raises
    ------
    FloatingPointError
        A user's precision is not positive definite in float32.
    """
    mean, L, alpha = (items.extra[name] for name in ("mean", "precision", "alpha"))
    S = len(alpha)
    variance = np.full(len(rows), np.nan)
    order = np.argsort(rows, kind="stable")
    order = order[columns[order] >= 0]  # pairs user by user: each sample's system is made once a user
    users, owner, counts = np.unique(rows[order], return_inverse=True, return_counts=True)
    histories = kernel_arrays(_histories(seen, users))
    asked = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), columns[order].astype(np.int32)
    factors = np.zeros((len(users), W.shape[1]), np.float32)
    factors[users >= 0] = W[users[users >= 0]]
    within, total, squares = np.zeros(len(order)), np.zeros(len(order)), np.zeros(len(order))
    for s in range(S):
        piece = slice(s * k, (s + 1) * k)
        H = np.ascontiguousarray(items.H[:, piece])
        spread, failed = kernels.posterior_spread(*histories, H, float(alpha[s]), L[s], *asked, threads)
        if failed >= 0:
            raise FloatingPointError(f"user row {users[failed]}: its precision is not positive definite in float32")
        within += spread
        w = mean[s] + np.float32(S) * factors[:, piece]
        scores = np.einsum("pk,pk->p", w[owner], H[asked[1]], dtype=np.float64)
        total += scores
        squares += scores**2
    between = np.maximum(squares - total**2 / S, 0) / (S - 1) if S > 1 else 0
    variance[order] = within / S + between
    return variance + (np.mean(1 / alpha.astype(np.float64)) if noise else 0)


def _histories(seen: csr_array, users: np.ndarray) -> csr_array:
    """Rows of `seen`; that of user -1, who is the first if there is one, is empty."""
    known = take_rows(seen, users[users >= 0])
    nobody = np.zeros(len(users) - known.shape[0], known.indptr.dtype)
    return csr(known.data, known.indices, np.concatenate([nobody, known.indptr]), (len(users), seen.shape[1]))


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

"""Who rated what also tells: each row is drawn to a point that a regression makes of which entries it has.

The penalties of explicit ALS, l_u |w_u|^2 and l_i |h_i|^2, become

    sum_u l_u |w_u - B'f_u|^2 + sum_i l_i |h_i - D'g_i|^2 + implicit_reg (|B|^2 + |D|^2),
    f_u = n_u^-1/2 o_u,  g_i = n_i^-1/2 o^i,     o_ui = 1 where u rated i, else 0:

a user with few ratings is where others with such a history are, not at 0, and so is an item. It is SVD++ (Koren 2008)
on both sides, with the implicit part as the prior mean instead of beside the factors, as side information is in
Macau (Simm et al. 2017). A new user's point needs only its history and B.

B is a ridge regression of all w_u on all f_u (ridge.py): a few steps from the last epoch's B are taken.

Symbols: B (m x k), D (n x k). See docs/notation.md.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from eckart.recommend.ridge import improved_ridge

__all__ = ["implied_points", "link_matrix", "regressed"]

_STEPS = 4


def link_matrix(matrix: csr_array) -> csr_array:
    """Who has an entry where, each row of unit length: the f_u, (n, m) float32.

    Examples
    --------
    >>> link_matrix(csr_array(np.array([[3, 0], [1, 2]]))).toarray()
    array([[1.        , 0.        ],
           [0.70710677, 0.70710677]], dtype=float32)
    """
    n_u = np.diff(matrix.indptr)
    values = np.repeat(1 / np.sqrt(np.maximum(n_u, 1)), n_u).astype(np.float32)
    return csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def implied_points(matrix: csr_array, B: np.ndarray) -> np.ndarray:
    """Point B'f_u of each row of `matrix` (n, m), (n, k) float32; 0 for an empty row.

    A row's sum is over its own entries in their order: the same bits whatever other rows there are.
    """
    return link_matrix(matrix) @ B


def regressed(
    matrix: csr_array, W: np.ndarray, B: np.ndarray, row_reg: np.ndarray, implicit_reg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Improve B: min_B sum_u l_u |w_u - B'f_u|^2 + implicit_reg |B|^2, from where it stands.

    Parameters
    ----------
    matrix : csr_array of shape (n, m)
        What was rated; its values do not matter.
    W : ndarray of shape (n, k), float32
    B : ndarray of shape (m, k), float32
    row_reg : ndarray of shape (n,), float32
        l_u.
    implicit_reg : float > 0

    Returns
    -------
    B : ndarray of shape (m, k), float32
    points : ndarray of shape (n, k), float32
        B'f_u of each row.
    """
    F = link_matrix(matrix)
    B = improved_ridge(F, csr_array(F.T.tocsr()), W, B, row_reg, implicit_reg, _STEPS)
    return B, F @ B

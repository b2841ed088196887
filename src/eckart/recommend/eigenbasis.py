"""Factors in the basis where their Gramian is diagonal: Y'Y = Q diag(s) Q', so (YQ)'(YQ) = diag(s).

Scores and L2 norms do not change when both sides are rotated, x . y = (x Q) . (y Q). A quadratic term that all rows
share, weight x' Y'Y x, becomes weight sum_f s_f x_f^2: no k x k matrix has to be added, multiplied or inverted for
each row, and rows with few entries have an n x n dual whatever their own penalty is.
"""

from __future__ import annotations

import numpy as np

from eckart.core.kernels import kernels

__all__ = ["eigenbasis", "spectrum"]


def eigenbasis(Y: np.ndarray, threads: int) -> np.ndarray:
    """Orthogonal Q (k, k), float32, such that the columns of YQ are orthogonal, the largest first.

    Parameters
    ----------
    Y : ndarray of shape (n, k), float32
    threads : int
    """
    Q = np.linalg.eigh(kernels.gram(Y, threads).astype(np.float64))[1]
    return np.ascontiguousarray(Q[:, ::-1], dtype=np.float32)


def spectrum(Y: np.ndarray, weight: float) -> np.ndarray:
    """Give weight times the squared norm of each column, (k,) float32: the shared term where Y is in its eigenbasis."""
    return (weight * np.einsum("ij,ij->j", Y, Y, dtype=np.float64)).astype(np.float32)

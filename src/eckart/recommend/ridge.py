"""A ridge regression of many columns at once, improved from where it stands by conjugate gradients.

    min_B  sum_u l_u |t_u - B'f_u|^2 + reg |B|^2

Each column of B is a system of its own, all with the matrix F' diag(l) F + reg I; every step lowers the objective in
each, so a few steps an epoch bring it to the optimum while what it is regressed on is still moving.

Symbols: F (n x p) sparse, one row f_u each; T (n x k) the targets t_u; B (p x k); l_u weights.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import sparse_product

__all__ = ["improved_ridge"]


def improved_ridge(
    F: csr_array,
    Ft: csr_array,
    T: np.ndarray,
    B: np.ndarray,
    weight: np.ndarray,
    reg: float,
    steps: int,
    threads: int = 1,
) -> np.ndarray:
    """Take `steps` steps of conjugate gradients from `B`.

    Parameters
    ----------
    F : csr_array of shape (n, p), float32
    Ft : csr_array of shape (p, n), float32
        Its transpose.
    T : ndarray of shape (n, k), float32
    B : ndarray of shape (p, k), float32
    weight : ndarray of shape (n,), float32
        l_u.
    reg : float > 0
    steps : int
    threads : int
        Of the sparse products; no bit depends on it.

    Returns
    -------
    ndarray of shape (p, k), float32

    Examples
    --------
    >>> F = csr_array(np.array([[1, 0], [1, 1]], np.float32))
    >>> B = np.zeros((2, 1), np.float32)
    >>> T, ones = np.array([[2], [3]], np.float32), np.ones(2, np.float32)
    >>> improved_ridge(F, csr_array(F.T), T, B, ones, 1e-6, steps=2).round(3)
    array([[2.],
           [1.]], dtype=float32)
    """
    scale = weight[:, None]
    # Jacobi: the diagonal of F' diag(l) F + reg I is far from even, popular columns have most of it.
    diagonal = (Ft.power(2) @ weight + reg)[:, None].astype(np.float32)
    residual = sparse_product(Ft, scale * (T - sparse_product(F, B, threads)), threads) - np.float32(reg) * B
    B, direction, rho = B.copy(), np.zeros_like(B), np.ones(B.shape[1], np.float32)
    for step in range(steps):
        z = residual / diagonal
        rho, last = _dots(residual, z), rho
        direction = z if step == 0 else z + _ratio(rho, last) * direction
        image = sparse_product(Ft, scale * sparse_product(F, direction, threads), threads)
        image += np.float32(reg) * direction
        length = _ratio(rho, _dots(direction, image))
        B += length * direction
        residual -= length * image
    return B


def _dots(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->j", X, Y, dtype=np.float64).astype(np.float32)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)

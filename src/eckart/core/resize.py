"""A matrix of rank r at a smaller rank, and sums of several, from their factors: the m x n product is never built.

With left = Q_l R_l and right = Q_r R_r (QR of the tall factors) and the SVD  R_l R_r' = P S O'  of an r x r matrix,

    left right' = (Q_l P) S (Q_r O)'

is the SVD of the product: its cut after k terms is the best approximation of rank k, for O((m + n) r^2) in place of
O(m n min(m, n)). A sum of products is one product of factors that stand side by side.

Symbols: left (m x r), right (n x r). See docs/notation.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eckart.core.lowrank import LowRank
from eckart.core.svd import array_module, check_rank

__all__ = ["FactorSVD", "factor_svd", "sum_of"]

Array = Any  # numpy.ndarray or torch.Tensor: what comes in goes out


class FactorSVD(NamedTuple):
    """``U @ diag(s) @ V.T``; U and V have orthonormal columns, s descends. All float64, q = min(m, n, r)."""

    U: Array  # (m, q)
    s: Array  # (q,)
    V: Array  # (n, q)

    def cut(self, rank: int) -> LowRank:
        """Give the best approximation of a rank, 1 to q, as factors of equal size: left'left = right'right."""
        check_rank((len(self.s),), rank)
        root = self.s[:rank] ** 0.5
        return LowRank(self.U[:, :rank] * root, self.V[:, :rank] * root)

    def rank_of(self, energy: float) -> int:
        """Find the smallest rank that keeps a share of the sum of squares, at least 1.

        Parameters
        ----------
        energy : float
            Above 0, at most 1, which keeps every singular value above rounding.
        """
        if not 0 < energy <= 1:
            raise ValueError(f"energy is {energy}, expected a share above 0 and at most 1")
        s = np.asarray(self.s.tolist())
        noise = float(s[0]) * len(s) * np.finfo(np.float64).eps if len(s) else 0.0
        lost = np.cumsum((s * s)[::-1])[::-1]  # by rank 0, 1, ...: summed from the small ones up
        enough = lost <= (1 - energy) * lost[0] if energy < 1 else s <= noise
        return max(1, int(np.argmax(enough)) if enough.any() else len(s))

    def kept(self, rank: int) -> float:
        """Give the share of the sum of squares that a rank keeps."""
        squares = np.square(self.s.tolist())
        return float(squares[:rank].sum() / squares.sum()) if squares.any() else 1.0


def factor_svd(matrix: LowRank) -> FactorSVD:
    """Decompose a product of factors without multiplying it out.

    Parameters
    ----------
    matrix : LowRank
        NumPy or torch, any float; computed in float64 where it is. Its rank may exceed min(m, n).

    Returns
    -------
    FactorSVD

    Raises
    ------
    ValueError
        A factor holds a number that is not finite, or the two do not fit.

    References
    ----------
    Golub, Van Loan 2013, "Matrix computations", section 8.6, for the SVD after a QR.

    Examples
    --------
    >>> found = factor_svd(LowRank(np.array([[3.0, 0.0], [0.0, 1.0]]), np.eye(2)))
    >>> found.s, found.rank_of(0.8), found.kept(1), found.cut(1).dense().round(12)
    (array([3., 1.]), 1, 0.9, array([[3., 0.],
           [0., 0.]]))
    """
    xp = array_module(matrix.left)
    if matrix.left.ndim != 2 or matrix.right.ndim != 2 or matrix.left.shape[1] != matrix.right.shape[1]:
        shapes = f"{tuple(matrix.left.shape)} and {tuple(matrix.right.shape)}"
        raise ValueError(f"factors have the shapes {shapes}, expected (m, r) and (n, r)")
    for name, factor in (("left", matrix.left), ("right", matrix.right)):
        if not bool(xp.isfinite(factor).all()):
            raise ValueError(f"{name} has an entry that is not finite")
    # (QR of (m, r) with r > m gives Q (m, m) and R (m, r): the same equations hold.)
    Ql, Rl = xp.linalg.qr(xp.asarray(matrix.left, dtype=xp.float64))
    Qr, Rr = xp.linalg.qr(xp.asarray(matrix.right, dtype=xp.float64))
    P, s, Ot = xp.linalg.svd(Rl @ Rr.T, full_matrices=False)
    return FactorSVD(Ql @ P, s, Qr @ Ot.T)


def sum_of(matrices: Sequence[LowRank], weights: Sequence[float] | None = None) -> LowRank:
    """Add matrices of low rank, exactly: their factors side by side, so that ranks add up.

    Parameters
    ----------
    matrices : sequence of LowRank
        Of one shape, at least one.
    weights : sequence of float, optional
        What each is multiplied by; 1 by default. 1 / len(matrices) gives the average.

    Returns
    -------
    LowRank
        ``factor_svd(...).cut(rank)`` is the best approximation of it.

    Raises
    ------
    ValueError
        Nothing to add, shapes that differ, or weights that are not finite or not as many.

    Examples
    --------
    >>> one, two = LowRank(np.ones((2, 1)), np.ones((3, 1))), LowRank(np.eye(2), np.zeros((3, 2)))
    >>> found = sum_of([one, two], [0.5, 1.0])
    >>> found.rank, found.dense()
    (3, array([[0.5, 0.5, 0.5],
           [0.5, 0.5, 0.5]]))
    """
    weights = [1.0] * len(matrices) if weights is None else list(weights)
    if not matrices or len(weights) != len(matrices):
        raise ValueError(f"{len(matrices)} matrices and {len(weights)} weights, expected as many, and at least one")
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights are {weights}, expected finite numbers")
    shapes = {matrix.shape for matrix in matrices}
    if len(shapes) > 1:
        raise ValueError(f"matrices have the shapes {sorted(shapes)}, expected one shape")
    join = array_module(matrices[0].left).concatenate
    left = join([matrix.left * weight for matrix, weight in zip(matrices, weights, strict=True)], 1)
    return LowRank(left, join([matrix.right for matrix in matrices], 1))

"""A matrix of rank k as two factors, ``left @ right.T``; and the same in as few numbers as it has freedoms.

Factors of an m x n matrix take (m + n) k numbers, of which k^2 say nothing: left G and right G^-T give the same
product for every invertible G. Choose G such that k rows of left, the pivots, become the identity: the pivot rows of
the matrix itself and the coefficients of the others are left, k (m + n - k) numbers, never more than m n. This is a row
interpolative decomposition (Cheng, Gimbutas, Martinsson, Rokhlin 2005), used to store layers of networks by
Zhao et al. 2025, "Pivoting factorization". Pivots are those of Gaussian elimination on the rows of left, P left = L G
with |L| <= 1: the coefficients are L_2 L_1^-1, at most 2.4 in layers of a language model, where QR with column pivoting
gave 1.3 in ten times as long.

Symbols: left U (m x k), right V (n x k), T (m - k x k) coefficients. See docs/notation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dgetrf

__all__ = ["LowRank", "Pivoted", "factor_numbers", "pivoted_numbers"]

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True)
class LowRank:
    """The matrix ``left @ right.T``.

    Parameters
    ----------
    left, right : ndarray or torch.Tensor of shape (m, k) and (n, k)

    Examples
    --------
    >>> twos = LowRank(np.ones((3, 1)), np.full((2, 1), 2.0))
    >>> twos.shape, twos.rank, twos.T.dense()
    ((3, 2), 1, array([[2., 2., 2.],
           [2., 2., 2.]]))
    """

    left: Array
    right: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (m, n)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def rank(self) -> int:
        """Columns of the factors, k: at least the rank of the product."""
        return self.left.shape[1]

    @property
    def T(self) -> LowRank:
        """The transpose."""
        return LowRank(self.right, self.left)

    def dense(self) -> Array:
        """Multiply the factors: (m, n)."""
        return self.left @ self.right.T

    def balanced(self) -> LowRank:
        """Give the same product with columns of equal size in both factors, so that neither is trained faster: float64.

        Examples
        --------
        >>> found = LowRank(np.full((1, 1), 8.0), np.full((1, 1), 2.0)).balanced()
        >>> found.left, found.right
        (array([[4.]]), array([[4.]]))
        """
        left, right = ((factor**2).sum(0).clip(1e-300) ** 0.25 for factor in (self.left, self.right))
        return LowRank(self.left * (right / left), self.right * (left / right))


class Pivoted(NamedTuple):
    """A matrix of rank k whose row ``order[i]`` is row i of ``[pivots; rest @ pivots]``."""

    pivots: np.ndarray  # (k, n): rows of the matrix
    rest: np.ndarray  # (m - k, k): the other rows in terms of them
    order: np.ndarray  # (m,) int64, a permutation

    @classmethod
    def of(cls, matrix: LowRank) -> Pivoted:
        """Choose the pivots of factors, which must have full column rank in `left`.

        Parameters
        ----------
        matrix : LowRank
            NumPy arrays, k <= m.

        Raises
        ------
        ValueError
            Columns of `left` depend on each other, so a smaller rank would do.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> matrix = LowRank(rng.normal(size=(5, 2)), rng.normal(size=(4, 2)))
        >>> found = Pivoted.of(matrix)
        >>> bool(np.allclose(found.dense(), matrix.dense())), found.pivots.size + found.rest.size
        (True, 14)
        """
        U = np.asarray(matrix.left, np.float64)
        k = matrix.rank
        order = np.arange(len(U))
        if k == 0:
            return cls(np.zeros((0, len(matrix.right))), np.zeros((len(U), 0)), order)
        LU, swaps, _ = dgetrf(U)
        sizes = np.abs(np.diagonal(LU))
        if not sizes.min() > sizes.max() * np.finfo(np.float64).eps * len(U):
            raise ValueError(f"the {k} columns of left depend on each other: cut to a smaller rank")
        for i, j in enumerate(swaps):
            order[[i, j]] = order[[j, i]]
        rest = solve_triangular(LU[:k], LU[k:].T, trans=1, lower=True, unit_diagonal=True, check_finite=False).T
        pivots = U[order[:k]] @ np.asarray(matrix.right, np.float64).T
        return cls(pivots, rest, order)

    def dense(self) -> np.ndarray:
        """Give the matrix: (m, n)."""
        dense = np.empty((len(self.order), self.pivots.shape[1]), np.result_type(self.pivots, self.rest))
        dense[self.order] = np.concatenate([self.pivots, self.rest @ self.pivots])
        return dense


def factor_numbers(m: int, n: int, rank: int) -> int:
    """Count the numbers of two factors of an m x n matrix: (m + n) k."""
    return (m + n) * rank


def pivoted_numbers(m: int, n: int, rank: int) -> int:
    """Count the numbers of the pivoted form: k (m + n - k), which is m n at full rank. Its order is m integers more."""
    return rank * (m + n - rank)

"""A matrix of rank k as two factors, ``left @ right.T``; and the same in as few numbers as it has freedoms.

Factors of an m x n matrix take (m + n) k numbers, of which k^2 say nothing: left G and right G^-T give the same
product for every invertible G. Choose G such that k rows of left, the pivots, become the identity: the pivot rows of
the matrix itself and the coefficients of the others are left, k (m + n - k) numbers, never more than m n. This is a row
interpolative decomposition (Cheng, Gimbutas, Martinsson, Rokhlin 2005), used to store layers of networks by
Zhao et al. 2025, "Pivoting factorization". Pivots are those of a QR decomposition with column pivoting, which keeps
the coefficients small.

Symbols: left U (m x k), right V (n x k), T (m - k x k) coefficients. See docs/notation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import qr, solve_triangular

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
        _, R, order = qr(U.T, mode="economic", pivoting=True, check_finite=False)
        sizes = np.abs(np.diagonal(R))
        if k and not sizes[-1] > sizes[0] * np.finfo(np.float64).eps * len(U):
            raise ValueError(f"the {k} columns of left depend on each other: cut to a smaller rank")
        rest = solve_triangular(R[:, :k], R[:, k:], check_finite=False).T if k else np.zeros((len(U), 0))
        pivots = U[order[:k]] @ np.asarray(matrix.right, np.float64).T
        return cls(pivots, rest, order.astype(np.int64))

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

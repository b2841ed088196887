"""The best rank-k approximation of a dense matrix, in the plain norm or in a metric, with its error at every rank.

Eckart and Young (1936): among all matrices of rank k, U_k S_k V_k' cut from the SVD is closest to A.

In a metric the distance of W and X is  ||L^1/2 (W - X) R^1/2||_F  for positive semidefinite L (m x m) and R (n x n):
how much a layer's outputs move, with R = E[x x'] of its inputs; how much the loss moves, with L = E[g g'] of the
loss's gradients at its outputs. With R = B B' and m >= n, let  B' (W' L W) B = Q S^2 Q':  the eigenvalues s^2 beyond
the k-th are the squared error of the best X of rank k, which is

    X = W Z Z' (W' L W),    Z = B Q_k S_k^-1.

Only B on the shorter side is a root of a metric, and only kept s > 0 are divided by: singular metrics need no care.

Symbols: A (n x m), W (m x n); E = A - U S V'. See docs/notation.md.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import svd

from eckart.core.lowrank import LowRank

__all__ = ["MetricSVD", "TruncatedSVD", "array_module", "check_rank", "metric_svd", "truncated_svd"]

Array = Any  # numpy.ndarray or torch.Tensor: what comes in goes out


class TruncatedSVD(NamedTuple):
    """A is about ``U @ diag(s) @ V.T``; U and V have orthonormal columns, s descends."""

    U: np.ndarray  # (n, k)
    s: np.ndarray  # (k,) float64
    V: np.ndarray  # (m, k)
    squares: float  # ||A||_F^2
    bound: float  # at least the spectral norm of the error: exact, or with probability 1 - 1e-10

    @property
    def residual(self) -> float:
        """||A - U S V'||_F^2, which is ||A||_F^2 - sum s^2: to rounding of s, never below 0."""
        return max(0.0, self.squares - float(self.s @ self.s))


def truncated_svd(A: np.ndarray, rank: int) -> TruncatedSVD:
    """Cut the SVD of a dense matrix after `rank` terms: the best approximation of that rank in every unitary norm.

    Parameters
    ----------
    A : ndarray of shape (n, m)
        float32 or float64; computed in float64.
    rank : int
        1 to min(n, m).

    Returns
    -------
    TruncatedSVD
        U and V in the dtype of `A`; ``bound`` is the next singular value.

    Raises
    ------
    ValueError
        A rank out of range, or an entry that is not finite.

    References
    ----------
    Eckart, Young 1936, "The approximation of one matrix by another of lower rank".

    Examples
    --------
    >>> found = truncated_svd(np.diag([3.0, 2.0, 1.0]), rank=2)
    >>> found.s, found.bound, found.residual
    (array([3., 2.]), 1.0, 1.0)
    """
    check_rank(A.shape, rank)
    U, s, Vt = svd(A.astype(np.float64), full_matrices=False)
    bound = float(s[rank]) if rank < len(s) else 0.0
    return TruncatedSVD(U[:, :rank].astype(A.dtype), s[:rank], Vt[:rank].T.astype(A.dtype), float(s @ s), bound)


class MetricSVD(NamedTuple):
    """A matrix W decomposed in a metric: its best approximations of every rank, and their errors."""

    squares: Array  # (r,) float64, r = min(m, n): s^2, descending; 0 where W has nothing that the metric sees
    W: Array  # (m, n), the longer side first
    K: Array  # W' L W (n, n)
    Z: Array  # B Q S^-1 (n, r), 0 where s is 0
    swapped: bool  # it was W' that was decomposed

    def errors(self) -> Array:
        """Squared error of the best approximation of each rank 0, 1, ..., r: (r + 1,) float64, never rising."""
        errors = array_module(self.squares).zeros(len(self.squares) + 1, dtype=self.squares.dtype)
        # Summed from the small ones up, where the precision is.
        errors[:-1] = _flipped(_flipped(self.squares).cumsum(0))
        return errors

    def cut(self, rank: int) -> LowRank:
        """Give the best approximation of a rank, 0 to r, as factors in float64."""
        if not 0 <= rank <= len(self.squares):
            raise ValueError(f"rank is {rank}, expected 0 to {len(self.squares)}")
        Z = self.Z[:, :rank]
        factors = LowRank(self.W @ Z, self.K @ Z)
        return factors.T if self.swapped else factors


def metric_svd(W: Array, left: Array | None = None, right: Array | None = None) -> MetricSVD:
    """Decompose W so that cutting it after k terms is optimal under ||L^1/2 (W - X) R^1/2||_F.

    Every data-aware compression is this with its own L and R: SVD (none), DRONE and SVD-LLM (right = E[x x']), ASVD
    (right = a diagonal of sizes of x), FWSVD (left = a diagonal of Fisher weights), GroupReduce (left = word counts),
    Kronecker-factored curvature (both).

    Parameters
    ----------
    W : ndarray or torch.Tensor of shape (m, n)
        Any float; everything is computed in float64, where W is.
    left, right : array of shape (m, m) or (m,), and (n, n) or (n,), optional
        L and R: symmetric positive semidefinite, or a diagonal of numbers >= 0. By default the identity.

    Returns
    -------
    MetricSVD
        ``squares``, ``errors()`` and ``cut(rank)``. Squares are exact to about 1e-15 of the largest.

    Raises
    ------
    ValueError
        Shapes that do not fit, entries that are not finite, a metric that is not symmetric or has a negative
        eigenvalue.

    References
    ----------
    Chen et al. 2021, "DRONE"; Wang et al. 2024, "SVD-LLM". The form without inverses is the one on top of this file.

    Examples
    --------
    >>> W = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> metric_svd(W).errors()
    array([10.,  1.,  0.])
    >>> found = metric_svd(W, right=np.array([0.01, 1.0]))  # the first input is nearly always 0
    >>> found.errors().round(2), found.cut(1).dense().round(2)
    (array([1.09, 0.09, 0.  ]), array([[0., 0.],
           [0., 1.]]))
    """
    xp = array_module(W)
    m, n = _checked_shapes(W, left, right)
    W, left, right = (None if a is None else _float64(a) for a in (W, left, right))
    if m < n:
        return metric_svd(W.T, right, left)._replace(swapped=True)
    B = _root(right)
    LW = W if left is None else left[:, None] * W if left.ndim == 1 else left @ W
    K = W.T @ LW
    if left is None and right is None:  # nothing was squared yet: small singular values keep all their digits
        _, s, Qt = xp.linalg.svd(W, full_matrices=False)
        squares, Q = s * s, Qt.T
    else:
        M = K if B is None else B[:, None] * K * B if B.ndim == 1 else B.T @ K @ B
        squares, Q = xp.linalg.eigh((M + M.T) / 2)
        squares, Q = _flipped(squares), xp.flip(Q, (1,))
    floor = float(squares[0]) * n * np.finfo(np.float64).eps if len(squares) else 0.0
    squares = xp.where(squares > floor, squares, 0 * squares)
    inverse = xp.where(squares > 0, 1 / xp.sqrt(xp.where(squares > 0, squares, 1 + 0 * squares)), 0 * squares)
    BQ = Q if B is None else B[:, None] * Q if B.ndim == 1 else B @ Q
    return MetricSVD(squares, W, K, BQ * inverse, False)


def _root(metric: Array | None) -> Array | None:
    """B with B B' = metric; a diagonal as its diagonal."""
    if metric is None:
        return None
    xp = array_module(metric)
    if metric.ndim == 1:
        values, vectors = metric, None
    else:
        values, vectors = xp.linalg.eigh(metric)
    if len(values) and float(values.min()) < -1e-6 * float(abs(values).max()):
        raise ValueError(f"a metric has the eigenvalue {float(values.min()):.3g}, expected none below 0")
    root = xp.sqrt(xp.clip(values, 0, None))
    return root if vectors is None else vectors * root


def check_rank(shape: tuple[int, ...], rank: int) -> None:
    """Refuse a rank that no matrix of this shape has."""
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank is {rank}, expected 1 to min{shape} = {min(shape)}")


def _checked_shapes(W: Array, left: Array | None, right: Array | None) -> tuple[int, int]:
    if W.ndim != 2:
        raise ValueError(f"W has the shape {tuple(W.shape)}, expected a matrix")
    for name, array, size in (("W", W, None), ("left", left, W.shape[0]), ("right", right, W.shape[1])):
        if array is None:
            continue
        if size is not None and tuple(array.shape) not in ((size,), (size, size)):
            raise ValueError(f"{name} has the shape {tuple(array.shape)}, expected {(size, size)} or {(size,)}")
        if not bool(array_module(array).isfinite(array).all()):
            raise ValueError(f"{name} has an entry that is not finite")
        if size is not None and array.ndim == 2 and float(abs(array - array.T).max()) > 1e-3 * float(abs(array).max()):
            raise ValueError(f"{name} is not symmetric")
    return W.shape[0], W.shape[1]


def array_module(array: Array) -> Any:
    """Module of an array: numpy, or torch, which then is loaded."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def _float64(array: Array) -> Array:
    xp = array_module(array)
    return xp.asarray(array, dtype=xp.float64)


def _flipped(vector: Array) -> Array:
    return array_module(vector).flip(vector, (0,))

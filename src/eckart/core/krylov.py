"""The best rank-k approximation of a matrix that is known by its products only, with a bound on its error.

`krylov_svd` takes the Rayleigh-Ritz approximation in the block Krylov space  span(A Z, (A A') A Z, (A A')^2 A Z, ...)
of a random block Z (Musco, Musco 2015), and says afterwards how far off it is. A matrix whose means are removed is an
`Operator`, sparse plus rank two; it never becomes dense.

Symbols: A (n x m); Q (n x l) orthonormal basis of the Krylov space; B = A'Q (m x l); E = A - U S V'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, qr
from scipy.sparse import csr_array

from eckart.core.csr import sparse_product
from eckart.core.svd import TruncatedSVD, check_rank

__all__ = ["Operator", "krylov_svd", "operator"]

_PROBES = 10  # the bound fails with probability at most 10 ** -_PROBES
_POWER = 8  # ... and is loose by (10 sqrt(2 n / pi)) ** (1 / (2 _POWER + 1)) at worst: 1.6 at n = 100,000


class Operator(NamedTuple):
    """A matrix known by its products with blocks of vectors."""

    shape: tuple[int, int]
    times: Callable[[np.ndarray], np.ndarray]  # (m, b) -> (n, b)
    transposed_times: Callable[[np.ndarray], np.ndarray]  # (n, b) -> (m, b)
    squares: float  # ||A||_F^2

    @property
    def T(self) -> Operator:
        """The transpose."""
        return Operator((self.shape[1], self.shape[0]), self.transposed_times, self.times, self.squares)


def operator(
    A: csr_array | np.ndarray,
    row: np.ndarray | None = None,
    column: np.ndarray | None = None,
    *,
    transpose: csr_array | None = None,
    threads: int = 1,
) -> Operator:
    """A - row 1' - 1 column' as an operator: A with means removed, in every cell, stored or not.

    Parameters
    ----------
    A : csr_array or ndarray of shape (n, m)
        Floating point; products keep its dtype.
    row : ndarray of shape (n,), optional
    column : ndarray of shape (m,), optional
    transpose : csr_array of shape (m, n), optional
        Of a sparse A, where it is at hand already.
    threads : int
        Of the sparse products, whose rows are independent: no bit depends on it. Dense ones are the BLAS library's.

    Examples
    --------
    >>> A = csr_array(np.array([[1.0, 0.0], [3.0, 5.0]]))
    >>> centred = operator(A, row=np.array([0.5, 4.0]))
    >>> centred.times(np.eye(2)), centred.squares
    (array([[ 0.5, -0.5],
           [-1. ,  1. ]]), 2.5)
    """
    n, m = A.shape  # pyright: ignore[reportGeneralTypeIssues]  scipy leaves shape untyped
    r = np.zeros(n) if row is None else row.astype(np.float64)
    c = np.zeros(m) if column is None else column.astype(np.float64)
    if isinstance(A, np.ndarray):
        squares = float(np.sum((A - r[:, None] - c) ** 2, dtype=np.float64))
        left, right = A, A.T
    else:
        left, right = A, csr_array(A.T.tocsr()) if transpose is None else transpose
        # Stored cells as they are, and every cell as if it were empty: one sum over entries, one closed form.
        shift = np.repeat(r, np.diff(A.indptr)) + c[A.indices]
        stored = np.sum((A.data - shift) ** 2 - shift**2, dtype=np.float64)
        squares = max(0.0, float(stored + m * (r @ r) + 2 * r.sum() * c.sum() + n * (c @ c)))

    def minus(product: np.ndarray, X: np.ndarray, a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray:
        """product - a (1'X) - 1 (b'X); the sums over a whole column in float64."""
        if a is not None:
            product -= np.outer(a, X.sum(axis=0, dtype=np.float64)).astype(product.dtype)
        if b is not None:
            product -= (b.astype(np.float64) @ X).astype(product.dtype)
        return product

    return Operator(
        (n, m),
        lambda X: minus(sparse_product(left, X, threads), X, row, column),
        lambda Y: minus(sparse_product(right, Y, threads), Y, column, row),
        squares,
    )


def krylov_svd(
    A: Operator | csr_array | np.ndarray,
    rank: int,
    *,
    basis: int | None = None,
    block: int | None = None,
    start: np.ndarray | None = None,
    seed: int = 0,
    dtype: type = np.float32,
) -> TruncatedSVD:
    """Truncated SVD from products with A, and a bound on the error that holds with probability 1 - 1e-10.

    Parameters
    ----------
    A : Operator, csr_array or ndarray of shape (n, m)
    rank : int
        1 to min(n, m).
    basis : int, optional
        Dimension l of the Krylov space, at least `rank`: more is more accurate, for 6 (n + m) l^2 operations. By
        default ``rank + rank // 3 + 64``.
    block : int, optional
        Columns of Z; ``basis / block`` is how often A and A' are applied. By default an eighth of the basis,
        8 to 64: more columns are faster a column, fewer come closer with the same basis.
    start : ndarray of shape (max(n, m), block or more), optional
        Z, in place of Gaussian noise; on the longer side of A.
    seed : int
        Of Z and of the probes of the bound.
    dtype : float32 or float64
        Of the products and of U and V. Norms and the small eigenproblem are float64 anyway.

    Returns
    -------
    TruncatedSVD
        ``bound`` is  (10 sqrt(2/pi) max_i ||(E E')^8 E w_i||)^(1/17)  for ten Gaussian w_i; E is 0 to rounding where
        A has no more than `rank` singular values above 0.

    Raises
    ------
    ValueError
        A rank or size out of range.

    References
    ----------
    Musco, Musco 2015, "Randomized block Krylov methods", algorithm 2. Halko, Martinsson, Tropp 2011, eq. (4.3), for
    the bound, applied to (E E')^8 E as in their section 4.5 for the range finder.

    Examples
    --------
    >>> A = np.outer(np.arange(30.0), np.ones(20)) + np.eye(30, 20)
    >>> found = krylov_svd(A, rank=3, dtype=np.float64)
    >>> error = np.linalg.norm(A - found.U * found.s @ found.V.T, 2)
    >>> bool(error <= found.bound <= 3 * error)
    True
    """
    A = A if isinstance(A, Operator) else operator(A)
    check_rank(A.shape, rank)
    if A.shape[0] > A.shape[1]:  # the basis lives on the shorter side
        U, s, V, squares, bound = krylov_svd(A.T, rank, basis=basis, block=block, start=start, seed=seed, dtype=dtype)
        return TruncatedSVD(V, s, U, squares, bound)
    n, m = A.shape
    l = min(n, rank + rank // 3 + 64 if basis is None else basis)
    if l < rank:
        raise ValueError(f"basis is {l}, expected at least the rank, {rank}")
    b = min(l, max(8, min(64, -(-l // 8))) if block is None else block)
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((m, b)) if start is None else start[:, :b]
    if Z.shape != (m, b):
        raise ValueError(f"start is {Z.shape}, expected {(m, b)}: one row for each of the longer side, one column each")
    Q, B = _krylov_basis(A, Z.astype(dtype), l, rng)

    # Rayleigh-Ritz: the SVD of B' = Q'A. Its Gram matrix in float64 loses nothing that float32 products had.
    s2, Y = eigh(_gram64(B), subset_by_index=(l - rank, l - 1), driver="evr")
    s, Y = np.sqrt(np.maximum(s2[::-1], 0)), Y[:, ::-1].astype(dtype)  # descending
    U, V = Q @ Y, B @ Y
    if s[-1] > 0.01 * s[0]:
        V /= s.astype(dtype)
    else:  # relative to small s rounding is not small; vectors of singular values 0 complete an orthonormal V
        V, R = qr(V, mode="economic", overwrite_a=True, check_finite=False)
        V *= np.where(np.diagonal(R) < 0, -1, 1).astype(dtype)
    found = TruncatedSVD(U, s, V, A.squares, 0.0)
    return found._replace(bound=_error_bound(A, found, rng, dtype))


def _krylov_basis(A: Operator, Z: np.ndarray, l: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal Q (n, l) whose columns span A Z, (A A') A Z, ..., and B = A'Q (m, l)."""
    (n, m), b = A.shape, Z.shape[1]
    Q, B = np.empty((n, l), Z.dtype, order="F"), np.empty((m, l), Z.dtype, order="F")
    done, X = 0, A.times(Z)
    while done < l:
        X = _orthonormal(X, Q[:, :done])[:, : l - done]
        if not X.shape[1]:  # the space is exhausted: A has lower rank, or Z missed some of it
            X = rng.standard_normal((n, b)).astype(Z.dtype)
            continue
        new = slice(done, done + X.shape[1])
        Q[:, new], B[:, new] = X, A.transposed_times(X)
        done = new.stop
        if done < l:
            X = A.times(np.ascontiguousarray(B[:, new]))
    return Q, B


def _orthonormal(X: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Orthonormal basis of what the columns of X have outside the span of Q; directions that are rounding are cut."""
    eps, whole = np.finfo(X.dtype).eps, np.max(np.einsum("ij,ij->j", X, X, dtype=np.float64), initial=0)
    for _ in range(3):
        X = X - Q @ (Q.T @ X)
        s2, E = eigh(_gram64(X))
        keep = s2 > max(whole * eps * eps * 1e4, s2[-1] * eps * 16)
        X = X @ (E[:, keep] / np.sqrt(s2[keep])).astype(X.dtype)
        # Rounding relative to what was there before is relative to what is left by the root of this; twice is enough.
        if not X.shape[1] or s2[keep][0] > 0.003 * whole:
            break
        whole = 1.0
    return np.ascontiguousarray(X[:, ::-1])  # the strongest first


def _gram64(X: np.ndarray) -> np.ndarray:
    """X'X, products and sums in float64, a panel at a time."""
    G = np.zeros((X.shape[1], X.shape[1]))
    for first in range(0, len(X), 4096):
        panel = X[first : first + 4096].astype(np.float64)
        G += panel.T @ panel  # (NumPy sees the symmetry and computes half of it)
    return G


def _error_bound(A: Operator, found: TruncatedSVD, rng: np.random.Generator, dtype: type) -> float:
    U, s, V = found.U, found.s.astype(dtype)[:, None], found.V
    X, log_scale = rng.standard_normal((A.shape[1], _PROBES)).astype(dtype), 0.0
    for step in range(2 * _POWER + 1):
        X = A.transposed_times(X) - V @ (s * (U.T @ X)) if step % 2 else A.times(X) - U @ (s * (V.T @ X))
        largest = float(np.abs(X).max())
        if largest == 0:
            return 0.0
        X /= dtype(largest)  # (s^5 would leave float32)
        log_scale += np.log(largest)
    norm = float(np.sqrt(np.einsum("ij,ij->j", X, X, dtype=np.float64).max()))
    return float(np.exp((np.log(10 * np.sqrt(2 / np.pi) * norm) + log_scale) / (2 * _POWER + 1)))

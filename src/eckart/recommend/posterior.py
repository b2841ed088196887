"""The conditional draws of Bayesian matrix factorization: each given everything else.

One side of the model (users; items by symmetry) has rows x_u that the entries alone do not decide:

    x_u = m + B' f_u + residual,   residual ~ N(0, L^-1),      f_u = 1 / sqrt(n_u) where u has an entry, 0 elsewhere
    b_j ~ N(0, (s L)^-1),   s ~ Gamma(1, 1),   m ~ N(0, (2 L)^-1),   L ~ Wishart(k, I / c)

Without B this is BPMF (Salakhutdinov & Mnih 2008). Through the link B it tells something that an entry is there,
whatever its value, as in SVD++; it is Macau's (Simm et al. 2015) with who rated what as the only feature. c is the
standard deviation of the ratings, which makes the prior the same on any scale.

Symbols: X (n x k) the rows, F (n x m) the f_u, R the entries, Y (m x k) the other side. See docs/notation.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import kernel_arrays
from eckart.core.kernels import kernels

__all__ = ["Prior", "draw_noise", "draw_normal_wishart", "draw_prior", "draw_rows", "prior_means"]

_COUNT = 2.0  # how many rows the prior of m is worth, as in the BPMF paper


class Prior(NamedTuple):
    """What the rows of one side are drawn from."""

    mean: np.ndarray  # (k,) float64, m
    precision: np.ndarray  # (k, k) float64, L
    link: np.ndarray  # (m, k) float32, B
    strength: float  # s


def prior_means(F: csr_array, prior: Prior) -> np.ndarray:
    """m + B' f_u of every row, (n, k) float32; a row's bits do not depend on the others."""
    return np.asarray(F @ prior.link, np.float32) + prior.mean.astype(np.float32)


def draw_normal_wishart(
    E: np.ndarray, scatter: np.ndarray, count: int, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw (m, L) given the rows E (n, k), and `count` more of mean 0 with sum of squares `scatter`.

    With S = c I + scatter + sum_u (e_u - mean)(e_u - mean)' + 2 n / (2 + n) mean mean',
    L ~ Wishart(k + n + count, S^-1) and m ~ N(n mean / (2 + n), ((2 + n) L)^-1).

    Returns
    -------
    m : ndarray of shape (k,), float64
    L : ndarray of shape (k, k), float64

    References
    ----------
    Salakhutdinov & Mnih 2008, eq. (14). The Wishart draw is Bartlett's (1933).
    """
    n, k = E.shape
    mean = E.mean(axis=0)
    centred = E - mean
    S = scale * np.eye(k) + scatter + centred.T @ centred + _COUNT * n / (_COUNT + n) * np.outer(mean, mean)
    triangle = np.tril(rng.standard_normal((k, k)), -1)
    triangle[np.diag_indices(k)] = np.sqrt(rng.chisquare(k + n + count - np.arange(k)))
    # S = C C', so S^-1 = C^-T C^-1 and L = (C^-T T)(C^-T T)' for Bartlett's lower triangle T.
    root = np.linalg.solve(np.linalg.cholesky(S).T, triangle)
    L = root @ root.T
    return n * mean / (_COUNT + n) + _correlated(rng.standard_normal((1, k)), L)[0] / np.sqrt(_COUNT + n), L


def draw_prior(
    X: np.ndarray,
    F: csr_array,
    by_column: csr_array,
    prior: Prior,
    scale: float,
    rng: np.random.Generator,
    threads: int,
) -> Prior:
    """Draw mean and precision, then one pass over the rows of B, then its strength.

    Parameters
    ----------
    X : ndarray of shape (n, k), float32
    F, by_column : csr_array of shapes (n, m) and (m, n), float32
        The link matrix and its transpose.
    prior : Prior
        The last draw.
    scale : float > 0
        c, the standard deviation of the ratings.
    rng : Generator
    threads : int
        The draw does not depend on it.
    """
    B, s = prior.link, prior.strength
    linked = np.asarray(F @ B)
    B64 = B.astype(np.float64)
    mean, L = draw_normal_wishart(X.astype(np.float64) - linked, s * (B64.T @ B64), len(B), scale, rng)
    noise = _correlated(rng.standard_normal(B.shape, dtype=np.float32), L).astype(np.float32)
    E = (X - mean - linked).astype(np.float32)
    _, B = kernels.sample_link(*kernel_arrays(by_column), E, B, s, noise, threads)
    squares = float(np.sum((B.astype(np.float64) @ L) * B))  # sum_j b_j' L b_j
    return Prior(mean, L, B, float(rng.gamma(1 + B.size / 2, 1 / (1 + squares / 2))))


def draw_rows(
    R: csr_array,
    mean: float,
    Y: np.ndarray,
    alpha: float,
    prior: Prior,
    means: np.ndarray,
    noise: np.ndarray | None,
    threads: int,
) -> np.ndarray:
    """Draw every row given the other side; without `noise`, give the posterior means.

    Parameters
    ----------
    R : csr_array of shape (n, m), float32
    mean : float
        Of all ratings.
    Y : ndarray of shape (m, k), float32
    alpha : float > 0
        Precision of the ratings' noise.
    prior : Prior
    means : ndarray of shape (n, k), float32
        `prior_means` of the rows.
    noise : ndarray of shape (n, k), float32, optional
        Standard normal.
    threads : int
        The draw does not depend on it.

    Returns
    -------
    ndarray of shape (n, k), float32

    Raises
    ------
    FloatingPointError
        A row's precision is not positive definite in float32.
    """
    indptr, indices, values = kernel_arrays(R)
    L = prior.precision.astype(np.float32)
    X, failed = kernels.posterior_rows(indptr, indices, values - np.float32(mean), Y, alpha, L, means, noise, threads)
    if failed >= 0:
        raise FloatingPointError(
            f"row {failed}: its posterior precision is not positive definite in float32: scale the ratings to about 1"
        )
    return X


def draw_noise(squares: float, entries: int, scale: float, rng: np.random.Generator) -> float:
    """Draw alpha given the sum of squared errors: Gamma(1 + N / 2, rate = c^2 + squares / 2)."""
    return float(rng.gamma(1 + entries / 2, 1 / (scale**2 + squares / 2)))


def _correlated(normal: np.ndarray, L: np.ndarray) -> np.ndarray:
    """Turn rows of standard normals into rows of N(0, L^-1): L = C C', z C^-1 has covariance C^-T C^-1."""
    C = np.linalg.cholesky(L)
    return normal @ np.linalg.inv(C).astype(normal.dtype)

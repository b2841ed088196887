"""The weight of a layer decomposed in the metric of its patches, also where its matrix is that of columns and rows.

Linear layers and whole filters act on x itself, and metric_svd is the answer. A convolution W as the matrix
(m kw) x (c kh) (linear.py) has the loss 1/2 tr(L D R D') of the weights that it folds back to, with R (c kh kw)^2 of
patches, and this is no metric of that matrix's two sides. The nearest that is, from R's partial traces,

    R ~ Ra (x) Rb / tr Rb,    Ra = sum_j R_(.j)(.j)  (c kh)^2,    Rb_jj' = tr R_(.j)(.j')  kw x kw,

chooses the directions X_i = u_i v_i': the best X in the metric (L (x) Rb, Ra). What they lose, they lose in R itself:

    2 loss(k) = <W, W> - 2 sum_{i<=k} <W, X_i> + sum_{i,i'<=k} <X_i, X_i'>,    <A, B> = tr(L A R B').

Source: Tai, Xiao, Zhang, Wang, E 2016, "Convolutional neural networks with low-rank regularization", for the closed
form without a metric. What the product of traces gives away, refit.py wins back.

Symbols: j, j' a place in the kernel's row. See docs/notation.md.
"""

from __future__ import annotations

import numpy as np
import torch

from eckart.core.svd import MetricSVD, metric_svd
from eckart.nn.linear import is_split, unfolded

__all__ = ["decomposed"]


def decomposed(W: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor) -> tuple[MetricSVD, np.ndarray]:
    """Decompose a weight in the metric of its layer's outputs and inputs.

    Parameters
    ----------
    W : Tensor of shape (m, n) or (m, c, kh, kw)
        float64.
    left, right : Tensor of shape (m, m), and (n, n) or (c kh kw, c kh kw)
        L, by default the identity, and R.

    Returns
    -------
    (MetricSVD, squares)
        Of ``unfolded(W)``; and how much of twice the loss each kept direction takes away, (r,) float64.

    Examples
    --------
    >>> W = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> found, squares = decomposed(W, None, torch.eye(36, dtype=torch.float64))  # no metric: both ways agree
    >>> bool(np.allclose(found.squares, squares))
    True
    """
    if not is_split(W.shape):
        found = metric_svd(W.flatten(1), left, right)
        return found, found.squares.numpy()
    m, c, high, wide = W.shape
    L = torch.eye(m, dtype=W.dtype) if left is None else left
    R = right.reshape(c * high, wide, c * high, wide)
    Rb = torch.einsum("ajal->jl", R)
    found = metric_svd(unfolded(W), torch.kron(L, Rb / Rb.trace()), torch.einsum("ajbj->ab", R))
    rank = int((found.squares > 0).sum())
    factors = found.cut(rank)
    U, V = factors.left.reshape(m, wide, rank), factors.right
    LWR = L @ W.flatten(1) @ right
    gram = torch.zeros(rank, rank, dtype=W.dtype)
    for j in range(wide):
        for l in range(wide):
            gram += (U[:, j].T @ L @ U[:, l]) * (V.T @ R[:, j, :, l] @ V)
    shared = (factors.left * (unfolded(LWR.reshape(W.shape)) @ V)).sum(0)
    taken = 2 * shared.cumsum(0) - gram.cumsum(0).cumsum(1).diagonal()
    return found, np.diff(np.append(0.0, taken.numpy()))

"""Weights on a grid of few bits, alone and with a part of low rank beside them.

A group of weights next to each other in a row shares a scale and an offset: w is stored as an integer q of `bits` bits
and read as  a + s q,  with a the smallest of the group and s a (2^bits - 1)th of its range. `round_to_nearest` rounds
each weight for itself. `gptq` goes through the columns and lets those that are still to come make up for each one's
error in the metric R = E[x x'] of the inputs (Frantar et al. 2022; the closed form is that of optimal brain surgery,
Hassibi, Stork 1993):

    w_j  <-  w_j - (w_i - q_i) U_ij / U_ii   for j > i,   U upper, U'U = R^-1.

`with_low_rank` alternates  Q = the grid's nearest to W - X,  X = the best of rank k for W - Q  in the metric (L, R), as
in LoftQ (Li et al. 2023) and QERA (Zhang et al. 2024), and keeps the best it has seen.

Symbols: W (m x n); Q on the grid; X of rank k. See docs/notation.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from eckart.core.lowrank import LowRank
from eckart.core.svd import metric_svd

__all__ = ["gptq", "quantized_bits", "round_to_nearest", "with_low_rank"]


def quantized_bits(n: int, bits: int, group: int) -> float:
    """Bits a weight: the integer, and its share of the group's scale and offset, 16 bits each.

    Examples
    --------
    >>> quantized_bits(512, bits=4, group=128)
    4.25
    """
    groups = -(-n // group)
    return bits + 32 * groups / n


def round_to_nearest(W: torch.Tensor, bits: int = 4, group: int = 128) -> torch.Tensor:
    """Round every weight to its group's grid: (m, n), in the dtype of W.

    Parameters
    ----------
    W : Tensor of shape (m, n)
    bits : int
        1 to 16.
    group : int
        Weights of a row that share a scale; the last ones may be fewer.

    Raises
    ------
    ValueError
        An argument out of range.

    Examples
    --------
    >>> round_to_nearest(torch.tensor([[0.0, 0.4, 3.0]]), bits=2)
    tensor([[0., 0., 3.]])
    """
    if not 1 <= bits <= 16 or group < 1:
        raise ValueError(f"bits is {bits} and group {group}, expected 1 to 16, and at least 1")
    return torch.cat([_on_grid(part, *_grid(part, bits)) for part in W.split(group, dim=1)], dim=1)


def _grid(part: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = part.aminmax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return low, torch.where(scale > 0, scale, torch.ones_like(scale))


def _on_grid(w: torch.Tensor, low: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return low + scale * ((w - low) / scale).round()


def gptq(
    W: torch.Tensor, R: torch.Tensor, bits: int = 4, group: int = 128, damping: float = 0.01, block: int = 128
) -> torch.Tensor:
    """Quantize column by column, later columns making up for earlier errors: (m, n), in the dtype of W.

    Parameters
    ----------
    W : Tensor of shape (m, n)
    R : Tensor of shape (n, n)
        Second moments of the inputs.
    bits, group
        As in `round_to_nearest`; grids are laid when their first column is reached.
    damping : float
        Share of the mean of R's diagonal that is added to it.
    block : int
        Columns after which the rest is brought up to date at once.

    References
    ----------
    Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ".

    Examples
    --------
    >>> W = torch.tensor([[0.4, 0.4, 1.0, 0.0]])
    >>> same = torch.ones(4, 4)  # inputs that are all alike: only the sum of the weights matters
    >>> float(gptq(W, same, bits=1).sum()), float(round_to_nearest(W, bits=1).sum())
    (2.0, 1.0)
    """
    if not 1 <= bits <= 16 or group < 1:
        raise ValueError(f"bits is {bits} and group {group}, expected 1 to 16, and at least 1")
    n = W.shape[1]
    R = R.double() + damping * R.diagonal().mean().double() * torch.eye(n, dtype=torch.float64, device=R.device)
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(R)), upper=True)
    left, Q = W.double().clone(), torch.empty_like(W, dtype=torch.float64)
    low = scale = torch.empty(0)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.zeros_like(left[:, start:stop])
        for i in range(start, stop):
            if i % group == 0:
                # What the columns of this block still owe to later ones is not in `left` yet beyond `stop`.
                ahead = left[:, i : i + group].clone()
                if i + group > stop:
                    ahead[:, stop - i :] -= errors[:, : i - start] @ U[start:i, stop : i + group]
                low, scale = _grid(ahead, bits)
            Q[:, i : i + 1] = _on_grid(left[:, i : i + 1], low, scale).clamp(low, low + scale * (2**bits - 1))
            error = (left[:, i] - Q[:, i]) / U[i, i]
            errors[:, i - start] = error
            left[:, i + 1 : stop] -= torch.outer(error, U[i, i + 1 : stop])
        left[:, stop:] -= errors @ U[start:stop, stop:]
    return Q.to(W.dtype)


def with_low_rank(
    W: torch.Tensor,
    quantize: Callable[[torch.Tensor], torch.Tensor],
    rank: int,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
    rounds: int = 5,
) -> tuple[torch.Tensor, LowRank]:
    """Split W into a part on a grid and one of low rank, so that Q + X is near it in the metric.

    Parameters
    ----------
    W : Tensor of shape (m, n)
    quantize : callable
        Gives a matrix on the grid for a matrix, for example `round_to_nearest`.
    rank : int
        Of X, 0 to min(m, n).
    left, right : Tensor, optional
        L and R, as in `eckart.core.svd.metric_svd`.
    rounds : int
        At least 1; more never make it worse.

    Returns
    -------
    (Q, X)
        Q in the dtype of W, factors in float64.

    Raises
    ------
    ValueError
        No rounds, or what `metric_svd` refuses.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    best, least, aim = None, float("inf"), W
    for _ in range(rounds):
        Q = quantize(aim)
        found = metric_svd(W - Q, left, right)
        error = float(found.errors()[rank])
        if error < least:
            best, least = (Q, found.cut(rank)), error
        aim = (W.double() - found.cut(rank).dense()).to(W.dtype)
    assert best is not None
    return best

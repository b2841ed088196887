"""Losses of a batch, with their gradients in closed form: pure functions on arrays.

A batch is b users with all their p entries. Its scores against a shared pool of items (negatives.py) are one matrix
S (b x N), and a user's entries share its row: an entry costs no more than the matrix product does. A drawn item j
weighs omega_j, such that sums over the pool estimate sums over all items without bias; those that are entries of the
user have S = -inf, which no loss below feels. With s_t the score of entry t, of user u, weight w_t, and T a
temperature, the losses are

    softmax   sum_t w_t [ log(exp(s_t / T) + sum_j omega_j exp(S_uj / T)) - s_t / T ]
    bpr       sum_t w_t / m sum_j omega_j log(1 + exp((S_uj - s_t) / T))
    ccl       sum_t w_t [ 1 - s_t + c / m sum_j omega_j max(0, S_uj - margin) ]
    squared   sum_t alpha r_t (1 - s_t)^2 + l_i / n_i |h_t|^2  +  sum_u l_u |x_u|^2  +  a0 sum_uj omega_j S_uj^2

Sampled softmax with its correction: Bengio and Senecal 2008, Yi et al. 2019 ("logQ": log omega_j is -log of how often
j is expected). Its sum over the pool has no bias; the logarithm of it has one that falls as 1 / N. BPR: Rendle et
al. 2009. CCL: Mao et al. 2021. Squared: Hu, Koren, Volinsky 2008, as implicit.py has it; the sum over all cells is
a0 <X'X, Y' diag(omega) Y>, and no score has to be computed.

Symbols: m items that may be drawn; X (b x k) users, Y (N x k) the pool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gradients", "bpr", "ccl", "softmax", "squared"]

_CHUNK = 1 << 22  # scores of pairs of entries and draws at a time, for BPR


def softmax(s: Tensor, user: Tensor, w: Tensor, S: Tensor, omega: Tensor, temperature: float) -> tuple[float, Tensor]:
    """Cross entropy of each entry against the pool.

    Parameters
    ----------
    s : Tensor of shape (p,)
        Scores of the entries.
    user : Tensor of shape (p,), int64
        Row of S of each.
    w : Tensor of shape (p,)
        Weight of each.
    S : Tensor of shape (b, N)
        Scores of the pool, overwritten by the gradient with respect to them.
    omega : Tensor of shape (N,)
        Weight of each draw.
    temperature : float > 0

    Returns
    -------
    value : float
    ds : Tensor of shape (p,)
        Gradient with respect to s.
    """
    logit = s / temperature
    S.div_(temperature).add_(omega.log())
    top = S.amax(1).clamp_min(-1e30)  # where nothing is left of the pool, too
    S.sub_(top[:, None]).exp_()
    others = top + S.sum(1).log()
    total = torch.logaddexp(logit, others[user])
    ds = w * (torch.exp(logit - total) - 1) / temperature
    share = torch.zeros_like(top).index_add_(0, user, w * torch.exp(top[user] - total))
    S.mul_((share / temperature)[:, None])
    return float((w * (total - logit)).sum(dtype=torch.float64)), ds


def bpr(
    s: Tensor, user: Tensor, w: Tensor, S: Tensor, omega: Tensor, temperature: float, m: int
) -> tuple[float, Tensor]:
    """Logistic loss of every pair of an entry and a draw; the parameters and results of `softmax`."""
    value, ds, dS = 0.0, torch.empty_like(s), torch.zeros_like(S)
    weight = omega / m
    step = max(1, _CHUNK // max(1, S.shape[1]))
    for begin in range(0, len(s), step):
        part = slice(begin, begin + step)
        excess = (S[user[part]] - s[part, None]) / temperature
        each = torch.nn.functional.softplus(excess) @ weight
        value += float((w[part] * each).sum(dtype=torch.float64))
        slope = excess.sigmoid_().mul_(weight).mul_(w[part, None] / temperature)
        ds[part] = -slope.sum(1)
        dS.index_add_(0, user[part], slope)
    S.copy_(dS)
    return value, ds


def ccl(
    s: Tensor, user: Tensor, w: Tensor, S: Tensor, omega: Tensor, margin: float, strength: float, m: int
) -> tuple[float, Tensor]:
    """Pull entries to cosine 1, push the pool below `margin`; the parameters and results of `softmax`."""
    total = torch.zeros(len(S), dtype=s.dtype, device=s.device).index_add_(0, user, w) * (strength / m)
    S.sub_(margin).relu_()
    value = (w * (1 - s)).sum(dtype=torch.float64) + (total * (S @ omega)).sum(dtype=torch.float64)
    S.sign_().mul_(omega).mul_(total[:, None])
    return float(value), -w


class Gradients(NamedTuple):
    """Of a loss, with respect to the vectors it is made of."""

    users: Tensor  # (b, k)
    entries: Tensor  # (p, k)
    pool: Tensor  # (N, k)


def squared(
    X: Tensor,
    user: Tensor,
    P: Tensor,
    Y: Tensor,
    omega: Tensor,
    weight: Tensor,
    reg_user: Tensor,
    reg_entry: Tensor,
    unobserved_weight: float,
) -> tuple[float, Gradients]:
    """Squared error over all cells of the batch's users, and the penalties.

    Parameters
    ----------
    X : Tensor of shape (b, k)
    user : Tensor of shape (p,), int64
        Row of X of each entry.
    P : Tensor of shape (p, k)
        Item vectors of the entries.
    Y : Tensor of shape (N, k)
        Of the pool.
    omega : Tensor of shape (N,)
    weight : Tensor of shape (p,)
        alpha r_t.
    reg_user : Tensor of shape (b,)
        l_u.
    reg_entry : Tensor of shape (p,)
        l_i / n_i of each entry's item: over all entries, the penalty of each item once.
    unobserved_weight : float
        a0.

    Returns
    -------
    value : float
    gradients : Gradients
    """
    U = X[user]
    error = (U * P).sum(1) - 1
    GX, GY = X.T @ X, Y.T @ (Y * omega[:, None])
    terms = (
        (weight * error**2).sum(dtype=torch.float64),
        (reg_user * (X**2).sum(1)).sum(dtype=torch.float64),
        (reg_entry * (P**2).sum(1)).sum(dtype=torch.float64),
        unobserved_weight * (GX * GY).sum(dtype=torch.float64),
    )
    slope = (2 * weight * error)[:, None]
    users = 2 * unobserved_weight * (X @ GY) + 2 * reg_user[:, None] * X
    users.index_add_(0, user, slope * P)
    entries = slope * U + 2 * reg_entry[:, None] * P
    return float(sum(terms)), Gradients(users, entries, 2 * unobserved_weight * (Y * omega[:, None]) @ GX)

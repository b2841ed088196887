"""Weights with zeros among them, for comparison: those whose loss is least felt are left out, nothing is refitted.

    magnitude:  |w_ij| largest in the layer           wanda:  |w_ij| sqrt(E[x_j^2]) largest in each row

What is kept takes 16 bits each, and every weight one more that says whether it is there.

Source: Han et al. 2015, "Learning both weights and connections"; Sun et al. 2023, "A simple and effective pruning
approach" (Wanda).
"""

from __future__ import annotations

import torch

__all__ = ["magnitude", "sparse_bits", "wanda"]


def sparse_bits(keep: float) -> float:
    """Bits a weight: 16 of every kept one, and 1 of all.

    Examples
    --------
    >>> sparse_bits(0.5)
    9.0
    """
    return 1 + 16 * keep


def magnitude(W: torch.Tensor, keep: float) -> torch.Tensor:
    """Keep a share of a matrix's numbers, the largest ones: (m, n).

    Parameters
    ----------
    W : Tensor of shape (m, n)
    keep : float
        0 to 1; the numbers kept are rounded down.

    Raises
    ------
    ValueError
        A share out of range.

    Examples
    --------
    >>> magnitude(torch.tensor([[3.0, -2.0], [0.5, 1.0]]), keep=0.5)
    tensor([[ 3., -2.],
            [ 0.,  0.]])
    """
    return _largest(W.flatten()[None], W.flatten()[None].abs(), keep).view_as(W)


def wanda(W: torch.Tensor, R: torch.Tensor, keep: float) -> torch.Tensor:
    """Keep a share of each row's numbers, those that move the output most on their own: (m, n).

    Parameters
    ----------
    W : Tensor of shape (m, n)
    R : Tensor of shape (n, n)
        Second moments of the inputs.
    keep : float
        0 to 1; the numbers kept in a row are rounded down.

    Raises
    ------
    ValueError
        A share out of range.

    Examples
    --------
    >>> wanda(torch.tensor([[3.0, -2.0], [0.5, 1.0]]), torch.diag(torch.tensor([1.0, 9.0])), keep=0.5)
    tensor([[ 0., -2.],
            [ 0.,  1.]])
    """
    return _largest(W, W.abs() * R.diagonal().to(W).sqrt(), keep)


def _largest(W: torch.Tensor, size: torch.Tensor, keep: float) -> torch.Tensor:
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}, expected a share from 0 to 1")
    places = size.topk(int(keep * W.shape[1]), dim=1).indices
    return torch.zeros_like(W).scatter(1, places, W.gather(1, places))

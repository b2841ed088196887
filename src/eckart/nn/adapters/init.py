"""Where a LoRA update s B A starts: every way leaves what the layer computes as it was.

    zero_b, gauss_b    B = 0, A random
    gradient_aligned   B = 0, A = V_r' of the gradient G = U S V'
    pissa              s B A = the best approximation of W of rank r, taken out of W
    data_aware         the same in the metric of the inputs' second moments R: what makes most of the output

With B = 0 the first step of gradient descent makes s B A a multiple of  G A' A:  with rows of A from G, the best
approximation of the gradient of rank r. What is taken out of W is trained in its place, first the largest parts.

All have one signature, so that others can be written beside them.

Sources: Hu et al. 2021, "LoRA"; Meng et al. 2024, "PiSSA"; Yang et al. 2024, "CorDA"; Wang et al. 2024, "LoRA-GA".
Symbols: W (m x n), A (r x n), B (m x r), s the scale. See docs/notation.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from eckart.core.svd import check_rank, metric_svd

__all__ = ["Init", "Start", "data_aware", "gauss_b", "gradient_aligned", "pissa", "zero_b"]


class Start(NamedTuple):
    """Where an update starts."""

    A: torch.Tensor  # (r, n)
    B: torch.Tensor  # (m, r)
    weight: torch.Tensor | None  # (m, n): what the base becomes; None where it stays


class Init(Protocol):
    """What every function of this file is."""

    def __call__(
        self,
        weight: torch.Tensor,
        rank: int,
        scale: float = 1.0,
        known: torch.Tensor | None = None,
        active: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Start:
        """Give factors that start a layer's update.

        Parameters
        ----------
        weight : Tensor of shape (m, n)
            W, any float.
        rank : int
            r, 1 to min(m, n).
        scale : float
            s.
        known : Tensor, optional
            What the way needs: R (n, n) for `data_aware`, the loss's gradient with respect to W (m, n) for
            `gradient_aligned`.
        active : int, optional
            How many inputs are not 0 at a time: n by default, 1 for an embedding. Random A are scaled by it.
        generator : Generator, optional
            Of random A, on the CPU.

        Raises
        ------
        ValueError
            A rank out of range, or `known` is not there or of another shape.
        """
        ...


def zero_b(
    weight: torch.Tensor,
    rank: int,
    scale: float = 1.0,
    known: torch.Tensor | None = None,
    active: int | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Start with B = 0 and A uniform between -1 / sqrt(n) and 1 / sqrt(n). See `Init`.

    Examples
    --------
    >>> A, B, new = zero_b(torch.ones(3, 4), rank=2)
    >>> A.shape, bool((A.abs() <= 0.5).all()), B.abs().max().item(), new
    (torch.Size([2, 4]), True, 0.0, None)
    """
    m, n = weight.shape
    check_rank((m, n), rank)
    A = torch.rand(rank, n, generator=generator) * 2 - 1
    return _placed(weight, A / math.sqrt(active or n), torch.zeros(m, rank))


def gauss_b(
    weight: torch.Tensor,
    rank: int,
    scale: float = 1.0,
    known: torch.Tensor | None = None,
    active: int | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Start with B = 0 and A normal with variance 1 / n. See `Init`."""
    m, n = weight.shape
    check_rank((m, n), rank)
    return _placed(weight, torch.randn(rank, n, generator=generator) / math.sqrt(active or n), torch.zeros(m, rank))


def pissa(
    weight: torch.Tensor,
    rank: int,
    scale: float = 1.0,
    known: torch.Tensor | None = None,
    active: int | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Move the best approximation of W out of the base and into the update. See `Init`.

    Examples
    --------
    >>> A, B, new = pissa(torch.diag(torch.tensor([4.0, 1.0])), rank=1)
    >>> (B @ A).abs(), new.abs()
    (tensor([[4., 0.],
            [0., 0.]]), tensor([[0., 0.],
            [0., 1.]]))
    """
    return _moved(weight, rank, scale, None)


def data_aware(
    weight: torch.Tensor,
    rank: int,
    scale: float = 1.0,
    known: torch.Tensor | None = None,
    active: int | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Move the part of W that makes most of the output, for inputs with second moments R, into the update. See `Init`.

    Examples
    --------
    >>> often = torch.tensor([[0.01, 0.0], [0.0, 1.0]])  # the first input is nearly always 0
    >>> A, B, new = data_aware(torch.diag(torch.tensor([3.0, 1.0])), rank=1, known=often)
    >>> (B @ A).round(decimals=3).abs()
    tensor([[0., 0.],
            [0., 1.]])
    """
    n = weight.shape[1]
    if known is None or tuple(known.shape) != (n, n):
        got = "not given" if known is None else f"of the shape {tuple(known.shape)}"
        raise ValueError(f"second moments of the inputs are {got}, expected the shape {(n, n)}")
    return _moved(weight, rank, scale, known.to(weight.device))


def gradient_aligned(
    weight: torch.Tensor,
    rank: int,
    scale: float = 1.0,
    known: torch.Tensor | None = None,
    active: int | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Start with B = 0 and orthonormal rows of A that span most of a gradient. See `Init`.

    Examples
    --------
    >>> A, B, new = gradient_aligned(torch.ones(2, 3), rank=1, known=torch.tensor([[0.0, 0.0, 5.0], [1.0, 0.0, 0.0]]))
    >>> A.abs(), new
    (tensor([[0., 0., 1.]]), None)
    """
    if known is None or known.shape != weight.shape:
        got = "not given" if known is None else f"of the shape {tuple(known.shape)}"
        raise ValueError(f"the gradient is {got}, expected the shape {tuple(weight.shape)}")
    check_rank(tuple(weight.shape), rank)
    _, _, Vt = torch.linalg.svd(known.double(), full_matrices=False)
    return _placed(weight, Vt[:rank], torch.zeros(len(weight), rank))


def _moved(weight: torch.Tensor, rank: int, scale: float, right: torch.Tensor | None) -> Start:
    check_rank(tuple(weight.shape), rank)
    cut = metric_svd(weight, None, right).cut(rank).balanced()
    start = _placed(weight, cut.right.T / scale**0.5, cut.left / scale**0.5)
    rest = weight.double() - scale * (start.B.double() @ start.A.double())  # of the rounded ones: the sum is exact
    return start._replace(weight=rest.to(weight.dtype))


def _placed(weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Start:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    A, B = (x.to(weight.device, dtype).contiguous() for x in (A, B))
    return Start(A, B, None)

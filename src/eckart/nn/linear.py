"""Layers of low rank: what a linear layer or a convolution becomes when it is compressed.

    y = [z; T z][order] + b,   z = V x        pivoted: (m + n - k) k numbers, an order and a bias
    y = U z + b,               z = V x        as factors: (m + n) k numbers

V x are k of the layer's own outputs in the pivoted form, whose numbers are fewer and products smaller at every rank
(core/lowrank.py). A convolution's weight W (m, c, kh, kw) is a matrix in two ways, and so there are two layers:

    m x (c kh kw)       x is a patch: k whole filters, then a mix of them at every place
    (m kw) x (c kh)     x is a column of a patch: k filters kh x 1, then m filters 1 x kw

The second is nearer to the square where channels are many: at equal numbers it has more singular directions. Which of
the two a convolution takes depends on its shape alone: the one whose shorter side is longer.

Source: Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions".
This file needs torch only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LowRankConv2d", "LowRankLinear", "folded", "is_split", "multiplied", "unfolded"]


class _LowRank(nn.Module):
    """What both kinds of layers hold: V, T or U, the order, the bias."""

    left: nn.Parameter
    right: nn.Parameter
    order: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        right: tuple[int, ...],
        rows: int,
        outputs: int,
        bias: bool,
        pivoted: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.rank, self.pivoted = right[0], pivoted
        if not 0 <= self.rank <= rows:
            raise ValueError(f"rank is {self.rank}, expected 0 to {rows}")
        self.right = nn.Parameter(torch.zeros(right, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.zeros(rows - self.rank * pivoted, self.rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype)) if bias else None
        if pivoted:
            self.register_buffer("order", torch.arange(rows, dtype=torch.int32, device=device))

    def combined(self) -> torch.Tensor:
        """Give U: every row of the matrix in terms of V's, pivots too."""
        own = torch.eye(self.rank, device=self.left.device, dtype=self.left.dtype)
        return torch.cat([own, self.left]).index_select(0, self.order) if self.pivoted else self.left

    def _times(self, right: torch.Tensor) -> torch.Tensor:
        return multiplied(self.left, right, self.order if self.pivoted else None)


class LowRankLinear(_LowRank):
    """A linear layer whose matrix has rank k.

    Parameters
    ----------
    in_features, out_features : int
        n and m.
    rank : int
        k, 0 to min(m, n). At 0 the layer is its bias.
    bias : bool
    pivoted : bool
        Whether k of the outputs are V x itself, and `order` says which.

    Attributes
    ----------
    right : Parameter of shape (k, n)
        V.
    left : Parameter of shape (m - k, k) if pivoted, else (m, k)
        T or U.
    order : int32 tensor of shape (m,)
        Place of each output in [z; T z]; only if pivoted.
    bias : Parameter of shape (m,), or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        pivoted: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__((rank, in_features), out_features, out_features, bias, pivoted, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (..., n): (..., m)."""
        if not self.pivoted:
            return F.linear(F.linear(x, self.right), self.left, self.bias)
        # To order outputs one by one takes longer than the products. Whole rows are: of U for many inputs, else of y'.
        # benchmarks/pivoted_layer.py. A traced program has one way for every number of inputs.
        if not torch.compiler.is_compiling() and x.numel() > self.rank * self.in_features:
            return F.linear(F.linear(x, self.right), self.combined(), self.bias)
        z = self.right @ x.reshape(-1, self.in_features).T
        y = torch.cat([z, self.left @ z]).index_select(0, self.order).T.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The product, (m, n), made anew each time: what an ordinary layer would hold. Models look at its dtype."""
        return self._times(self.right)

    def extra_repr(self) -> str:
        """What `print` shows."""
        form = "pivoted" if self.pivoted else "factors"
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}, {form}"


class LowRankConv2d(_LowRank):
    """A convolution whose weight, as one of the two matrices above, has rank k.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : pair of int
        As those of ``torch.nn.Conv2d``, which pads with zeros; one group.
    rank, bias, pivoted
        As in `LowRankLinear`, with the rows of the matrix in the place of outputs.

    Attributes
    ----------
    split : bool
        Whether it is two convolutions of one column and of one row; else whole filters and a mix of them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        rank: int,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        bias: bool = True,
        pivoted: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank is {rank}, expected at least 1: torch has no convolution without filters")
        split = is_split((out_channels, in_channels, *kernel_size))
        filters, wide = ((kernel_size[0], 1), kernel_size[1]) if split else (kernel_size, 1)
        right, rows = (rank, in_channels, *filters), out_channels * wide
        super().__init__(right, rows, out_channels, bias, pivoted, device, dtype)
        self.in_channels, self.out_channels, self.split = in_channels, out_channels, split
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        # Stride, padding and dilation of the filters; size, stride, padding and dilation of their mix.
        self.first: tuple[Any, ...] = (stride, padding, dilation)
        self.second: tuple[Any, ...] = ((1, 1), (1, 1), (0, 0), (1, 1))
        if split:
            down, across = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
            self.first = (stride[0], 1), down, (dilation[0], 1)
            self.second = (1, wide), (1, stride[1]), across, (1, dilation[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (batch, c, height, width)."""
        return self.mix(self.filtered(x))

    def filtered(self, x: torch.Tensor) -> torch.Tensor:
        """Give z, what the k filters find: (batch, k, height, width)."""
        return F.conv2d(x, self.right, None, *self.first)

    def mix(self, z: torch.Tensor) -> torch.Tensor:
        """Give the outputs from z."""
        # Pivots are multiplied by 1: cheaper than cutting the outputs up and laying them out in their order.
        U = self.combined().unflatten(0, (self.out_channels, -1)).movedim(-1, 1)[:, :, None]
        return F.conv2d(z, U, self.bias, *self.second[1:])

    @property
    def weight(self) -> torch.Tensor:
        """The product, (m, c, kh, kw), made anew each time: what an ordinary convolution would hold."""
        return folded(self._times(self.right.flatten(1)), (self.out_channels, self.in_channels, *self.kernel_size))

    def extra_repr(self) -> str:
        """What `print` shows."""
        form = "pivoted" if self.pivoted else "factors"
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        kind = "columns and rows" if self.split else "whole filters"
        return f"{self.in_channels}, {self.out_channels}, {size}, rank={self.rank}, {kind}, {form}"


def multiplied(left: torch.Tensor, right: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Multiply a layer's tensors out: the (m, n) matrix. `right` is (k, n); `order` is None for plain factors."""
    product = left @ right
    return product if order is None else torch.cat([right, product]).index_select(0, order)


def is_split(shape: Sequence[int]) -> bool:
    """Whether a weight (m, c, kh, kw) is taken as the matrix (m kw) x (c kh). Linear weights, (m, n), are not.

    Examples
    --------
    >>> is_split((64, 64, 3, 3)), is_split((16, 3, 3, 3)), is_split((64, 64, 1, 1)), is_split((64, 64))
    (True, False, False, False)
    """
    if len(shape) != 4:
        return False
    m, c, high, wide = shape
    return min(m * wide, c * high) > min(m, c * high * wide)


def unfolded(weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight, (m, n) or (m, c, kh, kw), out as the matrix that is to have a low rank."""
    if not is_split(weight.shape):
        return weight.flatten(1)
    return weight.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


def folded(matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Give the weight of a shape that `unfolded` made the matrix of.

    Examples
    --------
    >>> W = torch.randn(5, 4, 3, 2)
    >>> unfolded(W).shape, torch.equal(folded(unfolded(W), W.shape), W)
    (torch.Size([10, 12]), True)
    """
    if not is_split(shape):
        return matrix.reshape(tuple(shape))
    m, c, high, wide = shape
    return matrix.reshape(m, wide, c, high).permute(0, 2, 3, 1)

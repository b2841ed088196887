"""Layers of low rank: what a linear layer or a convolution becomes when it is compressed.

    y = [z; T z][order] + b,   z = V x        pivoted: (m + n - k) k numbers, an order and a bias
    y = U z + b,               z = V x        as factors: (m + n) k numbers

V x are k of the layer's own outputs in the pivoted form, whose numbers are fewer and products smaller at every rank
(core/lowrank.py). A convolution is the same with x a patch: a convolution with k filters, then one of size 1.

This file needs torch only.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LowRankConv2d", "LowRankLinear", "multiplied"]


class LowRankLinear(nn.Module):
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

    left: nn.Parameter
    right: nn.Parameter
    order: torch.Tensor
    bias: nn.Parameter | None

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
        super().__init__()
        self.in_features, self.out_features, self.rank, self.pivoted = in_features, out_features, rank, pivoted
        _low_rank_parameters(self, (rank, in_features), out_features, rank, bias, pivoted, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (..., n): (..., m)."""
        z = F.linear(x, self.right)
        if not self.pivoted:
            return F.linear(z, self.left, self.bias)
        y = torch.cat([z, F.linear(z, self.left)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The product, (m, n), made anew each time: what an ordinary layer would hold. Models look at its dtype."""
        return multiplied(self.left, self.right, self.order if self.pivoted else None)

    def extra_repr(self) -> str:
        """What `print` shows."""
        form = "pivoted" if self.pivoted else "factors"
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, bias={self.bias is not None}, {form}"


class LowRankConv2d(nn.Module):
    """A convolution whose matrix, (m, c/groups kh kw), has rank k: k filters, then a mix of them at every place.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : pair of int
        As those of ``torch.nn.Conv2d``, which pads with zeros; one group.
    rank, bias, pivoted
        As in `LowRankLinear`.
    """

    left: nn.Parameter
    right: nn.Parameter
    order: torch.Tensor
    bias: nn.Parameter | None

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
        super().__init__()
        self.in_channels, self.out_channels, self.rank, self.pivoted = in_channels, out_channels, rank, pivoted
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        if rank < 1:
            raise ValueError(f"rank is {rank}, expected at least 1: torch has no convolution without filters")
        shape = (rank, in_channels, *kernel_size)
        _low_rank_parameters(self, shape, out_channels, rank, bias, pivoted, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (batch, c, height, width)."""
        z = F.conv2d(x, self.right, None, self.stride, self.padding, self.dilation)
        if not self.pivoted:
            return F.conv2d(z, self.left[:, :, None, None], self.bias)
        # (a convolution without filters is an error in torch; a product without rows is not)
        rest = [F.conv2d(z, self.left[:, :, None, None])] if len(self.left) else []
        y = torch.cat([z, *rest], dim=-3).index_select(-3, self.order)
        return y if self.bias is None else y + self.bias[:, None, None]

    @property
    def weight(self) -> torch.Tensor:
        """The product, (m, c, kh, kw), made anew each time: what an ordinary convolution would hold."""
        product = multiplied(self.left, self.right.flatten(1), self.order if self.pivoted else None)
        return product.unflatten(1, self.right.shape[1:])

    def extra_repr(self) -> str:
        """What `print` shows."""
        form = "pivoted" if self.pivoted else "factors"
        size = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.in_channels}, {self.out_channels}, {size}, rank={self.rank}, {form}"


def _low_rank_parameters(
    layer: LowRankLinear | LowRankConv2d,
    right: tuple[int, ...],
    outputs: int,
    rank: int,
    bias: bool,
    pivoted: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    if not 0 <= rank <= outputs:
        raise ValueError(f"rank is {rank}, expected 0 to {outputs}")
    layer.right = nn.Parameter(torch.zeros(right, device=device, dtype=dtype))
    layer.left = nn.Parameter(torch.zeros(outputs - rank * pivoted, rank, device=device, dtype=dtype))
    layer.bias = nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype)) if bias else None
    if pivoted:
        layer.register_buffer("order", torch.arange(outputs, dtype=torch.int32, device=device))


def multiplied(left: torch.Tensor, right: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Multiply a layer's tensors out: the (m, n) matrix. `right` is (k, n); `order` is None for plain factors."""
    product = left @ right
    return product if order is None else torch.cat([right, product]).index_select(0, order)

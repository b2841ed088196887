"""Embeddings and softmaxes of low rank, in groups of tokens: frequent ones may have another rank than rare ones.

    rows of a group  =  [z; T z]       z: k of its rows as they are, T: the others as combinations of them
    token v          ->  row order[v] of all groups' rows, one group after another
    logits           =  [z h; T (z h)  for each group][order]

A group of m tokens takes k (m + d - k) numbers, and a group as it is, k = m, its m d. No matrix over the vocabulary is
made. A softmax that is tied to an embedding computes with the embedding's own tensors, which are stored once.

Groups: Chen, Si, Li, Chelba, Hsieh 2018, "GroupReduce". The form: core/lowrank.py. This file needs torch only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

__all__ = ["LowRankEmbedding", "LowRankSoftmax", "TiedSoftmax"]


class _GroupedRows(nn.Module):
    """A (vocabulary, d) matrix whose rows are in groups, each of a rank of its own.

    Parameters
    ----------
    width : int
        d.
    sizes, ranks : sequence of int
        Tokens and rank of each group: 0 to min(size, d), or its size, and then its rows are stored as they are.
    pivoted : bool
        Whether k rows of a group are stored as they are; else it is two factors.

    Attributes
    ----------
    right : ParameterList of shapes (k, d)
        z.
    left : ParameterList of shapes (m - k, k) if pivoted, else (m, k); (0, k) in a group as it is
        T.
    order : int32 tensor of shape (vocabulary,)
        Place of each token in the groups' rows.
    """

    order: torch.Tensor

    def __init__(
        self,
        width: int,
        sizes: Sequence[int],
        ranks: Sequence[int],
        pivoted: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for size, rank in zip(sizes, ranks, strict=True):
            if size < 1 or not (0 <= rank <= min(size, width) or rank == size):
                raise ValueError(
                    f"a group of {size} tokens has rank {rank}, expected 0 to {min(size, width)}, or {size}"
                )
        self.sizes, self.ranks, self.pivoted = tuple(sizes), tuple(ranks), pivoted
        rest = [size - own for size, own in zip(sizes, self._own(), strict=True)]
        like = {"device": device, "dtype": dtype}
        self.right = nn.ParameterList([nn.Parameter(torch.zeros(k, width, **like)) for k in ranks])
        self.left = nn.ParameterList(
            [nn.Parameter(torch.zeros(m, k, **like)) for m, k in zip(rest, ranks, strict=True)]
        )
        self.register_buffer("order", torch.arange(sum(sizes), dtype=torch.int32, device=device))

    def _own(self) -> list[int]:
        """How many rows of each group are stored as they are."""
        return [k if self.pivoted or k == m else 0 for m, k in zip(self.sizes, self.ranks, strict=True)]

    def _groups(self) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
        return zip(self.sizes, self._own(), self.left, self.right, strict=True)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Give the rows of tokens, of any shape (...): (..., d)."""
        place = self.order.index_select(0, tokens.flatten()).long()  # (index_select refuses what is out of range)
        first, found = 0, None
        # Every group computes every token, and the right one is taken: no sizes that depend on data, no waiting for
        # a GPU, and a lookup stays a small part of what the softmax costs.
        for size, own, left, right in self._groups():
            i = (place - first).clamp(0, size - 1)
            rows = right[i.clamp(max=own - 1)] if own else None
            if size > own:
                mixed = left[(i - own).clamp(min=0)] @ right
                rows = mixed if rows is None else torch.where((i < own)[:, None], rows, mixed)
            assert rows is not None
            found = rows if found is None else torch.where((place >= first)[:, None], rows, found)
            first += size
        assert found is not None
        return found.reshape(*tokens.shape, found.shape[1])

    def products(self, h: torch.Tensor) -> torch.Tensor:
        """Give the products of every row with vectors (..., d): (..., vocabulary)."""
        parts, vectors = [], h.reshape(-1, h.shape[-1]).T
        for size, own, left, right in self._groups():
            z = right @ vectors
            parts += [z] * (own > 0) + ([left @ z] if size > own else [])
        # A row a token: rows are put in order as wholes, which numbers one by one would take longer than the products.
        return torch.cat(parts).index_select(0, self.order).T.reshape(*h.shape[:-1], len(self.order))

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, (vocabulary, d), made anew each time. Models look at its dtype."""
        parts = []
        for size, own, left, right in self._groups():
            parts += [right] * (own > 0) + ([left @ right] if size > own else [])
        return torch.cat(parts).index_select(0, self.order)

    def extra_repr(self) -> str:
        """What `print` shows."""
        groups = ", ".join(f"{m}: {k}" for m, k in zip(self.sizes, self.ranks, strict=True))
        return f"{sum(self.sizes)}, {self.right[0].shape[1]}, ranks={{{groups}}}"


class LowRankEmbedding(_GroupedRows):
    """An embedding whose rows are in groups of low rank. For the parameters see on top of this file.

    Examples
    --------
    >>> layer = LowRankEmbedding(width=8, sizes=[2, 10], ranks=[2, 3])
    >>> layer(torch.tensor([[0, 11, 5]])).shape, sum(x.numel() for x in layer.parameters())
    (torch.Size([1, 3, 8]), 61)
    """

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return sum(self.sizes)

    @property
    def embedding_dim(self) -> int:
        """Numbers of a token."""
        return self.right[0].shape[1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look tokens up: (...) to (..., d)."""
        return self.rows(tokens)


class LowRankSoftmax(_GroupedRows):
    """The last layer of a language model, its rows in groups of low rank. The parameters are those of the embedding."""

    @property
    def out_features(self) -> int:
        """Size of the vocabulary."""
        return sum(self.sizes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Give the logits: (..., d) to (..., vocabulary)."""
        return self.products(h)


class TiedSoftmax(nn.Module):
    """The last layer of a language model that shares an embedding's tensors. It has none of its own.

    Parameters
    ----------
    embedding : LowRankEmbedding
    """

    def __init__(self, embedding: LowRankEmbedding) -> None:
        super().__init__()
        self._of = (embedding,)  # in a tuple, or it would be a child and its tensors would be listed twice

    @property
    def out_features(self) -> int:
        """Size of the vocabulary."""
        return self._of[0].num_embeddings

    @property
    def weight(self) -> torch.Tensor:
        """That of the embedding."""
        return self._of[0].weight

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Give the logits: (..., d) to (..., vocabulary)."""
        return self._of[0].products(h)

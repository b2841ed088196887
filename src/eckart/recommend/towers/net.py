"""Towers as torch modules: rows of one side in, their vectors out.

Encoded features X stay sparse, as CSR arrays on the device: a layer that reads them is a weighted bag of embeddings
over the rows that a batch asks for, and only a user's own module sees them dense.

Symbols: X (rows x p) encoded features, k the rank.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.recommend.towers.parts import MLP, Ids, Learned, Module, Part

__all__ = ["IdTable", "Net", "Tower", "learned", "mlp_layers", "states"]


class SparseRows(nn.Module):
    """Rows of X by number; no parameters, and nothing in the state."""

    indptr: Tensor
    indices: Tensor
    values: Tensor

    def __init__(self, X: csr_array) -> None:
        super().__init__()
        self.width = X.shape[1]
        for name, array in (("indptr", X.indptr), ("indices", X.indices), ("values", X.data)):
            kind = np.float32 if name == "values" else np.int64
            self.register_buffer(name, torch.from_numpy(array.astype(kind)), persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, values and where each row begins among them."""
        begin = self.indptr[rows]
        count = self.indptr[rows + 1] - begin
        offsets = count.cumsum(0) - count
        place = torch.repeat_interleave(begin - offsets, count)
        place += torch.arange(len(place), device=rows.device)
        return self.indices[place], self.values[place], offsets

    def dense(self, rows: Tensor) -> Tensor:
        """The rows as (b, p)."""
        indices, values, offsets = self(rows)
        count = torch.diff(offsets, append=offsets.new_tensor([len(indices)]))
        x = values.new_zeros(len(rows) * self.width)
        where = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count) * self.width + indices
        return x.index_add_(0, where, values).view(len(rows), self.width)


class IdTable(nn.Module):
    """A free vector a row."""

    def __init__(self, rows: int, rank: int, dropout: float, trained: np.ndarray, scale: float) -> None:
        super().__init__()
        noise = torch.randn(rows, rank) * (scale / rank**0.5)
        noise[torch.from_numpy(~trained)] = 0
        self.weight = nn.Parameter(noise)
        self.dropout = dropout

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors of the rows, some left out in training."""
        x = F.embedding(rows, self.weight)
        if self.training and self.dropout:
            x = x * (torch.rand(len(rows), 1, device=x.device) >= self.dropout)
        return x


class Perceptron(nn.Module):
    """An MLP whose first layer reads sparse rows."""

    def __init__(self, X: csr_array, part: MLP, rank: int) -> None:
        super().__init__()
        self.rows = SparseRows(X)
        widths = [*part.hidden, rank]
        # A row of X has a norm of about 1 a feature: unit variance in gives the scale of He et al. 2015 out.
        self.first = nn.Parameter(torch.randn(X.shape[1], widths[0]) * (2 / widths[0]) ** 0.5)
        self.offset = nn.Parameter(torch.zeros(widths[0]))
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.dropout = part.dropout

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors of the rows."""
        indices, values, offsets = self.rows(rows)
        x = F.embedding_bag(indices, self.first, offsets, mode="sum", per_sample_weights=values.to(self.first.dtype))
        x = x + self.offset
        for layer in self.rest:
            x = layer(F.dropout(F.relu(x), self.dropout, self.training))
        return x


class Given(nn.Module):
    """A module of the user's, on dense rows."""

    def __init__(self, X: csr_array, module: nn.Module) -> None:
        super().__init__()
        self.rows, self.module = SparseRows(X), copy.deepcopy(module)

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors of the rows."""
        return self.module(self.rows.dense(rows))


class Tower(nn.Module):
    """The sum of its parts, of unit length if `normalize`.

    Parameters
    ----------
    side : str
        "user" or "item", for messages.
    parts : sequence of Part
    rank : int
    trained : ndarray of shape (rows,), bool
        Rows with entries: those that have a free vector.
    features : sequence of csr_array or None, one a part
        What each part reads of X.
    normalize : bool

    Raises
    ------
    ValueError
        A module of the user's does not give (b, rank), finite, or has a state that is no array of numbers.
    """

    def __init__(
        self,
        side: str,
        parts: tuple[Part, ...],
        rank: int,
        trained: np.ndarray,
        features: list[csr_array | None],
        normalize: bool,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.parts = nn.ModuleList()
        for part, X in zip(parts, features, strict=True):
            if isinstance(part, Ids):
                self.parts.append(IdTable(len(trained), rank, part.dropout, trained, 1.0 if normalize else 0.1))
                continue
            assert X is not None
            if isinstance(part, MLP):
                self.parts.append(Perceptron(X, part, rank))
            elif isinstance(part, Module):
                given = Given(X, part.module)
                _check_width(given, side, X, rank)
                self.parts.append(given)
            else:
                raise ValueError(
                    f"a part of {side} is a module that was trained elsewhere, and a model directory holds no code: "
                    "give the torch module again"
                )

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors (b, k) of these rows."""
        x: Any = 0
        unique, back = None, None
        for part in self.parts:
            if isinstance(part, IdTable):
                x = x + part(rows)
                continue
            if unique is None:  # a row twice in a batch is encoded once
                unique, back = torch.unique(rows, return_inverse=True)
            x = x + part(unique)[back]
        return F.normalize(x) if self.normalize else x


class Net(nn.Module):
    """Both towers in one module: what DistributedDataParallel wraps."""

    def __init__(self, user: Tower, item: Tower) -> None:
        super().__init__()
        self.user, self.item = user, item

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of both."""
        return self.user(users), self.item(items)


def mlp_layers(tower: Tower, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (in, out) and offsets (out,) of an MLP part's layers, float32."""
    part = tower.parts[index]
    assert isinstance(part, Perceptron)
    return [(_array(part.first), _array(part.offset))] + [
        (_array(layer.weight.T), _array(layer.bias))  # type: ignore[arg-type, union-attr]
        for layer in part.rest
    ]


def learned(tower: Tower, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Describe a tower's parts as JSON can: a module of the user's by the shapes of its state."""
    described = []
    for module, part in zip(tower.parts, parts, strict=True):
        if isinstance(part, Module):
            state: dict[str, Tensor] = module.module.state_dict()  # type: ignore[operator, union-attr]
            part = Learned(tuple((name, tuple(value.shape)) for name, value in state.items()), part.columns)
        described.append(part)
    return tuple(described)


def states(tower: Tower) -> dict[str, np.ndarray]:
    """What the user's modules in a tower have learned, as float32: '1.weight' is of the tower's second part."""
    return {
        f"{index}.{name}": _array(value)
        for index, part in enumerate(tower.parts)
        if isinstance(part, Given)
        for name, value in part.module.state_dict().items()
    }


def _array(value: Tensor) -> np.ndarray:
    return np.ascontiguousarray(value.detach().to("cpu", torch.float32).numpy())


def _check_width(given: Given, side: str, X: csr_array, rank: int) -> None:
    rows = torch.arange(min(2, X.shape[0]))
    training = given.training
    try:
        with torch.no_grad():
            x = given.eval()(rows)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"a module of {side} fails on features of shape ({len(rows)}, {X.shape[1]}): {error}: it must take as "
            "many columns"
        ) from error
    given.train(training)
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    if shape != (len(rows), rank):
        raise ValueError(
            f"a module of {side} gives {shape} for {len(rows)} rows, expected ({len(rows)}, {rank}): its last layer "
            f"must have as many outputs as the rank, {rank}"
        )
    if not (x.is_floating_point() and bool(torch.isfinite(x).all())):
        raise ValueError(f"a module of {side} gives numbers that are not finite: mend it")

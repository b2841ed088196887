"""What a tower is made of. Its vector of a row is the sum of what its parts say of the row.

    Ids       a free vector of each row that has entries in training; 0 of any other
    MLP       of the row's encoded features x (data/feature_map.py):  A_L relu(... relu(A_1 x + b_1) ...) + b_L
    Module    the user's own torch module, of x as a dense vector

Parts are settings, and plain JSON: nothing here imports torch. What a Module has learned is kept as arrays and their
shapes (`Learned`), never as code: to encode new rows, the module must be given again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MLP", "Ids", "Learned", "Module", "Part", "parts_of"]


@dataclass(frozen=True)
class Ids:
    """A free vector for each row with entries in training, and 0 for the others.

    Parameters
    ----------
    dropout : float, 0 to below 1
        Probability with which a row's vector is left out of a batch, so that what is made of features learns to
        stand alone (Volkovs, Yu, Poutanen 2017).
    """

    dropout: float = 0.0
    kind: str = field(default="ids", init=False, repr=False)

    def __post_init__(self) -> None:
        _check_dropout(self)


@dataclass(frozen=True)
class MLP:
    """A perceptron over the encoded features; its first layer is a bag of embeddings, so features may be many.

    Parameters
    ----------
    columns : sequence of str, optional
        Which features; None: all.
    hidden : sequence of int
        Widths of the layers between features and factors; (): a linear map.
    dropout : float, 0 to below 1
        Probability with which an output of a hidden layer is left out in training.
    """

    columns: tuple[str, ...] | None = None
    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.0
    kind: str = field(default="mlp", init=False, repr=False)

    def __post_init__(self) -> None:
        _check_dropout(self)
        _check_columns(self)
        hidden = (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden)
        if not all(isinstance(w, int) and not isinstance(w, bool) and 1 <= w < 2**20 for w in hidden):
            raise ValueError(f"hidden is {self.hidden!r}, expected widths of 1 to {2**20 - 1}, or () for a linear map")
        object.__setattr__(self, "hidden", hidden)


@dataclass(frozen=True, eq=False)
class Module:
    """A torch module of the user's own: a float tensor (b, p) of encoded features in, (b, rank) out.

    Parameters
    ----------
    module : torch.nn.Module
        A copy of it is trained.
    columns : sequence of str, optional
        Which features; None: all. p counts their encoded columns and, as the last one, a 1.
    """

    module: Any
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_columns(self)


@dataclass(frozen=True)
class Learned:
    """What a fitted model says of a `Module`: names and shapes of its state, whose arrays the model keeps.

    Parameters
    ----------
    shapes : sequence of (str, sequence of int)
    columns : sequence of str, optional
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    columns: tuple[str, ...] | None = None
    kind: str = field(default="module", init=False, repr=False)

    def __post_init__(self) -> None:
        _check_columns(self)
        shapes = tuple((name, tuple(shape)) for name, shape in self.shapes)
        for name, shape in shapes:
            if not isinstance(name, str) or not all(isinstance(d, int) and 0 <= d < 2**40 for d in shape):
                raise ValueError(f"the state of a module has {name!r} of shape {shape}, expected a name and lengths")
        object.__setattr__(self, "shapes", shapes)


Part = Ids | MLP | Module | Learned
_KINDS = {"ids": Ids, "mlp": MLP, "module": Learned}


def parts_of(given: Any, side: str) -> tuple[Part, ...]:
    """Make a tower of what a user or a model's config.json gives: a part, a torch module, a dict, or several of them.

    Raises
    ------
    TypeError, ValueError
        Nothing, or something that is no part.

    Examples
    --------
    >>> parts_of([{"kind": "ids", "dropout": 0.5}, MLP(hidden=64)], "item")
    (Ids(dropout=0.5), MLP(columns=None, hidden=(64,), dropout=0.0))
    """
    several = given if isinstance(given, (tuple, list)) else (given,)
    if not several:
        raise ValueError(f"{side} has no parts: give Ids(), MLP() or a torch module")
    parts = tuple(_part(part, side) for part in several)
    if sum(isinstance(part, Ids) for part in parts) > 1:
        raise ValueError(f"{side} has Ids twice, and their sum is one free vector: give it once")
    return parts


def needs_features(parts: tuple[Part, ...]) -> bool:
    """Whether a tower is made of features, too."""
    return any(not isinstance(part, Ids) for part in parts)


def _part(given: Any, side: str) -> Part:
    if isinstance(given, (Ids, MLP, Module, Learned)):
        return given
    if isinstance(given, Mapping):
        settings = dict(given)
        kind = settings.pop("kind", None)
        if kind not in _KINDS:
            raise ValueError(f"{side} has a part of kind {kind!r}, expected one of {', '.join(_KINDS)}")
        return _KINDS[kind](**settings)
    torch = sys.modules.get("torch")  # who has a module has imported it
    if torch is not None and isinstance(given, torch.nn.Module):
        return Module(given)
    raise TypeError(f"{side} has a part {given!r}, expected Ids(), MLP() or a torch module")


def _check_dropout(part: Ids | MLP) -> None:
    dropout = part.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise TypeError(f"dropout is {dropout!r}, expected a number")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, expected 0 to below 1")
    object.__setattr__(part, "dropout", float(dropout))


def _check_columns(part: MLP | Module | Learned) -> None:
    if part.columns is None:
        return
    columns = (part.columns,) if isinstance(part.columns, str) else tuple(part.columns)
    if not columns or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"columns is {part.columns!r}, expected names of features, or None for all")
    object.__setattr__(part, "columns", columns)

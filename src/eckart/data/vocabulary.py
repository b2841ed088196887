"""Ids to row numbers and back: an immutable two-way map.

Ids are sorted, so a vocabulary depends on which ids occur and never on the order of a file: integers by
value, strings by code point. Row number = place in that order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["Vocabulary"]

_STRING = np.dtypes.StringDType()


class Vocabulary:
    """The ids of one side of a matrix, all integers or all strings, in sorted order.

    Parameters
    ----------
    ids : array_like of shape (n,)
        Unique ids in ascending order, integers (stored as int64) or strings.

    Raises
    ------
    TypeError
        Ids that are neither integers nor strings.
    ValueError
        Ids not one-dimensional, or not in strictly ascending order.

    Examples
    --------
    >>> v = Vocabulary(["Alien", "Heat"])
    >>> v.rows(["Heat", "Jaws"])
    array([ 1, -1])
    >>> v.ids[1], len(v), "Alien" in v
    ('Heat', 2, True)
    """

    __slots__ = ("ids",)
    ids: np.ndarray

    def __init__(self, ids: Any) -> None:
        ids = as_ids(ids)
        if ids.ndim != 1:
            raise ValueError(f"ids have {ids.ndim} dimensions, expected 1")
        if len(ids) > 1 and not bool(np.all(ids[:-1] < ids[1:])):
            raise ValueError("ids must be unique and ascending: use Vocabulary.of for ids in any order")
        ids = ids.view()
        ids.flags.writeable = False
        object.__setattr__(self, "ids", ids)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Vocabulary is immutable")

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[np.ndarray]]:
        return Vocabulary, (self.ids,)  # copies are made by the constructor: nothing else may set `ids`

    @classmethod
    def of(cls, ids: Any) -> Vocabulary:
        """Build from ids in any order, with repeats."""
        return cls(np.unique(as_ids(ids)))

    @property
    def is_text(self) -> bool:
        """Whether the ids are strings (else 64-bit integers)."""
        return self.ids.dtype == _STRING

    def rows(self, ids: Any) -> np.ndarray:
        """Row number of each id, int64, -1 where the id is unknown (also when it is of the other type)."""
        try:
            wanted = as_ids(ids)
        except TypeError:  # mixed types, None, ...: one by one, so that the known ones are still found
            if not isinstance(ids, Iterable):
                raise
            return np.array([self._row(x) for x in ids], dtype=np.int64)
        if (wanted.dtype == _STRING) != self.is_text or not len(self.ids):
            return np.full(len(wanted), -1, dtype=np.int64)
        place = _places(self.ids, wanted)
        place[place == len(self.ids)] = 0
        return np.where(self.ids[place] == wanted, place, -1)

    def _row(self, one: object) -> int:
        fits = isinstance(one, str) if self.is_text else isinstance(one, (int, np.integer))
        if not fits or isinstance(one, bool):
            return -1
        if not self.is_text and not -(2**63) <= int(one) < 2**63:  # type: ignore[call-overload]
            return -1
        return int(self.rows(np.asarray([one], dtype=self.ids.dtype))[0])

    def take(self, rows: Any) -> Vocabulary:
        """Vocabulary of these rows only; `rows` ascending."""
        return Vocabulary(self.ids[rows])

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, one: object) -> bool:
        return self._row(one) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.ids.dtype == other.ids.dtype and np.array_equal(self.ids, other.ids)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(x) for x in self.ids[:3].tolist())
        return f"Vocabulary({len(self)} ids: {shown}{', ...' if len(self) > 3 else ''})"


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Place of the first id that is not below each wanted one, by bisection."""
    if ids.dtype != _STRING:
        return np.searchsorted(ids, wanted)
    # np.searchsorted reads the longer strings of both arrays from the memory of one: out of bounds, wrong
    # rows or MemoryError, up to NumPy 2.4 at least (numpy issue 31533)
    low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), len(ids))
    for _ in range(len(ids).bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (ids[np.minimum(middle, len(ids) - 1)] < wanted)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def as_ids(ids: Any) -> np.ndarray:
    """Turn ids into an int64 or a StringDType array, or raise TypeError naming what was got."""
    if not isinstance(ids, (np.ndarray, list, tuple)):
        ids = list(ids)
    array = ids if isinstance(ids, np.ndarray) else _from_list(ids)
    if array.dtype == _STRING:
        return array
    if array.dtype.kind == "U":
        return array.astype(_STRING)
    if array.dtype.kind in "iu":
        if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
            raise TypeError(f"id {array.max()} does not fit a signed 64-bit integer: give such ids as strings")
        return array.astype(np.int64, copy=False)
    if array.dtype == object and all(isinstance(x, str) for x in array.flat):
        return array.astype(_STRING)
    if array.dtype == object and all(_is_integer(x) for x in array.flat):
        return array.astype(np.int64)
    raise TypeError(f"ids are {array.dtype.name}, expected all integers or all strings")


def _from_list(ids: list[Any] | tuple[Any, ...]) -> np.ndarray:
    if not ids:
        return np.empty(0, dtype=np.int64)
    if all(isinstance(x, str) for x in ids):
        return np.array(ids, dtype=_STRING)
    if all(_is_integer(x) for x in ids):
        try:
            return np.array(ids, dtype=np.int64)
        except OverflowError:
            raise TypeError("an id does not fit a signed 64-bit integer: give such ids as strings") from None
    other = next((x for x in ids if not isinstance(x, str) and not _is_integer(x)), None)
    got = "integers and strings mixed" if other is None else f"{type(other).__name__} {other!r}"
    raise TypeError(f"ids: got {got}, expected all integers or all strings")


def _is_integer(x: object) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, (bool, np.bool_))

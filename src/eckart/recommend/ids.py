"""Ids at the door: what a caller names, as rows; rows, as columns of ids."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["at_least_one", "id_column", "known_rows", "newcomer", "several"]


def several(ids: Any) -> Any:
    """Ids of a list, an array or an Arrow column, in one dimension; one id, also a text, as a list of one.

    Raises
    ------
    ValueError
        Something that is no id: a float, a bool, None, bytes, an array of two dimensions.
    """
    if _is_id(ids):
        ids = [ids]
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iuUT":
        return ids
    if hasattr(ids, "to_pylist"):  # an Arrow column
        ids = ids.to_pylist()  # type: ignore[union-attr]
    if isinstance(ids, (bytes, bytearray)) or not isinstance(ids, Iterable):
        raise ValueError(f"got {ids!r} for ids, expected integers or strings")
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    for one in listed:
        if not _is_id(one):
            raise ValueError(f"id {one!r} is a {type(one).__name__}, expected an integer or a string")
        if isinstance(one, str) and not one.isascii() and any("\ud800" <= c <= "\udfff" for c in one):
            raise ValueError(f"id {one!a} is no Unicode text: it holds half a character")
    return listed


def _is_id(one: object) -> bool:
    return isinstance(one, (str, int, np.integer)) and not isinstance(one, bool)


def at_least_one(k: Any) -> int:
    """Length of a list, checked."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k is {k!r}, expected an integer of at least 1")
    return int(k)


def known_rows(items: Vocabulary, ids: Sequence[Any]) -> np.ndarray:
    """Row number of each item; ValueError for the first unknown one, with the nearest name there is."""
    rows = items.rows(ids)
    for one in np.flatnonzero(rows < 0)[:1]:
        near = difflib.get_close_matches(str(ids[one]), [str(x) for x in items.ids.tolist()], n=1)
        hint = f": did you mean {near[0]!r}?" if near and items.is_text else ""
        raise ValueError(f"item {ids[one]!r} is not in the model{hint}")
    return rows


def newcomer(history: Mapping[Any, float] | Iterable[Any], items: Vocabulary, rated: bool) -> Interactions:
    """Interactions of one new user.

    Parameters
    ----------
    history : mapping of item id to rating, or iterable of item ids
        The ids alone count 1 each.
    items : Vocabulary
    rated : bool
        Whether ratings are needed.

    Raises
    ------
    ValueError
        An unknown item or one that stands twice, a rating that is not finite, ids alone where ratings are needed.
    """
    if isinstance(history, str):
        raise ValueError(f"history is the text {history!r}: give a mapping of item to rating, or a list of items")
    ids = several(history)
    if rated and not isinstance(history, Mapping):
        raise ValueError("this model predicts ratings: give the history as {item: rating}")
    rows = known_rows(items, ids)
    if len(np.unique(rows)) < len(rows):
        raise ValueError("an item stands twice in the history: give it once")
    given = [history[x] for x in ids] if isinstance(history, Mapping) else [1.0] * len(ids)
    for one, value in zip(ids, given, strict=True):
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not (number and abs(float(value)) <= float(np.finfo(np.float32).max)):  # nan fails, too
            raise ValueError(f"the rating of {one!r} is {value!r}, expected a finite number")
    values = np.array(given, np.float32)
    return Interactions.of(np.zeros(len(rows), np.int64), rows, values, Vocabulary(["newcomer"]), items)


def id_column(vocabulary: Vocabulary, rows: np.ndarray) -> pa.Array:
    """Ids of these rows as an Arrow column."""
    import pyarrow as pa

    ids = vocabulary.ids[rows]
    return pa.array(ids.tolist(), pa.string()) if vocabulary.is_text else pa.array(ids)

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

__all__ = ["id_column", "known_rows", "newcomer", "several"]


def several(ids: Any) -> Any:
    """One id as a list of one; a text is one id, not a sequence of letters."""
    if isinstance(ids, (str, int, np.integer)):
        return [ids]
    return ids if isinstance(ids, (np.ndarray, list, tuple)) else list(ids)


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
    ids = list(history)
    if rated and not isinstance(history, Mapping):
        raise ValueError("this model predicts ratings: give the history as {item: rating}")
    rows = known_rows(items, ids)
    if len(np.unique(rows)) < len(rows):
        raise ValueError("an item stands twice in the history: give it once")
    given = [history[x] for x in ids] if isinstance(history, Mapping) else [1.0] * len(ids)
    values = np.array(given, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"a rating in the history is {values[~np.isfinite(values)][0]}: expected a finite number")
    return Interactions.of(np.zeros(len(rows), np.int64), rows, values, Vocabulary(["newcomer"]), items)


def id_column(vocabulary: Vocabulary, rows: np.ndarray) -> pa.Array:
    """Ids of these rows as an Arrow column."""
    import pyarrow as pa

    ids = vocabulary.ids[rows]
    return pa.array(ids.tolist(), pa.string()) if vocabulary.is_text else pa.array(ids)

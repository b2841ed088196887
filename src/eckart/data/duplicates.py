"""One entry for each (user, item): what to do where the source has several.

Entries are put in order of the key  user row * items + item row;  those of one pair then stand together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eckart.data.vocabulary import Vocabulary

__all__ = ["POLICIES", "count_repeats", "merge_duplicates"]

POLICIES = ("last", "mean", "sum", "error")


def merge_duplicates(
    user_rows: np.ndarray,
    item_rows: np.ndarray,
    values: np.ndarray,
    times: np.ndarray | None,
    users: Vocabulary,
    items: Vocabulary,
    policy: str,
    repeats_elsewhere: Callable[[], int] = int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Entries in order of user row, then item row, one for each pair.

    Parameters
    ----------
    user_rows, item_rows : ndarray of shape (n,), integers
    values : ndarray of shape (n,), float32
    times : ndarray of shape (n,), int64, or None
    users, items : Vocabulary
    policy : {"last", "mean", "sum", "error"}
        'last' is the latest by time, the later in the source where times are equal or not known; with 'mean'
        and 'sum' (taken in float64) the time is the latest.
    repeats_elsewhere : callable
        Counts pairs that occur several times among entries that are not given here, for the sentence of 'error'.

    Returns
    -------
    user_rows, item_rows, values, times

    Raises
    ------
    ValueError
        A pair that occurs twice under 'error'; a sum that float32 cannot hold.

    Examples
    --------
    >>> v = Vocabulary([1, 2])
    >>> rows, cols, stars = np.array([1, 0, 1]), np.array([0, 0, 0]), np.array([3, 4, 5], dtype=np.float32)
    >>> merge_duplicates(rows, cols, stars, None, v, v, "mean")
    (array([0, 1]), array([0, 0]), array([4., 4.], dtype=float32), None)
    """
    key = user_rows.astype(np.int64) * len(items) + item_rows
    if not bool(np.all(key[:-1] <= key[1:])):
        order = np.argsort(key, kind="stable")
        key, user_rows, item_rows, values = key[order], user_rows[order], item_rows[order], values[order]
        times = None if times is None else times[order]
    first = np.flatnonzero(np.concatenate(([True], key[:-1] != key[1:])))
    counts = np.diff(first, append=len(key))
    if len(first) == len(key):
        return user_rows, item_rows, values, times
    if policy == "error":
        at = int(first[np.argmax(counts > 1)])
        user, item = users.ids[user_rows[at]], items.ids[item_rows[at]]
        pairs = int(np.count_nonzero(counts > 1)) + repeats_elsewhere()
        raise ValueError(
            f"user {_shown(user)} and item {_shown(item)} occur {counts[counts > 1][0]} times together "
            f"({pairs:,} such {'pair' if pairs == 1 else 'pairs'}): pass duplicates='last', 'mean' or 'sum'."
        )
    if policy == "last":
        pick = first + counts - 1 if times is None else _latest(times, first, counts)
        return user_rows[pick], item_rows[pick], values[pick], None if times is None else times[pick]
    merged = np.add.reduceat(values, first, dtype=np.float64)
    if policy == "mean":
        merged /= counts
    with np.errstate(over="ignore"):
        merged = merged.astype(np.float32)
    if not bool(np.isfinite(merged).all()):
        raise ValueError("the ratings of a pair add up to more than float32 holds: pass duplicates='mean' or 'last'.")
    latest = None if times is None else np.maximum.reduceat(times, first)
    return user_rows[first], item_rows[first], merged, latest


def count_repeats(user_rows: np.ndarray, item_rows: np.ndarray, items: int) -> int:
    """Count the pairs that occur more than once."""
    _, counts = np.unique(user_rows.astype(np.int64) * items + item_rows, return_counts=True)
    return int(np.count_nonzero(counts > 1))


def _latest(times: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of each group of consecutive entries the place of the latest, the last of equally late ones."""
    newest = np.repeat(np.maximum.reduceat(times, first), counts) == times
    return np.maximum.reduceat(np.where(newest, np.arange(len(times)), -1), first)


def _shown(one: object) -> str:
    text = repr(one) if isinstance(one, str) else str(one)
    return text if len(text) <= 40 else f"{text[:34]}...{text[-3:]}"

"""The numbers of a report on models that were fitted to and measured on the same ratings.

Nothing is printed, drawn or written here. The metrics themselves are in evaluate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eckart.data.interactions import Interactions
from eckart.recommend.metrics import bootstrap_intervals
from eckart.recommend.recommender import Recommender

__all__ = [
    "entries_of",
    "median_user",
    "most_rated",
    "newest_of_each",
    "paired_gain",
    "principal_plane",
    "rmse_by_activity",
    "suggestions",
]


def newest_of_each(data: Interactions, share: float, seed: int = 0) -> tuple[Interactions, Interactions]:
    """Split off the newest `share` of each user's entries, to the nearest whole number.

    Everyone in the test is then known, and is asked about their own future; what others did at that time may
    be in training, which a cut at one date would not allow.

    Parameters
    ----------
    data : Interactions
        With times; equally late entries are drawn at random.
    share : float, 0 < share < 1
    seed : int

    Returns
    -------
    train, test : Interactions

    Raises
    ------
    ValueError
        No times.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.read({"user": [1, 1, 1], "item": [7, 8, 9], "rating": [3, 4, 5], "timestamp": [30, 10, 20]})
    >>> train, test = newest_of_each(data, share=0.3)
    >>> train.items.ids.tolist(), test.items.ids.tolist()
    ([8, 9], [7])
    """
    if data.times is None:
        raise ValueError("the newest entries are asked for, and these have no timestamps")
    rows, n = data.user_rows(), np.diff(data.matrix.indptr)
    order = np.lexsort((np.random.default_rng(seed).permutation(data.nnz), data.times, rows))
    age = np.empty(data.nnz, dtype=np.int64)  # place among the user's entries, the oldest first
    age[order] = np.arange(data.nnz) - np.repeat(data.matrix.indptr[:-1], n)
    held = age >= (n - np.round(share * n).astype(np.int64))[rows]
    return data.select(~held), data.select(held)


def paired_gain(model: Recommender, other: Recommender, test: Interactions, seed: int = 0) -> tuple[float, ...]:
    """Mean squared error of `other` less that of `model`, and its 95 % bootstrap interval over users.

    Both err on the same users, so this says more than the two intervals of their own.

    Returns
    -------
    gain, low, high : float
        Above 0: `model` is better.
    """
    rows = test.user_rows()
    difference = _squared_errors(other, test) - _squared_errors(model, test)
    ends = bootstrap_intervals(np.bincount(rows, difference)[:, None], np.bincount(rows), 0.95, seed=seed)
    low, high = np.ravel(ends).tolist()
    return float(difference.mean()), low, high


def rmse_by_activity(
    models: Mapping[str, Recommender], train: Interactions, test: Interactions, groups: int = 5
) -> tuple[list[str], dict[str, list[float]], list[int]]:
    """RMSE on users with few and with many training ratings.

    Parameters
    ----------
    models : mapping of name to Recommender
    train, test : Interactions
    groups : int
        The users of the test are cut into so many groups of about equal size by their training ratings.

    Returns
    -------
    names : list of str
        Range of the training ratings of each group.
    errors : dict of name to list of float
    entries : list of int
        Test ratings of each group.
    """
    known = train.users.rows(test.users.ids)
    activity = np.where(known >= 0, np.diff(train.matrix.indptr)[known], 0)
    cuts = np.unique(np.quantile(activity, np.arange(1, groups) / groups, method="lower"))
    group = np.searchsorted(cuts, activity, side="left")
    names = [f"{activity[group == g].min():,}–{activity[group == g].max():,}" for g in np.unique(group)]
    of_entry = group[test.user_rows()]
    entries = np.bincount(of_entry)
    errors = {
        name: np.sqrt(np.bincount(of_entry, _squared_errors(model, test)) / entries).tolist()
        for name, model in models.items()
    }
    return names, errors, entries.tolist()


def principal_plane(H: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Coordinates of the rows of `H` (m, k) along their first two principal components.

    Returns
    -------
    xy : ndarray of shape (m, 2)
        The sign of an axis is such that its longest coordinate is positive.
    shares : (float, float)
        Share of the variance along each axis.
    """
    centred = H.astype(np.float64) - H.mean(axis=0, dtype=np.float64)
    left, s, _ = np.linalg.svd(centred, full_matrices=False)
    xy = left[:, :2] * s[:2]
    xy *= np.where(xy.max(axis=0) >= -xy.min(axis=0), 1, -1)
    first, second = (s[:2] ** 2 / max(np.sum(s**2), np.finfo(float).tiny)).tolist()
    return xy, (first, second)


def suggestions(
    ranking: Recommender, ratings: Recommender, user: Any, k: int, reasons: int = 2
) -> list[dict[str, Any]]:
    """Items for one user: chosen by `ranking`, with the rating that `ratings` predicts and the reasons.

    Parameters
    ----------
    ranking, ratings : Recommender
        Both know the user, as trained or folded in.
    user : id
    k, reasons : int

    Returns
    -------
    list of dict
        item, score (of `ranking`), stars (of `ratings`), and because: the `reasons` largest contributions,
        each an item with its share of the score.
    """
    rows = ranking.recommend([user], k).to_pylist()
    stars = ratings.predict([user] * len(rows), [row["item"] for row in rows]).tolist()
    listed = []
    for row, predicted in zip(rows, stars, strict=True):
        why = ranking.explain(user, row["item"])
        carried = why.reasons.slice(0, reasons).to_pylist()
        because = [{"item": x["item"], "share": x["contribution"] / why.score} for x in carried]
        listed.append({"item": row["item"], "score": row["score"], "stars": predicted, "because": because})
    return listed


def median_user(data: Interactions) -> Any:
    """Id of a user with the median number of entries (the lower median, the first of equals)."""
    n = np.diff(data.matrix.indptr)
    return data.users.ids[np.argsort(n, kind="stable")[(len(n) - 1) // 2]].item()


def most_rated(data: Interactions, k: int) -> np.ndarray:
    """Rows of the `k` items with the most entries, the best known first."""
    return np.argsort(-np.bincount(data.matrix.indices, minlength=len(data.items)), kind="stable")[:k]


def entries_of(data: Interactions, user: Any) -> dict[Any, float]:
    """Value of each item in a user's entries; empty for an unknown user."""
    row = int(data.users.rows([user])[0])
    part = slice(data.matrix.indptr[row], data.matrix.indptr[row + 1]) if row >= 0 else slice(0)
    return dict(zip(data.items.ids[data.matrix.indices[part]].tolist(), data.matrix.data[part].tolist(), strict=True))


def _squared_errors(model: Recommender, test: Interactions) -> np.ndarray:
    predicted = model.predict(test.users.ids[test.user_rows()], test.items.ids[test.matrix.indices])
    return (predicted.astype(np.float64) - test.matrix.data) ** 2

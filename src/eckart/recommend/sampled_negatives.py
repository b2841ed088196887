"""Rank one held-out item among a few sampled ones: the protocol of NCF, for comparison with published figures only.

He et al. 2017 rank each user's held-out item among 99 items that the user has not touched. That is not a small
version of ranking the catalogue: the figures are many times higher, and their order between two models can be the
opposite (Krichene, Rendle 2020). `evaluate` ranks the whole catalogue; use that to choose a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eckart.recommend.evaluate import Model

__all__ = ["rank_among"]


def rank_among(model: Model, users: Any, items: Any, negatives: np.ndarray) -> np.ndarray:
    """Place of each user's held-out item among its negatives: 1 + how many of them score as high or higher.

    Ties are lost, so a model that scores everything alike comes last, not first. A negative that is the held-out
    item itself (as happens in the lists of NCF) or occurs twice competes as it would in a set.

    Parameters
    ----------
    model : Recommender
        Or anything with its ``predict``.
    users, items : array_like of ids, of length q
        Who, and the held-out item.
    negatives : ndarray of shape (q, c), item ids

    Returns
    -------
    ndarray of shape (q,), int64
        1 to c + 1. HR@k is the mean of ``place <= k``, NDCG@k that of ``1 / log2(place + 1)`` where ``place <= k``,
        else 0.

    Raises
    ------
    ValueError
        Lengths differ, or a score is not finite.

    References
    ----------
    He et al. 2017, "Neural collaborative filtering", section 4.1. Krichene, Rendle 2020, "On sampled metrics for
    item recommendation".

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=50, items=40, entries=600, rated=False, seed=0)
    >>> model = ek.SVD(rank=4).fit(data)
    >>> place = rank_among(model, [0, 1], [5, 6], [[7, 8, 9], [7, 8, 6]])
    >>> place.shape, bool(place[1] <= 3)
    ((2,), True)
    """
    users, items, negatives = (np.asarray(ids) for ids in (users, items, negatives))
    if users.ndim != 1 or users.shape != items.shape or negatives.shape[:1] != users.shape or negatives.ndim != 2:
        raise ValueError(
            f"users are {users.shape}, items {items.shape}, negatives {negatives.shape}: expected (q,), (q,) and (q, c)"
        )
    target = model.predict(users, items)
    others = model.predict(np.repeat(users, negatives.shape[1]), negatives.ravel()).reshape(negatives.shape)
    if not (np.isfinite(target).all() and np.isfinite(others).all()):
        raise ValueError("a score is no finite number: fit the model again")
    order = np.argsort(negatives, axis=1, kind="stable")
    ascending = np.take_along_axis(negatives, order, axis=1)
    again = np.zeros(negatives.shape, bool)
    np.put_along_axis(again, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    competes = ~again & (negatives != items[:, None])
    return 1 + np.count_nonzero(competes & (others >= target[:, None]), axis=1)

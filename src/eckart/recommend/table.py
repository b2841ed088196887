"""Lists of items as the table that `Recommender.recommend` gives: rows become ids here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.data.vocabulary import Vocabulary
from eckart.recommend.ids import id_column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["recommendation_table"]


def recommendation_table(
    best: np.ndarray,
    scores: np.ndarray,
    status: tuple[np.ndarray, np.ndarray | None],
    users: Vocabulary,
    items: Vocabulary,
    asked: Sequence[Any] | np.ndarray | None,
) -> pa.Table:
    """Columns user, item, score, rank, status, item_status; one row for each item of each list.

    Parameters
    ----------
    best, scores : ndarray of shape (q, k)
        Item rows, -1 where a list is shorter, and their scores.
    status : (ndarray of shape (q,), str; ndarray of shape (m,), bool, or None)
        What each user is served as, and which items are cold; None: none.
    users, items : Vocabulary
    asked : sequence of q ids, or None
        The users as they were asked for; None for someone without an id.
    """
    import pyarrow as pa

    query, place = np.nonzero(best >= 0)
    of_users, cold = status
    is_cold = np.zeros(len(query), np.int8) if cold is None else cold[best[query, place]].astype(np.int8)
    if isinstance(asked, np.ndarray) and asked.dtype == np.int64 and not users.is_text:
        user = pa.array(asked[query])
    else:
        # An id that is not an integer of 64 bits can be asked for, too: the column is then text.
        text = not asked if users.is_text else False
        text = text or any(isinstance(x, str) or not -(2**63) <= int(x) < 2**63 for x in asked or ())
        kind = pa.string() if text else pa.int64()
        if asked is None:
            user = pa.nulls(len(query), kind)
        else:
            names = [str(x) if text else int(x) for x in asked]
            user = pa.array([names[q] for q in query.tolist()], kind)
    return pa.table(
        {
            "user": user,
            "item": id_column(items, best[query, place]),
            "score": scores[query, place],
            "rank": (place + 1).astype(np.int32),
            "status": pa.array(of_users[query].tolist(), pa.string()),
            "item_status": pa.array(["hot", "cold"]).take(pa.array(is_cold)),
        }
    )

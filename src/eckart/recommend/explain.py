"""Why an item scores what it does for a user: the score split into one contribution per entry of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eckart.data.vocabulary import Vocabulary
from eckart.recommend.ids import id_column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Explanation", "explanation_of"]


class Explanation(NamedTuple):
    """Why an item scores what it does for a user: score = baseline + sum of the contributions."""

    score: float
    baseline: float  # what a user without a history would be told, and the drift of today
    reasons: pa.Table  # item, value (what the user gave it), contribution; the largest first


def explanation_of(
    columns: np.ndarray, values: np.ndarray, baseline: float, shares: np.ndarray, items: Vocabulary
) -> Explanation:
    """Explanation of a score from the history's item rows, their values and their shares of the score."""
    import pyarrow as pa

    order = np.argsort(-np.abs(shares), kind="stable")
    reasons = pa.table(
        {
            "item": id_column(items, columns[order]),
            "value": values[order],
            "contribution": shares[order].astype(np.float32),
        }
    )
    return Explanation(baseline + float(shares.sum()), baseline, reasons)

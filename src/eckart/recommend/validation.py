"""What a fit records of held-out entries after each epoch: RMSE where ratings are predicted, else NDCG@10."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import entries
from eckart.data.interactions import Interactions
from eckart.data.split import split
from eckart.recommend.metrics import find_hits, ndcg, rmse

if TYPE_CHECKING:
    from eckart.recommend.recommender import Recommender
    from eckart.recommend.training import State

__all__ = ["Validate", "held_out_entries", "held_out_ratings", "hold_out", "ndcg_on", "rmse_on"]

Validate = Callable[["State"], tuple[str, float]]


def hold_out(data: Interactions, seed: int) -> tuple[Interactions, Interactions]:
    """Take a random tenth of the entries for validation; the rest keeps all rows and columns of `data`."""
    rest, validation = split(data, test=0.1, seed=seed)
    matrix, _ = rest.aligned(data.users, data.items)
    return dataclasses.replace(data, matrix=matrix, times=None), validation


def held_out_entries(validation: Interactions, data: Interactions) -> csr_array:
    """Validation entries over the rows and columns of `data`; ValueError when not one has a known user and item."""
    held_out, _ = validation.aligned(data.users, data.items)
    if not held_out.nnz:
        raise ValueError("no validation entry has a user and an item of the training data: nothing to validate on")
    return held_out


def held_out_ratings(validation: Interactions, data: Interactions) -> csr_array:
    """As `held_out_entries`; ValueError, too, when they are pairs without ratings."""
    if not validation.rated:
        raise ValueError("the validation data have no ratings, only pairs: give ratings")
    return held_out_entries(validation, data)


def rmse_on(
    validation: Interactions, data: Interactions, scores: Callable[[State, np.ndarray, np.ndarray], np.ndarray]
) -> Validate:
    """RMSE on the validation ratings; ``scores(state, rows, columns)`` are those of pairs of rows of `data`."""
    held_out = held_out_ratings(validation, data)
    rows, columns = entries(held_out)
    return lambda state: ("rmse", rmse(scores(state, rows, columns), held_out.data))


def ndcg_on(validation: Interactions, data: Interactions, model: Callable[[State], Recommender]) -> Validate:
    """Mean NDCG@10 over the users who have validation entries; ``model(state)`` is what an epoch has made."""
    held_out = held_out_entries(validation, data)
    users = np.flatnonzero(np.diff(held_out.indptr))
    targets = csr_array(held_out[users])

    def ndcg_of(state: State) -> tuple[str, float]:
        ranked, _ = model(state).top_k(users, 10)
        return "ndcg@10", float(np.mean(ndcg(*find_hits(ranked, targets))))

    return ndcg_of

"""Split ratings into a part to learn from and a part to be judged by.

Which entries go where depends on the set of entries and the seed alone: they are drawn in the order of
user and item, so that the order of a file plays no role.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from eckart.data.interactions import Interactions

__all__ = ["split"]


def split(
    data: Interactions,
    test: float = 0.1,
    by: Literal["random", "time", "user", "item", "leave_one_out"] = "random",
    seed: int = 0,
) -> tuple[Interactions, Interactions]:
    """Split into training and test part; either has the ids only that occur in it.

    Parameters
    ----------
    data : Interactions
    test : float, 0 < test < 1
        The fraction that goes to the test part, to the nearest whole number (not used by 'leave_one_out').
    by : {"random", "time", "user", "item", "leave_one_out"}
        'random': any entries. 'time': the newest entries of all; those as old as the oldest of them that
        are too many are left out at random. 'user': all entries of that fraction of the users, so that the
        model has to take in people it has never seen (strong generalisation). 'item': all entries of that fraction
        of the items, which the model then knows by their features alone. 'leave_one_out': of each user
        with two entries or more the latest, one at random among equally late ones or without times.
    seed : int

    Returns
    -------
    train, test : Interactions

    Raises
    ------
    ValueError
        An unknown `by`, a `test` that is no fraction, no times to split by, or a part without entries.

    Examples
    --------
    >>> from eckart.data.synthetic import synthetic
    >>> train, test = split(synthetic(users=50, items=20, entries=400), test=0.25)
    >>> train.nnz, test.nnz
    (300, 100)
    """
    if by not in ("random", "time", "user", "item", "leave_one_out"):
        raise ValueError(f"by={by!r}: expected 'random', 'time', 'user', 'item' or 'leave_one_out'.")
    if not 0 < test < 1:
        raise ValueError(f"test={test}: expected a fraction between 0 and 1.")
    if by == "time" and data.times is None:
        raise ValueError("by='time' needs to know when each entry was made, and these have no timestamps.")
    rng = np.random.default_rng(seed)
    if by == "user":
        held = np.repeat(_chosen(len(data.users), test, rng), np.diff(data.matrix.indptr))
    elif by == "item":
        held = _chosen(len(data.items), test, rng)[data.matrix.indices]
    elif by == "leave_one_out":
        held = _last_of_each(data, rng)
    else:
        # equally late ones, all of them without times, in random order
        luck = rng.permutation(data.nnz)
        order = np.lexsort((luck, data.times)) if by == "time" and data.times is not None else luck
        held = np.zeros(data.nnz, dtype=bool)
        held[order[data.nnz - round(test * data.nnz) :]] = True
    count = int(np.count_nonzero(held))
    if count in (0, data.nnz):
        part = "test" if count == 0 else "training"
        cure = "the users have one entry each" if by == "leave_one_out" else f"change test={test}"
        raise ValueError(f"by={by!r} leaves the {part} part of these {data.nnz:,} entries empty: {cure}.")
    return data.select(~held), data.select(held)


def _chosen(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of a fraction of `count` rows, drawn at random."""
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.choice(count, round(share * count), replace=False)] = True
    return chosen


def _last_of_each(data: Interactions, rng: np.random.Generator) -> np.ndarray:
    """Mask of the latest entry of each user who has two or more."""
    counts = np.diff(data.matrix.indptr)
    first, counts = data.matrix.indptr[:-1][counts > 0], counts[counts > 0]
    luck = rng.permutation(data.nnz)
    if data.times is not None and len(first):
        latest = np.repeat(np.maximum.reduceat(data.times, first), counts)
        luck[data.times < latest] = -1
    held = np.zeros(data.nnz, dtype=bool)
    if len(first):
        held = luck == np.repeat(np.maximum.reduceat(luck, first), counts)
    return held & np.repeat(counts > 1, counts)

"""Ratings by nobody, distributed as people's: few users and items have most of them.

User u rates d_u items and item i is sought with weight w_i, both Zipf-Mandelbrot in the rank r of n:

    d_u ~ (r/n + 0.0009)^-0.78        w_i ~ (r/n + q)^-s,   q = (s - 1) / 200

The items of a user are drawn one after the other without replacement; half of the draws are from all items,
half from those of the genre the user likes best. Ratings are  mu + b_u + b_i + x_u . y_i + noise.
"""

from __future__ import annotations

import numpy as np

from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary

__all__ = ["synthetic"]

_OWN_GENRE = 0.5  # of the draws
_ROUNDS = 20  # of drawing with rejection
_BLOCK = 1 << 20  # entries at a time


def synthetic(
    users: int,
    items: int,
    entries: int,
    *,
    rank: int = 8,
    noise: float = 0.5,
    popularity: float = 3.0,
    seed: int = 0,
    rated: bool = True,
) -> Interactions:
    """Draw ratings with the shape of real ones, the same for the same arguments.

    With the shape of MovieLens-20M (138,493 x 26,744, 20,000,000 entries) the longest user has 9,538
    ratings and the median one 69, the most popular item 63,214 and the median one 22 (there: 9,254 and 68,
    67,310 and 18), at seed 0.

    Parameters
    ----------
    users, items : int
        Ids are 0 to users - 1 and 0 to items - 1, in no order of activity or popularity.
    entries : int
        How many different (user, item) pairs; each user and each item is in one if there are enough.
    rank : int
        Number of latent factors, which are also the genres.
    noise : float
        Standard deviation, in stars, of what the factors do not explain.
    popularity : float > 1
        Exponent s of the item weights: the larger, the steeper.
    seed : int
    rated : bool
        Whether there are ratings, 1 to 5 in half stars, or positive-only pairs. The pairs are the same.

    Returns
    -------
    Interactions

    Raises
    ------
    ValueError
        Sizes that are not positive, more entries than pairs, a popularity that is not above 1.

    Examples
    --------
    >>> synthetic(users=100, items=40, entries=1_000)
    Interactions(1,000 ratings, 100 users x 40 items, 25.00 % of the cells)
    """
    if min(users, items, entries, rank) < 1 or noise < 0:
        raise ValueError("users, items, entries and rank must be at least 1, and noise at least 0.")
    if entries > users * items:
        raise ValueError(f"{entries:,} entries, but {users:,} users and {items:,} items make {users * items:,} pairs.")
    if not popularity > 1:
        raise ValueError(f"popularity={popularity}: expected more than 1.")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((users, rank), dtype=np.float32)
    y = rng.standard_normal((items, rank), dtype=np.float32)
    degrees = rng.permutation(_degrees(users, items, entries))
    weights = rng.permutation(_zipf_mandelbrot(items, popularity, (popularity - 1) / 200))
    user_rows, item_rows = _pairs(degrees, weights, x.argmax(axis=1), y.argmax(axis=1), rank, rng)
    _introduce(user_rows, item_rows, items, rng)
    values = _stars(x, y, user_rows, item_rows, noise, rng) if rated else np.ones(entries, dtype=np.float32)
    vocabularies = Vocabulary(np.arange(users)), Vocabulary(np.arange(items))
    return Interactions.of(user_rows, item_rows, values, *vocabularies, rated=rated)


def _zipf_mandelbrot(n: int, s: float, q: float) -> np.ndarray:
    return (np.arange(1, n + 1) / n + q) ** -s


def _degrees(users: int, items: int, entries: int) -> np.ndarray:
    """Whole numbers that sum to entries and follow the law between 1 (0 where entries < users) and items."""
    shape = _zipf_mandelbrot(users, 0.78, 0.0009)
    least = 1 if entries >= users else 0
    low, high = 0.0, float(items / shape[-1])
    for _ in range(200):  # bisect for the scale
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * shape, least, items).sum() < entries else (low, middle)
    exact = np.clip(low * shape, least, items)
    degrees = np.floor(exact).astype(np.int64)
    while (rest := entries - int(degrees.sum())) > 0:
        free = np.flatnonzero(degrees < items)
        degrees[free[np.argsort(-(exact - degrees)[free], kind="stable")[:rest]]] += 1
    return degrees


def _pairs(
    degrees: np.ndarray,
    weights: np.ndarray,
    likes: np.ndarray,
    genre: np.ndarray,
    genres: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of users (ascending) and items of all entries, for items sought by `weights`.

    Users draw with replacement and what they have already is rejected. The few who are still short after
    some rounds take the first of an exponential race among all other items (Efraimidis and Spirakis 2006),
    which is the same law at the price of a pass over the items.
    """
    items = len(weights)
    by_genre = np.argsort(genre, kind="stable")
    up_to = np.cumsum(weights[by_genre])
    up_to /= up_to[-1]
    ends = np.searchsorted(genre[by_genre], np.arange(genres + 1))
    edge = np.concatenate(([0.0], up_to))[ends]  # of each genre on the scale of up_to
    share = np.diff(edge)
    chance = np.tile(weights / weights.sum(), (genres, 1))  # of each item, for a user who likes the genre
    for g in np.flatnonzero(share > 0):
        chance[g] *= 1 - _OWN_GENRE
        chance[g][genre == g] *= 1 + _OWN_GENRE / (1 - _OWN_GENRE) / share[g]

    def drawn(who: np.ndarray) -> np.ndarray:
        at, own = rng.random(len(who)), likes[who]
        inside = (rng.random(len(who)) < _OWN_GENRE) & (share[own] > 0)
        at = np.where(inside, edge[own] + at * share[own], at)
        return by_genre[np.minimum(np.searchsorted(up_to, at, side="right"), items - 1)]

    def raced(user: int, has: np.ndarray) -> np.ndarray:
        finish = rng.standard_exponential(items) / chance[likes[user]]
        finish[has] = np.inf
        return np.argpartition(finish, wanted - 1)[:wanted] if (wanted := int(degrees[user]) - len(has)) else has[:0]

    user_rows, item_rows = [], []
    for block in np.split(np.arange(len(degrees)), np.flatnonzero(np.diff(np.cumsum(degrees) // _BLOCK)) + 1):
        keys, finished = np.empty(0, dtype=np.int64), []
        missing = degrees[block]
        for _ in range(_ROUNDS):
            who = np.repeat(block, missing)
            keys = np.sort(np.concatenate((keys, who * items + drawn(who))))
            keys = keys[np.diff(keys, prepend=-1) > 0]
            row = keys // items - block[0]
            missing = np.where(missing > 0, degrees[block] - np.bincount(row, minlength=len(block)), 0)
            finished.append(keys[missing[row] == 0])
            keys = keys[missing[row] > 0]
        bounds = np.searchsorted(keys, np.append(block, block[-1] + 1) * items)
        for n in np.flatnonzero(missing):
            base = block[n] * items
            finished.append(base + raced(int(block[n]), keys[bounds[n] : bounds[n + 1]] - base))
        keys = np.sort(np.concatenate((keys, *finished)))
        user_rows.append((keys // items).astype(np.int32))
        item_rows.append((keys % items).astype(np.int32))
    return np.concatenate(user_rows), np.concatenate(item_rows)


def _introduce(user_rows: np.ndarray, item_rows: np.ndarray, items: int, rng: np.random.Generator) -> None:
    """Put each item that nobody drew, if there are entries for it, in place of one that others have drawn."""
    missing = np.flatnonzero(np.bincount(item_rows, minlength=items) == 0)
    order = rng.permutation(len(item_rows))
    keeper = np.empty(items, dtype=np.int64)
    keeper[item_rows[order]] = np.arange(len(order))  # of the entries of an item, the last in this order stays
    stays = np.zeros(len(order), dtype=bool)
    stays[keeper[np.setdiff1d(np.arange(items), missing)]] = True
    spare = order[~stays][: len(missing)]
    item_rows[spare] = missing[: len(spare)]


def _stars(
    x: np.ndarray,
    y: np.ndarray,
    user_rows: np.ndarray,
    item_rows: np.ndarray,
    noise: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Ratings of mean about 3.5 and, with noise 0.5, standard deviation about 1, as in MovieLens."""
    b_user = rng.normal(0, 0.4, len(x)).astype(np.float32)
    b_item = rng.normal(0, 0.5, len(y)).astype(np.float32)
    stars = np.empty(len(user_rows), dtype=np.float32)
    for start in range(0, len(stars), _BLOCK):
        u, i = user_rows[start : start + _BLOCK], item_rows[start : start + _BLOCK]
        taste = np.einsum("nk,nk->n", x[u], y[i]) * np.float32(0.5 / np.sqrt(x.shape[1]))
        exact = 3.4 + b_user[u] + b_item[i] + taste + noise * rng.standard_normal(len(u), dtype=np.float32)
        stars[start : start + _BLOCK] = np.clip(np.round(2 * exact) / 2, 1, 5)
    return stars

"""What a model has to beat: the mean, biases fitted without factors, popularity.

Each is the same `Recommender` with the inner product left out, so that it is measured, saved and asked like
any other: a score is mean + b_u + c_i, or one number per item.

Symbols: n_u, n_i number of ratings of user u and of item i; b, c their biases. See docs/notation.md.
"""

from __future__ import annotations

import numpy as np

from eckart.data.interactions import Interactions
from eckart.recommend.als import ALS
from eckart.recommend.implicit import ImplicitALS
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, Solver, popularity_of

__all__ = ["biases", "global_mean", "popularity"]


def global_mean(train: Interactions) -> Recommender:
    """Predict the mean of all training ratings, for everyone and everything.

    Parameters
    ----------
    train : Interactions

    Returns
    -------
    Recommender
        Its rankings mean nothing: all items tie.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.read({"user": ["ann", "bob"], "item": ["Heat", "Jaws"], "rating": [3.0, 5.0]})
    >>> global_mean(data).predict(["bob", "zoe"], ["Heat", "Jaws"])
    array([4., 4.], dtype=float32)
    """
    n, m = train.matrix.shape
    return _without_factors(ALS(rank=1), train, np.zeros(n), np.zeros(m), _mean(train))


def biases(train: Interactions, reg_users: float = 5.0, reg_items: float = 3.0) -> Recommender:
    """Fit how generous each user and how good each item is, and nothing else.

    min  sum over observed (u, i) of (r_ui - mean - b_u - c_i)^2 + reg_users |b|^2 + reg_items |c|^2,
    to convergence, by solving for c and b in turn.

    Parameters
    ----------
    train : Interactions
    reg_users, reg_items : float > 0
        How many ratings it takes for a bias to be half of what the ratings say.

    Returns
    -------
    Recommender

    References
    ----------
    Koren 2010, "Factor in the neighbors", section 2.1 (there solved one after the other; here jointly).

    Examples
    --------
    >>> import eckart as ek
    >>> model = biases(ek.synthetic(users=50, items=40, entries=600, seed=0))
    >>> bool(model.H.any())
    False
    """
    r, user, item = train.matrix.data.astype(np.float64), train.user_rows(), train.matrix.indices
    n, m = train.matrix.shape
    n_u, n_i = np.bincount(user, minlength=n), np.bincount(item, minlength=m)
    r -= _mean(train)
    b, c = np.zeros(n), np.zeros(m)
    for _ in range(1000):  # some 20 on MovieLens: each round shrinks the error by a factor of about 3
        before = b
        c = np.bincount(item, r - b[user], minlength=m) / (n_i + reg_items)
        b = np.bincount(user, r - c[item], minlength=n) / (n_u + reg_users)
        if np.abs(b - before).max(initial=0) < 1e-7:
            break
    # With no factors and exponent 0, folding a user in is this very bias equation.
    return _without_factors(ALS(rank=1, reg=reg_users, exponent=0.0), train, b, c, _mean(train))


def popularity(train: Interactions) -> Recommender:
    """Score an item by how many training users have it, the same for everyone.

    Parameters
    ----------
    train : Interactions

    Returns
    -------
    Recommender
        It ranks and predicts no ratings.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.read({"user": ["ann", "bob", "bob"], "item": ["Heat", "Heat", "Jaws"]})
    >>> popularity(data).recommend(["zoe"])["item"].to_pylist()
    ['Heat', 'Jaws']
    """
    n, m = train.matrix.shape
    counts = np.bincount(train.matrix.indices, minlength=m)
    return _without_factors(ImplicitALS(rank=1), train, np.zeros(n), counts, 0.0)


def _mean(train: Interactions) -> float:
    return float(train.matrix.data.mean(dtype=np.float64))


def _without_factors(
    solver: Solver, train: Interactions, user_bias: np.ndarray, item_bias: np.ndarray, mean: float
) -> Recommender:
    n, m = train.matrix.shape
    no_factors = np.zeros((m, 1), np.float32)
    extra = {name: np.zeros(shape, np.float32) for name, shape in solver.extra_shapes(m).items()}
    return Recommender(
        solver=solver,
        users=train.users,
        items=train.items,
        W=np.zeros((n, 1), np.float32),
        user_bias=user_bias.astype(np.float32),
        item_side=ItemSide(no_factors, item_bias.astype(np.float32), mean, popularity_of(train.matrix), extra),
        seen=train.matrix,
        history=[],
    )

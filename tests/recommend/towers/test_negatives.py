"""Pools: no positive among them, nobody untrained, and sums over them without bias."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.recommend.towers.negatives import NEGATIVES, draw_pool, hits

few = settings(max_examples=30, deadline=None)


def data(rng, n, m):
    """Histories as a dense matrix; the last item is nobody's."""
    R = rng.random((n, m)) < rng.uniform(0.05, 0.6, m)
    R[:, -1] = False
    R[0, 0] = True
    return R


def batch_of(R, rng, size):
    users = rng.permutation(np.flatnonzero(R.any(axis=1)))[:size]
    row, items = np.nonzero(R[users])
    return users, row, items


@pytest.mark.parametrize("how", NEGATIVES)
@few
@given(n=st.integers(1, 9), m=st.integers(2, 9), draws=st.integers(1, 20), seed=st.integers(0, 999))
def test_hits_are_all_the_positives_in_the_pool_and_nothing_else(how, n, m, draws, seed):
    rng = np.random.default_rng(seed)
    R = data(rng, n, m)
    users, row, items = batch_of(R, rng, 4)
    pool = draw_pool(how, draws, 0.75, R.sum(axis=0), items, (len(users), n), rng)
    assert np.all(np.diff(pool.items) > 0)
    assert m - 1 not in pool.items
    assert np.all(pool.omega > 0)
    masked = np.zeros(len(users) * len(pool.items), bool)
    masked[hits(pool.items, items, row)] = True
    np.testing.assert_array_equal(masked.reshape(len(users), -1), R[np.ix_(users, pool.items)])


@pytest.mark.parametrize("how", ["uniform", "popularity", "in-batch"])
def test_sums_over_the_pool_have_no_bias(how):
    """The sum that sampled softmax estimates: of exp(score) over all items that are not the user's own."""
    rng = np.random.default_rng(0)
    n, m, rounds = 12, 10, 2500
    R = data(rng, n, m)
    R[np.arange(n), np.arange(n) % (m - 1)] = True
    scores = rng.standard_normal((n, m))
    exact = np.where(R, 0, np.exp(scores))[:, :-1].sum(axis=1)
    found, seen = np.zeros((n, 2)), np.zeros(n)
    for _ in range(rounds):
        users, row, items = batch_of(R, rng, 6)
        pool = draw_pool(how, 5, 0.75, R.sum(axis=0), items, (len(users), n), rng)
        each = np.exp(scores[np.ix_(users, pool.items)]) * pool.omega
        each.reshape(-1)[hits(pool.items, items, row)] = 0
        total = each.sum(axis=1)
        found[users] += np.stack([total, total**2], axis=1)
        seen[users] += 1
    mean = found[:, 0] / seen
    error = np.sqrt((found[:, 1] / seen - mean**2) / seen)
    # In-batch expects as many entries in a batch as in any other: its users have unlike numbers of them.
    slack = 0.06 * exact if how == "in-batch" else 0
    assert np.all(np.abs(mean - exact) < 4.5 * error + slack)
    if how == "popularity":  # and the test would see a correction left out
        assert np.any(np.abs(mean * 0.8 - exact) > 4.5 * error)


def test_the_whole_batch_and_all_items_are_exact():
    rng = np.random.default_rng(1)
    R = data(rng, 8, 6)
    users, _, items = batch_of(R, rng, 8)
    counts = R.sum(axis=0)
    for how in ("uniform", "in-batch"):
        pool = draw_pool(how, 10_000, 1.0, counts, items, (len(users), len(users)), rng)
        np.testing.assert_array_equal(pool.items, np.flatnonzero(counts))
        np.testing.assert_allclose(pool.omega, 1)

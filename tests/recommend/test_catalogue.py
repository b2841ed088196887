"""Which items compete: any filter gives the list that ranking everything and crossing out would give."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eckart as ek
from eckart.recommend.catalogue import Catalogue, row_list


@pytest.fixture(scope="module")
def model():
    return ek.ALS(rank=6, epochs=5).fit(ek.synthetic(users=80, items=50, entries=1500, seed=2))


@pytest.fixture(scope="module")
def large():
    """Enough items for both layouts, and integers, so that scores are exact and tie."""
    rng = np.random.default_rng(0)
    H = rng.integers(-2, 3, (3000, 5)).astype(np.float32)
    return Catalogue(H, rng.integers(-1, 2, 3000).astype(np.float32))


@settings(max_examples=150, deadline=None)
@given(
    queries=st.sampled_from([0, 1, 3, 4, 70]),
    top=st.sampled_from([1, 10, 3000]),
    allowed=st.sampled_from([None, 0, 1, 20, 900, 3000]),
    banned=st.sampled_from([None, 0, 1, 500, 3000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_filters_cross_out_and_nothing_else(large, queries, top, allowed, banned, seed):
    rng = np.random.default_rng(seed)
    Q = rng.integers(-2, 3, (queries, 5)).astype(np.float32)
    some = [None if n is None else np.sort(rng.choice(3000, n, replace=False)) for n in (allowed, banned)]
    seen = [np.sort(rng.choice(3000, rng.integers(0, 900), replace=False)) for _ in range(queries)]
    entries = (
        np.cumsum([0, *map(len, seen)]).astype(np.int64),
        np.concatenate([np.empty(0), *seen]).astype(np.int32),
    )
    got, scores = large.best(Q, top, entries, 2, allowed=some[0], banned=some[1])
    for q in range(queries):
        want = Q[q] @ large.H.T + large.bias
        left = np.ones(3000, bool) if some[0] is None else np.isin(np.arange(3000), some[0])
        left[seen[q]] = False
        left[[] if some[1] is None else some[1]] = False
        order = [j for j in np.argsort(-want, kind="stable") if left[j]][:top]
        assert got[q].tolist() == order + [-1] * (top - len(order))
        np.testing.assert_array_equal(scores[q, : len(order)], want[order])


def test_a_query_beyond_the_bounds_of_the_codes_is_still_answered(large):
    none = np.zeros(2, np.int64), np.zeros(0, np.int32)
    for size in (1e13, np.inf, np.nan):
        Q = np.full((1, 5), size, np.float32)
        np.testing.assert_array_equal(
            large.best(Q, 5, none, 1)[0], large.best(np.repeat(Q, 5, 0), 5, (np.zeros(6, np.int64), none[1]), 1)[0][:1]
        )


def test_only_the_items_asked_for_compete(model):
    for user in (3, "nobody"):  # hot and cold
        everything = model.recommend(user, k=50, exclude_seen=False)["item"].to_pylist()
        some = [7, 3, 44, 12, 3]
        got = model.recommend(user, k=50, exclude_seen=False, items=some)["item"].to_pylist()
        assert got == [x for x in everything if x in some]
        got = model.recommend(user, k=47, exclude_seen=False, exclude=[*some, "unknown"])["item"].to_pylist()
        assert got == [x for x in everything if x not in some]
        got = model.recommend(user, k=2, exclude_seen=False, items=some, exclude=3)["item"].to_pylist()
        assert got == [x for x in everything if x in (7, 44, 12)][:2]
        assert model.recommend(user, items=[]).num_rows == 0
    assert model.recommend(history={3: 4.0, 7: 1.0}, items=[3, 7, 9])["item"].to_pylist() == [9]
    assert model.recommend(items=[1, 2], exclude_seen=False)["rank"].to_pylist() == [1, 2] * 80
    with pytest.raises(ValueError, match="item 99 is not in the model"):
        model.recommend(3, items=[3, 99])


def test_seen_items_stay_out_of_an_allow_list_and_nothing_else_does(model):
    seen = model.seen.indices[model.seen.indptr[4] : model.seen.indptr[5]]
    unseen = np.setdiff1d(np.arange(50), seen)
    mixed = np.concatenate([seen[:5], unseen[:3]])
    assert sorted(model.top_k([4], 3, allow=mixed)[0][0].tolist()) == unseen[:3].tolist()


def test_rows_that_are_no_items_are_refused():
    assert row_list([3, 1, 3], 4).tolist() == [1, 3]
    for odd, message in (([4], "row 4 is outside 0..3"), ([-1], "row -1"), ([1.5], "float64"), ([[1]], "2 dimensions")):
        with pytest.raises(ValueError, match=message):
            row_list(odd, 4)


def test_one_user_and_all_users_get_the_same_bits():
    fitted = ek.ImplicitALS(rank=17, epochs=2).fit(
        ek.synthetic(users=60, items=2500, entries=6000, rated=False, seed=3)
    )
    items, scores = fitted.top_k(np.arange(60), 20)
    for u in range(60):
        one, score = fitted.top_k([u], 20)
        np.testing.assert_array_equal(one[0], items[u])
        assert score.tobytes() == scores[u].tobytes()


def test_a_model_can_be_copied(model):
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.H is not model.H
        assert again.recommend().equals(model.recommend())
        assert again.users == model.users

"""The SVD recommender: what it minimises, on which matrix, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import interactions, ratings, triples

import eckart as ek
from eckart.recommend import svd as module

few = settings(max_examples=40, deadline=None)
PLAIN, CENTRED, NORMALIZED = (
    ek.SVD(rank=3, center=False),
    ek.SVD(rank=3, center=True),
    ek.SVD(rank=3, normalize=True, user_exponent=0.4, item_exponent=0.3, power=1.5),
)
every_mode = pytest.mark.parametrize("solver", [PLAIN, CENTRED, NORMALIZED], ids=["plain", "centred", "normalized"])


def matrix_of(data, solver):
    """The matrix that is decomposed, dense and in float64, straight from the definition."""
    R, there = data.matrix.toarray().astype(np.float64), np.zeros(data.matrix.shape, bool)
    there[data.user_rows(), data.matrix.indices] = True
    if solver.center:
        mean = R[there].mean()
        c = np.array([R[there[:, i], i].mean() - mean for i in range(R.shape[1])])
        b = np.array([(R[u] - mean - c)[there[u]].mean() for u in range(len(R))])
        return np.where(there, R - mean - c - b[:, None], 0)
    if solver.normalize:
        return R / (there.sum(axis=1, keepdims=True) ** 0.4 * there.sum(axis=0) ** 0.5)
    return R


def scores(model):
    side = model.item_side
    return side.mean + model.user_bias[:, None] + side.bias + model.W.astype(np.float64) @ side.H.T


def gap_after(data, solver):
    s = np.linalg.svd(matrix_of(data, solver), compute_uv=False)
    return s[solver.rank - 1] - s[solver.rank] if solver.rank < len(s) else s[-1]


@every_mode
@few
@given(data=ratings())
def test_scores_are_those_of_the_definition(solver, data):
    assume(gap_after(data, solver) > 1e-2)
    model = solver.fit(data)
    M = matrix_of(data, solver)
    U, s, Vt = np.linalg.svd(M)
    V = Vt[:3].T
    if solver.normalize:
        R, d = data.matrix.toarray(), np.bincount(data.matrix.indices, minlength=M.shape[1])
        expected = R * d**-0.3 @ (V * s[:3] ** 1.5) @ V.T * d**0.3
        np.testing.assert_allclose(scores(model), expected, atol=2e-4)
    else:
        low = (U[:, :3] * s[:3]) @ V.T
        np.testing.assert_allclose(model.W @ model.H.T, low, atol=2e-4)
    (record,) = model.history
    assert record["objective"] == pytest.approx(np.sum(s[3:] ** 2), abs=1e-4)
    assert record["captured"] == pytest.approx(np.sum(s[:3] ** 2) / np.sum(s**2), abs=1e-4)
    assert record["bound"] == pytest.approx(s[3], abs=1e-4)


@few
@given(data=ratings(), seed=st.integers(0, 2**32 - 1))
def test_no_other_factors_are_closer_to_the_centred_matrix(data, seed):
    model, rng, M = CENTRED.fit(data), np.random.default_rng(seed), matrix_of(data, CENTRED)
    best = np.sum((M - model.W.astype(np.float64) @ model.H.T) ** 2)
    for size in (1e-2, 1e-1, 1.0):
        W, H = (F + size * rng.standard_normal(F.shape) for F in (model.W, model.H))
        assert np.sum((M - W @ H.T) ** 2) > best - 1e-4


def test_a_fully_observed_matrix_of_low_rank_is_predicted_exactly():
    rng = np.random.default_rng(0)
    R = 3 + rng.standard_normal((20, 1)) + rng.standard_normal(12) + rng.standard_normal((20, 2)) @ np.ones((2, 12))
    R += np.outer(rng.standard_normal(20), rng.standard_normal(12))
    u, i = (x.ravel() for x in np.indices(R.shape))
    model = ek.SVD(rank=1).fit(interactions(u, i, R.ravel()))
    np.testing.assert_allclose(scores(model), R, atol=1e-5)
    assert model.predicts_ratings
    assert model.history[0]["captured"] == pytest.approx(1, abs=1e-6)
    constant = ek.SVD(rank=1).fit(interactions([0, 0, 1, 1], [0, 1, 0, 1], [1.0] * 4))
    assert constant.history[0]["captured"] == 1


@every_mode
@few
@given(t=triples(), order=st.permutations(range(12)), item_order=st.permutations(range(9)))
def test_renaming_changes_nothing_where_the_truncation_is_unique(solver, t, order, item_order):
    u, i, r = t
    data = interactions(u, i, r)
    assume(gap_after(data, solver) > 1e-2)
    renamed = solver.fit(interactions([order[x] for x in u], [item_order[x] for x in i], r))
    rows = renamed.users.rows([order[x] for x in data.users.ids.tolist()])
    columns = renamed.items.rows([item_order[x] for x in data.items.ids.tolist()])
    np.testing.assert_allclose(scores(renamed)[np.ix_(rows, columns)], scores(solver.fit(data)), atol=2e-3)


@pytest.mark.parametrize("shape", [(300, 80), (80, 300)])
def test_the_krylov_way_gives_the_exact_model_whatever_the_names(shape, monkeypatch):
    data = ek.synthetic(users=shape[0], items=shape[1], entries=6000, rated=False, seed=0)
    solver = ek.SVD(rank=4, normalize=True)
    exact = solver.fit(data)
    monkeypatch.setattr(module, "_EXACT", 0)
    approximate = solver.fit(data)
    np.testing.assert_allclose(scores(approximate), scores(exact), atol=1e-2)
    assert approximate.history[0]["bound"] >= exact.history[0]["bound"]
    assert approximate.fold_in(data).W.tobytes() == approximate.W.tobytes()
    rng = np.random.default_rng(1)
    new_user, new_item = rng.permutation(shape[0]), rng.permutation(shape[1])
    again = solver.fit(interactions(new_user[data.user_rows()], new_item[data.matrix.indices], data.matrix.data, False))
    np.testing.assert_allclose(scores(again)[np.ix_(new_user, new_item)], scores(approximate), atol=1e-3)


def test_a_larger_basis_captures_more(monkeypatch):
    data = ek.synthetic(users=300, items=200, entries=6000, rated=False, seed=0)
    monkeypatch.setattr(module, "_EXACT", 0)
    captured = [
        ek.SVD(rank=30, normalize=True, basis=basis).fit(data).history[0]["captured"] for basis in (30, 60, None, 200)
    ]
    assert captured == sorted(captured)
    assert captured[1] > captured[0] + 1e-3
    monkeypatch.undo()
    exact = ek.SVD(rank=30, normalize=True).fit(data)
    assert captured[-1] == pytest.approx(exact.history[0]["captured"], abs=1e-5)


def test_a_dense_matrix_too_large_for_the_exact_way(monkeypatch):
    R = np.random.default_rng(0).uniform(1, 5, (60, 40))
    u, i = (x.ravel() for x in np.indices(R.shape))
    data = interactions(u, i, R.ravel())
    exact = ek.SVD(rank=2).fit(data)
    monkeypatch.setattr(module, "_EXACT", 0)
    np.testing.assert_allclose(scores(ek.SVD(rank=2).fit(data)), scores(exact), atol=0.05)


def test_the_power_and_the_exponent_do_what_they_say():
    data = ek.synthetic(users=100, items=60, entries=1500, rated=False, seed=0)
    holders = np.bincount(data.matrix.indices, minlength=60)

    def popularity(exponent):
        ranked, _ = ek.SVD(rank=8, normalize=True, item_exponent=exponent).fit(data).top_k(np.arange(100), 10)
        return holders[ranked].mean()

    assert popularity(0.0) < popularity(0.5) < popularity(1.0)
    flat = ek.SVD(rank=8, normalize=True, power=0.0, item_exponent=0.0).fit(data)
    np.testing.assert_allclose(flat.H.T @ flat.H, np.eye(8), atol=1e-5)


def test_validation_and_callback():
    data = ek.synthetic(users=100, items=60, entries=1500, seed=0)
    train, held = ek.split(data, test=0.1, seed=0)
    seen = []
    model = ek.SVD(rank=4).fit(train, held, callback=seen.append)
    assert seen == model.history
    assert model.history[0]["validation_rmse"] == pytest.approx(ek.evaluate(model, held)["rmse"])
    ranking = ek.SVD(rank=4, normalize=True).fit(train, held)
    assert ranking.history[0]["validation_ndcg@10"] == pytest.approx(ek.evaluate(ranking, held, k=10)["ndcg@10"])


def test_a_fitted_model_knows_whether_it_predicts_ratings():
    rated, pairs = (ek.synthetic(users=30, items=20, entries=200, rated=r, seed=0) for r in (True, False))
    solver = ek.SVD(rank=2)
    assert solver.fit(rated).predicts_ratings
    assert not solver.fit(pairs).predicts_ratings
    assert not dataclasses.replace(solver, normalize=True).fit(rated).predicts_ratings
    assert not dataclasses.replace(solver, center=False).fit(rated).predicts_ratings


def test_what_makes_no_sense_is_refused(tmp_path):
    pairs = ek.synthetic(users=30, items=20, entries=200, rated=False, seed=0)
    with pytest.raises(ValueError, match="no ratings, only pairs: leave center out"):
        ek.SVD(rank=2, center=True).fit(pairs)
    with pytest.raises(ValueError, match="center and normalize are both true"):
        ek.SVD(center=True, normalize=True)
    with pytest.raises(ValueError, match="nothing to resume: leave checkpoint out"):
        ek.SVD(rank=2).fit(pairs, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="cannot be negative"):
        ek.SVD(rank=1, normalize=True).fit(interactions([0, 1], [0, 1], [1.0, -1.0]))
    with pytest.raises(ValueError, match="basis is 3, expected the rank, 4, to"):
        ek.SVD(rank=4, basis=3)
    with pytest.raises(TypeError, match=r"basis is 4\.5, expected an integer or None"):
        ek.SVD(rank=4, basis=4.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="normalize is 'yes', expected one of True, False"):
        ek.SVD(normalize="yes")
    with pytest.raises(TypeError, match="center is 1, expected one of True, False, None"):
        ek.SVD(center=1)

"""What is SGD's own: it learns, it resumes to the bit, its dealing is fair and blind to names."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ratings

import eckart as ek
from eckart.recommend.baselines import popularity
from eckart.recommend.sgd import _dealt, _grid_size

DATA = ek.synthetic(users=300, items=120, entries=9000, seed=2)


def test_the_objective_falls_and_held_out_ratings_are_predicted_better_than_by_the_mean():
    train, test = ek.split(DATA, test=0.1, seed=0)
    model = ek.SGD(rank=8, epochs=12, step=0.1).fit(train, test)
    losses = [record["objective"] for record in model.history]
    assert losses == sorted(losses, reverse=True)
    spread = float(np.std(test.matrix.data))
    assert ek.evaluate(model, test)["rmse"] < 0.8 * spread
    assert model.history[-1]["validation_rmse"] < 0.8 * spread


def test_it_comes_to_the_optimum_that_als_finds():
    train, test = ek.split(DATA, test=0.1, seed=0)
    one = ek.evaluate(ek.SGD(rank=4, reg=0.1, step=0.1, epochs=60).fit(train), test)["rmse"]
    other = ek.evaluate(ek.ALS(rank=4, reg=0.1, epochs=60).fit(train), test)["rmse"]
    assert one == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("early_stopping", [0, 2])
def test_a_resumed_run_gives_the_bits_of_one_that_was_not_stopped(tmp_path, early_stopping):
    solver = ek.SGD(rank=5, step=0.1, epochs=6, early_stopping=early_stopping)
    whole = solver.fit(DATA)
    dataclasses.replace(solver, epochs=3).fit(DATA, checkpoint=tmp_path)
    resumed = solver.fit(DATA, checkpoint=tmp_path, resume=True)
    assert resumed.W.tobytes() == whole.W.tobytes()
    assert resumed.H.tobytes() == whole.H.tobytes()
    assert resumed.history == whole.history


def test_early_stopping_keeps_the_best_epoch():
    solver = ek.SGD(rank=30, reg=0.001, step=0.5, epochs=40, early_stopping=2)
    model = solver.fit(DATA)
    values = [record["validation_rmse"] for record in model.history]
    best = int(np.argmin(values))
    assert len(values) == best + 3 < 40
    again = dataclasses.replace(solver, epochs=best + 1).fit(DATA)
    assert again.H.tobytes() == model.H.tobytes()


@settings(max_examples=40, deadline=None)
@given(data=ratings(), seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 6))
def test_blocks_are_of_about_equal_entries(data, seed, blocks):
    degree = np.diff(data.matrix.indptr)
    blocks = min(blocks, len(degree))
    at, place_of, bounds = _dealt(degree, np.arange(len(degree)), blocks, np.random.default_rng(seed))
    assert sorted(at.tolist()) == list(range(len(degree)))
    assert place_of[at].tolist() == list(range(len(degree)))
    sums = np.add.reduceat(degree[at], bounds[:-1])
    assert sums.max() - sums.min() <= 2 * degree.max()


def test_the_grid_depends_on_shape_and_rank_alone():
    assert _grid_size((10**6, 10**6), 64) == 32
    assert _grid_size((1000, 900), 8) == 8
    assert _grid_size((1, 5), 1) == 1


def test_pairs_without_ratings_and_a_step_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"the data have no ratings, only pairs: use loss=.logistic."):
        ek.SGD().fit(ek.synthetic(users=30, items=20, entries=100, rated=False))
    with pytest.raises(ValueError, match=r"step is 0\.0, expected a number above 0"):
        ek.SGD(step=0)
    with pytest.raises(ValueError, match=r"step is nan"):
        ek.SGD(step=float("nan"))


def test_steps_that_are_too_long_are_reported():
    with pytest.raises(FloatingPointError, match=r"the objective is (inf|nan)"):
        ek.SGD(rank=4, step=1e6).fit(DATA)


PAIRS = ek.synthetic(users=300, items=150, entries=9000, rated=False, seed=2)
LOGISTIC = ek.SGD(rank=8, reg=0.02, step=0.1, epochs=15, loss="logistic")


def test_the_logistic_loss_ranks_better_than_popularity():
    gains = []
    for seed in range(3):
        data = ek.synthetic(users=600, items=300, entries=12000, rank=4, popularity=1.5, rated=False, seed=seed)
        train, test = ek.split(data, test=0.2, seed=0)
        model = ek.SGD(rank=8, reg=0.03, step=0.3, loss="logistic").fit(train)
        gains.append(ek.evaluate(model, test)["ndcg@10"] - ek.evaluate(popularity(train), test)["ndcg@10"])
    assert np.mean(gains) > 0.008


def test_a_logistic_run_learns_and_stops_early_by_ndcg():
    train, test = ek.split(PAIRS, test=0.2, seed=0)
    model = LOGISTIC.fit(train, test)
    losses = [record["objective"] for record in model.history]
    assert losses[-1] < 0.95 * losses[0]
    assert not model.predicts_ratings
    stopped = dataclasses.replace(LOGISTIC, epochs=60, early_stopping=2).fit(PAIRS)
    values = [record["validation_ndcg@10"] for record in stopped.history]
    assert len(values) == int(np.argmax(values)) + 3 < 60


@pytest.mark.parametrize("negatives", [0.5, 4.0])
def test_the_rows_of_the_logistic_loss_are_near_their_minimum(negatives):
    model = dataclasses.replace(LOGISTIC, negatives=negatives).fit(PAIRS)
    H, W = model.H.astype(np.float64), model.W.astype(np.float64)
    P = 1 / (1 + np.exp(-(model.item_side.bias + W @ H.T)))
    R, n_u = PAIRS.matrix, np.diff(PAIRS.matrix.indptr)
    pull = np.array([(1 - P[u, R.indices[a:b]]) @ H[R.indices[a:b]] for u, (a, b) in enumerate(pairwise(R.indptr))])
    push = (negatives * n_u / len(H))[:, None] * (P @ H) + (0.02 * (1 + negatives) * n_u)[:, None] * W
    error = np.linalg.norm(pull - push, axis=1)
    assert np.all(error < 0.01 * np.linalg.norm(pull, axis=1))


def test_a_resumed_logistic_run_gives_the_bits_of_one_that_was_not_stopped(tmp_path):
    solver = dataclasses.replace(LOGISTIC, epochs=4)
    whole = solver.fit(PAIRS)
    dataclasses.replace(solver, epochs=2).fit(PAIRS, checkpoint=tmp_path)
    resumed = solver.fit(PAIRS, checkpoint=tmp_path, resume=True)
    assert resumed.W.tobytes() == whole.W.tobytes()
    assert resumed.history == whole.history


def test_data_of_the_other_loss_and_bad_settings_are_refused():
    with pytest.raises(ValueError, match='the data have ratings, loss="logistic" is for pairs'):
        LOGISTIC.fit(DATA)
    with pytest.raises(ValueError, match="loss is 'hinge', expected 'squared' or 'logistic'"):
        ek.SGD(loss="hinge")
    for negatives in (0.0, 1001.0):
        with pytest.raises(ValueError, match=f"negatives is {negatives}, expected a number above 0"):
            ek.SGD(negatives=negatives)


def test_without_a_history_the_logistic_score_is_the_items_bias():
    model = LOGISTIC.fit(PAIRS)
    none = np.zeros(0, np.int32), np.zeros(0, np.float32)
    baseline, shares = model.solver.contributions(*none, 3, model.item_side)
    assert (baseline, len(shares)) == (float(model.item_side.bias[3]), 0)

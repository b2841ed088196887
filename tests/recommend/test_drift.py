"""Biases that drift: the steps against a readable twin, and what a model does with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import triples

import eckart as ek
from eckart.core import store
from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.drift import fit_drift, fit_steps, steps_at

few = settings(max_examples=60, deadline=None)


@st.composite
def timed(draw):
    """Interactions with times, many of them equal."""
    u, i, r = draw(triples())
    times = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(-5, draw(st.sampled_from([0, 30])), len(u))
    users, items = Vocabulary.of(u), Vocabulary.of(i)
    return Interactions.of(users.rows(u), items.rows(i), r, users, items, times)


def entries(data):
    return data.user_rows(), data.matrix.indices, data.times


def steps(model):
    assert model.drift is not None
    return model.drift.users


def twin(rows, times, error, count, bins, reg):
    """Heights at every entry, one row at a time."""
    out = np.zeros(len(rows))
    for row in range(count):
        own = np.flatnonzero(rows == row)
        ordered = sorted(times[own].tolist())
        edges = [ordered[len(own) * j // bins] for j in range(1, bins)]
        place = np.array([sum(edge <= t for edge in edges) for t in times[own]])
        for j in range(bins):
            here = own[place == j]
            out[here] = error[here].sum() / (len(here) + reg)
    return out


@few
@given(data=timed(), bins=st.integers(1, 6), reg=st.sampled_from([0.5, 10.0]))
def test_steps_are_shrunk_means_of_equal_parts(data, bins, reg):
    rows, _, times = entries(data)
    error = data.matrix.data.astype(np.float64) - 3
    fitted = fit_steps(rows, times, error, len(data.users), bins, reg)
    assert fitted.heights.shape == (len(data.users), bins)
    expected = twin(rows, times, error, len(data.users), bins, reg)
    np.testing.assert_allclose(steps_at(fitted, rows, times), expected, atol=1e-6)


@few
@given(data=timed(), bins=st.integers(1, 6), factor=st.sampled_from([1, 1000]))
def test_the_unit_and_the_origin_of_time_do_not_matter(data, bins, factor):
    rows, _, times = entries(data)
    one, other = (
        fit_steps(rows, t, data.matrix.data - 3.0, len(data.users), bins, 1.0) for t in (times, 7 + factor * times)
    )
    assert one.heights.tobytes() == other.heights.tobytes()


@few
@given(data=timed(), bins=st.tuples(st.integers(0, 4), st.integers(0, 4)), seed=st.integers(0, 2**32 - 1))
def test_both_sides_together_are_a_minimum(data, bins, seed):
    rows, columns, times = entries(data)
    error, reg = data.matrix.data.astype(np.float64) - 3, 5.0
    drift = fit_drift(rows, columns, times, error, data.matrix.shape, bins[0], bins[1], reg)

    def objective(users, items):
        left = error - steps_at(users, rows, times) - steps_at(items, columns, times)
        return np.sum(left**2) + reg * (np.sum(users.heights**2.0) + np.sum(items.heights**2.0))

    rng, best = np.random.default_rng(seed), objective(drift.users, drift.items)
    assert best <= np.sum(error**2) + 1e-9
    for _ in range(6):
        moved = [s._replace(heights=s.heights + 0.1 * rng.standard_normal(s.heights.shape)) for s in drift[:2]]
        assert objective(*moved) >= best - 1e-6
    assert (drift.users.heights.shape[1], drift.items.heights.shape[1]) == bins


SOLVER = ek.ALS(rank=2, reg=0.1, epochs=3, user_time_bins=3, item_time_bins=2, time_reg=2.0)


@few
@given(data=timed())
def test_folding_in_the_training_users_gives_their_drift_back(data):
    model = SOLVER.fit(data)
    again = model.fold_in(data)
    assert again.W.tobytes() == model.W.tobytes()
    assert steps(again).edges.tobytes() == steps(model).edges.tobytes()
    assert steps(again).heights.tobytes() == steps(model).heights.tobytes()
    timeless = model.fold_in(dataclasses.replace(data, times=None))
    assert not steps(timeless).heights.any()


@few
@given(data=timed())
def test_now_is_after_everything_seen(data):
    model = SOLVER.fit(data)
    u, i = data.users.ids[data.user_rows()], data.items.ids[data.matrix.indices]
    now, late = model.predict(u, i), model.predict(u, i, times=np.full(data.nnz, 2**62))
    np.testing.assert_allclose(now, late, atol=1e-6)
    table = model.recommend(exclude_seen=False)
    asked = model.predict(table["user"].to_pylist(), table["item"].to_pylist())
    np.testing.assert_allclose(table["score"], asked, atol=1e-5)
    user, item = data.users.ids[0].item(), data.items.ids[0].item()
    why = model.explain(user, item)
    assert why.score == pytest.approx(float(model.predict([user], [item])[0]), abs=1e-3)
    cold = model.recommend(-99, k=9)
    np.testing.assert_allclose(cold["score"], model.predict([-99] * len(cold), cold["item"].to_pylist()), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(data=timed(), bins=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_save_load_save_gives_the_same_bytes(data, bins, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = ek.ALS(rank=2, epochs=2).fit(data).with_drift(data, *bins)
    model.save(folder / "one")
    again = ek.load(folder / "one")
    again.save(folder / "two")
    for path in (folder / "one").iterdir():
        assert path.read_bytes() == (folder / "two" / path.name).read_bytes()
    assert again.uses_times
    u, i = data.users.ids[data.user_rows()], data.items.ids[data.matrix.indices]
    assert again.predict(u, i, data.times).tobytes() == model.predict(u, i, data.times).tobytes()
    assert steps(again.fold_in(data)).heights.tobytes() == steps(model).heights.tobytes()


def drifting(seed=0):
    """Everybody gets stricter by two stars halfway through."""
    data = ek.synthetic(users=60, items=40, entries=1500, seed=seed)
    times = np.random.default_rng(seed).permutation(data.nnz)
    matrix = data.matrix.copy()
    matrix.data = matrix.data - 2 * (times > data.nnz // 2).astype(np.float32)
    return ek.split(dataclasses.replace(data, matrix=matrix, times=times), test=0.2, seed=0)


def test_evaluate_asks_for_each_entry_at_its_time():
    train, test = drifting()
    solver = ek.ALS(rank=2, reg=0.1, epochs=5)
    with_bins = dataclasses.replace(solver, user_time_bins=4)
    still, moving = (ek.evaluate(s.fit(train), test, intervals=None)["rmse"] for s in (solver, with_bins))
    assert moving < 0.9 * still
    timeless = ek.evaluate(with_bins.fit(train), dataclasses.replace(test, times=None), intervals=None)["rmse"]
    assert timeless > moving  # everything is asked for now


def test_early_stopping_keeps_the_drift_of_all_ratings():
    train, _ = drifting()
    model = dataclasses.replace(SOLVER, early_stopping=1).fit(train)
    assert steps(model).heights.shape == (len(train.users), 3)
    assert model.seen.nnz == train.nnz


def test_what_cannot_be_is_said():
    train, _ = drifting()
    timeless = dataclasses.replace(train, times=None)
    with pytest.raises(ValueError, match="time bins are asked for, and the ratings have no timestamps"):
        SOLVER.fit(timeless)
    model = ek.ALS(rank=2, epochs=1).fit(train)
    with pytest.raises(ValueError, match="drift is fitted to ratings with timestamps"):
        model.with_drift(timeless)
    with pytest.raises(ValueError, match="these have other users or items"):
        model.with_drift(train.select(train.user_rows() > 0))
    with pytest.raises(ValueError, match="got 1 users and times of shape"):
        model.predict([0], [0], times=[1, 2])
    with pytest.raises(ValueError, match="user_time_bins is 1001, expected 0 to 1000"):
        ek.ALS(user_time_bins=1001)
    with pytest.raises(TypeError, match=r"item_time_bins is 1\.5, expected an integer"):
        ek.ALS(item_time_bins=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"time_reg is 0\.0, expected a number above 0"):
        ek.ALS(time_reg=0.0)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("user_edges", lambda x: x[:, ::-1], "out of order"),
        ("user_edges", lambda x: x[:, 1:], "user_edges"),
        ("item_heights", lambda x: x * np.float32("nan"), "item_heights"),
        ("item_heights", lambda x: x[1:], "item_heights"),
        ("reg", lambda x: 0 * x, "expected a number above 0"),
    ],
)
def test_a_hostile_drift_is_refused(name, change, message, tmp_path):
    train, _ = drifting()
    SOLVER.fit(train).save(tmp_path / "model")
    config, tensors, ids = store.read_directory(tmp_path / "model", "recommender")
    parts = {file: dict(arrays) for file, arrays in tensors.items()}
    parts["drift"][name] = np.ascontiguousarray(change(parts["drift"][name]))
    kept = {k: config[k] for k in ("solver", "hyperparameters", "mean", "history", "warm")}
    store.write_directory(tmp_path / "bad", "recommender", kept, parts, ids)
    with pytest.raises(ValueError, match=message):
        ek.load(tmp_path / "bad")

"""The numbers of a report, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eckart as ek
from eckart.recommend import baselines, report


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_the_newest_of_each_user_are_split_off(seed, share):
    rng = np.random.default_rng(seed)
    data = ek.synthetic(12, 10, 60, seed=seed % 100)
    data = ek.Interactions(data.matrix, data.users, data.items, rng.integers(0, 5, data.nnz), data.rated)
    train, test = report.newest_of_each(data, share, seed=seed)
    assert train.nnz + test.nnz == data.nnz
    for user in range(12):
        mine, n = data.user_rows() == user, int(np.diff(data.matrix.indptr)[user])
        held = test.times[test.user_rows() == int(test.users.rows([user])[0])] if user in test.users else []
        assert len(held) == round(share * n)
        assert sorted(held) == sorted(data.times[mine])[n - len(held) :]


def test_without_times_there_is_no_newest():
    with pytest.raises(ValueError, match="timestamps"):
        report.newest_of_each(ek.synthetic(10, 10, 30), 0.1)


@pytest.fixture(scope="module")
def fitted():
    train, test = ek.split(ek.synthetic(80, 50, 2000, seed=0), test=0.2)
    return train, test, baselines.biases(train), baselines.global_mean(train)


def test_errors_by_activity_add_up_to_the_error(fitted):
    train, test, biases, _ = fitted
    names, errors, entries = report.rmse_by_activity({"b": biases}, train, test, groups=4)
    assert len(names) == len(entries) == len(errors["b"]) == 4
    assert sum(entries) == test.nnz
    whole = np.sqrt(np.average(np.square(errors["b"]), weights=entries))
    assert whole == pytest.approx(ek.evaluate(biases, test)["rmse"])
    lows = [int(name.partition("–")[0].replace(",", "")) for name in names]
    assert lows == sorted(lows)


def test_a_gain_is_the_difference_of_the_squared_errors(fitted):
    _, test, biases, mean = fitted
    gain, low, high = report.paired_gain(biases, mean, test)
    assert gain == pytest.approx(ek.evaluate(mean, test)["rmse"] ** 2 - ek.evaluate(biases, test)["rmse"] ** 2)
    assert low < gain < high
    assert report.paired_gain(biases, biases, test) == (0, 0, 0)
    back, *_ = report.paired_gain(mean, biases, test)
    assert back == pytest.approx(-gain)


def test_the_plane_is_the_best_rank_two_picture():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(30, 6)).astype(np.float32)
    xy, shares = report.principal_plane(H)
    s = np.linalg.svd(H - H.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(xy, axis=0), s[:2], rtol=1e-5)
    np.testing.assert_allclose(shares, s[:2] ** 2 / np.sum(s**2), rtol=1e-5)
    turned, _ = report.principal_plane(H @ np.linalg.qr(rng.normal(size=(6, 6)))[0])
    np.testing.assert_allclose(turned, xy, atol=1e-4)  # factors are known up to a rotation only


def test_suggestions_come_with_shares_of_their_score(fitted):
    train, _, biases, _ = fitted
    ranking = ek.ImplicitALS(rank=4, epochs=3).fit(train)
    user = report.median_user(train)
    n = np.diff(train.matrix.indptr)
    assert len(report.entries_of(train, user)) == np.sort(n)[(len(n) - 1) // 2]
    listed = report.suggestions(ranking, biases, user, 5, reasons=1000)
    assert [row["item"] for row in listed] == ranking.recommend([user], 5)["item"].to_pylist()
    for row in listed:
        assert sum(x["share"] for x in row["because"]) == pytest.approx(1, abs=1e-4)
    assert report.entries_of(train, "nobody") == {}

"""The baselines are what their equations say, and full models in every other respect."""

from __future__ import annotations

import numpy as np
import pytest

import eckart as ek
from eckart.recommend import baselines


@pytest.fixture(scope="module")
def data():
    return ek.synthetic(60, 40, 900, seed=1)


def test_biases_solve_the_ridge_system(data):
    reg_users, reg_items = 4.0, 2.0
    model = baselines.biases(data, reg_users, reg_items)
    n, m = data.matrix.shape
    A = np.zeros((data.nnz, n + m))
    A[np.arange(data.nnz), data.user_rows()] = 1
    A[np.arange(data.nnz), n + data.matrix.indices] = 1
    mean = data.matrix.data.mean(dtype=np.float64)
    penalty = np.diag(np.r_[np.full(n, reg_users), np.full(m, reg_items)])
    x = np.linalg.solve(A.T @ A + penalty, A.T @ (data.matrix.data - mean))
    np.testing.assert_allclose(model.user_bias, x[:n], atol=1e-5)
    np.testing.assert_allclose(model.item_side.bias, x[n:], atol=1e-5)


def test_folding_a_user_in_gives_the_fitted_bias(data):
    model = baselines.biases(data, 4.0, 2.0)
    np.testing.assert_allclose(model.fold_in(data).user_bias, model.user_bias, atol=1e-5)


def test_the_mean_is_the_mean(data):
    model = baselines.global_mean(data)
    told = model.predict(data.users.ids[:5], data.items.ids[:5])
    np.testing.assert_allclose(told, data.matrix.data.mean(), rtol=1e-6)


def test_popularity_counts_people_and_leaves_out_what_was_seen(data):
    model = baselines.popularity(data)
    counts = np.bincount(data.matrix.indices, minlength=len(data.items))
    assert model.recommend(["nobody"], k=5)["item"].to_pylist() == np.argsort(-counts, kind="stable")[:5].tolist()
    user = int(data.users.ids[3])
    listed = model.recommend([user], k=5)["item"].to_pylist()
    unseen = np.flatnonzero(data.matrix[[3]].toarray()[0] == 0)
    assert listed == unseen[np.argsort(-counts[unseen], kind="stable")][:5].tolist()


@pytest.mark.parametrize("fit", [baselines.global_mean, baselines.biases, baselines.popularity])
def test_a_baseline_is_saved_and_measured_like_any_model(data, fit, tmp_path):
    train, test = ek.split(data, test=0.2)
    model = fit(train)
    model.save(tmp_path / "m")
    assert ek.evaluate(ek.load(tmp_path / "m"), test).to_dict() == ek.evaluate(model, test).to_dict()

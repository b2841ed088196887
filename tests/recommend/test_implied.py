"""Who rated what as a prior mean: the regression against its definition, dense and in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from strategies import ratings

import eckart as ek
from eckart.recommend.implied import implied_points, regressed

sizes = {"n": st.integers(1, 12), "m": st.integers(1, 9), "k": st.integers(1, 5), "seed": st.integers(0, 2**32 - 1)}
few = settings(max_examples=60, deadline=None)


def problem(n, m, k, seed):
    """A 0/1 matrix with empty rows and columns among its own, factors and penalties of its rows, a start."""
    rng = np.random.default_rng(seed)
    O = (rng.random((n, m)) < rng.choice([0.0, 0.3, 0.9])).astype(np.float32)
    W, B = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (n, m))
    return O, csr_array(O), W, B, (0.1 * (1 + O.sum(axis=1))).astype(np.float32)


def features(O):
    return O.astype(np.float64) / np.sqrt(np.maximum(O.sum(axis=1, keepdims=True), 1))


@few
@given(**sizes)
def test_points_are_sums_over_the_history(n, m, k, seed):
    O, matrix, _, B, _ = problem(n, m, k, seed)
    points = implied_points(matrix, B)
    np.testing.assert_allclose(points, features(O) @ B, atol=1e-5)
    assert implied_points(csr_array(matrix[[-1]]), B)[0].tobytes() == points[-1].tobytes()


@few
@given(**sizes, implicit_reg=st.sampled_from([0.1, 10.0]))
def test_steps_lower_the_objective_to_that_of_the_ridge_regression(n, m, k, seed, implicit_reg):
    O, matrix, W, B, reg = problem(n, m, k, seed)
    F, L = features(O), np.diag(reg.astype(np.float64))

    def objective(B):
        return np.sum(reg[:, None] * (W - F @ B) ** 2) + implicit_reg * np.sum(B.astype(np.float64) ** 2)

    best = objective(np.linalg.solve(F.T @ L @ F + implicit_reg * np.eye(m), F.T @ L @ W))
    value = objective(B)
    for _ in range(12):
        B, points = regressed(matrix, W, B, reg, implicit_reg)
        assert objective(B) <= value * (1 + 1e-5) + 1e-6
        value = objective(B)
        np.testing.assert_allclose(points, F @ B, atol=1e-4)
    assert value <= best * (1 + 1e-3) + 1e-5


@settings(max_examples=20, deadline=None)
@given(data=ratings())
def test_a_regression_held_at_zero_is_none(data):
    plain = ek.ALS(rank=2, reg=0.1, epochs=4, solver="exact")
    one, other = plain.fit(data), dataclasses.replace(plain, implicit_reg=1e8).fit(data)
    u, i = data.users.ids[data.user_rows()], data.items.ids[data.matrix.indices]
    np.testing.assert_allclose(one.predict(u, i), other.predict(u, i), atol=2e-3)
    assert not one.item_side.extra

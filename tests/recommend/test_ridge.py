"""The ridge regression of many columns: against the dense solution, and step by step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from eckart.recommend.ridge import improved_ridge


def problem(seed, rows, columns, k):
    rng = np.random.default_rng(seed)
    F = csr_array(random_array((rows, columns), density=0.4, rng=rng, dtype=np.float32))
    T, weight = rng.standard_normal((rows, k)).astype(np.float32), rng.random(rows).astype(np.float32)
    return F, csr_array(F.T.tocsr()), T, weight


def objective(F, T, B, weight, reg):
    residual = T - F.toarray().astype(float) @ B
    return float(weight @ np.sum(residual**2, axis=1) + reg * np.sum(B.astype(float) ** 2))


shapes = st.tuples(st.integers(0, 99), st.integers(1, 12), st.integers(1, 9), st.integers(1, 3))


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(0.05, 5))
def test_it_comes_to_the_dense_solution(shape, reg):
    F, Ft, T, weight = problem(*shape)
    B = np.zeros((F.shape[1], T.shape[1]), np.float32)
    for _ in range(4):  # again from where it stands, as the epochs do
        B = improved_ridge(F, Ft, T, B, weight, reg, steps=12)
    dense = F.toarray().astype(float)
    exact = np.linalg.solve(dense.T * weight @ dense + reg * np.eye(len(B)), dense.T * weight @ T)
    np.testing.assert_allclose(B, exact, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 4))
def test_no_step_raises_the_objective_and_no_bit_depends_on_the_threads(shape, threads):
    F, Ft, T, weight = problem(*shape)
    start = np.random.default_rng(1).standard_normal((F.shape[1], T.shape[1])).astype(np.float32)
    before = objective(F, T, start, weight, 0.5)
    for steps in (1, 2, 3):
        B = improved_ridge(F, Ft, T, start, weight, 0.5, steps)
        after = objective(F, T, B, weight, 0.5)
        assert after <= before * (1 + 1e-5) + 1e-6
        assert improved_ridge(F, Ft, T, start, weight, 0.5, steps, threads).tobytes() == B.tobytes()
        before = after

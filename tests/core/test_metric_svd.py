"""Laws of the SVD in a metric: nothing of the rank is closer, and the error is the one it says, for every rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.lowrank import metric_distance, metric_errors

from eckart.core.svd import metric_svd

few = settings(max_examples=60, deadline=None)
sizes = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)
KINDS = ["none", "diagonal", "full", "singular", "zero"]
kinds = st.sampled_from(KINDS)


def metric(kind, size, rng):
    if kind == "none":
        return None
    if kind == "zero":
        return np.zeros((size, size))
    if kind == "diagonal":
        return rng.uniform(0, 3, size) * (rng.uniform(size=size) < 0.8)
    samples = rng.standard_normal((size, 2 * size if kind == "full" else max(1, size // 2)))
    return samples @ samples.T


@st.composite
def problems(draw):
    m, n, rng = draw(sizes), draw(sizes), np.random.default_rng(draw(seeds))
    W = rng.standard_normal((m, n))
    return W, metric(draw(kinds), m, rng), metric(draw(kinds), n, rng)


@few
@given(problem=problems())
def test_errors_are_those_of_the_roots(problem):
    expected = metric_errors(*problem)
    np.testing.assert_allclose(metric_svd(*problem).errors(), expected, atol=1e-11 * (1 + expected[0]))


@few
@given(problem=problems(), data=st.data())
def test_the_predicted_error_is_the_measured_one(problem, data):
    W, left, right = problem
    found = metric_svd(W, left, right)
    rank = data.draw(st.integers(0, min(W.shape)))
    cut = found.cut(rank)
    assert cut.rank == rank
    assert cut.shape == W.shape
    measured = metric_distance(W - cut.dense(), left, right)
    assert measured == pytest.approx(found.errors()[rank], rel=1e-6, abs=1e-9 * (1 + found.errors()[0]))


@few
@given(problem=problems(), seed=seeds, data=st.data())
def test_nothing_else_of_the_rank_is_closer(problem, seed, data):
    W, left, right = problem
    rank = data.draw(st.integers(1, min(W.shape)))
    found, rng = metric_svd(W, left, right), np.random.default_rng(seed)
    best = found.cut(rank)
    for size in (1e-3, 0.1, 1.0):
        U = best.left + size * rng.standard_normal(best.left.shape)
        V = best.right + size * rng.standard_normal(best.right.shape)
        other = metric_distance(W - U @ V.T, left, right)
        assert other >= found.errors()[rank] - 1e-9 * (1 + found.errors()[0])


@few
@given(m=sizes, n=sizes, seed=seeds)
def test_all_terms_give_the_matrix_back_where_the_metrics_see_it_whole(m, n, seed):
    rng = np.random.default_rng(seed)
    W, left, right = rng.standard_normal((m, n)), *(metric("full", size, rng) + np.eye(size) for size in (m, n))
    np.testing.assert_allclose(metric_svd(W, left, right).cut(min(m, n)).dense(), W, atol=1e-6)


@few
@given(problem=problems(), scale=st.floats(1e-12, 1e12))
def test_scaling_a_metric_scales_the_error_and_nothing_else(problem, scale):
    W, left, right = problem
    right = np.ones(W.shape[1]) if right is None else right
    first, scaled = metric_svd(W, left, right), metric_svd(W, left, right * scale)
    np.testing.assert_allclose(scaled.errors(), scale * first.errors(), atol=1e-9 * scale * (1 + first.errors()[0]))


def test_a_metric_matters():
    rng = np.random.default_rng(0)
    W, right = rng.standard_normal((8, 8)), np.diag(2.0 ** -np.arange(8.0))
    blind, aware = metric_svd(W).cut(3).dense(), metric_svd(W, right=right)
    assert metric_distance(W - blind, None, right) > 1.2 * aware.errors()[3]


@few
@given(problem=problems(), data=st.data())
def test_torch_gives_what_numpy_gives(problem, data):
    torch = pytest.importorskip("torch")
    rank = data.draw(st.integers(0, min(problem[0].shape)))
    ours, theirs = metric_svd(*problem), metric_svd(*(None if a is None else torch.from_numpy(a) for a in problem))
    assert isinstance(theirs.squares, torch.Tensor)
    scale = 1 + ours.errors()[0]
    np.testing.assert_allclose(theirs.errors().numpy(), ours.errors(), atol=1e-10 * scale)
    W, left, right = problem
    measured = metric_distance(W - theirs.cut(rank).dense().numpy(), left, right)
    assert measured == pytest.approx(ours.errors()[rank], rel=1e-6, abs=1e-9 * scale)


def test_what_is_no_metric_is_refused():
    W = np.ones((3, 2))
    for wrong, message in [
        ({"W": np.ones(3)}, "expected a matrix"),
        ({"W": W * np.nan}, "W has an entry that is not finite"),
        ({"W": W, "left": np.eye(2)}, r"left has the shape \(2, 2\), expected \(3, 3\) or \(3,\)"),
        ({"W": W, "right": np.array([[1.0, 2.0], [0.0, 1.0]])}, "right is not symmetric"),
        ({"W": W, "right": np.array([[1.0, 2.0], [2.0, 1.0]])}, "eigenvalue -1"),
        ({"W": W, "right": np.array([1.0, -1.0])}, "eigenvalue -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric_svd(**wrong)
    with pytest.raises(ValueError, match="rank is 3, expected 0 to 2"):
        metric_svd(W).cut(3)

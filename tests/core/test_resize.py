"""Laws of resizing and adding matrices of low rank: what the SVD of the product would give, without the product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.core.lowrank import LowRank
from eckart.core.resize import factor_svd, sum_of

few = settings(max_examples=50, deadline=None)
sizes = st.integers(1, 25)
seeds = st.integers(0, 2**32 - 1)


def random_factors(rng, m, n, r):
    # columns of very different sizes: what is small must not be lost beside what is large
    return LowRank(rng.standard_normal((m, r)) * 10.0 ** rng.uniform(-3, 3, r), rng.standard_normal((n, r)))


@few
@given(m=sizes, n=sizes, r=sizes, seed=seeds)
def test_it_is_the_svd_of_the_product(m, n, r, seed):
    matrix = random_factors(np.random.default_rng(seed), m, n, r)
    found, size = factor_svd(matrix), np.abs(matrix.dense()).max()
    expected = np.linalg.svd(matrix.dense(), compute_uv=False)
    assert len(found.s) == min(m, n, r)
    np.testing.assert_allclose(found.s, expected[: len(found.s)], atol=1e-12 * expected[0])
    np.testing.assert_allclose(found.cut(len(found.s)).dense(), matrix.dense(), atol=1e-12 * size * max(m, n))
    for factor in (found.U, found.V):
        np.testing.assert_allclose(factor.T @ factor, np.eye(len(found.s)), atol=1e-12)


@few
@given(m=sizes, n=sizes, r=sizes, seed=seeds, data=st.data())
def test_a_cut_is_the_truncated_svd_of_the_product(m, n, r, seed, data):
    matrix = random_factors(np.random.default_rng(seed), m, n, r)
    k = data.draw(st.integers(1, min(m, n, r)))
    cut = factor_svd(matrix).cut(k)
    assert (cut.rank, cut.shape) == (k, (m, n))
    s = np.linalg.svd(matrix.dense(), compute_uv=False)
    error = np.linalg.norm(matrix.dense() - cut.dense())
    np.testing.assert_allclose(error, np.sqrt((s[k:] ** 2).sum()), atol=1e-11 * s[0])
    np.testing.assert_allclose(cut.left.T @ cut.left, cut.right.T @ cut.right, atol=1e-10 * s[0])


@few
@given(m=sizes, n=sizes, ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=seeds)
def test_a_sum_is_the_sum_of_the_products(m, n, ranks, seed):
    rng = np.random.default_rng(seed)
    matrices = [LowRank(rng.standard_normal((m, r)), rng.standard_normal((n, r))) for r in ranks]
    weights = rng.standard_normal(len(ranks)).tolist()
    found = sum_of(matrices, weights)
    assert found.rank == sum(ranks)
    expected = sum(w * x.dense() for w, x in zip(weights, matrices, strict=True))
    np.testing.assert_allclose(found.dense(), expected, atol=1e-12)
    np.testing.assert_allclose(sum_of(matrices).dense(), sum(x.dense() for x in matrices), atol=1e-12)


def test_energy_says_which_rank():
    s = np.array([3.0, 2.0, 1.0, 0.0])
    found = factor_svd(LowRank(np.diag(s), np.eye(4)))
    assert [found.rank_of(energy) for energy in (0.1, 9 / 14 - 1e-9, 0.7, 13 / 14 - 1e-9, 0.93, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert [found.kept(k) for k in (1, 2, 3, 4)] == pytest.approx([9 / 14, 13 / 14, 1, 1])
    nothing = factor_svd(LowRank(np.zeros((4, 2)), np.ones((3, 2))))
    assert (nothing.rank_of(0.5), nothing.rank_of(1.0), nothing.kept(1)) == (1, 1, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_torch_gives_the_same(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.standard_normal((size, 4))).to(getattr(torch, dtype)) for size in (9, 7))
    found = factor_svd(sum_of([LowRank(left, right)] * 2))
    expected = factor_svd(LowRank(2 * left.double().numpy(), right.double().numpy()))
    assert isinstance(found.s, torch.Tensor)
    np.testing.assert_allclose(found.s[:4], expected.s)
    np.testing.assert_allclose(found.cut(3).dense(), expected.cut(3).dense(), atol=1e-12)
    assert found.rank_of(0.9) == expected.rank_of(0.9)


def test_what_cannot_be_resized_is_said():
    matrix = LowRank(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="rank is 3, expected 1 to"):
        factor_svd(matrix).cut(3)
    with pytest.raises(ValueError, match="expected a share above 0"):
        factor_svd(matrix).rank_of(0)
    with pytest.raises(ValueError, match="left has an entry that is not finite"):
        factor_svd(LowRank(np.full((3, 2), np.nan), np.ones((4, 2))))
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(4, 1\)"):
        factor_svd(LowRank(np.ones((3, 2)), np.ones((4, 1))))
    with pytest.raises(ValueError, match="expected one shape"):
        sum_of([matrix, matrix.T])
    with pytest.raises(ValueError, match="0 matrices"):
        sum_of([])
    with pytest.raises(ValueError, match="2 matrices and 1 weights"):
        sum_of([matrix, matrix], [1.0])
    with pytest.raises(ValueError, match="finite numbers"):
        sum_of([matrix], [float("nan")])

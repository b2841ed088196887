"""Laws of the truncated SVD: it is the best of its rank, and what it says of its error is true."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from eckart.core.krylov import krylov_svd, operator
from eckart.core.svd import truncated_svd

few = settings(max_examples=40, deadline=None)
METHODS = [
    pytest.param(truncated_svd, id="exact"),
    pytest.param(lambda A, rank: krylov_svd(A, rank, basis=min(A.shape), block=5, dtype=np.float64), id="krylov"),
]
every_method = pytest.mark.parametrize("method", METHODS)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)


def matrix(shape, seed, decay=0.8, rank=None):
    """Random singular vectors, singular values decay^0, decay^1, ...; the first `rank` of them."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, min(shape))))[0] for size in shape)
    s = decay ** np.arange(min(shape)) * (np.arange(min(shape)) < (min(shape) if rank is None else rank))
    return (U * s) @ V.T


def sparse(shape, seed, density=0.1):
    return csr_array(random_array(shape, density=density, rng=np.random.default_rng(seed), dtype=np.float64))


def product(found):
    return (found.U * found.s) @ found.V.T


@every_method
@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_it_is_numpys(method, shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    A = matrix(shape, seed)
    found, s = method(A, rank), np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(found.s, s[:rank], atol=1e-7)
    assert found.U.shape == (shape[0], rank)
    assert found.V.shape == (shape[1], rank)
    for factor in (found.U, found.V):
        np.testing.assert_allclose(factor.T @ factor, np.eye(rank), atol=1e-9)
    assert found.squares == pytest.approx(np.sum(A**2))
    assert found.residual == pytest.approx(np.sum((A - product(found)) ** 2), abs=1e-9)
    error = np.linalg.norm(A - product(found), 2)
    assert error == pytest.approx(s[rank] if rank < len(s) else 0, abs=1e-7)
    assert error <= found.bound + 1e-12


@every_method
@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_no_other_matrix_of_the_rank_is_closer(method, shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    A, rng = matrix(shape, seed), np.random.default_rng(seed)
    found = method(A, rank)
    best = np.sum((A - product(found)) ** 2)
    for size in (1e-3, 1e-1, 1.0):
        left = found.U * found.s + size * rng.standard_normal(found.U.shape)
        right = found.V + size * rng.standard_normal(found.V.shape)
        assert np.sum((A - left @ right.T) ** 2) >= best - 1e-9


@every_method
@few
@given(shape=shapes, seed=seeds)
def test_the_transpose_swaps_the_sides(method, shape, seed):
    A = matrix(shape, seed)
    rank = max(1, min(shape) // 2)
    one, other = method(A, rank), method(A.T, rank)
    np.testing.assert_allclose(one.s, other.s, atol=1e-9)
    np.testing.assert_allclose(product(one), product(other).T, atol=1e-6)


@every_method
@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_a_matrix_of_lower_rank_is_given_back_and_its_vectors_completed(method, shape, seed, data):
    rank = data.draw(st.integers(1, min(shape)))
    A = matrix(shape, seed, rank=data.draw(st.integers(0, rank)))  # also the zero matrix
    found = method(A, rank)
    np.testing.assert_allclose(product(found), A, atol=1e-8)
    for factor in (found.U, found.V):
        np.testing.assert_allclose(factor.T @ factor, np.eye(rank), atol=1e-8)
    assert found.residual < 1e-8
    assert found.bound < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bound_holds_for_every_seed_and_is_within_twice_the_error(dtype):
    A = sparse((220, 150), 0).astype(dtype)
    for seed in range(60):
        found = krylov_svd(A, 10, basis=24, block=6, seed=seed, dtype=dtype)
        error = np.linalg.norm(A.toarray() - product(found), 2)
        assert error <= found.bound <= 2 * error


def test_the_bound_sees_a_bad_approximation():
    A = matrix((80, 60), 0, decay=0.95)
    good = krylov_svd(A, 10, basis=40, block=5, dtype=np.float64)
    bad = krylov_svd(A, 10, basis=10, block=10, dtype=np.float64)
    assert bad.bound > 1.3 * good.bound
    assert np.linalg.norm(A - product(bad), 2) <= bad.bound


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_it_agrees_with_scipys_lanczos(shape):
    A = sparse(shape, 1)
    s = np.sort(scipy.sparse.linalg.svds(A, k=6, return_singular_vectors=False, rng=np.random.default_rng(0)))[::-1]
    found = krylov_svd(A, 6, basis=100, block=5, dtype=np.float64)
    np.testing.assert_allclose(found.s, s, rtol=1e-9)
    in_float32 = krylov_svd(A.astype(np.float32), 6, basis=80, block=8)
    np.testing.assert_allclose(in_float32.s, s, rtol=1e-5)
    assert in_float32.U.dtype == np.float32


def test_small_blocks_come_closer_than_one_big_one():
    A = sparse((400, 300), 2)
    captured = [np.sum(krylov_svd(A, 20, basis=60, block=b, dtype=np.float64).s ** 2) for b in (6, 20, 60)]
    assert captured[0] > captured[1] > captured[2]
    assert captured[0] <= np.sum(truncated_svd(A.toarray(), 20).s ** 2) + 1e-9


@few
@given(shape=shapes, seed=seeds, stored_dense=st.booleans())
def test_centring_is_that_of_the_dense_matrix(shape, seed, stored_dense):
    A, rng = sparse(shape, seed, density=0.3), np.random.default_rng(seed)
    row, column = rng.standard_normal(shape[0]), rng.standard_normal(shape[1])
    dense = A.toarray() - row[:, None] - column
    centred = operator(A.toarray() if stored_dense else A, row, column)
    X, Y = rng.standard_normal((shape[1], 3)), rng.standard_normal((shape[0], 3))
    np.testing.assert_allclose(centred.times(X), dense @ X, atol=1e-12)
    np.testing.assert_allclose(centred.transposed_times(Y), dense.T @ Y, atol=1e-12)
    np.testing.assert_allclose(centred.T.times(Y), dense.T @ Y, atol=1e-12)
    assert centred.squares == pytest.approx(np.sum(dense**2))
    rank = max(1, min(shape) // 2)
    found = krylov_svd(centred, rank, basis=min(shape), block=4, dtype=np.float64)
    np.testing.assert_allclose(found.s, np.linalg.svd(dense, compute_uv=False)[:rank], atol=1e-7)


@few
@given(shape=shapes, seed=seeds, threads=st.integers(2, 5))
def test_the_bits_do_not_depend_on_the_threads(shape, seed, threads):
    A = sparse(shape, seed, density=0.3).astype(np.float32)
    X = np.random.default_rng(seed).standard_normal((shape[1], 3)).astype(np.float32)
    assert operator(A, threads=1).times(X).tobytes() == operator(A, threads=threads).times(X).tobytes()


@few
@given(seed=seeds)
def test_a_seed_gives_its_bits_again_and_another_seed_others(seed):
    A = sparse((50, 40), 3)
    one, again, other = (krylov_svd(A, 4, basis=8, block=4, seed=s) for s in (seed, seed, seed + 1))
    assert one.U.tobytes() == again.U.tobytes()
    assert one.bound == again.bound
    assume(one.s[0] > 0)
    assert one.U.tobytes() != other.U.tobytes()


def test_what_is_out_of_range_is_refused():
    A = np.eye(4, 3)
    for method in (truncated_svd, krylov_svd):
        for rank in (0, 4):
            with pytest.raises(ValueError, match=rf"rank is {rank}, expected 1 to min\(4, 3\) = 3"):
                method(A, rank)
    with pytest.raises(ValueError, match="basis is 1, expected at least the rank, 2"):
        krylov_svd(A, 2, basis=1)
    with pytest.raises(ValueError, match=r"start is \(2, 1\), expected \(4, 2\)"):
        krylov_svd(A, 2, block=2, start=np.ones((2, 1)))
    with pytest.raises(ValueError, match="infs or NaNs"):
        truncated_svd(np.full((2, 2), np.nan), 1)

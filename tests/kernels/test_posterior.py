"""The draws of a Gibbs sweep equal their twins, for every instruction set that was built and runs here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import kernels as twin
from scipy.sparse import csr_array

from eckart.core.kernels import available, load_kernels

EVERY_ISA = pytest.mark.parametrize("isa", available())
RANKS = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65])


@st.composite
def problems(draw):
    """Entries with empty, single and long rows and repeated columns, and all that a draw of their rows needs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, columns = draw(RANKS), draw(st.sampled_from([1, 2, 16, 17, 200]))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 64, 130, 300]), max_size=8))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    root = rng.standard_normal((k, k)) / np.sqrt(k)
    normal = {name: rng.standard_normal((len(lengths), k)).astype(np.float32) for name in ("prior", "noise")}
    return {
        "indptr": indptr,
        "indices": rng.integers(0, columns, indptr[-1]).astype(np.int32),
        "values": rng.uniform(-2, 2, indptr[-1]).astype(np.float32),
        "Y": (rng.standard_normal((columns, k)) / np.sqrt(k)).astype(np.float32),
        "alpha": 1.7,
        "precision": (root @ root.T + 2 * np.eye(k)).astype(np.float32),
        **normal,
    }


def close(got, want, tolerance=3e-4):
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


@EVERY_ISA
@settings(max_examples=100, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4), noisy=st.booleans())
def test_posterior_rows_equal_their_twin(isa, problem, threads, noisy):
    problem = {**problem, "noise": problem["noise"] if noisy else None}
    draw = load_kernels(isa).posterior_rows
    got, failed = draw(**problem, threads=threads)
    assert failed == -1
    close(got, twin.posterior_rows(**problem))
    assert got.tobytes() == draw(**problem, threads=1)[0].tobytes()


@EVERY_ISA
@settings(max_examples=100, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_posterior_spread_equals_its_twin(isa, problem, threads, seed):
    rng, columns = np.random.default_rng(seed), len(problem["Y"])
    names = ("indptr", "indices", "values", "Y", "alpha", "precision")
    target_indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 4, len(problem["indptr"]) - 1))]).astype(np.int64)
    targets = rng.integers(0, columns, target_indptr[-1]).astype(np.int32)
    arguments = *(problem[name] for name in names), target_indptr, targets
    spread = load_kernels(isa).posterior_spread
    got, failed = spread(*arguments, threads=threads)
    assert failed == -1
    close(got, twin.posterior_spread(*arguments[:2], *arguments[3:]))
    assert got.tobytes() == spread(*arguments, threads=1)[0].tobytes()


@EVERY_ISA
@settings(max_examples=60, deadline=None)
@given(k=RANKS, n=st.sampled_from([1, 5, 40]), m=st.sampled_from([1, 4, 30]), seed=st.integers(0, 2**32 - 1))
def test_the_link_equals_its_twin(isa, k, n, m, seed):
    rng = np.random.default_rng(seed)
    F = (rng.random((n, m)) * (rng.random((n, m)) < 0.3)).astype(np.float32)
    E, B, noise = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (n, m, m))
    by_column = csr_array(F.T)
    arrays = by_column.indptr.astype(np.int64), by_column.indices.astype(np.int32), by_column.data
    one, many = (load_kernels(isa).sample_link(*arrays, E, B, 0.7, noise, threads) for threads in (1, 3))
    for got, again, want in zip(one, many, twin.sample_link(F, E, B, 0.7, noise), strict=True):
        close(got, want)
        assert got.tobytes() == again.tobytes()


@EVERY_ISA
def test_a_draw_that_cannot_be_made_is_reported(isa):
    indptr, none = np.array([0, 0, 0]), np.zeros(0, np.int32)
    prior = np.zeros((2, 3), np.float32)
    call = load_kernels(isa).posterior_rows
    for precision in (-np.eye(3), np.full((3, 3), np.nan)):
        arguments = indptr, none, np.zeros(0, np.float32), np.zeros((1, 3), np.float32), 1.0
        assert call(*arguments, precision.astype(np.float32), prior, None)[1] == 0


@EVERY_ISA
@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"precision": np.eye(3, dtype=np.float32)}, "precision is 3 x 3, expected 4 x 4"),
        ({"prior": np.zeros((1, 4), np.float32)}, "prior is 1 x 4, expected 2 x 4"),
        ({"noise": np.zeros((2, 3), np.float32)}, "noise is not 2 x 4"),
        ({"indices": np.array([0, 3], np.int32)}, "column index 3"),
        ({"values": np.ones(3, np.float32)}, "3 values for 2 entries"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(isa, change, message):
    arguments = {
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 2], np.int32),
        "values": np.ones(2, np.float32),
        "Y": np.ones((3, 4), np.float32),
        "alpha": 1.0,
        "precision": np.eye(4, dtype=np.float32),
        "prior": np.zeros((2, 4), np.float32),
        "noise": None,
    }
    load_kernels(isa).posterior_rows(**arguments)
    with pytest.raises(ValueError, match=message):
        load_kernels(isa).posterior_rows(**{**arguments, **change})
    link = np.array([0, 1, 2]), np.array([0, 2], np.int32), np.ones(2, np.float32)
    E, B = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    for wrong in ((E, B, 0.0, B), (E, E, 1.0, B), (E, B, 1.0, E)):
        with pytest.raises(ValueError, match="expected"):
            load_kernels(isa).sample_link(*link, *wrong)


@EVERY_ISA
@pytest.mark.parametrize(
    "target_indptr, targets, message",
    [([0, 1], [0], "targets of 1 rows"), ([0, 1, 2], [0, 3], "column index 3"), ([0, 1, 1], [0, 1], "over 2 entries")],
)
def test_targets_that_do_not_fit_are_refused(isa, target_indptr, targets, message):
    rows = np.array([0, 1, 2]), np.array([0, 2], np.int32), np.ones(2, np.float32), np.ones((3, 4), np.float32)
    spread, rest = load_kernels(isa).posterior_spread, (1.0, np.eye(4, dtype=np.float32))
    assert spread(*rows, *rest, np.array([0, 1, 2]), np.array([0, 1], np.int32))[1] == -1
    with pytest.raises(ValueError, match=message):
        spread(*rows, *rest, np.array(target_indptr), np.array(targets, np.int32))

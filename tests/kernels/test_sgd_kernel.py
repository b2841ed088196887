"""The pass of stratified SGD equals its readable twin, and no thread changes a bit of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import kernels as twin

from eckart.core.kernels import available, load_kernels

EVERY_ISA = pytest.mark.parametrize("isa", available())
RANKS = st.sampled_from([1, 2, 15, 16, 17, 32, 33, 48, 64, 80, 128, 129])


@st.composite
def problems(draw):
    """A small sparse matrix with empty rows, columns and blocks, dealt to a grid; factors and scalars of both sides."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m, blocks, k = draw(st.integers(1, 14)), draw(st.integers(1, 14)), draw(st.integers(1, 5)), draw(RANKS)
    full = rng.random((n, m)) < draw(st.sampled_from([0.0, 0.05, 0.4, 1.0]))
    full[rng.integers(n), rng.integers(m)] = True  # at least one entry
    indptr = np.concatenate([[0], np.cumsum(full.sum(axis=1))]).astype(np.int64)
    indices = np.nonzero(full)[1].astype(np.int32)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    bounds = [np.sort(np.concatenate([[0, x], rng.integers(0, x + 1, blocks - 1)])).astype(np.int64) for x in (n, m)]
    orders = [rng.permutation(x).astype(np.int32) for x in (n, m)]
    width = -(-k // 16) * 16
    factors = [np.zeros((x, width), np.float32) for x in (n, m)]
    for X in factors:
        X[:, :k] = rng.standard_normal((len(X), k)) / np.sqrt(k)
    scalars = [np.abs(rng.standard_normal((x, 2))).astype(np.float32) for x in (n, m)]
    strata = rng.permutation(blocks).astype(np.int32)
    return (indptr, indices, values, *bounds, *orders), strata, [*factors, *scalars], k


def run(isa, layout, strata, state, k, threads, epochs=1):
    kernels = load_kernels(isa)
    entries = kernels.sgd_layout(*layout, threads)
    state = [x.copy() for x in state]
    for _ in range(epochs):
        loss = kernels.sgd_epoch(*layout[3:5], *entries, strata, *state, k, 3.0, 0.05, 0.1, threads)
    return entries, loss, state


@EVERY_ISA
@settings(max_examples=100, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4))
def test_a_pass_equals_its_twin(isa, problem, threads):
    layout, strata, state, k = problem
    (starts, columns, values), loss, got = run(isa, layout, strata, state, k, threads)
    blocks = twin.sgd_blocks(*layout)
    rows = [row for p, q in sorted(blocks) for _, row in blocks[p, q]]
    assert np.diff(starts).tolist() == [len(row) for row in rows]
    assert columns.tolist() == [c for row in rows for c, _ in row]
    assert values.tolist() == [r for row in rows for _, r in row]
    want_loss, *want = twin.sgd_epoch(blocks, strata, *state, k, 3.0, 0.05, 0.1)
    assert loss == pytest.approx(want_loss, rel=1e-4, abs=1e-4)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    for X in got[:2]:
        assert not X[:, k:].any()


@EVERY_ISA
@settings(max_examples=40, deadline=None)
@given(problem=problems(), threads=st.integers(2, 4))
def test_threads_change_no_bit(isa, problem, threads):
    layout, strata, state, k = problem
    _, loss, one = run(isa, layout, strata, state, k, 1, epochs=3)
    _, again, many = run(isa, layout, strata, state, k, threads, epochs=3)
    assert loss == again
    assert [x.tobytes() for x in one] == [x.tobytes() for x in many]


def test_what_does_not_fit_together_is_refused():
    kernels = load_kernels(available()[0])
    bounds, order = np.array([0, 1, 2]), np.array([0, 1], np.int32)
    entries = np.array([0, 1, 2]), np.array([1, 0], np.int32), np.ones(2, np.float32)
    starts, columns, values = kernels.sgd_layout(*entries, bounds, bounds, order, order)
    good = {
        "row_bounds": bounds,
        "column_bounds": bounds,
        "starts": starts,
        "columns": columns,
        "values": values,
        "strata": order,
        "W": np.zeros((2, 16), np.float32),
        "H": np.zeros((2, 16), np.float32),
        "row_scalars": np.zeros((2, 2), np.float32),
        "column_scalars": np.zeros((2, 2), np.float32),
        "k": 3,
        "mean": 0.0,
        "reg": 0.1,
        "step": 0.1,
    }
    kernels.sgd_epoch(**good)
    for name, bad, message in [
        ("row_bounds", np.array([0, 2, 1]), "descend"),
        ("row_bounds", np.array([0, 1, 3]), "factors and scalars of 2 and 2 rows, expected 3"),
        ("column_bounds", np.array([0, 2]), "3 row and 2 column bounds"),
        ("starts", starts[::-1].copy(), "do not span"),
        ("starts", np.array([0, 2, 1, 2, 2]), "starts descend"),
        ("columns", columns[::-1].copy(), "outside its block"),
        ("columns", np.array([0, 7], np.int32), "outside its block"),
        ("values", values[:1], "for 2 entries"),
        ("strata", np.array([0, 0], np.int32), "not a permutation"),
        ("W", np.zeros((2, 15), np.float32), "multiple of 16"),
        ("H", np.zeros((3, 16), np.float32), "expected 2"),
        ("row_scalars", np.zeros((2, 3), np.float32), "expected 2"),
        ("k", 17, "multiple of 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.sgd_epoch(**{**good, name: bad})
    with pytest.raises(ValueError, match="not a permutation"):
        kernels.sgd_layout(*entries, bounds, bounds, np.array([0, 0], np.int32), order)
    with pytest.raises(ValueError, match="blocks of 3 rows for 2"):
        kernels.sgd_layout(*entries, np.array([0, 1, 3]), bounds, order, order)

"""The pass of stratified SGD equals its readable twin, and no thread changes a bit of it."""

from __future__ import annotations

import itertools

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


def run(isa, layout, strata, state, k, threads, epochs=1, **logistic):
    kernels = load_kernels(isa)
    entries = kernels.sgd_layout(*layout, threads)
    state = [x.copy() for x in state]
    for _ in range(epochs):
        loss = kernels.sgd_epoch(*layout[3:5], *entries, strata, *state, k, 3.0, 0.05, 0.1, threads, **logistic)
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
@settings(max_examples=60, deadline=None)
@given(
    problem=problems(),
    threads=st.integers(1, 4),
    negatives=st.sampled_from([0.3, 1.0, 4.0]),
    draw=st.integers(0, 2**64 - 1),
)
def test_a_logistic_pass_equals_its_twin(isa, problem, threads, negatives, draw):
    layout, strata, state, k = problem
    _, loss, got = run(isa, layout, strata, state, k, threads, negatives=negatives, draw=draw)
    blocks = twin.sgd_draws(twin.sgd_blocks(*layout), layout[4], negatives, draw)
    want_loss, *want = twin.sgd_epoch(blocks, strata, *state, k, 3.0, 0.05, 0.1, True)
    assert loss == pytest.approx(want_loss, rel=1e-4, abs=1e-4)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    assert got[2][:, 0].tobytes() == state[2][:, 0].tobytes()


def test_draws_are_as_many_as_asked_and_even_over_the_columns():
    bounds, n_u = np.array([0, 3, 8, 20]), 7
    rows = [(place, [(c, 1.0) for c in range(n_u)]) for place in range(400)]
    inside = [
        [(place, [(c, r) for c, r in row if a <= c < b]) for place, row in rows] for a, b in itertools.pairwise(bounds)
    ]
    blocks = {(p, q): inside[q] if p == 0 else [] for p in range(3) for q in range(3)}
    count = np.zeros(20)
    for drawn in twin.sgd_draws(blocks, bounds, 3.0, 1).values():
        for _, row in drawn:
            np.add.at(count, [c for c, r in row if r == 0], 1)
    expected = 3 * n_u * 400 / 20
    assert np.all(np.abs(count - expected) < 5 * np.sqrt(expected))
    assert abs(count.sum() - 20 * expected) < 5 * np.sqrt(3 * 400 / 4)


@EVERY_ISA
@settings(max_examples=60, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4), steps=st.integers(1, 9))
def test_logistic_rows_equal_their_twin(isa, problem, threads, steps):
    (indptr, indices, values, *_), _, state, k = problem
    Y, bias = state[1][:, :k].copy(), state[3][:, 0].copy()
    cell = (2 * np.diff(indptr) / len(Y)).astype(np.float32)
    reg = (0.1 + np.arange(len(cell))).astype(np.float32)
    solve = load_kernels(isa).logistic_rows
    X, failed = solve(indptr, indices, values, Y, bias, cell, reg, steps, threads)
    assert failed == -1
    np.testing.assert_allclose(X, twin.logistic_rows(indptr, indices, Y, bias, cell, reg, steps), rtol=1e-3, atol=1e-3)
    again, _ = solve(indptr, indices, values, Y, bias, cell, reg, steps, 1)
    assert again.tobytes() == X.tobytes()
    last = indptr[-2:] - indptr[-2]
    own = slice(indptr[-2], indptr[-1])
    alone, _ = solve(last, indices[own], values[own], Y, bias, cell[-1:], reg[-1:], steps, threads)
    assert alone.tobytes() == X[-1:].tobytes()


@EVERY_ISA
def test_logistic_rows_report_the_first_row_that_fails_and_refuse_what_does_not_fit(isa):
    good = {
        "indptr": np.array([0, 1, 2, 2]),
        "indices": np.array([0, 1], np.int32),
        "values": np.ones(2, np.float32),
        "Y": np.ones((2, 3), np.float32),
        "column_bias": np.zeros(2, np.float32),
        "cell": np.ones(3, np.float32),
        "reg": np.ones(3, np.float32),
        "steps": 2,
    }
    solve = load_kernels(isa).logistic_rows
    assert solve(**good)[1] == -1
    assert not solve(**good)[0][2].any()
    assert solve(**{**good, "reg": np.array([1, np.inf, 1], np.float32)})[1] == 1
    for name, bad, message in [
        ("steps", 0, "steps is 0"),
        ("column_bias", np.zeros(3, np.float32), "3 column biases for 2 columns"),
        ("cell", np.ones(2, np.float32), "2 cell weights and 3 penalties for 3 rows"),
        ("reg", np.ones(1, np.float32), "3 cell weights and 1 penalties for 3 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            solve(**{**good, name: bad})


@EVERY_ISA
@settings(max_examples=40, deadline=None)
@given(problem=problems(), threads=st.integers(2, 4), negatives=st.sampled_from([0.0, 2.0]))
def test_threads_change_no_bit(isa, problem, threads, negatives):
    layout, strata, state, k = problem
    _, loss, one = run(isa, layout, strata, state, k, 1, epochs=3, negatives=negatives)
    _, again, many = run(isa, layout, strata, state, k, threads, epochs=3, negatives=negatives)
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
        ("negatives", -1.0, "negatives is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.sgd_epoch(**{**good, name: bad})
    with pytest.raises(ValueError, match="not a permutation"):
        kernels.sgd_layout(*entries, bounds, bounds, np.array([0, 0], np.int32), order)
    with pytest.raises(ValueError, match="blocks of 3 rows for 2"):
        kernels.sgd_layout(*entries, np.array([0, 1, 3]), bounds, order, order)

"""Every kernel equals its readable twin, for every instruction set that was built and runs here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import kernels as twin

from eckart.core.kernels import available, load_kernels

EVERY_ISA = pytest.mark.parametrize("isa", available())
# Ranks around every block edge: vectors of 4, 8 and 16 floats, tiles of twice that, four vectors at a time.
RANKS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80, 127, 128, 129])


@st.composite
def problems(draw):
    """A small sparse matrix with empty, single-entry, long and duplicate rows, and factors of its columns."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, columns = draw(RANKS), draw(st.sampled_from([1, 2, 15, 16, 17, 200]))
    # A panel holds 16 KB / (4 k) rows: lengths on both sides of it; a column may repeat within a row.
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 15, 16, 17, 31, 32, 63, 64, 65, 130, 300]), max_size=12))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices = rng.integers(0, columns, indptr[-1]).astype(np.int32)
    Y = (rng.standard_normal((columns, k)) / np.sqrt(k)).astype(np.float32)
    return rng, indptr, indices, Y


def penalties(rng, indptr):
    """A penalty per row that grows with its length, so that every system's condition is at most about 100."""
    return (rng.uniform(0.05, 0.5, len(indptr) - 1) * np.maximum(np.diff(indptr), 1)).astype(np.float32)


def close(got, want, tolerance=2e-4):
    """Within `tolerance` of the largest value: the conditioning that the problems below allow in float32."""
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def shared_terms(rng, indptr, k, with_spectrum, with_prior):
    """A spectrum that falls by three orders of magnitude, and a prior of the size of a row; either may be absent."""
    return {
        "spectrum": (10 ** rng.uniform(-2, 1, k)).astype(np.float32) if with_spectrum else None,
        "prior": (rng.standard_normal((len(indptr) - 1, k)) / k).astype(np.float32) if with_prior else None,
    }


@EVERY_ISA
@settings(max_examples=200, deadline=None)
@given(
    problem=problems(),
    threads=st.integers(1, 4),
    with_spectrum=st.booleans(),
    with_prior=st.booleans(),
    bias=st.booleans(),
)
def test_explicit_rows_equal_their_twin(isa, problem, threads, with_spectrum, with_prior, bias):
    rng, indptr, indices, Y = problem
    values = rng.uniform(-5, 5, len(indices)).astype(np.float32)
    c = rng.standard_normal(len(Y)).astype(np.float32)
    reg = penalties(rng, indptr)
    shared = shared_terms(rng, indptr, Y.shape[1], with_spectrum, with_prior)
    arguments = indptr, indices, values, Y, c, 0.5, reg
    *got, failed = load_kernels(isa).explicit_rows(*arguments, threads, bias=bias, **shared)
    assert failed == -1
    for mine, theirs in zip(got, twin.explicit_rows(*arguments, bias=bias, **shared), strict=True):
        close(mine, theirs)


@EVERY_ISA
@settings(max_examples=200, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4), with_spectrum=st.booleans(), with_prior=st.booleans())
def test_implicit_rows_equal_their_twin(isa, problem, threads, with_spectrum, with_prior):
    rng, indptr, indices, Y = problem
    values = rng.integers(0, 4, len(indices)).astype(np.float32)
    reg = penalties(rng, indptr)
    shared = shared_terms(rng, indptr, Y.shape[1], with_spectrum, with_prior)
    arguments = indptr, indices, values, Y, 1.5, reg
    *got, failed = load_kernels(isa).implicit_rows(*arguments, threads, **shared)
    assert failed == -1
    for mine, theirs in zip(got, twin.implicit_rows(*arguments, **shared), strict=True):
        close(mine, theirs)


@EVERY_ISA
@settings(max_examples=200, deadline=None)
@given(problem=problems(), method=st.sampled_from(["cg", "block"]), bias=st.booleans(), seed=st.integers(0, 99))
def test_steps_never_raise_a_row_and_lead_to_its_optimum(isa, problem, method, bias, seed):
    rng, indptr, indices, Y = problem
    rows, k = len(indptr) - 1, Y.shape[1]
    values = rng.uniform(-2, 2, len(indices)).astype(np.float32)
    c, reg = np.zeros(len(Y), np.float32), penalties(rng, indptr)
    spectrum = (10 ** rng.uniform(-2, 1, k)).astype(np.float32)
    X = (rng.standard_normal((rows, k)) / k**0.5).astype(np.float32)
    b = rng.standard_normal(rows).astype(np.float32) * bias
    arguments = indptr, indices, values, Y, c, 0.0, reg, 2, spectrum, None, bias
    problem = indptr, indices, np.ones(len(values)), values, Y, reg, spectrum
    before = twin.row_value(*problem, X, b)
    optimum = twin.explicit_rows(*arguments[:7], spectrum, None, bias)[2]
    for steps in (1, 3, 200):
        X1, b1, value, failed = load_kernels(isa).explicit_rows(*arguments, method, steps, X, b if bias else None)
        assert failed == -1
        close(value, twin.row_value(*problem, X1, b1))
        assert np.all(value <= before + 1e-3 * (1 + before))
        assert np.all(value >= optimum - 1e-3 * (1 + optimum))
    close(value, optimum, 1e-3)


@EVERY_ISA
@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_a_long_row_summed_in_chunks_equals_its_twin(isa, kind):
    rng = np.random.default_rng(0)
    lengths = [40_000, 5, 33_000, 100_001]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, 500, indptr[-1]).astype(np.int32)
    values = rng.uniform(0, 2, indptr[-1]).astype(np.float32)
    Y = (rng.standard_normal((500, 17)) / 4).astype(np.float32)
    reg = np.asarray(lengths, np.float32)
    rest = (np.zeros(500, np.float32), 0.5, reg) if kind == "explicit" else (1.5, reg)
    solve = getattr(load_kernels(isa), f"{kind}_rows")
    *got, failed = solve(indptr, indices, values, Y, *rest, 3)
    assert failed == -1
    for mine, theirs in zip(got, getattr(twin, f"{kind}_rows")(indptr, indices, values, Y, *rest), strict=True):
        close(mine, theirs)
    for threads in (1, 4):
        for mine, again in zip(got, solve(indptr, indices, values, Y, *rest, threads)[:-1], strict=True):
            assert mine.tobytes() == again.tobytes()


@EVERY_ISA
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([500, 1007, 1024, 1025, 2047, 2048, 2049, 3000, 5000]), min_size=1, max_size=9),
    columns=st.sampled_from([700, 1024, 1025, 5000]),
    k=st.sampled_from([64, 65, 128]),
    sort=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_improved_together_equal_their_twin_and_each_alone(isa, lengths, columns, k, sort, seed):
    # Half a megabyte of factors is 2048 rows at k = 64, 1024 at 128: rows shorter and longer, columns fewer and more.
    rng, kernels = np.random.default_rng(seed), load_kernels(isa)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, columns, indptr[-1]).astype(np.int32)  # some twice
    if sort:
        indices = np.concatenate([np.sort(row) for row in np.split(indices, indptr[1:-1])])
    values = rng.uniform(-2, 2, len(indices)).astype(np.float32)
    Y = (rng.standard_normal((columns, k)) / k**0.5).astype(np.float32)
    c, reg = rng.standard_normal(columns).astype(np.float32), penalties(rng, indptr)
    shared = shared_terms(rng, indptr, k, True, True)
    X = (rng.standard_normal((len(lengths), k)) / k**0.5).astype(np.float32)
    b = rng.standard_normal(len(lengths)).astype(np.float32)

    def solved(rows, threads):
        begin, end = indptr[rows.start], indptr[rows.stop]
        here = indptr[rows.start : rows.stop + 1] - begin, indices[begin:end], values[begin:end]
        terms = {"spectrum": shared["spectrum"], "prior": shared["prior"][rows]}
        start = {"start": X[rows], "start_bias": b[rows]}
        return kernels.explicit_rows(*here, Y, c, 0.5, reg[rows], threads, method="cg", steps=2, **terms, **start)[:3]

    every = slice(0, len(lengths))
    W, bias, objective = solved(every, 1)
    want, want_bias = twin.cg_rows(indptr, indices, values, Y, c, 0.5, reg, *shared.values(), X, b, 2)
    close(W, want)
    close(bias, want_bias)
    left = values - np.float32(0.5) - c[indices]
    moved = left - np.concatenate(
        [Y[i] @ p for i, p in zip(np.split(indices, indptr[1:-1]), shared["prior"], strict=True)]
    )
    problem = indptr, indices, np.ones(len(values)), moved, Y, reg, shared["spectrum"]
    close(objective, twin.row_value(*problem, W - shared["prior"], bias))
    for threads in (2, 4):
        for mine, again in zip((W, bias, objective), solved(every, threads), strict=True):
            assert mine.tobytes() == again.tobytes()
    for row in range(len(lengths)):
        for mine, alone in zip((W, bias, objective), solved(slice(row, row + 1), 1), strict=True):
            assert mine[row].tobytes() == alone[0].tobytes()


@EVERY_ISA
@settings(max_examples=60, deadline=None)
@given(k=RANKS, rows=st.sampled_from([0, 1, 5, 15, 16, 17, 300]), seed=st.integers(0, 2**32 - 1))
def test_rotate_equals_its_twin(isa, k, rows, seed):
    rng = np.random.default_rng(seed)
    Y = rng.standard_normal((rows, k)).astype(np.float32)
    Q = np.linalg.qr(rng.standard_normal((k, k)))[0].astype(np.float32)
    close(load_kernels(isa).rotate(Y, Q, 2), twin.rotate(Y, Q), 1e-5)


@EVERY_ISA
@pytest.mark.parametrize("rows", [0, 1, 17, 1024, 1025, 70_000])
def test_gram_equals_its_twin(isa, rows):
    Y = np.random.default_rng(rows).standard_normal((rows, 19)).astype(np.float32)
    close(load_kernels(isa).gram(Y, 2), twin.gram(Y), 1e-5)


@EVERY_ISA
@settings(max_examples=60, deadline=None)
@given(k=RANKS, pairs=st.sampled_from([0, 1, 5, 4096, 4097]), seed=st.integers(0, 2**32 - 1))
def test_pair_scores_equal_their_twin(isa, k, pairs, seed):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((5, k)).astype(np.float32), rng.standard_normal((7, k)).astype(np.float32)
    b, c = rng.standard_normal(5).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    i, j = rng.integers(-1, 5, pairs), rng.integers(-1, 7, pairs)
    close(load_kernels(isa).pair_scores(X, Y, b, c, 3.5, i, j, 2), twin.pair_scores(X, Y, b, c, 3.5, i, j), 1e-5)


@EVERY_ISA
@settings(max_examples=150, deadline=None)
@given(
    k=RANKS,
    items=st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 300]),
    queries=st.sampled_from([0, 1, 3, 4, 5, 8, 9, 64, 65, 130]),
    top=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 100]),
    seed=st.integers(0, 2**32 - 1),
)
def test_top_k_equals_its_twin(isa, k, items, queries, top, levels, seed):
    rng = np.random.default_rng(seed)
    # Small integers are exact in float32 in any order of summation, so ties are true ties, and many at few levels.
    Q = rng.integers(-1, 2, (queries, k)).astype(np.float32)
    Y = (rng.integers(-levels, levels + 1, (items, k))).astype(np.float32)
    bias = rng.integers(0, 2, items).astype(np.float32)
    excluded = [np.sort(rng.choice(items, rng.integers(0, items + 1), replace=False)) for _ in range(queries)]
    indptr = np.concatenate([[0], np.cumsum([len(e) for e in excluded])]).astype(np.int64)
    indices = np.concatenate([np.empty(0), *excluded]).astype(np.int32)
    kernels = load_kernels(isa)
    # Some items are banned by a bias of -inf; items lie in any order.
    order = rng.permutation(items).astype(np.int32)
    codes, bounds, sound = kernels.pack_codes(Y, bias, order, 2)
    assert sound
    panels = kernels.pack_items(Y, bias, order, 2)
    bias[rng.random(items) < 0.2] = -np.inf
    scores = Q.astype(np.float64) @ Y.T + bias
    want = twin.top_k(scores, [set(e.tolist()) for e in excluded], top)
    for best, score in (
        kernels.top_k(Q, *panels, order, bias, indptr, indices, top, 2),
        kernels.top_one(Q, Y, codes, bounds, order, bias, indptr, indices, top, 2),
    ):
        np.testing.assert_array_equal(best, want)
        for q in range(queries):
            np.testing.assert_array_equal(score[q][want[q] >= 0], scores[q][want[q][want[q] >= 0]])
            assert np.all(score[q][want[q] < 0] == -np.inf)


@EVERY_ISA
@settings(max_examples=100, deadline=None)
@given(
    k=RANKS,
    items=st.sampled_from([1, 17, 64, 65, 700]),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e12]),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_query_and_a_batch_give_the_same_bits(isa, k, items, spread, size, seed):
    """Also where scores nearly cancel, differ by one rounding, or come from norms of every size."""
    rng = np.random.default_rng(seed)
    kernels = load_kernels(isa)
    Y = size * np.exp(spread * rng.standard_normal((items, 1))) * rng.standard_normal((items, k))
    Y[rng.random((items, k)) < 0.2] = 0
    Y = Y.astype(np.float32)
    Y[rng.integers(0, items, items // 3)] = Y[rng.integers(0, items, items // 3)]  # ties
    Q = np.concatenate([Y[rng.integers(0, items, 2)], rng.standard_normal((7, k)), np.zeros((1, k))]).astype(np.float32)
    bias = (size * rng.integers(-1, 2, items)).astype(np.float32)
    norms = np.linalg.norm(Y.astype(np.float64), axis=1)
    order = np.argsort(-norms).astype(np.int32)
    codes, bounds, sound = kernels.pack_codes(Y, bias, order)
    assert sound == bool(norms.max() < 1e15)
    if not sound or np.abs(Q).max() > 1e12:
        return
    none = np.zeros(len(Q) + 1, np.int64), np.zeros(0, np.int32)
    batch = kernels.top_k(Q, *kernels.pack_items(Y, bias, order), order, bias, *none, 5, 1)
    for threads in (1, 3):
        one = kernels.top_one(Q, Y, codes, bounds, order, bias, *none, 5, threads)
        assert [x.tobytes() for x in one] == [x.tobytes() for x in batch]


@EVERY_ISA
def test_a_query_split_over_threads_gives_the_same_bits(isa):
    rng = np.random.default_rng(0)
    kernels = load_kernels(isa)
    items, k = 100_000, 64  # 6.4 MB of codes: three parts of one query
    Y = rng.integers(-1, 2, (items, k)).astype(np.float32)
    Y[50_000:] = Y[:50_000]  # every score twice: ties lie in different parts
    Q, bias = Y[[7]].copy(), np.zeros(items, np.float32)
    order = rng.permutation(items).astype(np.int32)
    codes = *kernels.pack_codes(Y, bias, order, 2)[:2], order
    none = np.zeros(2, np.int64), np.zeros(0, np.int32)
    want = np.argsort(-(Y @ Q[0]), kind="stable")[:40]
    for threads in (1, 2, 3, 8):
        best, score = kernels.top_one(Q, Y, *codes, bias, *none, 40, threads)
        np.testing.assert_array_equal(best[0], want)
        np.testing.assert_array_equal(score[0], Y[want] @ Q[0])


@EVERY_ISA
def test_codes_are_not_used_where_their_bounds_would_not_hold(isa):
    kernels = load_kernels(isa)
    order, one = np.zeros(1, np.int32), np.ones((1, 3), np.float32)
    assert kernels.pack_codes(one, np.zeros(1, np.float32), order)[2]
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        Y = one.copy()
        Y[0, 1] = bad
        assert not kernels.pack_codes(Y, np.zeros(1, np.float32), order)[2]
    for bad in (np.nan, np.inf, -np.inf):
        assert not kernels.pack_codes(one, np.array([bad], np.float32), order)[2]
    good = {
        "Q": one,
        "Y": one,
        "codes": np.zeros((3, kernels.code_width), np.int8),
        "bounds": np.zeros((4, kernels.code_width), np.float32),
        "order": order,
        "bias": np.zeros(1, np.float32),
        "exclude_indptr": np.zeros(2, np.int64),
        "exclude": np.zeros(0, np.int32),
        "top": 1,
    }
    kernels.top_one(**good)
    for name, bad in (
        ("Y", np.ones((2, 3), np.float32)),
        ("codes", np.zeros((2, kernels.code_width), np.int8)),
        ("bounds", np.zeros((3, kernels.code_width), np.float32)),
        ("order", np.ones(1, np.int32)),
        ("order", -np.ones(1, np.int32)),
        ("order", np.zeros(2, np.int32)),
        ("exclude", np.ones(1, np.int32)),
        ("top", 0),
    ):
        with pytest.raises(ValueError):
            kernels.top_one(**{**good, name: bad})


@EVERY_ISA
@settings(max_examples=20, deadline=None)
@given(problem=problems())
def test_the_bits_do_not_depend_on_the_threads(isa, problem):
    rng, indptr, indices, Y = problem
    kernels = load_kernels(isa)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    reg = np.ones(len(indptr) - 1, np.float32)
    Z = rng.standard_normal((5000, Y.shape[1])).astype(np.float32)
    for threads in (2, 4):
        for call in (
            lambda t: kernels.explicit_rows(indptr, indices, values, Y, np.zeros(len(Y), np.float32), 3, reg, t)[:3],
            lambda t: kernels.implicit_rows(indptr, indices, values, Y, 1, reg, t)[:2],
            lambda t: kernels.implicit_rows(indptr, indices, values, Y, 1, reg, t, method="cg", steps=2)[:2],
            lambda t: kernels.implicit_rows(indptr, indices, values, Y, 1, reg, t, method="block", steps=1)[:2],
            lambda t: (kernels.rotate(Z, kernels.gram(Y, t), t),),
            lambda t: (kernels.gram(Z, t),),
        ):
            for one, many in zip(call(1), call(threads), strict=True):
                assert one.tobytes() == many.tobytes()


@EVERY_ISA
def test_a_system_without_a_solution_is_reported_and_never_returned(isa):
    kernels = load_kernels(isa)
    indptr, indices = np.array([0, 1, 2, 3]), np.zeros(3, np.int32)
    values, bias, reg = np.ones(3, np.float32), np.zeros(1, np.float32), np.ones(3, np.float32)
    for bad in (np.nan, np.inf, 1e30):
        Y = np.full((1, 20), bad, np.float32)
        assert kernels.explicit_rows(indptr, indices, values, Y, bias, 0, reg, 1)[3] == 0
        assert kernels.implicit_rows(indptr, indices, values, Y, 1, reg, 1)[2] == 0
    reg[1] = -5
    assert kernels.explicit_rows(indptr, indices, values, np.ones((1, 20), np.float32), bias, 0, reg, 2)[3] == 1


@EVERY_ISA
def test_nan_scores_are_never_recommended(isa):
    kernels = load_kernels(isa)
    Y = np.array([[1.0], [np.nan], [2.0]], np.float32)
    none = np.zeros(2, np.int64), np.zeros(0, np.int32)
    bias, order = np.zeros(3, np.float32), np.array([1, 0, 2], np.int32)
    panels = kernels.pack_items(Y, bias, order)
    best, _ = kernels.top_k(np.ones((1, 1), np.float32), *panels, order, bias, *none, 3)
    assert best.tolist() == [[2, 0, -1]]


@EVERY_ISA
@pytest.mark.parametrize(
    "change, message",
    [
        ({"indices": np.array([0, 3], np.int32)}, "column index 3"),
        ({"indices": np.array([0, -1], np.int32)}, "column index -1"),
        ({"indptr": np.array([0, 2, 1, 2])}, "descends"),
        ({"indptr": np.array([1, 1, 1, 2])}, "runs from 1"),
        ({"indptr": np.array([0, 1, 1, 9])}, "to 9"),
        ({"values": np.ones(3, np.float32)}, "3 values for 2 entries"),
        ({"column_bias": np.ones(2, np.float32)}, "2 column biases"),
        ({"reg": np.ones(2, np.float32)}, "2 values of reg"),
        ({"threads": 0}, "threads is 0"),
        ({"Y": np.ones((3, 0), np.float32)}, "no columns"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(isa, change, message):
    arguments = {
        "indptr": np.array([0, 1, 1, 2]),
        "indices": np.array([0, 2], np.int32),
        "values": np.ones(2, np.float32),
        "Y": np.ones((3, 4), np.float32),
        "column_bias": np.zeros(3, np.float32),
        "mean": 0.0,
        "reg": np.ones(3, np.float32),
    }
    load_kernels(isa).explicit_rows(**arguments)
    with pytest.raises(ValueError, match=message):
        load_kernels(isa).explicit_rows(**{**arguments, **change})

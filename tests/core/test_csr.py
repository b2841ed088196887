"""Compressed rows: equal to SciPy's below 2^31 entries, and the same beyond, which is pretended here or is virtual."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

import eckart as ek
from eckart.core import csr as module
from eckart.core.csr import column_counts, csr, fault_of, row_numbers, take_rows, transposed


@pytest.fixture(params=[1 << 20, 1, 7], ids="blocks of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


@pytest.fixture
def wide(monkeypatch):
    """Every matrix is one of 2^31 entries and more."""
    monkeypatch.setattr(module, "_WIDE", 1)


def matrices():
    sizes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32 - 1))
    return sizes.map(lambda s: csr_array(random_array(s[:2], density=s[2], rng=s[3], dtype=np.float32, format="csr")))


def same(one, other):
    assert one.shape == other.shape
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("pretend", [False, True], ids=["narrow", "wide"])
@given(matrix=matrices(), size=st.sampled_from([1, 3, 7, 1 << 20]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_whole_matrices_equal_scipys(pretend, matrix, size, seed):
    matrix.sort_indices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", size)
        if pretend:
            patch.setattr(module, "_WIDE", 1)
        mine = csr(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), matrix.shape)
        assert mine.indices.dtype == np.int32
        assert mine.indptr.dtype == (np.int64 if pretend and matrix.nnz else np.int32)
        assert fault_of(mine.indptr, mine.indices, mine.data, mine.shape[1]) is None
        same(transposed(mine), csr_array(matrix.T.tocsr()))
        assert transposed(mine).indices.dtype == np.int32
        np.testing.assert_array_equal(column_counts(mine), np.diff(matrix.T.tocsr().indptr))
        rows = np.random.default_rng(seed).integers(0, matrix.shape[0], 5)
        same(take_rows(mine, rows), matrix[rows])
        whole = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        begin, end = sorted(np.random.default_rng(seed).integers(0, matrix.nnz + 1, 2).tolist())
        np.testing.assert_array_equal(row_numbers(matrix.indptr, begin, end), whole[begin:end])


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "indptr, indices, value, sentence",
    [
        ([0, 2, 4], [0, 1, 0, 2], 1, None),
        ([0, 0, 0, 4, 4], [0, 1, 2, 3], 1, None),
        ([0], [], 1, None),
        ([], [], 1, "cut"),
        ([1, 2, 4], [0, 1, 0, 2], 1, "cut"),
        ([0, 2, 3], [0, 1, 0, 2], 1, "cut"),
        ([0, 5, 4], [0, 1, 0, 2], 1, "cut"),
        ([0, 2**62, 4], [0, 1, 0, 2], 1, "cut"),
        ([0, -(2**63), 4], [0, 1, 0, 2], 1, "cut"),
        ([0, 2, 4], [0, 1, 2, 0], 1, "ascend"),
        ([0, 2, 4], [1, 1, 0, 2], 1, "ascend"),
        ([0, 1, 4], [2, 1, 0, 2], 1, "ascend"),
        ([0, 2, 4], [0, 1, 0, 4], 1, "outside 0 to 3"),
        ([0, 2, 4], [-1, 1, 0, 2], 1, "outside 0 to 3"),
        ([0, 2, 4], [0, 1, 0, 2], np.nan, "NaN"),
        ([0, 2, 4], [0, 1, 0, 2], -np.inf, "infinity"),
    ],
)
def test_every_fault_is_named(indptr, indices, value, sentence):
    values = np.ones(len(indices), np.float32)
    values[2:3] = value
    found = fault_of(np.array(indptr, np.int64), np.array(indices, np.int32), values, 4)
    assert found is None if sentence is None else sentence in found


def test_offsets_past_2_31_are_never_narrowed():
    entries = 2**31 + 5  # one zero in memory, seen through a stride of 0
    zeros = [np.broadcast_to(np.zeros(1, dtype), entries) for dtype in (np.float32, np.int32)]
    matrix = csr(*zeros, np.array([0, 3, 2**31 - 1, 2**31 + 2, entries]), (4, 9))
    assert (matrix.indptr.dtype, matrix.indices.dtype) == (np.int64, np.int32)
    assert matrix.indices is zeros[1]
    assert matrix.nnz == entries
    last = take_rows(matrix, np.array([3, 2]))
    assert last.indptr.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(row_numbers(matrix.indptr, 2**31, 2**31 + 4), [2, 2, 3, 3])


@pytest.mark.parametrize(
    "solver", [ek.ALS(rank=4, epochs=2), ek.ImplicitALS(rank=4, epochs=2)], ids=lambda s: type(s).__name__
)
def test_past_2_31_entries_all_is_as_below(solver, wide, monkeypatch, tmp_path):
    data = ek.synthetic(60, 40, 900, seed=0)
    model = solver.fit(data)
    model.save(tmp_path / "wide")
    far = ek.load(tmp_path / "wide")
    assert data.matrix.indptr.dtype == data.by_item().indptr.dtype == far.seen.indptr.dtype == np.int64
    assert data.matrix.indices.dtype == data.by_item().indices.dtype == far.seen.indices.dtype == np.int32
    monkeypatch.undo()
    near_data = ek.synthetic(60, 40, 900, seed=0)
    near = solver.fit(near_data)
    assert near_data.matrix.indptr.dtype == np.int32
    assert near.W.tobytes() == model.W.tobytes() == far.W.tobytes()
    assert near.recommend().equals(model.recommend())
    assert far.recommend(history={3: 4.0, 7: 1.0}).equals(near.recommend(history={3: 4.0, 7: 1.0}))
    assert ek.evaluate(far, near_data).to_dict() == ek.evaluate(near, near_data).to_dict()
    near.save(tmp_path / "near")
    for file in (tmp_path / "wide").iterdir():
        assert file.read_bytes() == (tmp_path / "near" / file.name).read_bytes()

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary


@st.composite
def entries(draw):
    """Unique cells of a 6 x 5 matrix in any order, with values and times that tell them apart."""
    cells = np.array(draw(st.lists(st.integers(0, 29), unique=True)), dtype=np.int64)
    return cells // 5, cells % 5, cells + 1.0, cells * 7


def made(rows, cols, values, times):
    return Interactions.of(rows, cols, values, Vocabulary(np.arange(6)), Vocabulary(list("abcde")), times)


@settings(deadline=None)
@given(entries(), st.randoms())
def test_the_order_of_entries_plays_no_role(parts, random):
    order = list(range(len(parts[0])))
    random.shuffle(order)
    a, b = made(*parts), made(*(part[order] for part in parts))
    assert a.to_arrow().equals(b.to_arrow())
    dense = np.zeros((6, 5))
    dense[parts[0], parts[1]] = parts[2]
    assert np.array_equal(a.matrix.toarray(), dense)
    assert np.array_equal(a.user_rows() * 5 + a.matrix.indices, np.sort(parts[0] * 5 + parts[1]))
    assert np.array_equal(a.times, (a.matrix.data - 1) * 7)


@settings(deadline=None)
@given(entries(), st.data())
def test_select_keeps_the_chosen_entries_under_their_ids(parts, data):
    whole = made(*parts)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=whole.nnz, max_size=whole.nnz)), dtype=bool)
    part = whole.select(keep)
    assert part.to_arrow().equals(whole.to_arrow().filter(keep))
    assert np.all(np.diff(part.matrix.indptr) > 0)
    assert len(np.unique(part.matrix.indices)) == len(part.items)


@settings(deadline=None)
@given(entries(), entries())
def test_aligned_puts_entries_under_another_numbering(one, other):
    a, b = made(*one), made(*other).select(np.ones(len(other[0]), dtype=bool))
    matrix, known = a.aligned(b.users, b.items)
    inside = [u in b.users and i in b.items for u, i in zip(a.user_rows(), a.items.ids[a.matrix.indices], strict=True)]
    assert known.tolist() == inside
    assert matrix.shape == b.matrix.shape
    assert np.array_equal(matrix.data, a.matrix.data[known])


def test_scipy_can_do_its_work_on_the_matrix():  # with int64 indptr beside int32 indices it cannot
    data = made(np.array([0, 3]), np.array([1, 2]), np.array([1.0, 2.0]), None)
    assert data.matrix.indices.dtype == data.matrix.indptr.dtype == np.int32
    assert data.matrix.data.dtype == np.float32
    assert np.array_equal(data.matrix.tocoo().toarray(), data.matrix.T.tocsr().T.toarray())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="vocabularies"):
        Interactions(csr_array((2, 2)), Vocabulary([1]), Vocabulary([1, 2]))
    with pytest.raises(ValueError, match="times"):
        Interactions(csr_array((1, 1), dtype=np.float32), Vocabulary([1]), Vocabulary([1]), np.zeros(3, dtype=np.int64))

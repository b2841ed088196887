import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.data.synthetic import synthetic


@st.composite
def shapes(draw):
    users, items = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return users, items, draw(st.integers(1, users * items))


@settings(deadline=None)
@given(shapes(), st.integers(1, 9), st.floats(1.1, 5), st.integers(0, 99), st.booleans())
def test_as_many_pairs_as_asked_and_everyone_there_if_they_suffice(shape, rank, popularity, seed, rated):
    users, items, entries = shape
    data = synthetic(*shape, rank=rank, popularity=popularity, seed=seed, rated=rated)
    assert data.matrix.shape == (users, items)
    assert data.nnz == entries
    assert data.matrix.has_canonical_format
    assert len(np.unique(data.user_rows().astype(np.int64) * items + data.matrix.indices)) == entries
    if entries >= users:
        assert np.diff(data.matrix.indptr).min() >= 1
    if entries >= items:
        assert len(np.unique(data.matrix.indices)) == items
    stars = data.matrix.data
    if rated:
        assert np.all((stars >= 1) & (stars <= 5) & (2 * stars == np.round(2 * stars)))
    else:
        assert np.all(stars == 1)
        assert not data.rated


def test_the_seed_decides():
    a, b, c = (synthetic(50, 40, 600, seed=s).to_arrow() for s in (3, 3, 4))
    assert a.equals(b)
    assert not a.equals(c)
    pairs = synthetic(50, 40, 600, seed=3, rated=False).to_arrow()
    assert pairs.equals(a.select(["user", "item"]))


def test_few_have_most():
    data = synthetic(3_000, 1_500, 150_000)
    users, items = np.diff(data.matrix.indptr), np.bincount(data.matrix.indices)
    assert np.median(users) < 0.6 * users.mean()
    assert users.max() > 10 * users.mean()
    assert np.median(items) < 0.4 * items.mean()
    assert items.max() > 12 * items.mean()
    steep = np.bincount(synthetic(3_000, 1_500, 150_000, popularity=4).matrix.indices)
    assert np.median(steep) < np.median(items)


def test_a_low_rank_model_has_something_to_learn():
    # the first factors of the centred matrix stand out only where there are any
    def concentration(noise):
        data = synthetic(300, 200, 40_000, rank=2, noise=noise)
        centred = data.matrix.copy()
        centred.data -= centred.data.mean()
        s = np.linalg.svd(centred.toarray(), compute_uv=False)
        return np.sum(s[:6] ** 2) / np.sum(s**2)

    assert concentration(0.1) > concentration(2.0) + 0.1


@pytest.mark.parametrize(
    "bad", [{"users": 0}, {"entries": 0}, {"entries": 101}, {"rank": 0}, {"noise": -1}, {"popularity": 1.0}]
)
def test_what_cannot_be_drawn_is_refused(bad):
    with pytest.raises(ValueError):
        synthetic(**({"users": 10, "items": 10, "entries": 50} | bad))

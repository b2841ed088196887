"""One held-out item among sampled ones, against the protocol in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.recommend.sampled_negatives import rank_among


class Scores:
    """Scores user u and item i by a table."""

    def __init__(self, table):
        self.table = np.asarray(table, np.float32)

    def predict(self, users, items):
        return self.table[users, items]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 20), c=st.integers(0, 8))
def test_the_place_is_that_of_a_sorted_list(seed, levels, c):
    rng = np.random.default_rng(seed)
    table = rng.integers(levels, size=(5, 9))  # few levels: many ties
    items, negatives = rng.integers(9, size=5), rng.integers(9, size=(5, c))  # repeats, and the item itself
    place = rank_among(Scores(table), np.arange(5), items, negatives)
    for u in range(5):
        others = {int(i) for i in negatives[u]} - {int(items[u])}
        worst_first = sorted(others | {int(items[u])}, key=lambda i: (-table[u, i], i == items[u]))
        assert place[u] == 1 + worst_first.index(items[u])


def test_scoring_everything_alike_comes_last():
    assert rank_among(Scores(np.zeros((1, 5))), [0], [0], [[1, 2, 3, 4]]).tolist() == [5]


def test_an_untrained_model_is_found_at_every_place_equally_often():
    rng = np.random.default_rng(0)
    place = rank_among(Scores(rng.random((4000, 10))), np.arange(4000), np.zeros(4000, int), [[*range(1, 10)]] * 4000)
    assert np.mean(place <= 5) == pytest.approx(0.5, abs=0.03)
    assert set(place.tolist()) == set(range(1, 11))


def test_what_does_not_fit_is_refused():
    model = Scores(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"negatives \(1, 2\): expected \(q,\), \(q,\) and \(q, c\)"):
        rank_among(model, [0, 1], [0, 1], [[1, 2]])
    with pytest.raises(ValueError, match="no finite number"):
        rank_among(Scores([[np.nan, 0]]), [0], [0], [[1]])

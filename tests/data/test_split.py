import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.data.read import read
from eckart.data.split import split
from eckart.data.synthetic import synthetic

WAYS = ("random", "time", "user", "item", "leave_one_out")


@st.composite
def timed(draw):
    """Between 10 and 60 entries of which many are equally late."""
    cells = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True, min_size=10, max_size=60))
    times = draw(st.lists(st.integers(0, 5), min_size=len(cells), max_size=len(cells)))
    return {
        "user": [c[0] for c in cells],
        "item": [c[1] for c in cells],
        "rating": [1.0] * len(cells),
        "time": times,
    }


def pairs(data):
    return set(zip(*data.to_arrow().select(["user", "item"]).to_pydict().values(), strict=True))


@settings(deadline=None)
@given(timed(), st.sampled_from(WAYS), st.integers(0, 99), st.randoms())
def test_parts_are_disjoint_complete_and_independent_of_the_files_order(table, by, seed, random):
    data = read(table)
    if by in ("user", "leave_one_out") and (len(data.users) < 2 or data.nnz == len(data.users)):
        return
    if by == "item" and len(data.items) < 2:
        return
    train, test = split(data, test=0.5, by=by, seed=seed)
    assert not pairs(train) & pairs(test)
    assert pairs(train) | pairs(test) == pairs(data)
    assert min(train.nnz, test.nnz) > 0
    assert train.nnz + test.nnz == data.nnz
    order = list(range(data.nnz))
    random.shuffle(order)
    shuffled = read(pa.table(table).take(order))
    for one, other in zip((train, test), split(shuffled, test=0.5, by=by, seed=seed), strict=True):
        assert one.to_arrow().equals(other.to_arrow())


@settings(deadline=None)
@given(timed(), st.floats(0.1, 0.9), st.integers(0, 9))
def test_each_way_keeps_its_promise(table, fraction, seed):
    data = read(table)
    for by in ("random", "time"):
        train, test = split(data, fraction, by, seed)
        assert test.nnz == round(fraction * data.nnz)
        if by == "time":
            assert train.times.max() <= test.times.min()
    if 0 < round(fraction * len(data.users)) < len(data.users):
        train, test = split(data, fraction, "user", seed)
        assert len(test.users) == round(fraction * len(data.users))
        assert not set(train.users.ids.tolist()) & set(test.users.ids.tolist())


@settings(deadline=None)
@given(timed(), st.integers(0, 9), st.booleans())
def test_leave_one_out_takes_one_entry_the_latest_of_who_has_two(table, seed, with_times):
    data = read(table, timestamp=None if with_times else False)
    counts = dict(zip(data.users.ids.tolist(), np.diff(data.matrix.indptr).tolist(), strict=True))
    if max(counts.values()) == 1:
        return
    train, test = split(data, by="leave_one_out", seed=seed)
    held = dict(zip(test.users.ids.tolist(), np.diff(test.matrix.indptr).tolist(), strict=True))
    assert held == {user: 1 for user, count in counts.items() if count > 1}
    if with_times:
        last = dict(zip(test.to_arrow()["user"].to_pylist(), test.times.tolist(), strict=True))
        for user, time in zip(train.to_arrow()["user"].to_pylist(), train.times.tolist(), strict=True):
            assert user not in last or time <= last[user]


@pytest.mark.parametrize("by", ["random", "user", "leave_one_out"])
def test_another_seed_gives_another_split(by):
    data = synthetic(40, 20, 400)
    assert pairs(split(data, 0.2, by, seed=0)[1]) == pairs(split(data, 0.2, by, seed=0)[1])
    assert pairs(split(data, 0.2, by, seed=0)[1]) != pairs(split(data, 0.2, by, seed=1)[1])


def test_what_cannot_be_split_is_said_in_a_sentence():
    data = synthetic(4, 3, 6)
    for bad, words in [
        ({"by": "date"}, "expected 'random'"),
        ({"test": 0.0}, "between 0 and 1"),
        ({"test": 1.0}, "between 0 and 1"),
        ({"test": float("nan")}, "between 0 and 1"),
        ({"by": "time"}, "no timestamps"),
        ({"test": 0.01}, "test part"),
        ({"test": 0.99}, "training part"),
        ({"by": "user", "test": 0.1}, "test part"),
    ]:
        with pytest.raises(ValueError, match=words):
            split(data, **bad)
    with pytest.raises(ValueError, match="one entry each"):
        split(read({"user": [1, 2], "item": [1, 1]}), by="leave_one_out")


def test_by_item_takes_whole_items():
    data = read({"user": [1, 2, 1, 2, 3, 3], "item": [5, 5, 6, 7, 7, 8]})
    train, test = split(data, test=0.5, by="item", seed=3)
    assert len(test.items) == 2
    assert not set(train.items.ids.tolist()) & set(test.items.ids.tolist())

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eckart.data.vocabulary import Vocabulary

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
IDS = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True) | st.lists(TEXT, unique=True)


@settings(deadline=None)
@given(IDS, st.randoms())
def test_rows_undo_ids_whatever_the_order(ids, random):
    v = Vocabulary.of(ids)
    shuffled = ids[:]
    random.shuffle(shuffled)
    assert v == Vocabulary.of(shuffled + ids[:1])
    assert v.ids[v.rows(ids)].tolist() == ids
    assert v.ids.tolist() == sorted(ids)
    assert all(one in v for one in ids)


def test_strings_of_any_length_are_found():  # np.searchsorted on two StringDType arrays loses long ones
    ids = [f"{'long ' * (n % 9)}film no. {n}" for n in range(300)]
    v = Vocabulary.of(ids)
    assert v.ids[v.rows(ids)].tolist() == ids
    assert v.rows([f"{one}!" for one in ids]).tolist() == [-1] * 300


@settings(deadline=None)
@given(IDS, IDS)
def test_what_is_unknown_is_minus_one(ids, others):
    v = Vocabulary.of(ids)
    for one, row in zip(others, v.rows(others), strict=True):
        assert row == (sorted(ids).index(one) if one in ids else -1)


def test_integers_and_text_are_never_taken_for_one_another():
    assert Vocabulary.of([1, 2]).rows(["1", "2"]).tolist() == [-1, -1]
    assert Vocabulary.of(["1", "2"]).rows([1, 2]).tolist() == [-1, -1]
    assert Vocabulary.of([0, 1]).rows([True, 1, None, "1", 2**70]).tolist() == [-1, 1, -1, -1, -1]
    assert Vocabulary.of([1]) != Vocabulary.of(["1"])


@pytest.mark.parametrize(
    "ids, error",
    [
        ([2, 1], ValueError),
        ([1, 1], ValueError),
        (np.zeros((2, 2), dtype=int), ValueError),
        ([1.5], TypeError),
        ([1, "a"], TypeError),
        ([None], TypeError),
        ([2**63], TypeError),
        (np.array([2**63], dtype=np.uint64), TypeError),
    ],
)
def test_what_is_no_vocabulary_is_refused(ids, error):
    with pytest.raises(error):
        Vocabulary(ids)


def test_a_vocabulary_cannot_be_changed():
    v = Vocabulary([1, 2])
    with pytest.raises(AttributeError):
        v.ids = np.array([3])
    with pytest.raises(ValueError):
        v.ids[0] = 3


def test_take_keeps_the_order():
    assert Vocabulary(["a", "b", "c"]).take([0, 2]).ids.tolist() == ["a", "c"]

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from eckart.core.csr import fault_of
from eckart.data import feature_map as module
from eckart.data.feature_map import FeatureMap
from eckart.data.feature_table import Column, Features
from eckart.data.features import read_features
from eckart.data.vocabulary import Vocabulary

STRING = np.dtypes.StringDType()
few = settings(deadline=None, max_examples=40)
TERMS = ["ab", "cd", "ef", "É_1", "straße", "日本", "x"]


@st.composite
def features(draw, min_rows=1, kinds=("number", "categories", "text", "vector")):
    """Features with values missing at random; numbers of all sizes, text with words that repeat."""
    n, seed = draw(st.integers(min_rows, 12)), draw(st.integers(0, 2**32 - 1))
    rng, missing = np.random.default_rng(seed), draw(st.sampled_from([0.0, 0.4, 1.0]))
    columns = {}
    for i, kind in enumerate(draw(st.lists(st.sampled_from(kinds), max_size=4))):
        gone = rng.random(n) < missing
        spread = 10.0 ** rng.integers(-15, 15)
        if kind == "number":
            values = (rng.normal(size=n) * spread + rng.normal() * spread).astype(np.float32)
            columns[f"c{i}"] = Column(kind, np.where(gone, np.float32(np.nan), values))
        elif kind == "vector":
            values = (rng.normal(size=(n, rng.integers(1, 4))) * spread).astype(np.float32)
            values[gone] = np.nan
            columns[f"c{i}"] = Column(kind, values)
        elif kind == "text":
            text = [" ".join(rng.choice(TERMS, rng.integers(0, 9))) for _ in range(n)]
            columns[f"c{i}"] = Column(kind, np.array(np.where(gone, "", text), dtype=STRING))
        else:
            dense = rng.integers(0, 3, (n, rng.integers(1, 5))) * rng.random((n, 1)) * ~gone[:, None]
            names = np.array(sorted(rng.choice(TERMS, dense.shape[1], replace=False)), dtype=STRING)
            columns[f"c{i}"] = Column(kind, csr_array(dense.astype(np.float32)), names)
    return Features(Vocabulary(np.arange(n)), columns)


def reordered(some, order):
    """The same rows in another order, which is what other ids for them make."""
    return Features(some.ids, {name: column.take(np.array(order)) for name, column in some.columns.items()})


def same_bits(a, b):
    return a.shape == b.shape and all(
        np.array_equal(getattr(a, part), getattr(b, part)) for part in ("indptr", "indices", "data")
    )


def same_maps(a, b):
    arrays = [{**x.tensors(), **x.ids()} for x in (a, b)]
    alike = all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0])
    return a.config() == b.config() and arrays[0].keys() == arrays[1].keys() and alike


def through_json(fitted):
    config = json.loads(json.dumps(fitted.config(), allow_nan=False))
    return FeatureMap.restore(config, fitted.tensors(), fitted.ids())


# --- the readable twin ---

OF_TERMS = ("text", "categories")


def terms_of(column, row):
    if column.kind == "text":
        return Counter(re.findall(r"\w{2,}", column.values[row].casefold()))
    weights = column.values[[row]].toarray()[0]
    return {name: float(w) for name, w in zip(column.names.tolist(), weights, strict=True) if w}


def twin_block(train, column):
    """Columns of X for `column`, fitted on `train`, as lists of rows."""
    if train.kind in OF_TERMS:
        seen = [terms_of(train, row) for row in range(train.values.shape[0])]
        counts = Counter(term for row in seen for term in row)
        terms = sorted(t for t in counts if counts[t] >= (2 if train.kind == "text" else 1))
        idf = {t: math.log((1 + len(seen)) / (1 + counts[t])) + 1 for t in terms}
        for row in range(column.values.shape[0]):
            own = {t: math.log(1 + w) * idf[t] for t, w in terms_of(column, row).items() if t in idf}
            norm = math.sqrt(sum(v * v for v in own.values()))
            yield [own.get(t, 0) / norm if own else 0 for t in terms]
        return
    known = [np.atleast_1d(x).astype(float) for x, gone in zip(train.values, train.missing(), strict=True) if not gone]
    width = len(np.atleast_1d(train.values[0]))
    mean = [math.fsum(x[j] for x in known) / max(len(known), 1) for j in range(width)]
    scale = math.sqrt(math.fsum((x[j] - mean[j]) ** 2 for x in known for j in range(width)) / max(len(known), 1)) or 1
    for x, gone in zip(column.values, column.missing(), strict=True):
        row = [0.0] * width if gone else [(a - m) / scale for a, m in zip(np.atleast_1d(x), mean, strict=True)]
        yield row + [float(gone)] * (train.kind == "number" and bool(train.missing().any()))


@few
@given(features(), st.data())
def test_the_matrix_is_that_of_the_readable_twin(some, data):
    rows = data.draw(st.lists(st.booleans(), min_size=len(some), max_size=len(some)))
    train = some.take(np.array(rows)) if any(rows) else some
    fitted = FeatureMap.fit(train)
    X = fitted.matrix(some)
    assert X.dtype == np.float32
    assert fault_of(X.indptr, X.indices, X.data, X.shape[1]) is None
    parts = [list(twin_block(train.columns[name], column)) for name, column in some.columns.items()]
    words = [part for part, column in zip(parts, some.columns.values(), strict=True) if column.kind in OF_TERMS]
    for i in range(len(some)):  # the terms of a row share its unit length
        there = sum(any(part[i]) for part in words)
        for part in words:
            part[i] = [x / math.sqrt(max(there, 1)) for x in part[i]]
    expected = np.array([[x for part in parts for x in part[i]] + [1.0] for i in range(len(some))])
    assert X.shape == expected.shape == (len(some), fitted.width)
    np.testing.assert_allclose(X.toarray(), np.clip(expected, -1e6, 1e6), rtol=2e-5, atol=2e-6)
    for name, (begin, end) in fitted.blocks.items():
        assert end - begin == len(parts[list(some.columns).index(name)][0])


# --- laws ---


@few
@given(features(min_rows=2), st.randoms())
def test_the_order_of_rows_moves_the_rows_of_x_and_no_bit(some, random):
    order = list(range(len(some)))
    random.shuffle(order)
    fitted, other = FeatureMap.fit(some), FeatureMap.fit(reordered(some, order))
    assert same_maps(fitted, other)
    assert same_bits(csr_array(fitted.matrix(some)[order]), other.matrix(reordered(some, order)))


@few
@given(features())
def test_saved_and_restored_it_is_the_same_to_the_bit(some):
    fitted = FeatureMap.fit(some)
    again = through_json(fitted)
    assert same_maps(fitted, again)
    assert (again.blocks, again.width, again.kinds) == (fitted.blocks, fitted.width, fitted.kinds)
    assert same_bits(fitted.matrix(some), again.matrix(some))


@few
@given(features(min_rows=2), st.integers(0, 11))
def test_a_row_alone_has_the_row_it_has_among_others(some, row):
    fitted, row = FeatureMap.fit(some), row % len(some)
    assert same_bits(fitted.matrix(some.take([row])), csr_array(fitted.matrix(some)[[row]]))


@few
@given(features())
def test_blocks_stand_side_by_side_and_are_fitted_each_alone(some):
    fitted, end = FeatureMap.fit(some), 0
    X = fitted.matrix(some).toarray()
    for name, (begin, after) in fitted.blocks.items():
        assert begin == end
        end = after
        alone = FeatureMap.fit(some, [name]).matrix(some).toarray()[:, :-1]
        if some.columns[name].kind not in OF_TERMS:
            assert np.array_equal(alone, X[:, begin:after])
        else:  # but for the length that a row's columns of terms share
            assert np.array_equal(alone > 0, X[:, begin:after] > 0)
    assert end == fitted.width - 1
    assert (X[:, -1] == 1).all()


@few
@given(features())
def test_missing_everywhere_is_the_intercept_and_the_indicators(some):
    fitted = FeatureMap.fit(some)
    nobody = Features(Vocabulary(np.arange(3)), {n: c.take(np.full(3, -1)) for n, c in some.columns.items()})
    gone = Features(nobody.ids, {name: Column("number", np.full(3, np.nan, np.float32)) for name in some.columns})
    X = fitted.matrix(nobody)
    assert set(X.data.tolist()) == {1.0}
    indicators = [n for n, c in some.columns.items() if c.kind == "number" and c.missing().any()]
    assert X.nnz == 3 * (1 + len(indicators))
    assert same_bits(X, fitted.matrix(gone))  # whatever kind it is said to be


@few
@given(features(min_rows=2, kinds=("number", "vector")))
def test_numbers_have_mean_0_and_mean_square_1_where_they_are_known(some):
    fitted = FeatureMap.fit(some)
    X = fitted.matrix(some).toarray().astype(np.float64)
    for name, (begin, end) in fitted.blocks.items():
        column = some.columns[name]
        block = X[~column.missing(), begin : end - (column.kind == "number" and column.missing().any())]
        if len(block) > 1:
            np.testing.assert_allclose(block.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose((block**2).sum(axis=1).mean(), 1, rtol=1e-4)


def test_columns_of_one_value_and_of_one_row():
    one = read_features({"item": [1], "x": [5], "tag": ["a"], "v": [[2.0]], "t": ["ab ab"]}, kinds={"t": "text"})
    fitted = FeatureMap.fit(one)
    assert fitted.blocks == {"x": (0, 1), "tag": (1, 2), "v": (2, 3), "t": (3, 3)}
    assert fitted.matrix(one).toarray().tolist() == [[0, 1, 0, 1]]
    assert repr(fitted) == "FeatureMap(x (1), tag (1), v (1), t (0), intercept)"


def test_no_columns_is_the_intercept():
    bare = read_features({"item": [1, 2]})
    assert FeatureMap.fit(bare).matrix(bare).toarray().tolist() == [[1], [1]]
    assert through_json(FeatureMap.fit(bare)).width == 1


def test_columns_are_chosen_and_others_passed_over():
    films = read_features({"item": [1, 2], "x": [1, 2], "y": [3, 4]})
    fitted = FeatureMap.fit(films, ["y"])
    assert list(fitted.blocks) == ["y"]
    assert fitted.matrix(films).shape == (2, 2)
    with pytest.raises(ValueError, match="no column 'z', there are 'x', 'y'"):
        FeatureMap.fit(films, ["z"])


def test_names_never_seen_in_training_are_dropped():
    films = read_features({"item": [1, 2, 3], "tags": ["a|b", "b", "b|z"]})
    fitted = FeatureMap.fit(films.take([0, 1]))
    assert fitted.ids()["0"].tolist() == ["a", "b"]
    assert fitted.matrix(films).toarray()[1].tolist() == fitted.matrix(films).toarray()[2].tolist() == [0, 1, 1]


def test_only_the_most_frequent_words_are_kept(monkeypatch):
    monkeypatch.setattr(module, "_WORDS", 2)
    texts = ["rare both most", "both most", "most tied", "tied rare", "x" * 101, "x" * 101]
    films = read_features({"item": np.arange(6), "t": texts}, kinds={"t": "text"})
    assert FeatureMap.fit(films).ids()["0"].tolist() == ["both", "most"]  # of three that stand twice, the first


def test_sums_are_exact_enough_whatever_their_size():
    rng = np.random.default_rng(0)
    x = np.column_stack(
        [rng.normal(1e9, 1e-3, 5000), rng.normal(size=5000) * 1e-40, 10.0 ** rng.uniform(-30, 30, 5000)]
    )
    x = x.astype(np.float32)
    sums = module._sums(x, lambda rows: rows)
    for j, total in enumerate(sums):
        assert abs(total - math.fsum(x[:, j].tolist())) <= 5000 * 2.0**-49 * np.abs(x[:, j]).max()
    assert module._sums(x[:0], lambda rows: rows).tolist() == [0, 0, 0]


def test_far_values_are_cut_so_that_nothing_overflows():
    films = read_features({"item": [1, 2, 3], "x": [1e-30, 2e-30, 3e38], "v": np.array([[1e-30], [2e-30], [-3e38]])})
    fitted = FeatureMap.fit(films.take([0, 1]))
    assert fitted.matrix(films).toarray()[2].tolist() == [1e6, -1e6, 1]


# --- one clear error each ---


def test_features_unlike_those_of_training_are_refused():
    films = read_features({"item": [1, 2], "x": [1, 2], "v": np.ones((2, 3)), "t": ["a b", "c d"], "c": ["a|b", "c"]})
    fitted = FeatureMap.fit(films)
    table = {"item": [1], "x": [1], "v": np.ones((1, 3)), "t": ["a b"], "c": ["a|b"]}
    assert fitted.matrix(read_features(table)).shape == (1, fitted.width)
    assert fitted.matrix(
        read_features({"item": [1], "x": ["9"], "v": [None], "t": ["a"], "c": ["a"]}, kinds=fitted.kinds)
    ).nnz
    for change, message in [
        ({"x": "gone"}, "features lack column 'x' of the training, there are 'v', 't', 'c': add it"),
        ({"v": np.ones((1, 2))}, "column 'v' has 2 numbers a row, in training it had 3: use the same encoder"),
        ({"v": ["a b"]}, "column 'v' is of kind 'text', in training it was 'vector': encode it"),
        ({"t": [5]}, "column 't' is of kind 'number', in training it was 'text': read it with kinds="),
        ({"c": [5]}, "column 'c' is of kind 'number', in training it was 'categories'"),
    ]:
        changed = {name: values for name, values in (table | change).items() if not isinstance(values, str)}
        with pytest.raises(ValueError, match=message):
            fitted.matrix(read_features(changed))


def test_images_are_to_be_encoded_first():
    films = read_features({"item": [1], "poster": ["a.png"]})
    with pytest.raises(ValueError, match=r"column 'poster' holds images.*features\.encoded\('poster', image_encoder"):
        FeatureMap.fit(films)
    encoded = films.encoded("poster", lambda paths: np.ones((len(paths), 2)))
    with pytest.raises(ValueError, match="'poster' is of kind 'image', in training it was 'vector': encode it"):
        FeatureMap.fit(encoded).matrix(films)


def broken(change):
    films = read_features({"item": [1, 2], "x": [1, 2], "v": np.eye(2), "c": ["a|b", "c"]})
    fitted = FeatureMap.fit(films)
    parts = json.loads(json.dumps(fitted.config())), fitted.tensors(), fitted.ids()
    change(*parts)
    return parts


@pytest.mark.parametrize(
    "change",
    [
        lambda config, tensors, ids: config.clear(),
        lambda config, tensors, ids: config.update(more=1),
        lambda config, tensors, ids: config.update(columns={}),
        lambda config, tensors, ids: config["columns"].append(3),
        lambda config, tensors, ids: config["columns"].append(config["columns"][0]),
        lambda config, tensors, ids: config["columns"].pop(),
        lambda config, tensors, ids: config["columns"].reverse(),
        lambda config, tensors, ids: config["columns"][0].update(name=3),
        lambda config, tensors, ids: config["columns"][0].update(kind="sound"),
        lambda config, tensors, ids: config["columns"][0].update(kind=["number"]),
        lambda config, tensors, ids: config["columns"][0].update(more=1),
        lambda config, tensors, ids: config["columns"][0].update(mean=1),
        lambda config, tensors, ids: config["columns"][0].update(mean=math.nan),
        lambda config, tensors, ids: config["columns"][0].update(scale=0.0),
        lambda config, tensors, ids: config["columns"][1].update(scale=math.inf),
        lambda config, tensors, ids: config["columns"][0].update(indicator=2),
        lambda config, tensors, ids: tensors.pop("1.center"),
        lambda config, tensors, ids: tensors.update(more=np.ones(1)),
        lambda config, tensors, ids: tensors.update({"1.center": np.ones((2, 1))}),
        lambda config, tensors, ids: tensors.update({"1.center": np.ones(2, np.float32)}),
        lambda config, tensors, ids: tensors.update({"1.center": np.array([1, np.nan])}),
        lambda config, tensors, ids: tensors.update({"1.center": [1.0, 2.0]}),
        lambda config, tensors, ids: tensors.update({"2.idf": np.ones(2)}),
        lambda config, tensors, ids: tensors.update({"2.idf": -np.ones(3)}),
        lambda config, tensors, ids: tensors.update({"2.idf": np.array([1, np.inf, 1])}),
        lambda config, tensors, ids: ids.clear(),
        lambda config, tensors, ids: ids.update(more=np.array(["a"], dtype=STRING)),
        lambda config, tensors, ids: ids.update({"2": np.arange(3)}),
        lambda config, tensors, ids: ids.update({"2": np.array(["c", "b", "a"], dtype=STRING)}),
        lambda config, tensors, ids: ids.update({"2": np.array(["a", "b", "b"], dtype=STRING)}),
        lambda config, tensors, ids: ids.update({"2": np.array(["", "b", "c"], dtype=STRING)}),
        lambda config, tensors, ids: ids.update({"2": np.array([["a", "b", "c"]], dtype=STRING)}),
    ],
)
def test_a_hostile_map_is_refused(change):
    with pytest.raises(ValueError, match=r"the feature map is damaged .*copy the model again, or fit it anew") as error:
        FeatureMap.restore(*broken(change))
    assert "\n" not in str(error.value)


def test_a_map_that_nobody_broke_is_restored():
    assert FeatureMap.restore(*broken(lambda *parts: None)).width == 7

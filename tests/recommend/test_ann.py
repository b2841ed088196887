"""The approximate index: what it finds, what it leaves out, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import eckart as ek
from eckart.core import store

pytest.importorskip("voyager")


@pytest.fixture(scope="module")
def models():
    data = ek.synthetic(users=300, items=3000, entries=12_000, seed=1)
    ones = ek.synthetic(users=900, items=3000, entries=80_000, rated=False, seed=1)
    return ek.ALS(rank=8, epochs=3).fit(data), ek.ImplicitALS(rank=16, epochs=3).fit(ones)


def test_an_index_that_looks_at_everything_is_exact(models):
    for model in models:
        index = ek.build_ann(model)
        rows = np.arange(40)
        exact, found = model.top_k(rows, 7), index.top_k(model, rows, 7, effort=3000)
        assert np.mean(exact[0] == found[0]) > 0.99  # a graph may have items that no link leads to
        same = exact[0] == found[0]
        np.testing.assert_allclose(exact[1][same], found[1][same], rtol=1e-5, atol=1e-5)


def test_recall_is_high_and_grows_with_effort(models):
    for model in models:
        index = ek.build_ann(model)
        few, many = index.recall(model, effort=10), index.recall(model, effort=300)
        assert many > 0.95
        assert few <= many + 0.01
        # Recall is measured against the exact list: an index of the items in another order finds nothing.
        index._fits = model.item_side
        index._graph = ek.build_ann(_reversed(model))._graph
        assert index.recall(model, effort=100) < 0.6


def _reversed(model):
    import dataclasses

    side = model.item_side
    return dataclasses.replace(model, item_side=side._replace(H=side.H[::-1].copy(), bias=side.bias[::-1].copy()))


def test_filters_never_shorten_a_list(models):
    model = models[0]
    index = ek.build_ann(model)
    rows = np.concatenate([np.arange(60), [-1]])
    best = model.top_k(rows, 20)[0]
    for exclude in (None, best[0], np.arange(2950)):
        items, scores = index.top_k(model, rows, 20, exclude=exclude)
        assert np.all((items >= 0).sum(axis=1) == (model.top_k(rows, 20, exclude=exclude)[0] >= 0).sum(axis=1))
        assert not np.isin(items, [] if exclude is None else exclude).any()
        assert np.all(np.diff(scores, axis=1) <= 0)
        for row, mine in zip(rows[:-1], items, strict=False):
            assert not np.isin(mine, model.seen.indices[model.seen.indptr[row] : model.seen.indptr[row + 1]]).any()
            assert len(np.unique(mine)) == len(mine)
    table = index.recommend(model, [3, "nobody"], 4, exclude=[5, "x"])
    assert table["status"].to_pylist() == ["hot"] * 4 + ["unknown"] * 4
    assert table.schema == model.recommend([3, "nobody"], 4).schema


def test_an_index_comes_back_from_its_file_and_fits_only_its_model(models, tmp_path):
    model, other = models
    index = ek.build_ann(model)
    index.save(tmp_path / "ann")
    again = ek.load_ann(tmp_path / "ann")
    rows = np.arange(50)
    for mine, theirs in zip(index.top_k(model, rows, 5), again.top_k(model, rows, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    few = ek.read({"user": ["new", "new"], "item": [3, 4], "rating": [5.0, 1.0]})
    assert (again.top_k(model.fold_in(few), np.array([0]), 5)[0] >= 0).all()
    with pytest.raises(ValueError, match="of other items than the model's"):
        again.top_k(other, rows, 5)
    with pytest.raises(FileNotFoundError):
        ek.load_ann(tmp_path / "nothing")
    config, tensors, ids = store.read_directory(tmp_path / "ann", "ann")
    for changed, graph in (({}, tensors["graph"]["voyager"]), (config, np.frombuffer(b"VOYA" + bytes(9), np.uint8))):
        store.write_directory(tmp_path / "bad", "ann", changed, {"graph": {"voyager": graph}}, ids)
        with pytest.raises(ValueError, match="build the index again"):
            ek.load_ann(tmp_path / "bad")

"""The fitted model: known answers, the contract for ids, files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from strategies import interactions

import eckart as ek
from eckart.core import store


@pytest.fixture(scope="module")
def data():
    return ek.synthetic(users=80, items=50, entries=1500, seed=2)


@pytest.fixture(scope="module")
def model(data):
    return ek.ALS(rank=6, epochs=5).fit(data)


@pytest.fixture(scope="module")
def implicit(data):
    return ek.ImplicitALS(rank=6, epochs=5).fit(data)


def test_a_rank_one_matrix_is_recovered_from_a_part_of_it():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.5, 1.5, 60), rng.uniform(0.5, 1.5, 50)
    u, i = np.nonzero(rng.random((60, 50)) < 0.4)
    left_out = np.nonzero(np.ones((60, 50)))
    fitted = ek.ALS(rank=2, reg=1e-5, epochs=60).fit(interactions(u, i, np.outer(a, b)[u, i]))
    np.testing.assert_allclose(fitted.predict(*left_out), np.outer(a, b)[left_out], atol=0.02)


def test_a_checkerboard_comes_back_with_its_hole_filled():
    # Even users like even items and odd users odd ones; one like of each user is hidden.
    u, i = np.nonzero(np.add.outer(np.arange(20), np.arange(20)) % 2 == 0)
    hidden = i == (u + 2 * (u // 2)) % 20
    fitted = ek.ImplicitALS(rank=2, reg=1e-4, epochs=15).fit(interactions(u[~hidden], i[~hidden], np.ones(180)))
    table = fitted.recommend(k=1)
    assert table["user"].to_pylist() == list(range(20))
    assert all(
        (user - item) % 2 == 0 for user, item in zip(*table.select(["user", "item"]).to_pydict().values(), strict=False)
    )


def test_biases_are_recovered_when_there_is_nothing_else():
    rng = np.random.default_rng(1)
    b, c = rng.normal(0, 0.5, 40), rng.normal(0, 0.5, 30)
    u, i = np.nonzero(np.ones((40, 30)))
    fitted = ek.ALS(rank=1, reg=1e-4, epochs=30).fit(interactions(u, i, 3.5 + b[u] + c[i]))
    np.testing.assert_allclose(fitted.predict(u, i), 3.5 + b[u] + c[i], atol=1e-2)


def test_unknown_ids_follow_the_contract(model, implicit):
    side = model.item_side
    assert model.predict([-1], [3])[0] == pytest.approx(side.mean + side.bias[3])
    assert model.predict([-1], [-1])[0] == pytest.approx(side.mean)
    assert model.predict([4], [-1])[0] == pytest.approx(side.mean + model.user_bias[4])
    unknown = model.recommend([-1, "nobody"], k=4)
    assert set(unknown["status"].to_pylist()) == {"unknown"}
    best = np.argsort(-(side.bias + np.float32(side.mean)), kind="stable")[:4]
    assert unknown["item"].to_pylist() == best.tolist() * 2
    popular = implicit.recommend(-1, k=3)
    counts = np.bincount(implicit.seen.indices, minlength=50)
    assert popular["item"].to_pylist() == np.argsort(-counts, kind="stable")[:3].tolist()
    assert popular["score"].to_pylist() == pytest.approx((np.sort(counts)[::-1][:3] / 80).tolist())


def test_statuses(model):
    assert set(model.recommend([1, 2])["status"].to_pylist()) == {"hot"}
    assert set(model.recommend(history={3: 4.0})["status"].to_pylist()) == {"warm"}
    assert set(model.recommend(history={})["status"].to_pylist()) == {"unknown"}


def test_text_ids_and_one_id_without_a_list():
    u, i = np.nonzero(np.ones((6, 5)))
    named = interactions([f"u{x}" for x in u], [f"film {x}" for x in i], (u * i) % 5 + 1.0)
    fitted = ek.ALS(rank=2, epochs=3).fit(named)
    assert fitted.recommend("u3", exclude_seen=False)["user"].to_pylist() == ["u3"] * 5
    assert fitted.recommend("u3").num_rows == 0  # everything seen: nothing left, and no padding
    with pytest.raises(ValueError, match=r"item 'film 44' is not in the model: did you mean 'film 4'\?"):
        fitted.recommend(history={"film 44": 3.0})
    with pytest.raises(ValueError, match="give a mapping"):
        fitted.recommend(history="film 4")


def test_histories_that_make_no_sense_are_refused(model, implicit):
    with pytest.raises(ValueError, match=r"give the history as \{item: rating\}"):
        model.recommend(history=[3, 4])
    for odd in (float("nan"), 1e39, "5", True, None, [1]):
        with pytest.raises(ValueError, match=r"the rating of 3 is .*, expected a finite number"):
            model.recommend(history={3: odd})
    with pytest.raises(ValueError, match="give one of them"):
        model.recommend([1], history={3: 1.0})
    with pytest.raises(ValueError, match="stands twice"):
        implicit.recommend(history=[3, 3])
    with pytest.raises(ValueError, match="a weight cannot be negative"):
        implicit.recommend(history={3: -1.0})
    with pytest.raises(ValueError, match="k is 0"):
        model.recommend([1], k=0)
    with pytest.raises(ValueError, match="user -5 is not in the model"):
        model.explain(-5, 3)
    with pytest.raises(ValueError, match="got 2 users and 1 items"):
        model.predict([1, 2], [3])


def test_similar_items_are_those_of_the_cosine(model):
    unit = model.H / np.linalg.norm(model.H, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    table = model.similar([5, 6], k=4)
    assert table["item"].to_pylist() == [5] * 4 + [6] * 4
    assert table["similar"].to_pylist() == [*np.argsort(-cosine[5])[:4], *np.argsort(-cosine[6])[:4]]
    np.testing.assert_allclose(table["score"][:4], np.sort(cosine[5])[::-1][:4], atol=1e-5)


def test_results_go_to_pandas_and_other_arrow_readers(model):
    table = model.recommend([1, 2], k=3)
    assert len(pd.DataFrame.from_arrow(table)) == 6
    assert pa.table(table).schema.names == ["user", "item", "score", "rank", "status", "item_status"]


def test_the_array_form_pads_with_minus_one(model):
    items, scores = model.top_k(np.array([0, -1]), 60)
    assert items.shape == scores.shape == (2, 60)
    left = 50 - np.diff(model.seen.indptr)[0]
    assert (items[0] >= 0).sum() == left
    assert (items[1] >= 0).sum() == 50
    assert np.all(scores[items < 0] == -np.inf)


# -- files ---------------------------------------------------------------------------------------------------------


def parts_of(path):
    return store.read_directory(path, "recommender")


def test_a_model_that_says_otherwise_than_its_arrays_is_refused(model, tmp_path):
    model.save(tmp_path / "model")
    config, tensors, ids = parts_of(tmp_path / "model")

    def refused(match, config=config, factors=None, seen=None, ids=ids):
        changed = {
            "factors": {**tensors["factors"], **(factors or {})},
            "seen": {**tensors["seen"], **(seen or {})},
        }
        store.write_directory(tmp_path / "bad", "recommender", config, changed, ids)
        with pytest.raises(ValueError, match=match) as error:
            ek.load(tmp_path / "bad")
        assert "\n" not in str(error.value)

    W, indices = tensors["factors"]["W"], tensors["seen"]["indices"]
    indptr = tensors["seen"]["indptr"]
    refused("W", factors={"W": W[:-1].copy()})
    refused("W", factors={"W": W.astype(np.float64)})
    refused("W", factors={"W": np.full_like(W, np.nan)})
    refused("seen.safetensors is damaged", seen={"indices": indices + 1})
    refused("seen.safetensors is damaged", seen={"indices": -indices})
    refused("seen.safetensors is damaged", seen={"indices": indices[::-1].copy()})
    refused("seen.safetensors is damaged", seen={"indptr": indptr[::-1].copy()})
    refused("seen.safetensors is damaged", seen={"indptr": indptr * 2})
    refused("unique and ascending", ids={**ids, "users": ids["users"][::-1].copy()})
    refused("no solver is called 'os'", config={**config, "solver": "os"})
    refused("no setting 'shell'", config={**config, "hyperparameters": {"shell": 1}})
    refused("rank is 'x'", config={**config, "hyperparameters": {"rank": "x"}})
    refused("damaged", config={**config, "hyperparameters": [1]})
    refused("damaged", config={k: v for k, v in config.items() if k != "mean"})
    refused("mean", config={**config, "warm": "yes"})


def test_the_config_is_readable_and_says_what_was_fitted(model, tmp_path):
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    text = json.dumps(config)
    assert "als" in text
    assert '"rank": 6' in text


def test_loading_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        ek.load(tmp_path / "nothing")


def test_a_folded_model_keeps_what_training_knew_of_the_items(model, implicit, data, tmp_path):
    few = data.select(data.user_rows() < 5)
    for fitted in (model, implicit):
        folded = fitted.fold_in(few)
        folded.save(tmp_path / "folded")
        for other in (folded, ek.load(tmp_path / "folded")):
            assert other.recommend(-1).equals(fitted.recommend(-1))
            assert set(other.recommend()["status"].to_pylist()) == {"warm"}


def test_what_comes_out_goes_in_again(model):
    table = model.recommend([3, 1], k=4)
    np.testing.assert_allclose(model.predict(table["user"], table["item"]), table["score"], atol=1e-5)
    assert model.recommend(table["user"].unique(), k=4).equals(table)
    assert pa.concat_tables([model.recommend(x, k=60) for x in (3, -1)] + [model.recommend([])]).num_rows > 50


@pytest.mark.parametrize("odd", [1.7, True, None, b"a", float("nan"), np.array([[1, 2]]), [1.0], [None], "\ud800", 3j])
def test_what_is_no_id_is_refused(model, odd):
    for ask in (model.recommend, model.similar) if odd is not None else (model.similar,):
        with pytest.raises(ValueError, match=r"expected|no Unicode"):
            ask(odd)


def test_ids_beyond_64_bits_are_unknown_not_a_crash(model):
    table = model.recommend([2**70, 3], k=2)
    assert table["status"].to_pylist() == ["unknown", "unknown", "hot", "hot"]
    assert model.predict([2**70], [3])[0] == pytest.approx(model.item_side.mean + model.item_side.bias[3])


def test_a_k_beyond_the_catalogue_costs_nothing(model):
    assert model.recommend([-1], k=2**40).num_rows == 50
    for odd in (0, -1, 1.5, True, None, "3"):
        with pytest.raises(ValueError, match="expected an integer of at least 1"):
            model.recommend([1], k=odd)


def test_numpy_settings_are_python_ones(data, tmp_path):
    solver = ek.ALS(rank=np.int64(2), epochs=np.int64(2), reg=np.float32(0.5))
    solver.fit(data).save(tmp_path / "model")
    assert ek.load(tmp_path / "model").solver == ek.ALS(rank=2, epochs=2, reg=0.5)


def test_a_matrix_out_of_order_is_refused():
    from scipy.sparse import csr_array

    from eckart.data.vocabulary import Vocabulary

    for columns in ([2, 1, 0], [1, 1, 2]):
        matrix = csr_array((np.ones(3, np.float32), np.array(columns, np.int32), np.array([0, 3, 3])), shape=(2, 3))
        with pytest.raises(ValueError, match="do not ascend"):
            ek.Interactions(matrix, Vocabulary([1, 2]), Vocabulary([1, 2, 3]))


@pytest.mark.parametrize(
    "solver",
    [ek.ALS(rank=3, epochs=3), ek.ALS(rank=3, epochs=3, implicit_reg=1.0), ek.ImplicitALS(rank=3, epochs=3)],
    ids=["als", "als-implied", "implicit-als"],
)
def test_someone_without_entries_is_what_the_features_say_and_explained_by_them(solver, data):
    towns = ek.read_features({"user": list(range(90)), "town": ["Rom", "Oslo", "Riga"] * 30})
    model = solver.fit(data, user_features=towns)
    nobody = ek.Vocabulary([85])
    cold = model.encode_users(towns.aligned(nobody))
    none = np.zeros(0, np.int64)
    folded = model.fold_in(ek.Interactions.of(none, none, np.zeros(0, np.float32), nobody, data.items), towns)
    for one in (cold, folded):
        assert one.statuses(np.zeros(1, np.int64)).tolist() == ["cold"]
        assert one.W.tobytes() == cold.W.tobytes()
        assert one.user_bias.tobytes() == cold.user_bias.tobytes()
        why = one.explain(85, 7)
        assert why.reasons.num_rows == 0
        assert why.score == why.baseline == one.predict([85], [7])[0]

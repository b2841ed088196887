"""What holds of every model fitted with features, whoever solved it: cold rows, encoders, the four statuses."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives
from strategies import interactions, ratings

import eckart as ek
from eckart.core import store

SOLVERS = [
    ek.ALS(rank=3, reg=0.1, epochs=4, exponent=0.5),
    ek.ALS(rank=3, reg=0.1, epochs=4, exponent=0.5, implicit_reg=2.0),
    ek.ALS(rank=3, reg=0.1, epochs=4, exponent=0.5, solver="cg"),
    ek.ImplicitALS(rank=3, reg=0.05, epochs=4, exponent=0.5),
    ek.ImplicitALS(rank=3, reg=0.05, epochs=4, exponent=0.5, solver="cg"),
]


def _named(solver):
    return f"{type(solver).__name__}-{solver.solver}-{getattr(solver, 'implicit_reg', 0)}"


every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=_named)
few = settings(max_examples=4, deadline=None)  # every one fits a model, and five solvers have every law
USERS, ITEMS = 40, 30  # ids 0 to here have features; data have fewer


def features_of(side, count, names=None):
    """Features that say something, some of them missing; `names` are the ids in the order of 0 to count."""
    rng = np.random.default_rng(count)
    kinds = ["red", "blue", "green"]
    return ek.read_features(
        {
            side: list(range(count)) if names is None else names,
            "colour": [None if i % 7 == 3 else f"{kinds[i % 3]}|{kinds[i % 2]}" for i in range(count)],
            "size": [None if i % 5 == 4 else float(x) for i, x in enumerate(rng.standard_normal(count))],
            "shape": rng.standard_normal((count, 2)),
        },
        id=side,
        kinds={"colour": "categories"},
    )


PEOPLE, THINGS = features_of("user", USERS), features_of("item", ITEMS)


def fit(solver, data, users=True, items=True):
    return solver.fit(data, user_features=PEOPLE if users else None, item_features=THINGS if items else None)


def scores(model, users, items):
    pairs = list(itertools.product(users, items))
    return model.predict([u for u, _ in pairs], [i for _, i in pairs])


@every_solver
@few
@given(data=ratings(), users=st.booleans(), items=st.booleans())
def test_the_objective_never_rises_and_is_the_one_defined(solver, data, users, items):
    model = fit(dataclasses.replace(solver, epochs=5), data, users, items)
    values = [record["objective"] for record in model.history]
    for before, after in itertools.pairwise(values):
        assert after <= before * (1 + 1e-4)
    if solver.solver == "auto" and not getattr(solver, "implicit_reg", 0):
        # The items' map is improved once more after the last epoch.
        defined = objectives.featured(data, model, PEOPLE if users else None, THINGS if items else None)
        assert defined <= values[-1] * (1 + 1e-4)
        assert defined >= values[-1] * 0.9


@every_solver
@few
@given(data=ratings())
def test_folding_in_the_training_users_with_their_features_gives_their_rows_back(solver, data):
    model = fit(solver, data)
    again = model.fold_in(data, PEOPLE)
    assert again.W.tobytes() == model.W.tobytes()
    assert again.user_bias.tobytes() == model.user_bias.tobytes()
    assert not np.array_equal(model.fold_in(data).W, model.W)  # the features do count


@every_solver
@few
@given(data=ratings())
def test_new_items_change_nothing_that_was_there(solver, data):
    model = fit(solver, data)
    more = model.add_items(THINGS)
    users, items = data.users.ids.tolist(), data.items.ids.tolist()
    assert more.items.ids.tolist() == list(range(ITEMS))
    assert np.array_equal(scores(more, users, items), scores(model, users, items))
    again = more.fold_in(data, PEOPLE)
    assert again.W.tobytes() == model.W.tobytes()
    assert again.user_bias.tobytes() == model.user_bias.tobytes()
    why, before = (m.explain(users[0], items[0]) for m in (more, model))
    assert why.score == pytest.approx(before.score, abs=1e-5)


@every_solver
@few
@given(data=ratings())
def test_a_cold_row_is_what_the_encoder_says_of_it(solver, data):
    model = fit(solver, data).add_items(THINGS)
    cold = model.item_side.cold
    assert np.array_equal(np.flatnonzero(~cold), model.items.rows(data.items.ids))
    said = model.item_encoder.encode(THINGS)
    assert np.array_equal(model.H[cold], said[cold, :-1])
    assert np.array_equal(model.item_side.bias[cold], said[cold, -1])
    people = model.encode_users(PEOPLE)
    assert np.array_equal(np.column_stack([people.W, people.user_bias]), model.user_encoder.encode(PEOPLE))


@every_solver
@few
@given(data=ratings(), seed=st.integers(0, 99))
def test_items_may_come_in_any_order(solver, data, seed):
    model = fit(solver, data)
    some = np.random.default_rng(seed).random(ITEMS) < 0.5
    halves = model.add_items(THINGS.take(np.flatnonzero(some))).add_items(THINGS.take(np.flatnonzero(~some)))
    whole = model.add_items(THINGS)
    assert halves.items == whole.items
    assert np.array_equal(halves.H, whole.H)
    assert halves.recommend().equals(whole.recommend())
    assert whole.add_items(THINGS) is whole


@every_solver
@few
@given(data=ratings(), users=st.permutations(range(USERS)), items=st.permutations(range(ITEMS)))
def test_renaming_users_and_items_with_their_features_changes_nothing_else(solver, data, users, items):
    entries = data.to_arrow().to_pydict()
    renamed = interactions([users[u] for u in entries["user"]], [items[i] for i in entries["item"]], entries["rating"])
    model = fit(solver, data)
    other = solver.fit(
        renamed, user_features=features_of("user", USERS, users), item_features=features_of("item", ITEMS, items)
    )
    who, what = data.users.ids.tolist(), list(range(ITEMS))
    one = scores(model.add_items(THINGS), who, what)
    two = scores(other.add_items(features_of("item", ITEMS, items)), [users[u] for u in who], [items[i] for i in what])
    np.testing.assert_allclose(two, one, rtol=0, atol=5e-3)


@every_solver
@given(data=ratings())
@settings(max_examples=2, deadline=None)
def test_save_load_save_gives_the_same_bytes(solver, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = fit(solver, data).add_items(THINGS)
    model.save(folder / "one")
    again = ek.load(folder / "one")
    again.save(folder / "two")
    for file in (folder / "one").iterdir():
        assert (folder / "two" / file.name).read_bytes() == file.read_bytes()
    assert again.recommend().equals(model.recommend())
    assert again.recommend(features=PEOPLE, k=4).equals(model.recommend(features=PEOPLE, k=4))
    assert again.add_items(THINGS).items == model.items


@every_solver
@few
@given(data=ratings())
def test_every_row_says_what_it_is(solver, data):
    model = fit(solver, data).add_items(THINGS)
    known, cold = set(data.users.ids.tolist()), set(model.items.ids[model.item_side.cold].tolist())

    def statuses(table):
        assert {
            i for i, s in zip(*(table[c].to_pylist() for c in ("item", "item_status")), strict=True) if s == "cold"
        } <= cold
        return set(table["status"].to_pylist())

    assert statuses(model.recommend(list(known), k=ITEMS)) <= {"hot"}
    assert statuses(model.recommend([-5], k=ITEMS)) == {"unknown"}
    assert statuses(model.recommend(features=PEOPLE, k=3)) == {"cold"}
    assert statuses(model.recommend(features={"colour": "red"}, k=3)) == {"cold"}
    first = data.items.ids.tolist()[0]
    assert statuses(model.recommend(history={first: 4.0}, features={"size": 1.0}, k=3)) == {"warm"}
    shown = model.recommend([-5], k=ITEMS)
    assert set(shown["item_status"].to_pylist()) == ({"hot", "cold"} if cold else {"hot"})


@every_solver
@few
@given(data=ratings())
def test_people_together_are_served_as_one_by_one(solver, data):
    model = fit(solver, data)
    together = model.recommend(features=PEOPLE, k=2).to_pylist()
    alone = [row for u in range(USERS) for row in model.recommend(features=PEOPLE.take([u]), k=2).to_pylist()]
    assert [(r["user"], r["rank"], r["status"]) for r in together] == [
        (r["user"], r["rank"], r["status"]) for r in alone
    ]
    np.testing.assert_allclose([r["score"] for r in together], [r["score"] for r in alone], atol=1e-5)


@every_solver
@few
@given(data=ratings())
def test_an_explanation_adds_up_to_the_prediction(solver, data):
    model = fit(solver, data)
    for served in (model, model.fold_in(data, PEOPLE), model.fold_in(data)):
        user, item = data.users.ids[-1].item(), data.items.ids[0].item()
        why, predicted = served.explain(user, item), float(served.predict([user], [item])[0])
        assert why.score == pytest.approx(predicted, abs=1e-3)
        assert why.baseline + sum(why.reasons["contribution"].to_pylist()) == pytest.approx(predicted, abs=1e-3)


@every_solver
@few
@given(data=ratings())
def test_features_that_are_not_believed_change_little(solver, data):
    solver = dataclasses.replace(solver, feature_reg=1e9)
    plain, model = solver.fit(data), fit(solver, data)
    users, items = data.users.ids.tolist(), data.items.ids.tolist()
    np.testing.assert_allclose(scores(model, users, items), scores(plain, users, items), atol=2e-2)


@every_solver
def test_features_that_tell_find_what_is_new(solver):
    """Half the people like even things: the features of a new thing say which it is."""
    rng = np.random.default_rng(0)
    u, i = np.nonzero(rng.random((60, 40)) < 0.5)
    good = (u + i) % 2 == 0
    kind = ek.read_features({"item": list(range(60)), "kind": ["even" if x % 2 == 0 else "odd" for x in range(60)]})
    values = np.where(good, 5.0, 1.0)
    if not solver.predicts_ratings:
        u, i, values = u[good], i[good], values[good]
    model = solver.fit(interactions(u, i, values), item_features=kind).add_items(kind)
    new = list(range(40, 60))
    for user in range(10):
        best = model.recommend([user], k=10, items=new)
        assert {x % 2 for x in best["item"].to_pylist()} == {user % 2}
        assert set(best["item_status"].to_pylist()) == {"cold"}


# --- what goes wrong ---


def fitted(**given):
    data = ek.synthetic(users=USERS - 5, items=ITEMS - 5, entries=300, seed=0)
    return SOLVERS[0].fit(data, **(given or {"user_features": PEOPLE, "item_features": THINGS}))


def test_features_of_others_are_refused():
    with pytest.raises(ValueError, match="none of which is among"):
        fitted(item_features=features_of("item", 5, [f"thing {i}" for i in range(5)]))
    with pytest.raises(ValueError, match="none of which is among"):
        fitted(user_features=features_of("user", 5, list(range(900, 905))))


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"colour": ["red"]}, "features lack column 'size' of the training"),
        ({"colour": ["red"], "size": [1.0], "shape": np.ones((1, 3))}, "has 3 numbers a row, in training it had 2"),
        ({"colour": [1.5], "size": [1.0], "shape": np.ones((1, 2))}, "is of kind 'number', in training it was"),
    ],
)
def test_new_items_unlike_those_of_the_training_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        fitted().add_items(ek.read_features({"item": [77], **columns}))


def test_what_was_fitted_without_features_takes_none():
    model = fitted(user_features=PEOPLE)
    with pytest.raises(ValueError, match=r"fitted without features of items, .* fit it with item_features="):
        model.add_items(THINGS)
    with pytest.raises(ValueError, match="fitted without features of users"):
        fitted(item_features=THINGS).recommend(features={"colour": "red"})
    with pytest.raises(ValueError, match="got users and features: give one of them"):
        model.recommend([1], features={"colour": "red"})
    with pytest.raises(ValueError, match="not to 'colr'"):
        model.recommend(features={"colr": "red"})
    with pytest.raises(ValueError, match="item ids are integers in the model and text in the features"):
        fitted().add_items(features_of("item", 2, ["a", "b"]))


def test_images_are_to_be_encoded_first():
    posters = ek.read_features({"item": [0, 1], "poster": ["a.png", "b.png"]}, kinds={"poster": "image"})
    with pytest.raises(ValueError, match="encode it first"):
        fitted(item_features=posters)


def test_a_feature_reg_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"feature_reg is 0\.0, expected a number above 0"):
        ek.ALS(feature_reg=0.0)


# --- a directory from a stranger ---


def _nan(config, tensors):
    tensors["item_encoder"]["0.0.weight"][0, 0] = np.nan


def _narrow(config, tensors):
    tensors["item_encoder"]["0.0.weight"] = tensors["item_encoder"]["0.0.weight"][:, 1:]


def _gone(config, tensors):
    del tensors["user_encoder"]["0.0.offset"]


def _more(config, tensors):
    tensors["user_encoder"]["9.0.weight"] = np.ones((2, 2), np.float32)


def _layers(config, tensors):
    config["item_encoder"]["layers"] = [10**9]


def _no_map(config, tensors):
    config["item_encoder"] = {"layers": [1], "normalize": False, "with_bias": True}


def _points(config, tensors):
    tensors["factors"]["user_points"] = tensors["factors"]["user_points"][:, 1:]


def _no_points(config, tensors):
    del tensors["factors"]["user_points"]


def _flags(config, tensors):
    tensors["factors"]["cold"] = tensors["factors"]["cold"][1:]


def _solver(config, tensors):
    config["solver"], config["hyperparameters"] = "svd", {"rank": SOLVERS[0].rank}


@pytest.mark.parametrize(
    "damage", [_solver, _nan, _narrow, _gone, _more, _layers, _no_map, _points, _no_points, _flags]
)
def test_a_damaged_encoder_is_refused(damage, tmp_path):
    fitted().add_items(THINGS).save(tmp_path / "model")
    ek.load(tmp_path / "model")
    config, tensors, ids = store.read_directory(tmp_path / "model", "recommender")
    damage(config, tensors)
    store.write_directory(tmp_path / "model", "recommender", config, tensors, ids)
    with pytest.raises(ValueError, match=r"copy the model again|fit it anew"):
        ek.load(tmp_path / "model")

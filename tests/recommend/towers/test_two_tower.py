"""Two towers as a solver: the laws of training, and one optimum that has a closed form."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives
from strategies import interactions, triples

import eckart as ek
from eckart.recommend.solver import named_solver

torch = pytest.importorskip("torch", reason="two towers need torch: pip install 'eckart[torch]'")

SMALL = ek.TwoTower(rank=4, epochs=3, batch=16, draws=12, threads=1)
DATA = ek.synthetic(users=60, items=40, entries=700, rated=False, seed=0)
FEATURES = ek.read_features(
    {
        "item": list(range(50)),
        "genre": [["crime|war", "drama", "war", "crime|drama", None][i % 5] for i in range(50)],
        "year": [1950.0 + i for i in range(50)],
    }
)
PEOPLE = ek.read_features({"user": list(range(60)), "age": [20.0 + i % 40 for i in range(60)]})


def scores(model):
    return model.W @ model.H.T


def test_the_squared_loss_reaches_the_optimum_of_implicit_als():
    data = ek.synthetic(users=120, items=80, entries=1500, rated=False, seed=0)
    closed = ek.ImplicitALS(rank=3, reg=0.02, epochs=200).fit(data)
    tower = ek.TwoTower(rank=3, reg=0.02, epochs=400, loss="squared", batch=120, draws=80, step=0.05, threads=1).fit(
        data
    )
    mine, best = (objectives.implicit_als(data, m.solver, m.W, m.H) for m in (tower, closed))
    assert mine == pytest.approx(best, rel=1e-3)
    assert tower.history[-1]["objective"] == pytest.approx(mine, rel=1e-4)
    # Not by a flat objective: a hundredth of the way is far from there.
    early = dataclasses.replace(tower.solver, epochs=5).fit(data)
    assert objectives.implicit_als(data, early.solver, early.W, early.H) > 1.01 * best


@pytest.mark.parametrize("loss", ["softmax", "bpr", "ccl", "squared"])
def test_every_loss_learns_what_is_there(loss):
    """Two groups who have nothing in common: after training, everyone's best unseen item is of the own group."""
    rng = np.random.default_rng(0)
    u, i = np.nonzero((np.arange(60)[:, None] % 2 == np.arange(40) % 2) & (rng.random((60, 40)) < 0.6))
    data = interactions(u, i, np.ones(len(u)), rated=False)
    # Soft, to learn groups and not each pair by heart.
    soft = {"temperature": 0.5, "margin": 0.0, "negative_weight": 2.0}
    solver = dataclasses.replace(SMALL, loss=loss, step=0.05, batch=30, draws=20, **soft)
    before, after = (dataclasses.replace(solver, epochs=e).fit(data) for e in (1, 40))
    best, _ = after.top_k(np.arange(60), 3)
    assert np.mean(best % 2 == np.arange(60)[:, None] % 2) > 0.95
    assert after.history[-1]["objective"] < before.history[-1]["objective"]


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in-batch", "hard"])
def test_every_way_to_draw_learns(negatives):
    model = dataclasses.replace(SMALL, negatives=negatives, epochs=12, hardest=4, step=0.05).fit(DATA)
    objective = [record["objective"] for record in model.history]
    assert np.mean(objective[-3:]) < 0.97 * np.mean(objective[:3])


@settings(max_examples=6, deadline=None)
@given(data=triples(), order=st.permutations(range(12)), item_order=st.permutations(range(9)))
def test_renaming_users_and_items_changes_nothing_else(data, order, item_order):
    u, i, r = data
    solver = ek.TwoTower(rank=3, epochs=2, batch=5, draws=6, threads=1)
    one = solver.fit(interactions(u, i, r))
    other = solver.fit(interactions([f"u{order[x]:02}" for x in u], [f"i{item_order[x]:02}" for x in i], r))
    users, items = np.unique(u), np.unique(i)
    rows = other.users.rows([f"u{order[x]:02}" for x in users])
    columns = other.items.rows([f"i{item_order[x]:02}" for x in items])
    np.testing.assert_allclose(scores(other)[np.ix_(rows, columns)], scores(one), atol=2e-3)


def test_threads_change_rounding_alone_and_seeds_everything():
    data = ek.synthetic(users=2500, items=1700, entries=20_000, rated=False, seed=0)  # worth a second thread
    solver = ek.TwoTower(rank=16, epochs=1, batch=1000, draws=500)
    one, again, two, other = (
        dataclasses.replace(solver, threads=t, seed=s).fit(data) for t, s in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert one.W.tobytes() == again.W.tobytes()
    np.testing.assert_allclose(two.W, one.W, atol=1e-4)
    assert not np.allclose(other.W, one.W, atol=0.1)


def test_the_batch_changes_no_full_gradient():
    """One batch of all users and all items: the first epoch's loss is the whole one, however it is cut."""
    whole, halves = (
        dataclasses.replace(SMALL, batch=b, draws=40, step=1e-9, epochs=1).fit(DATA).history[0] for b in (60, 30)
    )
    assert whole["objective"] == pytest.approx(halves["objective"], rel=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("early_stopping", [0, 2])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, early_stopping):
    solver = dataclasses.replace(
        SMALL, epochs=5, item=(ek.Ids(dropout=0.3), ek.MLP(hidden=(6,), dropout=0.3)), early_stopping=early_stopping
    )
    whole = solver.fit(DATA, item_features=FEATURES)

    def kill(record):
        if record["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        solver.fit(DATA, item_features=FEATURES, callback=kill, checkpoint=tmp_path / "c")
    resumed = solver.fit(DATA, item_features=FEATURES, checkpoint=tmp_path / "c", resume=True)
    assert resumed.W.tobytes() == whole.W.tobytes()
    assert resumed.H.tobytes() == whole.H.tobytes()
    assert resumed.history == whole.history


def test_a_checkpoint_of_another_number_of_epochs_is_refused(tmp_path):
    SMALL.fit(DATA, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="is of a run of 3 epochs"):
        dataclasses.replace(SMALL, epochs=5).fit(DATA, checkpoint=tmp_path / "c", resume=True)


@pytest.mark.parametrize("own", [False, True])
def test_save_load_save_gives_the_same_bytes(tmp_path, own):
    item = (ek.Ids(0.2), ek.MLP(columns=["genre"], hidden=(6,)))
    if own:
        item = (ek.Ids(), ek.Module(torch.nn.Linear(2, 4), ["year"]))
    model = dataclasses.replace(SMALL, threads=None, user=(ek.Ids(), ek.MLP(hidden=())), item=item).fit(
        DATA, user_features=PEOPLE, item_features=FEATURES
    )
    model.save(tmp_path / "one")
    again = ek.load(tmp_path / "one")
    again.save(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    assert again.solver == model.solver
    assert again.recommend().equals(model.recommend())
    settings = json.loads(json.dumps(dataclasses.asdict(model.solver)))
    assert named_solver("two-tower", settings) == model.solver


def test_a_module_of_ones_own_is_trained_as_a_copy_and_kept_as_arrays():
    module = torch.nn.Linear(2, 4)
    before = module.weight.detach().clone()
    model = dataclasses.replace(SMALL, item=ek.Module(module, ["year"])).fit(DATA, item_features=FEATURES)
    assert torch.equal(module.weight, before)
    kept = model.item_side.extra["item.0.weight"]
    assert kept.shape == (4, 2)
    assert not np.allclose(kept, before)
    with torch.no_grad():  # the arrays are enough to encode with, given the code
        module.load_state_dict({n: torch.from_numpy(model.item_side.extra[f"item.0.{n}"]) for n in ("weight", "bias")})
        years = (np.arange(40) - 19.5) / np.std(np.arange(40))
        x = module(torch.tensor(np.stack([years, np.ones(40)], axis=1), dtype=torch.float32))
        x = torch.nn.functional.normalize(x) @ torch.from_numpy(model.item_side.extra["rotation"])
    np.testing.assert_allclose(model.H, x, atol=1e-5)
    with pytest.raises(ValueError, match="by a torch module, which is code and not kept"):
        model.add_items(FEATURES)
    with pytest.raises(ValueError, match="holds no code: give the torch module again"):
        model.solver.fit(DATA, item_features=FEATURES)


@pytest.mark.parametrize(
    "module, message",
    [
        (torch.nn.Linear(2, 5), r"a module of item gives \(2, 5\) for 2 rows, expected \(2, 4\): its last layer"),
        (torch.nn.Linear(3, 4), r"a module of item fails on features of shape \(2, 2\)"),
        (torch.nn.Flatten(0), r"a module of item gives \(4,\) for 2 rows"),
    ],
)
def test_a_module_of_a_wrong_width_is_one_clear_error(module, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, item=ek.Module(module, ["year"])).fit(DATA, item_features=FEATURES)


def test_features_and_parts_must_go_together():
    with pytest.raises(ValueError, match="give item_features to fit"):
        dataclasses.replace(SMALL, item=ek.MLP()).fit(DATA)
    with pytest.raises(ValueError, match=r"no part of item reads them: add MLP\(\) to item"):
        SMALL.fit(DATA, item_features=FEATURES)
    with pytest.raises(ValueError, match="a part of item reads 'gnere', and the features are genre, year"):
        dataclasses.replace(SMALL, item=ek.MLP(columns=["gnere"])).fit(DATA, item_features=FEATURES)


def test_rows_nobody_has_are_zero_without_features_and_their_features_with():
    rows = DATA.user_rows()
    keep = DATA.matrix.indices != 7
    without = dataclasses.replace(
        ek.Interactions.of(rows[keep], DATA.matrix.indices[keep], DATA.matrix.data[keep], DATA.users, DATA.items),
        rated=False,
    )
    assert not SMALL.fit(without).H[7].any()
    both = dataclasses.replace(SMALL, item=(ek.Ids(), ek.MLP(hidden=()))).fit(without, item_features=FEATURES)
    assert both.H[7].any()


def test_a_newcomer_gets_the_best_row_against_the_trained_items():
    model = dataclasses.replace(SMALL, unobserved_weight=0.2, alpha=2.0).fit(DATA)
    folded = model.fold_in(DATA)
    history, H = DATA.matrix[[3]].toarray()[0].astype(np.float64), model.H.astype(np.float64)
    A = 0.2 * H.T @ H + 2.0 * (H.T * history) @ H
    A += model.solver.reg * (history.sum() + 0.2 * 40) * np.eye(4)
    np.testing.assert_allclose(folded.W[3], np.linalg.solve(A, 2.0 * H.T @ history), atol=1e-4)
    assert not np.allclose(folded.W[3], model.W[3], atol=1e-2)  # a trained row is another one
    item = DATA.items.ids[5].item()
    why = folded.explain(DATA.users.ids[3].item(), item)
    assert why.score == pytest.approx(float(folded.predict([DATA.users.ids[3].item()], [item])[0]), abs=1e-4)


def test_a_trained_users_explanation_adds_up_too():
    model = SMALL.fit(DATA)
    user, item = DATA.users.ids[3].item(), DATA.items.ids[5].item()
    why = model.explain(user, item)
    assert why.score == pytest.approx(float(model.predict([user], [item])[0]), abs=1e-4)
    shares = model.fold_in(DATA).explain(user, item)
    assert why.reasons.equals(shares.reasons)
    assert why.baseline != pytest.approx(shares.baseline, abs=1e-2)


ENCODED = [
    ek.MLP(hidden=()),
    (ek.MLP(hidden=(6, 5), dropout=0.2), ek.MLP(columns=["year"], hidden=(3,))),
]


@pytest.mark.parametrize("item", ENCODED)
@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_the_encoder_gives_without_torch_what_the_tower_gives(item, loss):
    model = dataclasses.replace(SMALL, item=item, loss=loss).fit(DATA, item_features=FEATURES)
    encoded = model.item_encoder.encode(FEATURES.aligned(DATA.items))
    np.testing.assert_allclose(encoded[:, :-1], model.H, atol=1e-5)
    assert not encoded[:, -1].any()


def test_newcomers_are_served_from_their_features_without_torch(tmp_path, monkeypatch):
    both = (ek.Ids(dropout=0.5), ek.MLP(hidden=(6,)))
    dataclasses.replace(SMALL, user=both, item=both).fit(DATA, user_features=PEOPLE, item_features=FEATURES).save(
        tmp_path / "model"
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    model = ek.load(tmp_path / "model")
    more = model.add_items(FEATURES)
    assert more.item_side.cold.sum() == 10
    np.testing.assert_allclose(np.linalg.norm(more.H, axis=1), 1, atol=1e-5)
    table = more.recommend(features={"age": 33.0}, k=50)
    assert set(table["status"].to_pylist()) == {"cold"}
    assert set(table["item_status"].to_pylist()) == {"hot", "cold"}
    history = {DATA.items.ids[i].item(): 1.0 for i in (3, 5)}
    warm = more.recommend(history=history, features={"age": 33.0}, k=3)
    assert set(warm["status"].to_pylist()) == {"warm"}


def test_a_warm_start_begins_where_implicit_als_ends():
    als = ek.ImplicitALS(rank=4, reg=SMALL.reg, epochs=8).fit(DATA)
    warm = dataclasses.replace(SMALL, warm_start=True, loss="squared", step=1e-9, epochs=1).fit(DATA)
    np.testing.assert_allclose(scores(warm), scores(als), atol=1e-3)


def test_popularity_is_added_to_the_scores_and_explained():
    plain, popular = (dataclasses.replace(SMALL, popularity=p).fit(DATA) for p in (0.0, 0.5))
    users, items = DATA.users.ids[[3, 3]], DATA.items.ids[[5, 6]]
    counts = np.bincount(DATA.matrix.indices, minlength=40)
    more = popular.predict(users, items) - plain.predict(users, items)
    np.testing.assert_allclose(more, 0.5 * np.log(counts[[5, 6]]), atol=1e-5)
    for model in (popular, popular.fold_in(DATA)):
        why = model.explain(users[0].item(), items[0].item())
        assert why.score == pytest.approx(float(model.predict(users[:1], items[:1])[0]), abs=1e-4)


def test_popular_positives_weigh_less_with_propensity():
    plain, weighed = (dataclasses.replace(SMALL, propensity=p, epochs=20, step=0.05).fit(DATA) for p in (0.0, 1.0))
    counts = np.bincount(DATA.matrix.indices, minlength=40)
    top = [np.mean(counts[m.top_k(np.arange(60), 5)[0]]) for m in (plain, weighed)]
    assert top[1] < top[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": "hinge"}, "loss is 'hinge', expected one of softmax, bpr, ccl, squared"),
        ({"negatives": "all"}, "negatives is 'all', expected one of uniform, popularity, in-batch, hard"),
        ({"draws": 0}, "draws is 0, expected 1 to"),
        ({"temperature": 0}, "temperature is 0.0, expected a number above 0"),
        ({"loss": "squared", "negatives": "hard"}, "the squared loss is over all cells"),
        ({"loss": "ccl", "normalize": False}, "the loss ccl is of cosines"),
        ({"user": ()}, "user has no parts"),
        ({"item": (ek.Ids(), ek.Ids())}, "item has Ids twice"),
        ({"item": [{"kind": "code"}]}, "item has a part of kind 'code', expected one of ids, mlp, module"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_device_that_is_not_there_is_one_clear_error():
    with pytest.raises(ValueError, match="device is 'cuda:77', which torch cannot use"):
        dataclasses.replace(SMALL, device="cuda:77").fit(DATA)


def test_without_torch_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="TwoTower needs torch, which is not installed: pip install"):
        SMALL.fit(DATA)

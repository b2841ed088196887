"""The battery that every solver passes: the laws of a fitted model, whatever its equations."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives
from strategies import interactions, ratings, triples

import eckart as ek

SOLVERS = [
    ek.ALS(rank=3, reg=0.1, epochs=4, solver="exact"),
    ek.ALS(rank=3, reg=0.1, epochs=4, solver="cg"),
    ek.ALS(rank=3, reg=0.1, epochs=4, solver="exact", implicit_reg=1.0),
    ek.ALS(rank=3, reg=0.1, epochs=4, solver="block", implicit_reg=1.0),
    ek.ImplicitALS(rank=3, reg=0.02, epochs=4, solver="exact"),
    ek.ImplicitALS(rank=3, reg=0.02, epochs=4, solver="block"),
    ek.SGD(rank=3, reg=0.1, epochs=4),
    ek.SGD(rank=3, reg=0.1, epochs=4, loss="logistic", negatives=2),
    ek.Gibbs(rank=3, epochs=3, samples=2, burn_in=0.4),
    ek.SVD(rank=3),
    ek.SVD(rank=3, center=False),
    ek.SVD(rank=3, normalize=True),
]
# Towers need torch. A row of theirs is what training made of it: not that of its history folded in. Torch's sums
# may round differently by the number of threads.
TOWERS = [
    ek.TwoTower(rank=3, epochs=2, batch=100, draws=8),
    ek.TwoTower(rank=3, epochs=2, batch=4, draws=8, loss="squared"),
]
CLOSED = list(SOLVERS)
SOLVERS += TOWERS if importlib.util.find_spec("torch") else []
# A solver of one step has no epochs, and where it is exact, no noise: tests/recommend/test_svd.py has its optimum.
ITERATIVE = [solver for solver in SOLVERS if hasattr(solver, "epochs")]
# A sampler minimises nothing: its rows are means of a posterior. Towers are left where the last step took them.
# The logistic loss has no closed form: how near its rows come to their minimum is in tests/recommend/test_sgd.py.
MINIMISERS = [
    solver
    for solver in ITERATIVE
    if not isinstance(solver, (ek.Gibbs, ek.TwoTower)) and getattr(solver, "loss", "squared") == "squared"
]
# The truncation is not unique where singular values are equal, as in data this small they may be: the SVD's law of
# renaming is in tests/recommend/test_svd.py, with a gap after the last one kept.
UNIQUE = [solver for solver in SOLVERS if not isinstance(solver, ek.SVD)]
OBJECTIVE = {ek.ALS: objectives.als, ek.ImplicitALS: objectives.implicit_als, ek.SGD: objectives.sgd}


def _named(solver):
    names = ("solver", "implicit_reg", "center", "normalize", "loss")
    chosen = {name: getattr(solver, name, None) for name in names}
    return "-".join([type(solver).__name__, *(f"{k}-{v}" for k, v in chosen.items() if v is not None)])


every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=_named)
every_closed_solver = pytest.mark.parametrize("solver", CLOSED, ids=_named)
every_iterative_solver = pytest.mark.parametrize("solver", ITERATIVE, ids=_named)
every_minimiser = pytest.mark.parametrize("solver", MINIMISERS, ids=_named)
# SGD's objective is summed on the way, each error before its update: it is that of no one state. It has no exponent.
every_alternating_solver = pytest.mark.parametrize("solver", SOLVERS[:4], ids=_named)
every_unique_solver = pytest.mark.parametrize("solver", UNIQUE, ids=_named)
few = settings(max_examples=40, deadline=None)


def fit(solver, data):
    """Fit to the data, as pairs where the solver takes no ratings."""
    return solver.fit(dataclasses.replace(data, rated=data.rated and getattr(solver, "loss", "") != "logistic"))


def objective(data, model):
    side = model.item_side
    fitted = data, model.solver, model.W, side.H, model.user_bias, side.bias, side.mean
    if "implicit" in side.extra:
        return objectives.implied_als(*fitted, side.extra["implicit"])
    return OBJECTIVE[type(model.solver)](*fitted)


def all_scores(model, users, items):
    pairs = [(u, i) for u in users for i in items]
    return model.predict([u for u, _ in pairs], [i for _, i in pairs]).reshape(len(users), len(items))


@every_alternating_solver
@few
@given(data=ratings(), exponent=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_objective_never_rises_and_is_the_one_defined(solver, data, exponent):
    solver = dataclasses.replace(solver, exponent=exponent, epochs=6)
    model = fit(solver, data)
    values = [record["objective"] for record in model.history]
    assert len(values) == 6
    for before, after in itertools.pairwise(values):
        assert after <= before * (1 + 1e-5)
    # Users are solved exactly at the end, which an exact epoch has done already.
    assert objective(data, model) <= values[-1] * (1 + 1e-4)
    if solver.solver == "exact":
        # The regression of the items is not in the model: the reference has it at its optimum, an epoch comes near.
        rel = 1e-2 if getattr(solver, "implicit_reg", 0) else 1e-4
        assert objective(data, model) == pytest.approx(values[-1], rel=rel)


@every_minimiser
@few
@given(data=ratings(), seed=st.integers(0, 2**32 - 1))
def test_every_user_row_is_a_minimum_along_random_directions(solver, data, seed):
    model = fit(solver, data)
    at_optimum = objective(data, model)
    rng = np.random.default_rng(seed)
    for _ in range(8):
        step = 5e-4 * rng.standard_normal(model.W.shape)
        bias_step = 5e-4 * rng.standard_normal(len(model.W)) * model.predicts_ratings
        for sign in (-1, 1):
            moved = dataclasses.replace(model, W=model.W + sign * step, user_bias=model.user_bias + sign * bias_step)
            assert objective(data, moved) > at_optimum


@every_closed_solver
@few
@given(data=ratings())
def test_folding_in_the_training_users_gives_their_rows_back(solver, data):
    model = fit(solver, data)
    again = model.fold_in(data)
    assert again.W.tobytes() == model.W.tobytes()
    assert again.user_bias.tobytes() == model.user_bias.tobytes()
    assert set(again.recommend()["status"].to_pylist()) <= {"warm"}


@every_unique_solver
@few
@given(
    data=triples(),
    order=st.permutations(range(12)),
    item_order=st.permutations(range(9)),
    as_text=st.booleans(),
)
def test_renaming_users_and_items_changes_nothing_else(solver, data, order, item_order, as_text):
    u, i, r = data
    new_user = [f"u{x:02}" for x in order] if as_text else [7 * x - 20 for x in order]
    new_item = [f"i{x:02}" for x in item_order] if as_text else [3 * x for x in item_order]
    users, items = np.unique(u).tolist(), np.unique(i).tolist()
    model = fit(solver, interactions(u, i, r))
    renamed = fit(solver, interactions([new_user[x] for x in u], [new_item[x] for x in i], r))
    scores = all_scores(model, users, items)
    again = all_scores(renamed, [new_user[x] for x in users], [new_item[x] for x in items])
    np.testing.assert_allclose(again, scores, rtol=0, atol=2e-3)


@every_solver
@few
@given(data=triples(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_entries_changes_no_bit(solver, data, seed):
    order = np.random.default_rng(seed).permutation(len(data[0]))
    one, other = (fit(solver, interactions(*t)) for t in (data, [x[order] for x in data]))
    assert one.W.tobytes() == other.W.tobytes()
    assert one.H.tobytes() == other.H.tobytes()


@every_closed_solver
@few
@given(data=ratings(), threads=st.integers(2, 4))
def test_the_bits_do_not_depend_on_the_threads(solver, data, threads):
    one, many = (fit(dataclasses.replace(solver, threads=t), data) for t in (1, threads))
    assert one.W.tobytes() == many.W.tobytes()
    assert one.H.tobytes() == many.H.tobytes()
    assert one.history == many.history


@every_solver
@given(data=ratings())
@settings(max_examples=10, deadline=None)
def test_prepared_data_give_the_same_bits(solver, data, tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "store"
    ek.prepare(data, store)
    one, other = fit(solver, data), fit(solver, ek.read(store))
    assert one.W.tobytes() == other.W.tobytes()
    assert one.H.tobytes() == other.H.tobytes()
    assert one.history == other.history


@every_solver
@few
@given(data=ratings(), k=st.integers(1, 12), exclude_seen=st.booleans())
def test_a_batch_equals_its_users_one_by_one(solver, data, k, exclude_seen):
    model = fit(solver, data)
    users = [*data.users.ids.tolist(), -99]
    batch = model.recommend(users, k, exclude_seen=exclude_seen)
    rows = [row for u in users for row in model.recommend(u, k, exclude_seen=exclude_seen).to_pylist()]
    assert batch.to_pylist() == rows


@every_solver
@few
@given(data=ratings(), k=st.integers(1, 12))
def test_recommendations_are_the_best_unseen_scores(solver, data, k):
    model = fit(solver, data)
    scores = all_scores(model, data.users.ids.tolist(), data.items.ids.tolist())
    for row, user in enumerate(data.users.ids.tolist()):
        table = model.recommend(user, k)
        seen = set(data.matrix.indices[data.matrix.indptr[row] : data.matrix.indptr[row + 1]].tolist())
        left = np.array([c for c in range(len(data.items)) if c not in seen], dtype=int)
        assert table.num_rows == min(k, len(left))
        assert table["rank"].to_pylist() == list(range(1, table.num_rows + 1))
        columns = data.items.rows(table["item"].to_pylist())
        assert set(columns.tolist()) <= set(left.tolist())
        np.testing.assert_allclose(table["score"], scores[row, columns], atol=1e-5)
        best = np.sort(scores[row, left])[::-1][: table.num_rows]
        np.testing.assert_allclose(np.sort(table["score"].to_numpy())[::-1], best, atol=1e-5)


@every_solver
@few
@given(data=ratings())
def test_an_explanation_adds_up_to_the_prediction(solver, data):
    model = fit(solver, data)
    user, item = data.users.ids[-1].item(), data.items.ids[0].item()
    why = model.explain(user, item)
    predicted = float(model.predict([user], [item])[0])
    assert why.score == pytest.approx(predicted, abs=1e-3)
    assert why.baseline + sum(why.reasons["contribution"].to_pylist()) == pytest.approx(predicted, abs=1e-3)
    own = data.matrix.indices[data.matrix.indptr[-2] :]
    assert set(why.reasons["item"].to_pylist()) == set(data.items.ids[own].tolist())


@every_closed_solver
@few
@given(data=ratings())
def test_a_newcomer_with_a_users_history_is_that_user(solver, data):
    model = fit(solver, data)
    begin, end = data.matrix.indptr[:2]
    ids, values = (
        data.items.ids[data.matrix.indices[begin:end]].tolist(),
        data.matrix.data[begin:end].tolist(),
    )
    newcomer = model.recommend(history=dict(zip(ids, values, strict=True)), k=9)
    known = model.recommend(data.users.ids[0].item(), k=9)
    assert newcomer["item"].to_pylist() == known["item"].to_pylist()
    assert newcomer["score"].to_pylist() == known["score"].to_pylist()


@every_solver
@given(data=ratings())
@settings(max_examples=15, deadline=None)
def test_save_load_save_gives_the_same_bytes(solver, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = fit(solver, data)
    model.save(folder / "one")
    again = ek.load(folder / "one")
    again.save(folder / "two")
    names = sorted(p.name for p in (folder / "one").iterdir())
    assert names == sorted(p.name for p in (folder / "two").iterdir())
    for name in names:
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert again.recommend().equals(model.recommend())
    assert again.solver == model.solver
    assert again.history == model.history


@every_iterative_solver
def test_different_seeds_give_different_models(solver):
    data = ek.synthetic(users=60, items=40, entries=800, seed=1, rated=solver.predicts_ratings)
    one, other = (fit(dataclasses.replace(solver, seed=s, epochs=1), data) for s in (0, 1))
    assert not np.allclose(one.W, other.W)


@every_solver
@pytest.mark.parametrize(
    "change, message",
    [
        ({"rank": 0}, "rank is 0, expected 1 to 2147483647"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"reg": 0.0}, "reg is 0.0, expected a number above 0"),
        ({"reg": float("nan")}, "reg is nan"),
        ({"threads": 0}, "threads is 0"),
        ({"early_stopping": -1}, "early_stopping is -1"),
    ],
)
def test_settings_out_of_range_are_refused(solver, change, message):
    if not hasattr(solver, next(iter(change))):
        pytest.skip("no such setting")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(solver, **change)


@every_alternating_solver
def test_an_exponent_out_of_range_is_refused(solver):
    with pytest.raises(ValueError, match=r"exponent is -1\.0"):
        dataclasses.replace(solver, exponent=-1.0)


@every_solver
@pytest.mark.parametrize("change", [{"rank": 2.5}, {"rank": True}, {"reg": "0.1"}, {"threads": 1.5}])
def test_settings_of_a_wrong_type_are_refused(solver, change):
    if not hasattr(solver, next(iter(change))):
        pytest.skip("no such setting")
    with pytest.raises(TypeError, match=next(iter(change))):
        dataclasses.replace(solver, **change)


@every_solver
def test_a_rank_larger_than_the_matrix_is_refused(solver):
    with pytest.raises(ValueError, match=r"rank 3 is larger than min\(users, items\) = 2: choose at most 2"):
        fit(solver, interactions([0, 1], [0, 1], [1.0, 2.0]))

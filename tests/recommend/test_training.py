"""The loop around the epochs: early stopping, checkpoints, callbacks, divergence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import eckart as ek

SOLVERS = [ek.ALS(rank=4, reg=0.02, epochs=8), ek.ImplicitALS(rank=4, reg=0.001, epochs=8)]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


@pytest.fixture(scope="module")
def parts():
    return ek.split(ek.synthetic(users=120, items=60, entries=2500, seed=3), test=0.2, seed=0)


class Killed(Exception):
    pass


@every_solver
@pytest.mark.parametrize("killed_after", [1, 3, 7, 8])
@pytest.mark.parametrize("validated", [False, True])
def test_a_killed_run_resumed_gives_the_same_bits(solver, killed_after, validated, parts, tmp_path):
    train, held_out = parts
    solver = dataclasses.replace(solver, early_stopping=2 if validated else 0)
    validation = held_out if validated else None

    def kill(record):
        if record["epoch"] == killed_after:
            raise Killed

    whole = solver.fit(train, validation)
    if killed_after <= len(whole.history):
        with pytest.raises(Killed):
            solver.fit(train, validation, checkpoint=tmp_path, callback=kill)
    resumed = solver.fit(train, validation, checkpoint=tmp_path, resume=True)
    assert resumed.W.tobytes() == whole.W.tobytes()
    assert resumed.H.tobytes() == whole.H.tobytes()
    assert resumed.history == whole.history
    assert len(list(tmp_path.glob("epoch-*"))) == 1


@every_solver
def test_a_finished_run_can_go_on_for_more_epochs(solver, parts, tmp_path):
    train, _ = parts
    dataclasses.replace(solver, epochs=3).fit(train, checkpoint=tmp_path)
    more = solver.fit(train, checkpoint=tmp_path, resume=True)
    assert more.W.tobytes() == solver.fit(train).W.tobytes()


@every_solver
def test_a_checkpoint_of_another_run_is_refused(solver, parts, tmp_path):
    train, held_out = parts
    solver.fit(train, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="checkpoint of an earlier run"):
        solver.fit(train, checkpoint=tmp_path)
    for other, data in ((dataclasses.replace(solver, reg=0.5), train), (solver, held_out)):
        with pytest.raises(ValueError, match="other data or settings"):
            other.fit(data, checkpoint=tmp_path, resume=True)


@every_solver
def test_a_checkpoint_that_is_further_is_not_turned_back(solver, parts, tmp_path):
    solver.fit(parts[0], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="is at epoch 8, epochs is 3: ask for as many or more"):
        dataclasses.replace(solver, epochs=3).fit(parts[0], checkpoint=tmp_path, resume=True)


@every_solver
def test_early_stopping_returns_the_best_epoch(solver, parts):
    train, held_out = parts
    solver = dataclasses.replace(solver, epochs=60, reg=1e-3, early_stopping=2)
    model = solver.fit(train, held_out)
    name = "validation_rmse" if model.predicts_ratings else "validation_ndcg@10"
    values = [record[name] for record in model.history]
    losses = values if model.predicts_ratings else [-v for v in values]
    best = int(np.argmin(losses))
    assert len(values) == best + 3  # two epochs without a better one, then the stop
    at_best = dataclasses.replace(solver, epochs=best + 1, early_stopping=0).fit(train)
    assert at_best.W.tobytes() == model.W.tobytes()


@every_solver
def test_early_stopping_holds_out_a_tenth_by_itself(solver, parts):
    model = dataclasses.replace(solver, epochs=30, early_stopping=1).fit(parts[0])
    assert any(name.startswith("validation_") for name in model.history[0])
    # The held-out tenth chooses the epoch; in the end every user's row is solved from all that is known.
    assert model.seen.nnz == parts[0].nnz
    assert model.users == parts[0].users
    assert model.fold_in(parts[0]).W.tobytes() == model.W.tobytes()
    assert set(model.recommend()["status"].to_pylist()) == {"hot"}


def test_the_recorded_validation_rmse_is_the_one_evaluate_gives(parts):
    train, held_out = parts
    model = ek.ALS(rank=4, epochs=3).fit(train, held_out)
    known = (model.users.rows(held_out.users.ids)[held_out.user_rows()] >= 0) & (
        model.items.rows(held_out.items.ids)[held_out.matrix.indices] >= 0
    )
    report = ek.evaluate(model, held_out.select(known))
    assert model.history[-1]["validation_rmse"] == pytest.approx(report["rmse"], rel=1e-6)


@every_solver
def test_the_callback_sees_every_epoch_in_order(solver, parts):
    records = []
    model = solver.fit(parts[0], callback=records.append)
    assert records == model.history
    assert [r["epoch"] for r in records] == list(range(1, 9))


@pytest.mark.parametrize("scale", [1e20, 1e37])
def test_overflow_is_an_error_that_says_what_to_change(scale, parts):
    train, _ = parts
    matrix = train.matrix.copy()
    matrix.data = matrix.data * np.float32(scale) / 5
    with pytest.raises(FloatingPointError, match="scale the ratings down"):
        ek.ALS(rank=4).fit(dataclasses.replace(train, matrix=matrix))


def test_positive_only_data_are_refused_by_als_with_a_sentence():
    data = ek.synthetic(users=30, items=20, entries=200, rated=False)
    with pytest.raises(ValueError, match="use ImplicitALS"):
        ek.ALS(rank=2).fit(data)


def test_negative_values_are_refused_by_implicit_als(parts):
    matrix = parts[0].matrix.copy()
    matrix.data[5] = -1
    with pytest.raises(ValueError, match="a weight cannot be negative"):
        ek.ImplicitALS(rank=2).fit(dataclasses.replace(parts[0], matrix=matrix))


@every_solver
def test_validation_data_of_strangers_are_refused(solver, parts):
    strangers = ek.read({"user": ["x", "y"], "item": ["a", "b"], "rating": [1.0, 2.0]})
    with pytest.raises(ValueError, match="no validation entry has a user and an item"):
        solver.fit(parts[0], strangers)


@every_solver
def test_two_runs_do_not_share_a_checkpoint(solver, parts, tmp_path):
    def another(_):
        with pytest.raises(ValueError, match="is in use by another run: wait for it, or choose another directory"):
            solver.fit(parts[0], checkpoint=tmp_path, resume=True)

    solver.fit(parts[0], checkpoint=tmp_path, callback=another)
    solver.fit(parts[0], checkpoint=tmp_path, resume=True)

"""The tuner finds what is there, sees what it may, and loses nothing."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eckart as ek
from eckart.recommend import halving
from eckart.recommend.solver import SOLVERS, named_solver
from eckart.recommend.space import SHARED, SPACES, Range, checked_space, evenly_spread, from_unit, to_unit

DATA = ek.synthetic(150, 60, 3000, rank=3, noise=0.3, seed=0)
SMALL = {"rank": (1, 8)}
TIMES = ("seconds", "at")


def search(*args, **options):
    """`tune` without the comparison on other splits, which has tests of its own below."""
    return ek.tune(*args, splits=0, **options)


def recorded(monkeypatch, cls=ek.ALS):
    """Every (solver, data, validation, checkpoint, model) of a fit."""
    calls, fit = [], cls.fit

    def spy(self, data, validation=None, **options):
        model = fit(self, data, validation, **options)
        calls.append((self, data, validation, options.get("checkpoint"), model))
        return model

    monkeypatch.setattr(cls, "fit", spy)
    return calls


def pairs_of(data):
    rows = data.to_arrow()
    return set(zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True))


def planted(monkeypatch, loss):
    """ALS whose validation value after each epoch is `loss(solver, epoch)`; counts the epochs that were run."""
    run = []

    def fit(self, data, validation=None, *, callback=None, checkpoint=None, resume=False):
        state = checkpoint / "epoch"
        done = int(state.read_text()) if state.exists() else 0
        history = [{"epoch": e, "validation_rmse": loss(self, e)} for e in range(1, done + 1)]
        checkpoint.mkdir(exist_ok=True)
        for epoch in range(done + 1, self.epochs + 1):
            history.append({"epoch": epoch, "validation_rmse": loss(self, epoch)})
            run.append((self, epoch))
            state.write_text(str(epoch))
            callback(dict(history[-1]))
        return type("Model", (), {"history": history})

    monkeypatch.setattr(ek.ALS, "fit", fit)
    return run


def test_a_planted_region_is_found(monkeypatch):
    def loss(solver, epoch):
        penalty = solver.reg * 30**solver.exponent / (0.2 * 30**0.7)  # of a row of 30, as usual here
        far = math.log(penalty) ** 2 + math.log(solver.rank / 20) ** 2 + (solver.exponent - 0.7) ** 2
        return 1 + far + 0.01 * (epoch - 11) ** 2

    planted(monkeypatch, loss)
    space = {"rank": (4, 64), "reg": (0.01, 1.0), "exponent": (0.4, 1.2, False)}
    tuning = search(DATA, trials=100, seed=1, space=space)
    assert tuning.value < 1.01
    assert (tuning.solver.epochs, tuning.solver.early_stopping) == (11, 0)
    assert tuning.solver.reg == pytest.approx(0.2, rel=0.15)
    random = [loss(ek.ALS(**from_unit(x, checked(space))), 11) for x in np.random.default_rng(0).random((100, 3))]
    assert tuning.value < min(random), "the shrinking box is better than as many draws from everywhere"


def checked(space):
    return checked_space(space, {"rank": "int", "reg": "float", "exponent": "float"}, 60)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_can_be_tuned(name):
    if name == "two-tower":
        pytest.importorskip("torch")
    known = {field.name for field in dataclasses.fields(named_solver(name, {}))}
    assert set(SPACES[name]) <= known, "its line in SPACES names settings it has"
    start = dataclasses.replace(named_solver(name, {}), **({"epochs": 4} if "epochs" in known else {}))
    tuning = search(DATA, start, trials=4, space=SMALL)
    assert tuning.trials.num_rows == 4
    assert set(tuning.trials["status"].to_pylist()) <= {"done", "dropped"}
    ranked = tuning.ranked()["value"].to_pylist()
    assert ranked[0] == tuning.value
    assert ranked == sorted(ranked, reverse=not tuning.smaller_is_better)
    model = tuning.solver.fit(DATA)
    assert model.solver.rank <= 8
    assert len(model.users) == len(DATA.users)


def test_the_start_comes_first_as_it_is_and_nothing_chosen_is_worse():
    start = ek.ALS(rank=3, reg=0.5, exponent=0.0, epochs=6, seed=4)
    tuning = search(DATA, start, trials=6, space={"rank": (1, 8), "exponent": None, "implicit_reg": None})
    assert tuning.searched[:2] == ["rank", "reg"]
    first = tuning.trials.slice(0, 1).to_pylist()[0]
    assert (first["rank"], first["reg"]) == (3, 0.5)
    assert (tuning.solver.exponent, tuning.solver.seed) == (0.0, 4), "what is not searched stays"
    assert tuning.value <= first["value"]
    fit, valid = ek.split(DATA, test=0.1, seed=0)
    again = tuning.solver.fit(fit, valid).history
    assert len(again) == tuning.solver.epochs
    assert again[-1]["validation_rmse"] == tuning.value, "fitting the chosen settings gives the value told"


def test_the_same_seed_gives_the_same_table_and_another_does_not():
    first, again, other = (search(DATA, ek.ALS(epochs=5), trials=12, seed=s, space=SMALL) for s in (3, 3, 4))
    assert first.trials.drop_columns(TIMES).equals(again.trials.drop_columns(TIMES))
    assert first.solver == again.solver
    assert not first.trials.drop_columns(TIMES).equals(other.trials.drop_columns(TIMES))


def test_no_trial_sees_what_it_is_judged_on(monkeypatch):
    calls = recorded(monkeypatch)
    tuning = search(DATA, trials=5, test=0.2, validation=0.25, seed=2, space=SMALL)
    train, test = ek.split(DATA, test=0.2, seed=2)
    *trials, last = calls
    for _, data, valid, _, _ in trials:
        assert not pairs_of(data) & pairs_of(valid)
        assert not (pairs_of(data) | pairs_of(valid)) & pairs_of(test)
    assert pairs_of(trials[0][1]) | pairs_of(trials[0][2]) == pairs_of(train)
    solver, data, valid, _, model = last
    assert (solver, pairs_of(data), valid) == (tuning.solver, pairs_of(train), None)
    assert dict(tuning.test) == dict(ek.evaluate(model, test))
    assert tuning.test["seen_entries"] == 0


def test_held_out_entries_may_be_given():
    fit, valid = ek.split(DATA, test=0.3, seed=9)
    tuning = search(fit, trials=2, validation=valid, space=SMALL)
    assert tuning.solver.fit(fit, valid).history[-1]["validation_rmse"] == tuning.value


def test_promoted_trials_go_on_and_end_at_the_bits_of_an_undisturbed_fit(monkeypatch):
    calls = recorded(monkeypatch)
    told = []
    search(DATA, ek.ALS(epochs=9, early_stopping=50), trials=9, space=SMALL, callback=told.append)
    monkeypatch.undo()
    assert len({(r["trial"], r["epoch"]) for r in told}) == len(told), "no epoch is run twice"
    last = [call for call in calls if call[0].epochs == 18]
    assert len(last) == 1
    solver, fit, valid, _, model = last[0]
    assert [r["epoch"] for r in told if r["rung"] == 2] == list(range(7, 19))
    whole = solver.fit(fit, valid)
    assert whole.W.tobytes() == model.W.tobytes()
    assert whole.H.tobytes() == model.H.tobytes()
    assert whole.history == model.history


def test_only_the_best_third_goes_on_and_epochs_add_up(monkeypatch):
    run = planted(monkeypatch, lambda solver, epoch: solver.reg + 1 / epoch)
    tuning = search(DATA, ek.ALS(epochs=9), trials=10, space={"reg": (0.1, 1.0)})
    rows = tuning.trials.to_pylist()
    assert sorted((r["rung"], r["epochs"]) for r in rows) == [(0, 2)] * 6 + [(1, 6)] * 2 + [(2, 18)] * 2
    assert sum(r["epochs"] for r in rows) == len(run) == len(set(run))
    by_reg = sorted(rows, key=lambda r: r["reg"])
    assert [r["rung"] for r in by_reg] == sorted((r["rung"] for r in rows), reverse=True)


def test_a_solver_that_is_fitted_in_one_piece_is_not_interrupted(monkeypatch):
    calls = recorded(monkeypatch)
    monkeypatch.setattr(halving, "WHOLE", {"als"})
    tuning = search(DATA, ek.ALS(epochs=7), trials=5, space=SMALL)
    assert [(solver.epochs, checkpoint) for solver, _, _, checkpoint, _ in calls] == [(7, None)] * 5
    values = [model.history[-1]["validation_rmse"] for *_, model in calls]
    assert tuning.trials["value"].to_pylist() == values, "the last epoch's, not the best one's"
    fit, valid = ek.split(DATA, test=0.1, seed=0)
    assert all(pairs_of(data) == pairs_of(fit) and pairs_of(held) == pairs_of(valid) for _, data, held, _, _ in calls)


def test_a_trial_that_gets_no_better_is_not_run_to_the_end():
    tuning = search(DATA, ek.ALS(rank=8, reg=1e-3, epochs=30), trials=1)
    (row,) = tuning.trials.to_pylist()
    assert row["epochs"] == row["best_epoch"] + 3 < 60
    assert tuning.solver.epochs == row["best_epoch"]


def test_failing_trials_are_passed_over(monkeypatch):
    fit = ek.ALS.fit

    def sometimes(self, *args, **options):
        if self.reg > 0.1:
            raise FloatingPointError("epoch 1: the objective is nan")
        return fit(self, *args, **options)

    monkeypatch.setattr(ek.ALS, "fit", sometimes)
    tuning = search(DATA, trials=9, space=SMALL)
    rows = tuning.trials.to_pylist()
    failed = [r for r in rows if r["reg"] > 0.1]
    assert 0 < len(failed) < 9
    assert all(r["value"] is None and r["status"] == "failed: epoch 1: the objective is nan" for r in failed)
    assert tuning.solver.reg <= 0.1
    monkeypatch.setattr(ek.ALS, "fit", lambda self, *a, **o: (_ for _ in ()).throw(FloatingPointError("no")))
    with pytest.raises(ValueError, match="failed: no"):
        search(DATA, trials=3, space=SMALL)


def test_a_rank_the_matrix_lacks_is_never_asked_for():
    data = ek.synthetic(40, 12, 200, seed=0)
    tuning = search(data, trials=5)
    assert max(tuning.trials["rank"].to_pylist()) <= 12
    assert set(tuning.trials["status"].to_pylist()) <= {"done", "dropped"}


def test_an_interruption_gives_the_best_so_far(monkeypatch):
    def stop(record):
        if (record["trial"], record["epoch"]) == (2, 2):
            raise KeyboardInterrupt

    tuning = search(DATA, trials=9, space=SMALL, test=0.1, callback=stop)
    assert (tuning.stopped, tuning.trials.num_rows, tuning.test) == ("interrupted", 3, None)
    assert tuning.trials["status"].to_pylist() == ["dropped", "dropped", "stopped"]
    assert tuning.trials["epochs"].to_pylist()[2] == 2
    assert tuning.value == min(tuning.trials["value"].to_pylist())
    monkeypatch.setattr(ek.ALS, "fit", lambda self, *a, **o: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search(DATA, trials=9, space=SMALL)


def test_the_budget_is_looked_at_within_a_trial(monkeypatch):
    def slow(record):
        time.sleep(0.05)

    began = time.perf_counter()
    tuning = search(DATA, ek.ALS(epochs=4000, early_stopping=5000), budget=0.4, space=SMALL, callback=slow)
    assert time.perf_counter() - began < 20, "and not after 8,000 epochs of a twentieth of a second"
    assert tuning.stopped == "time"
    assert tuning.trials["status"].to_pylist()[-1] == "stopped"
    assert tuning.trials["epochs"].to_pylist()[0] < 100
    assert tuning.solver.epochs <= tuning.trials["epochs"].to_pylist()[0]


def test_it_ends_when_there_is_nothing_more_to_gain(monkeypatch):
    planted(monkeypatch, lambda solver, epoch: 1.0)
    tuning = search(DATA, ek.ALS(epochs=5), budget=300, space=SMALL)
    assert tuning.stopped == "converged"
    assert tuning.trials.num_rows < 150


def test_luck_on_one_split_does_not_choose(monkeypatch):
    """A setting is lucky on the first split and bad on all others; the next best is what is found."""
    first = ek.split(DATA, test=0.1, seed=0)[1]

    def fit(self, data, validation=None, *, callback=None, checkpoint=None, resume=False):
        lucky = self.reg > 0.5
        value = 1 + self.reg + (-1 if pairs_of(validation) == pairs_of(first) else 1) * lucky
        history = [{"epoch": e, "validation_rmse": value + 0.1 * (e - 2) ** 2} for e in range(1, self.epochs + 1)]
        for record in history:
            callback(dict(record))
        return type("Model", (), {"history": history})

    monkeypatch.setattr(ek.ALS, "fit", fit)
    options = {"trials": 5, "space": {"reg": (0.1, 1.0, False)}}
    alone, together = (ek.tune(DATA, ek.ALS(epochs=2), splits=n, **options) for n in (0, 4))
    assert alone.solver.reg > 0.5 > together.solver.reg
    assert together.solver.reg == min(together.trials["reg"].to_pylist())
    assert together.value == pytest.approx(1 + together.solver.reg)
    best = together.ranked().to_pylist()[0]
    assert (best["reg"], best["final"], best["best_epoch"]) == (together.solver.reg, together.value, 2)
    assert all(row["best_epoch"] <= row["epochs"] for row in together.trials.to_pylist())


@pytest.mark.parametrize("solver", [ek.ALS(epochs=6), ek.SVD(), ek.Gibbs(epochs=6, samples=3)])
def test_the_finalists_value_is_the_mean_of_fits_to_every_split(solver):
    tuning = ek.tune(DATA, solver, trials=7, splits=2, space=SMALL)
    finals = [final for final in tuning.trials["final"].to_pylist() if final is not None]
    assert len(finals) == 5
    assert tuning.value == min(finals)
    values = []
    for seed in range(3):
        fit, valid = ek.split(DATA, test=0.1, seed=seed)
        values.append(tuning.solver.fit(fit, valid).history[-1]["validation_rmse"])
    assert tuning.value == pytest.approx(np.mean(values), rel=1e-6)


def test_how_many_splits_depends_on_how_much_is_held_out(monkeypatch):
    calls = recorded(monkeypatch)
    tuning = ek.tune(DATA, ek.ALS(rank=2, epochs=3), trials=1, space={"reg": (0.1, 0.2)})
    assert len({frozenset(pairs_of(valid)) for _, _, valid, _, _ in calls}) == 5, "the first split and four more"
    monkeypatch.setattr("eckart.recommend.tune._ENOUGH", 700)  # 300 are held out
    calls.clear()
    ek.tune(DATA, ek.ALS(rank=2, epochs=3), trials=1, space={"reg": (0.1, 0.2)})
    assert len({frozenset(pairs_of(valid)) for _, _, valid, _, _ in calls}) == 3
    fit, valid = ek.split(DATA, test=0.1, seed=0)
    for options in ({"validation": valid}, {"by": "leave_one_out"}):
        assert ek.tune(fit, trials=1, space=SMALL, **options).trials["final"].to_pylist() == [None]
        with pytest.raises(ValueError, match="leave splits out"):
            ek.tune(fit, trials=1, space=SMALL, splits=2, **options)
    assert tuning.trials["final"].to_pylist() == [tuning.value]


def test_finals_that_fail_or_are_interrupted_leave_the_search_its_result(monkeypatch):
    fit = ek.ALS.fit
    for error, stopped in ((FloatingPointError("no"), "trials"), (KeyboardInterrupt(), "interrupted")):

        def fails_elsewhere(self, data, validation=None, error=error, **options):
            if "checkpoint" not in options:
                raise error
            return fit(self, data, validation, **options)

        monkeypatch.setattr(ek.ALS, "fit", fails_elsewhere)
        tuning = ek.tune(DATA, ek.ALS(rank=2, epochs=3), trials=3, splits=1, space=SMALL)
        assert tuning.stopped == stopped
        assert tuning.trials["final"].to_pylist() == [None] * 3
        assert tuning.value == min(tuning.trials["value"].to_pylist())


@pytest.mark.parametrize("metric", ["recall@5", "ndcg@3", "mae"])
def test_any_other_metric_is_measured_at_the_rungs(metric):
    tuning = search(DATA, ek.ALS(epochs=4), trials=4, metric=metric, space=SMALL)
    assert tuning.solver.epochs in (1, 3, 8)
    fit, valid = ek.split(DATA, test=0.1, seed=0)
    k = 10 if metric == "mae" else int(metric.partition("@")[2])
    assert ek.evaluate(tuning.solver.fit(fit), valid, k)[metric] == pytest.approx(tuning.value, rel=1e-6)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": math.nan}, "budget is nan"),
        ({"trials": 0}, "trials is 0"),
        ({"metric": "rsme"}, "rsme"),
        ({"metric": "ndcg"}, "ndcg@10"),
        ({"metric": "rmse@5"}, "no list length"),
        ({"solver": "implicit-als", "metric": "rmse"}, "only ranks"),
        ({"by": "user"}, "leave_one_out"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"space": {"rnak": (1, 2)}}, "rnak"),
        ({"space": {"seed": (1, 2)}}, "cannot be searched"),
        ({"space": {"reg": (2, 1)}}, "2 to 1"),
        ({"space": {"reg": (0, 1)}}, "more than 0"),
        ({"space": {"rank": None, "reg": None, "exponent": None, "implicit_reg": None}}, "nothing to search"),
        ({"space": {"reg": 3}}, "reg is 3"),
        ({"validation": 1.5}, "1.5"),
    ],
)
def test_a_mistake_is_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as error:
        search(DATA, **{"trials": 1, **given})
    assert "\n" not in str(error.value)


def test_what_the_solver_refuses_is_said_at_once(monkeypatch):
    pairs, fits, fit = ek.synthetic(30, 20, 100, rated=False), [], ek.ALS.fit
    monkeypatch.setattr(ek.ALS, "fit", lambda self, *a, **o: (fits.append(self), fit(self, *a, **o)))
    with pytest.raises(ValueError, match="use ImplicitALS"):
        search(pairs, trials=3)
    assert len(fits) == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["als", "implicit-als", "shared"]))
def test_settings_and_points_are_each_others_inverse(seed, name):
    space = SPACES.get(name, SHARED)
    rng = np.random.default_rng(seed)
    point = rng.random(len(space))
    settings = from_unit(point, space)
    for key, axis in space.items():
        assert axis.low <= settings[key] <= axis.high
        assert isinstance(settings[key], int) or not axis.whole
    np.testing.assert_allclose(to_unit(settings, space), point, atol=0.03)
    assert from_unit(to_unit(settings, space), space) == pytest.approx(settings, rel=0.01)


def test_along_the_axis_of_the_exponent_a_typical_rows_penalty_stays():
    space = {"reg": Range(1e-3, 1e3), "exponent": Range(0.4, 1.2, log=False)}
    drawn = [from_unit(np.array([0.5, u]), space, typical=30.0) for u in (0.0, 0.5, 1.0)]
    assert [one["reg"] * 30 ** one["exponent"] for one in drawn] == pytest.approx([30.0] * 3, rel=0.01)
    for one in drawn:
        assert from_unit(to_unit(one, space, typical=30.0), space, typical=30.0) == pytest.approx(one, rel=0.01)
    within = {"reg": Range(0.1, 1.0), "exponent": Range(0.4, 1.2, log=False)}
    assert from_unit(np.array([1.0, 0.0]), within, typical=30.0)["reg"] == 1.0, "a range given is kept to"


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_points_are_spread_more_evenly_than_independent_ones(d):
    def worst_gap(points):
        probes = np.random.default_rng(1).random((400, d))
        return np.sqrt(((probes[:, None] - points) ** 2).sum(2).min(1)).mean()

    points = evenly_spread(0, 64, np.full(d, 0.5))
    assert ((points >= 0) & (points < 1)).all()
    rng = np.random.default_rng(0)
    assert worst_gap(points) < np.mean([worst_gap(rng.random((64, d))) for _ in range(20)])
    np.testing.assert_array_equal(evenly_spread(60, 4, np.full(d, 0.5)), points[60:])


def test_ranges_keep_to_what_a_setting_takes():
    assert checked_space({"rank": (4.5, 500)}, {"rank": "int"}, 60) == {"rank": Range(5, 60, True, True)}

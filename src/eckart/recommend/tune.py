"""Choosing settings: successive halving in a box that shrinks around the best, on a split made inside the data.

A round draws trials and runs each for a few epochs; the best third goes on, from where it was, to three times as
many, and the best third of those to three times as many again (Jamieson, Talwalkar 2016; Li et al. 2018). Two rounds
look everywhere in the solver's ranges (space.py), the four after them in a box around the best so far, of half the
sides each time; then everywhere again, in case the best was a hole of its own. The number of epochs is tuned too: a
trial's value is that of its best epoch.

A trial is a fit with a checkpoint, resumed where it is promoted: no epoch is run twice, and the state is to the bit
that of an uninterrupted fit. Trials run one after the other, for each uses all threads.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eckart.data.interactions import Interactions
from eckart.data.split import split
from eckart.recommend.evaluate import Report, evaluate
from eckart.recommend.solver import Solver, named_solver, solver_name
from eckart.recommend.space import SHARED, SPACES, WHOLE, Range, checked_space, evenly_spread, from_unit, to_unit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Tuning", "tune"]

_ROUND = 9  # trials; 9, 3 and 1 of them reach the three rungs
_RUNGS = (9, 3, 1)  # a rung's epochs are the most that a trial may take, divided by these
_SIDES = (1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of the box of each round of a cycle, as shares of the axes
_ENOUGH = 1e-4  # a cycle that betters the best by a smaller share of it is the last
_PATIENCE = 3  # epochs without a better value end a trial
_METRICS = ("rmse", "mae", "recall", "recall_capped", "precision", "ndcg", "map", "mrr", "hit_rate")


@dataclass(frozen=True, eq=False, repr=False)
class Tuning:
    """What `tune` found.

    Parameters
    ----------
    solver : Solver
        The best settings, the number of epochs among them: ``tuning.solver.fit(data)`` learns from everything.
    metric : str
    value : float
        The best trial's, on the validation part. Optimistic: it is the best of many. `test` is not.
    trials : pyarrow.Table
        A row a trial, in the order they were drawn: ``trial``, ``round``; a column for every setting searched;
        ``rung`` reached (0, 1, 2), ``epochs`` run, ``best_epoch``, ``value`` there (null: none was reached),
        ``seconds`` it took, ``at`` (seconds from the start until its best epoch was done) and ``status``: "done"
        (the last rung), "dropped" before it, "stopped" by the budget or an interruption, or "failed: " and why.
    stopped : {"trials", "time", "converged", "interrupted"}
        Why there are no more.
    test : Report, optional
        `evaluate` of the best settings, fitted to all but the test part, on that part.
    """

    solver: Solver
    metric: str
    value: float
    trials: pa.Table
    stopped: str
    test: Report | None = None

    @property
    def smaller_is_better(self) -> bool:
        """Whether the metric is an error."""
        return _is_error(self.metric)

    @property
    def searched(self) -> list[str]:
        """Names of the settings that the trials differ in."""
        names = self.trials.column_names
        return names[names.index("round") + 1 : names.index("rung")]

    def ranked(self) -> pa.Table:
        """Trials with the best value first, those without one last."""
        return self.trials.sort_by([("value", "ascending" if self.smaller_is_better else "descending")])

    def __repr__(self) -> str:
        return (
            f"Tuning({self.solver!r}, validation {self.metric} {self.value:.4f}, "
            f"{self.trials.num_rows} trials, stopped: {self.stopped})"
        )


@dataclass
class _Trial:
    number: int
    round: int
    solver: Solver
    rung: int = 0
    in_history: bool = False  # whether the solver records the metric after every epoch
    epochs: int = 0
    best: float = math.nan
    best_epoch: int = 0
    seconds: float = 0.0
    at: float = math.nan
    status: str = "dropped"
    over: bool = False  # no epoch will follow: stopped early, or failed


class _TimeIsUp(Exception):
    pass


def tune(
    data: Interactions,
    solver: str | Solver = "als",
    *,
    budget: float | None = None,
    trials: int | None = None,
    metric: str | None = None,
    validation: float | Interactions = 0.1,
    by: Literal["random", "time", "leave_one_out"] = "random",
    test: float | None = None,
    space: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Tuning:
    """Search for the settings of a solver that do best on held-out entries of `data`.

    Parameters
    ----------
    data : Interactions
        Training data. What you will judge the model by must not be among them.
    solver : str or Solver
        Its name, or an instance: the first trial, moved into the ranges in `space`. What is not searched stays as it
        is there.
    budget : float > 0, optional
        Seconds; looked at after every epoch. 60 where `trials` is not given either.
    trials : int >= 1, optional
        At most so many. Without `budget` the result depends on the data and the seed alone.
    metric : str, optional
        "rmse", "mae", or a ranking metric of `evaluate` such as "recall@20". By default "rmse" for solvers of
        ratings and "ndcg@10" for the others. The solver's own validation metric is known after every epoch; any
        other is measured at the three rungs, and the number of epochs is then one of theirs.
    validation : float in (0, 1) or Interactions
        Fraction of the data held out from the trials, or the held-out entries themselves.
    by : {"random", "time", "leave_one_out"}
        How `validation` and `test` are held out, see `split`.
    test : float in (0, 1), optional
        Fraction held out before everything; the best settings are fitted without it and measured on it, once.
        Time for this is not in the budget.
    space : mapping of setting to (low, high) or (low, high, log), optional
        Ranges that replace or add to the solver's; None in place of a range leaves a setting as it is.
    epochs : int, optional
        Most epochs of a trial; by default twice the solver's, or the solver's where it is fitted in one piece.
    seed : int
        Of the splits and the draws.
    threads : int, optional
        None: the cores this process may use.
    callback : callable, optional
        Called after every epoch with ``{"trial", "rung", "epoch", "value", "best", "seconds"}``.

    Returns
    -------
    Tuning

    Raises
    ------
    ValueError
        A budget, metric, split or range that makes no sense; data that the solver refuses; no trial got a value.
    KeyboardInterrupt
        Only before the first value: later an interruption ends the search, and the best so far is returned.

    References
    ----------
    Jamieson, Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, seed=0)
    >>> tuning = ek.tune(data, trials=12, space={"rank": (2, 16)})
    >>> tuning.trials.num_rows, tuning.solver.rank <= 16
    (12, True)
    >>> model = tuning.solver.fit(data)
    """
    start = named_solver(solver, {}) if isinstance(solver, str) else solver
    if budget is None and trials is None:
        budget = 60.0
    _check(start, budget, trials, by, epochs, seed)
    metric = metric or ("rmse" if start.predicts_ratings else "ndcg@10")
    _check_metric(metric, start)
    train, held_out = (data, None) if test is None else split(data, test=test, by=by, seed=seed)
    if isinstance(validation, Interactions):
        fit, valid = train, validation
    else:
        fit, valid = split(train, test=validation, by=by, seed=seed)
    ranges = _space(start, space, min(fit.matrix.shape))
    start = _within(start, {name: axis for name, axis in ranges.items() if name in (space or {})}, fit)
    search = _Search(
        start, fit, valid, metric, space=ranges, seed=seed, threads=threads,
        most=epochs or _most(start), budget=budget, trials=trials, callback=callback,
    )  # fmt: skip
    stopped = search.run()
    best = search.best()
    if best is None:
        why = {trial.status for trial in search.trials} - {"stopped"}
        raise ValueError("; ".join(sorted(why)) or f"no epoch was done in {budget:g} s: give a larger budget")
    found = {"threads": start.threads, "epochs": best.best_epoch, "early_stopping": 0}
    chosen = dataclasses.replace(best.solver, **{k: v for k, v in found.items() if hasattr(start, k)})  # type: ignore[type-var]
    report = None
    if held_out is not None and stopped != "interrupted":
        report = evaluate(dataclasses.replace(chosen, threads=threads).fit(train), held_out)  # type: ignore[type-var]
    return Tuning(chosen, metric, best.best, search.table(), stopped, report)


class _Search:
    """The trials of one call of `tune`, and the time they have."""

    def __init__(
        self,
        start: Solver,
        fit: Interactions,
        valid: Interactions,
        metric: str,
        *,
        space: dict[str, Range],
        seed: int,
        threads: int | None,
        most: int,
        budget: float | None,
        trials: int | None,
        callback: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.start, self.fit, self.valid, self.metric, self.space = start, fit, valid, metric, space
        self.sign = 1 if _is_error(metric) else -1  # loss = sign * value
        # Fitted in one step or in one piece: there is one rung, no number of epochs to tune, nothing to go on from.
        self.whole = not hasattr(start, "epochs") or solver_name(start) in WHOLE
        self.rungs = [most] if self.whole else sorted({math.ceil(most / part) for part in _RUNGS})
        # Where the metric is not in the history, a trial must end at the epoch that is measured, not at an earlier.
        own = metric == ("rmse" if start.predicts_ratings else "ndcg@10")
        self.fixed: dict[str, Any] = {"threads": threads}
        if hasattr(start, "early_stopping"):
            self.fixed["early_stopping"] = (start.early_stopping or _PATIENCE) if own else 0
        self.shift = np.random.default_rng(seed).random(len(space))
        self.limit, self.callback = trials, callback
        self.began = time.perf_counter()
        self.deadline = math.inf if budget is None else self.began + budget
        self.trials: list[_Trial] = []

    def run(self) -> str:
        """Search until something ends it; says what."""
        with tempfile.TemporaryDirectory(prefix="eckart-tune-") as folder:
            try:
                number = 0
                while True:
                    before = self.best()
                    for side in _SIDES:
                        drawn = self.draw(number, side)
                        if not drawn:
                            return "trials"
                        self.halve(drawn, Path(folder))
                        number += 1
                    after = self.best()
                    if after is None or (
                        before is not None and abs(after.best - before.best) <= _ENOUGH * abs(before.best)
                    ):
                        return "converged"
            except _TimeIsUp:
                return "time"
            except KeyboardInterrupt:
                if self.best() is None:
                    raise
                return "interrupted"

    def draw(self, number: int, side: float) -> list[_Trial]:
        """Trials of round `number`, in a box of `side` (a share of each axis) around the best."""
        drawn = []
        settings: list[dict[str, Any]] = [{}] if number == 0 else []  # the start, as it is
        points = evenly_spread(number * _ROUND, _ROUND, self.shift)
        best = self.best()
        if side < 1 and best is not None:
            centre = to_unit({name: getattr(best.solver, name) for name in self.space}, self.space)
            low = np.clip(centre - side / 2, 0, 1 - side)
            points = low + side * points
        settings += [from_unit(point, self.space) for point in points]
        for one in settings:
            if self.limit is not None and len(self.trials) + len(drawn) >= self.limit:
                break
            solver = dataclasses.replace(self.start, **self.fixed, **one)  # type: ignore[type-var]
            drawn.append(_Trial(len(self.trials) + len(drawn), number, solver))
        return drawn

    def halve(self, drawn: list[_Trial], folder: Path) -> None:
        """Run trials up the rungs, the best third of each rung going on."""
        going = drawn
        for rung, epochs in enumerate(self.rungs):
            for trial in going:
                if trial.number == len(self.trials):
                    self.trials.append(trial)
                trial.rung = rung
                self.go_on(trial, epochs, folder / str(trial.number))
            order = sorted((t for t in going if not math.isnan(t.best)), key=lambda t: self.sign * t.best)
            kept = order[: math.ceil(len(drawn) / 3 ** (rung + 1))] if rung + 1 < len(self.rungs) else []
            for trial in going:
                if trial not in kept:
                    shutil.rmtree(folder / str(trial.number), ignore_errors=True)
                    if rung + 1 == len(self.rungs) and trial.status == "dropped":
                        trial.status = "done"
            going = kept

    def go_on(self, trial: _Trial, epochs: int, checkpoint: Path) -> None:
        """Fit a trial up to `epochs` in all, from where it was."""
        if trial.over:
            return
        if time.perf_counter() >= self.deadline:
            raise _TimeIsUp
        began, status, trial.status = time.perf_counter(), trial.status, "stopped"

        def on_epoch(record: dict[str, Any]) -> None:
            trial.epochs = record["epoch"]
            value = record.get(f"validation_{self.metric}")
            if value is not None and not self.whole:
                trial.in_history = True
                self.note(trial, value)
            if self.callback is not None:
                best = self.best()
                self.callback({
                    "trial": trial.number, "rung": trial.rung, "epoch": trial.epochs, "value": value,
                    "best": None if best is None else best.best, "seconds": time.perf_counter() - self.began,
                })  # fmt: skip
            if time.perf_counter() >= self.deadline:
                raise _TimeIsUp

        try:
            solver = trial.solver
            if hasattr(solver, "epochs"):
                solver = dataclasses.replace(solver, epochs=epochs)  # type: ignore[type-var]
            options: dict[str, Any] = {} if self.whole else {"checkpoint": checkpoint, "resume": True}
            model = solver.fit(self.fit, self.valid, callback=on_epoch, **options)
            trial.over = len(model.history) < epochs
            if not trial.in_history:
                value = model.history[-1].get(f"validation_{self.metric}") if model.history else None
                if value is None:
                    value = evaluate(model, self.valid, _length(self.metric), intervals=None)[self.metric]
                self.note(trial, value)
            trial.status = status
        except (ArithmeticError, ValueError, MemoryError) as error:
            # What stops the first trial, whose settings are the caller's, would stop all the others.
            if trial.number == 0 and not isinstance(error, (ArithmeticError, MemoryError)):
                raise
            trial.status, trial.over = f"failed: {error}" if str(error) else "failed: out of memory", True
        finally:
            trial.seconds += time.perf_counter() - began

    def note(self, trial: _Trial, value: float) -> None:
        """Record a value after the trial's latest epoch."""
        if math.isfinite(value) and not self.sign * value >= self.sign * trial.best:  # the best may be NaN
            trial.best, trial.best_epoch, trial.at = value, trial.epochs, time.perf_counter() - self.began

    def best(self) -> _Trial | None:
        """Trial with the best value, the earliest of equals; None before there is a value."""
        valued = [trial for trial in self.trials if not math.isnan(trial.best)]
        return min(valued, key=lambda trial: self.sign * trial.best, default=None)

    def table(self) -> pa.Table:
        """Trials as `Tuning.trials`."""
        import pyarrow as pa

        def maybe(x: float) -> float | None:
            return None if math.isnan(x) else x

        columns = {
            "trial": [t.number for t in self.trials],
            "round": [t.round for t in self.trials],
            **{name: [getattr(t.solver, name) for t in self.trials] for name in self.space},
            "rung": [t.rung for t in self.trials],
            "epochs": [t.epochs for t in self.trials],
            "best_epoch": [t.best_epoch or None for t in self.trials],
            "value": [maybe(t.best) for t in self.trials],
            "seconds": [t.seconds for t in self.trials],
            "at": [maybe(t.at) for t in self.trials],
            "status": [t.status for t in self.trials],
        }
        return pa.table(columns)


def _space(start: Solver, given: Mapping[str, Any] | None, largest_rank: int) -> dict[str, Range]:
    fields = {field.name: str(field.type) for field in dataclasses.fields(start)}  # type: ignore[arg-type]
    ours = {name: one for name, one in SPACES.get(solver_name(start), SHARED).items() if name in fields}
    merged = {name: one for name, one in {**ours, **(given or {})}.items() if one is not None}
    if not merged:
        raise ValueError("space leaves nothing to search: give at least one setting a range")
    return checked_space(merged, fields, largest_rank)


def _most(start: Solver) -> int:
    """Most epochs of a trial where the caller does not say."""
    epochs = getattr(start, "epochs", 1)
    return epochs if solver_name(start) in WHOLE else 2 * epochs


def _within(start: Solver, given: Mapping[str, Range], fit: Interactions) -> Solver:
    """Move the start into the ranges that the caller gave, and to a rank that the matrix has."""
    changed: dict[str, Any] = {"rank": min(start.rank, *fit.matrix.shape)}
    for name, axis in given.items():
        changed[name] = min(max(changed.get(name, getattr(start, name)), axis.low), axis.high)
    return dataclasses.replace(start, **changed)  # type: ignore[type-var]


def _check(start: Solver, budget: float | None, trials: int | None, by: str, epochs: int | None, seed: int) -> None:
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"budget is {budget}, expected seconds above 0")
    if trials is not None and trials < 1:
        raise ValueError(f"trials is {trials}, expected 1 or more")
    if by not in ("random", "time", "leave_one_out"):
        raise ValueError(f"by={by!r}: expected 'random', 'time' or 'leave_one_out'")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}, expected 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")


def _check_metric(metric: str, start: Solver) -> None:
    name, at, k = metric.partition("@")
    if name in ("rmse", "mae"):
        if at:
            raise ValueError(f"metric is {metric!r}: {name} has no list length, give {name!r}")
        if not start.predicts_ratings:
            raise ValueError(f"metric is {metric!r}, and {type(start).__name__} only ranks: try 'ndcg@10'")
    elif name not in _METRICS or not re.fullmatch("[1-9][0-9]*", k):
        raise ValueError(f"metric is {metric!r}: expected rmse, mae, or a ranking metric such as ndcg@10, recall@20")


def _is_error(metric: str) -> bool:
    return metric in ("rmse", "mae")


def _length(metric: str) -> int:
    return int(metric.partition("@")[2] or 10)

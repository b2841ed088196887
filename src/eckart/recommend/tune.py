"""Choosing settings: a search on a split made inside the data, and what it found.

The search is in halving.py. The number of epochs is tuned too: a trial's value is that of its best epoch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eckart.data.interactions import Interactions
from eckart.data.split import split
from eckart.recommend.evaluate import Report, evaluate
from eckart.recommend.halving import Search, is_error
from eckart.recommend.solver import Solver, named_solver, solver_name
from eckart.recommend.space import SHARED, SPACES, Range, checked_space

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Tuning", "tune"]

_ENOUGH, _MOST_SPLITS = 50_000, 4  # held-out entries whose noise no longer decides; splits besides the first
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
        The best trial's, on the validation part, or its mean over all splits where there are several. Optimistic: it is
        the best of many. `test` is not.
    trials : pyarrow.Table
        A row a trial, in the order they were drawn: ``trial``, ``round``; a column for every setting searched;
        ``rung`` reached (0, 1, 2), ``epochs`` run, ``best_epoch``, ``value`` there (null: none was reached), ``final``,
        the mean over all splits (null: not among those compared on them), ``seconds`` it took, ``at`` (seconds from the
        start until its best epoch was done) and ``status``: "done" (the last rung), "dropped" before it, "stopped" by
        the budget or an interruption, or "failed: " and why.
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
        return is_error(self.metric)

    @property
    def searched(self) -> list[str]:
        """Names of the settings that the trials differ in."""
        names = self.trials.column_names
        return names[names.index("round") + 1 : names.index("rung")]

    def ranked(self) -> pa.Table:
        """Trials with the best mean over all splits first, then by their value; those without one last."""
        order = "ascending" if self.smaller_is_better else "descending"
        return self.trials.sort_by([("final", order), ("value", order)])

    def __repr__(self) -> str:
        return (
            f"Tuning({self.solver!r}, validation {self.metric} {self.value:.4f}, "
            f"{self.trials.num_rows} trials, stopped: {self.stopped})"
        )


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
    splits: int | None = None,
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
    splits : int >= 0, optional
        On how many more random splits the best five are compared at the end, in the last quarter of `budget`. None: as
        many as make 50,000 held-out entries, at most four; none where `validation` is given or not random.
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
    _check(start, budget, trials, by, epochs, splits, seed)
    again = by == "random" and not isinstance(validation, Interactions)  # other splits are other entries
    if splits and not again:
        raise ValueError(f"splits is {splits}, and validation is not a random share: leave splits out")
    metric = metric or ("rmse" if start.predicts_ratings else "ndcg@10")
    _check_metric(metric, start)
    train, held_out = (data, None) if test is None else split(data, test=test, by=by, seed=seed)
    if isinstance(validation, Interactions):
        fit, valid = train, validation
    else:
        fit, valid = split(train, test=validation, by=by, seed=seed)
    if splits is None:
        splits = min(_MOST_SPLITS, _ENOUGH // max(valid.nnz, 1)) if again else 0
    ranges = _space(start, space, min(fit.matrix.shape))
    start = _within(start, {name: axis for name, axis in ranges.items() if name in (space or {})}, fit)
    search = Search(
        start, fit, valid, metric, space=ranges, seed=seed, threads=threads,
        epochs=epochs, budget=budget, trials=trials, callback=callback, splits=splits,
        split=lambda j: split(train, test=validation, by=by, seed=seed + 1 + j),  # type: ignore[arg-type]
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
    value = best.best if math.isnan(best.final) else best.final
    return Tuning(chosen, metric, value, search.table(), stopped, report)


def _space(start: Solver, given: Mapping[str, Any] | None, largest_rank: int) -> dict[str, Range]:
    fields = {field.name: str(field.type) for field in dataclasses.fields(start)}  # type: ignore[arg-type]
    ours = SPACES.get(solver_name(start)) or {name: one for name, one in SHARED.items() if name in fields}
    merged = {name: one for name, one in {**ours, **(given or {})}.items() if one is not None}
    if not merged:
        raise ValueError("space leaves nothing to search: give at least one setting a range")
    return checked_space(merged, fields, largest_rank)


def _within(start: Solver, given: Mapping[str, Range], fit: Interactions) -> Solver:
    """Move the start into the ranges that the caller gave, and to a rank that the matrix has."""
    changed: dict[str, Any] = {"rank": min(start.rank, *fit.matrix.shape)}
    for name, axis in given.items():
        changed[name] = min(max(changed.get(name, getattr(start, name)), axis.low), axis.high)
    return dataclasses.replace(start, **changed)  # type: ignore[type-var]


def _check(
    start: Solver, budget: float | None, trials: int | None, by: str, epochs: int | None, splits: int | None, seed: int
) -> None:
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"budget is {budget}, expected seconds above 0")
    if trials is not None and trials < 1:
        raise ValueError(f"trials is {trials}, expected 1 or more")
    if by not in ("random", "time", "leave_one_out"):
        raise ValueError(f"by={by!r}: expected 'random', 'time' or 'leave_one_out'")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}, expected 1 or more")
    if splits is not None and splits < 0:
        raise ValueError(f"splits is {splits}, expected 0 or more")
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

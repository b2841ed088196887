"""Successive halving in a box that shrinks around the best: the loop behind `tune`.

A round draws trials and runs each for a few epochs; the best third goes on, from where it was, to three times as
many, and the best third of those to three times as many again (Jamieson, Talwalkar 2016; Li et al. 2018). Two rounds
look everywhere in the solver's ranges (space.py), the four after them in a box around the best so far, of half the
sides each time; then everywhere again, in case the best was a hole of its own.

A trial is a fit with a checkpoint, resumed where it is promoted: no epoch is run twice, and the state is to the bit
that of an uninterrupted fit. Trials run one after the other, for each uses all threads.

The best of many on few held-out entries is partly the luckiest. So, where they are few, the best five are fitted anew
to other splits of the same data, and the mean over all splits decides between them.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.data.interactions import Interactions
from eckart.recommend.evaluate import evaluate
from eckart.recommend.solver import Solver, solver_name
from eckart.recommend.space import WHOLE, Range, evenly_spread, from_unit, to_unit, typical_length

if TYPE_CHECKING:
    import pyarrow as pa

    from eckart.recommend.recommender import Recommender

__all__ = ["Search", "Trial", "is_error"]

_ROUND = 9  # trials; 9, 3 and 1 of them reach the three rungs
_RUNGS = (9, 3, 1)  # a rung's epochs are the most that a trial may take, divided by these
_SIDES = (1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)  # of the box of each round of a cycle, as shares of the axes
_ENOUGH = 1e-4  # a cycle that betters the best by a smaller share of it is the last
_PATIENCE = 3  # epochs without a better value end a trial
_FINALISTS = 5
_FINAL_SHARE = 1 / 4  # of the budget, which is kept for them


@dataclass
class Trial:
    """One draw of settings and how far it came."""

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
    curve: list[float] = dataclasses.field(default_factory=list)  # the value after each epoch, where it is known
    final: float = math.nan  # mean over all splits


class _TimeIsUp(Exception):
    pass


class Search:
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
        epochs: int | None,
        budget: float | None,
        trials: int | None,
        callback: Callable[[dict[str, Any]], None] | None,
        splits: int = 0,
        split: Callable[[int], tuple[Interactions, Interactions]] | None = None,
    ) -> None:
        self.splits, self.split = splits, split  # how many other splits the finalists see, and the j-th of them
        self.start, self.fit, self.valid, self.metric, self.space = start, fit, valid, metric, space
        self.sign = 1 if is_error(metric) else -1  # loss = sign * value
        # Fitted in one step or in one piece: there is one rung, no number of epochs to tune, nothing to go on from.
        self.whole = not hasattr(start, "epochs") or solver_name(start) in WHOLE
        most = epochs or getattr(start, "epochs", 1) * (1 if self.whole else 2)
        self.rungs = [most] if self.whole else sorted({math.ceil(most / part) for part in _RUNGS})
        # Where the metric is not in the history, a trial must end at the epoch that is measured, not at an earlier.
        own = metric == ("rmse" if start.predicts_ratings else "ndcg@10")
        self.fixed: dict[str, Any] = {"threads": threads}
        patience = getattr(start, "early_stopping", None)
        if patience is not None:
            self.fixed["early_stopping"] = (patience or _PATIENCE) if own else 0
        self.shift = np.random.default_rng(seed).random(len(space))
        self.typical = typical_length(fit.matrix)
        self.limit, self.callback = trials, callback
        self.began = time.perf_counter()
        self.end = math.inf if budget is None else self.began + budget
        self.deadline = self.end if budget is None or not splits else self.end - _FINAL_SHARE * budget
        self.trials: list[Trial] = []

    def run(self) -> str:
        """Search until something ends it, then compare the best on other splits; says what ended it."""
        stopped = self.search()
        if stopped == "interrupted" or not self.splits:
            return stopped
        self.deadline = self.end
        try:
            self.finals()
        except _TimeIsUp:
            pass
        except KeyboardInterrupt:
            return "interrupted"
        return stopped

    def search(self) -> str:
        """Draw and run trials until something ends it; says what."""
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

    def draw(self, number: int, side: float) -> list[Trial]:
        """Trials of round `number`, in a box of `side` (a share of each axis) around the best."""
        drawn = []
        settings: list[dict[str, Any]] = [{}] if number == 0 else []  # the start, as it is
        points = evenly_spread(number * _ROUND, _ROUND, self.shift)
        best = self.best()
        if side < 1 and best is not None:
            centre = to_unit({name: getattr(best.solver, name) for name in self.space}, self.space, self.typical)
            low = np.clip(centre - side / 2, 0, 1 - side)
            points = low + side * points
        settings += [from_unit(point, self.space, self.typical) for point in points]
        for one in settings:
            if self.limit is not None and len(self.trials) + len(drawn) >= self.limit:
                break
            solver = dataclasses.replace(self.start, **self.fixed, **one)  # type: ignore[type-var]
            drawn.append(Trial(len(self.trials) + len(drawn), number, solver))
        return drawn

    def halve(self, drawn: list[Trial], folder: Path) -> None:
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

    def go_on(self, trial: Trial, epochs: int, checkpoint: Path) -> None:
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
                trial.curve.append(value)
                self.note(trial, value)
            self.tell(trial.number, trial.rung, trial.epochs, value)
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
                self.note(trial, self.reached(model, self.valid))
            trial.status = status
        except (ArithmeticError, ValueError, MemoryError) as error:
            # What stops the first trial, whose settings are the caller's, would stop all the others.
            if trial.number == 0 and not isinstance(error, (ArithmeticError, MemoryError)):
                raise
            trial.status, trial.over = f"failed: {error}" if str(error) else "failed: out of memory", True
        finally:
            trial.seconds += time.perf_counter() - began

    def finals(self) -> None:
        """Fit the best trials to the other splits, the best first; sets `final` and the epochs that are best by it."""
        assert self.split is not None
        for trial in sorted(self.valued(), key=lambda t: self.sign * t.best)[:_FINALISTS]:
            if time.perf_counter() >= self.deadline:
                raise _TimeIsUp
            began = time.perf_counter()
            whole = not trial.curve  # of one value: after the last epoch, whose number stays
            epochs = trial.best_epoch if whole else self.rungs[-1]
            changed = {"epochs": epochs} if hasattr(trial.solver, "epochs") else {}
            solver = dataclasses.replace(trial.solver, **changed)  # type: ignore[type-var]
            ended = whole or trial.over or trial.rung + 1 == len(self.rungs)
            curves = [[trial.best] if whole else trial.curve] if ended else []
            try:
                if not ended:
                    curves.append(self.curve(solver, self.fit, self.valid, trial.number, whole))
                for j in range(self.splits):
                    curves.append(self.curve(solver, *self.split(j), trial.number, whole))
            except (ArithmeticError, ValueError, MemoryError):
                continue  # what fails on another split is no finalist
            finally:
                trial.seconds += time.perf_counter() - began
            shared = min(map(len, curves))  # they may have stopped early
            curves = [curve[:shared] for curve in curves]
            means = self.sign * np.mean(curves, axis=0)
            trial.final = self.sign * float(means.min())
            if not whole:
                trial.best_epoch = int(means.argmin()) + 1
                trial.epochs = max(trial.epochs, shared)  # one that was dropped early has run on here

    def curve(self, solver: Solver, fit: Interactions, valid: Interactions, number: int, whole: bool) -> list[float]:
        """Value after each epoch of a fit, or after the last."""
        values: list[float] = []

        def on_epoch(record: dict[str, Any]) -> None:
            if not whole:
                values.append(record[f"validation_{self.metric}"])
            self.tell(number, len(self.rungs), record["epoch"], None)
            if time.perf_counter() >= self.deadline:
                raise _TimeIsUp

        model = solver.fit(fit, valid, callback=on_epoch)
        return [self.reached(model, valid)] if whole else values

    def reached(self, model: Recommender, valid: Interactions) -> float:
        """Value of a fitted model."""
        value = model.history[-1].get(f"validation_{self.metric}") if model.history else None
        return evaluate(model, valid, _length(self.metric), intervals=None)[self.metric] if value is None else value

    def tell(self, number: int, rung: int, epoch: int, value: float | None) -> None:
        """Tell the caller about an epoch."""
        if self.callback is not None:
            best = self.best()
            self.callback({
                "trial": number, "rung": rung, "epoch": epoch, "value": value,
                "best": None if best is None else best.best, "seconds": time.perf_counter() - self.began,
            })  # fmt: skip

    def note(self, trial: Trial, value: float) -> None:
        """Record a value after the trial's latest epoch."""
        if math.isfinite(value) and not self.sign * value >= self.sign * trial.best:  # the best may be NaN
            trial.best, trial.best_epoch, trial.at = value, trial.epochs, time.perf_counter() - self.began

    def valued(self) -> list[Trial]:
        """Trials that have a value."""
        return [trial for trial in self.trials if not math.isnan(trial.best)]

    def best(self) -> Trial | None:
        """Trial with the best mean over all splits, else the best value, the earliest of equals; None before any."""
        finalists = [trial for trial in self.trials if not math.isnan(trial.final)]
        if finalists:
            return min(finalists, key=lambda trial: self.sign * trial.final)
        return min(self.valued(), key=lambda trial: self.sign * trial.best, default=None)

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
            "final": [maybe(t.final) for t in self.trials],
            "seconds": [t.seconds for t in self.trials],
            "at": [maybe(t.at) for t in self.trials],
            "status": [t.status for t in self.trials],
        }
        return pa.table(columns)


def is_error(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in ("rmse", "mae")


def _length(metric: str) -> int:
    return int(metric.partition("@")[2] or 10)

"""``eckart tune``: from a file of ratings to the settings that do best on held-out entries of it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eckart.cli import ratings, terminal
from eckart.cli.fit import fitted, require_writable, solver_of

if TYPE_CHECKING:
    from eckart.data.interactions import Interactions
    from eckart.recommend.solver import Solver
    from eckart.recommend.tune import Tuning

__all__ = ["tune"]

_SHOWN = 10  # trials in the table


def tune(
    path: Annotated[str, typer.Argument(metavar="RATINGS", help="CSV, TSV, '::' or Parquet file")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MODEL", help="fit the best settings to all ratings and save them here"),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="which solver  [default: als if the file has ratings, else implicit-als]"),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="time for the search  [default: 60 without --trials]")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="at most so many settings")] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="rmse, ndcg@10, recall@20, ...  [default: rmse or ndcg@10, by the solver]"),
    ] = None,
    validation: Annotated[float, typer.Option(help="fraction of the training part held out from the trials")] = 0.1,
    by: Annotated[
        Literal["random", "time", "leave_one_out"], typer.Option(help="how --validation and --test hold out")
    ] = "random",
    test: Annotated[
        float | None, typer.Option(help="hold this fraction out before all else; measure the best settings on it, once")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="a setting that is not searched but given"),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="NAME=LOW:HIGH", help="where to search a setting"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="most epochs of a trial  [default: twice the solver's]")] = None,
    splits: Annotated[
        int | None,
        typer.Option(help="more splits that the best five are compared on  [default: up to 4 where the data are few]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the splits, the draws and the starting factors")] = 0,
    threads: Annotated[int | None, typer.Option(help="[default: the cores this process may use]")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write report.md with pictures of all trials here")
    ] = None,
    user: ratings.UserColumn = None,
    item: ratings.ItemColumn = None,
    rating: ratings.RatingColumn = None,
    timestamp: ratings.TimeColumn = None,
    duplicates: ratings.Duplicates = "last",
    bad_lines: ratings.BadLines = "error",
    delimiter: ratings.Delimiter = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Search for the settings of a solver that do best on a file of ratings, or of pairs.

    Ctrl-C ends the search and shows the best so far. A test file that you will judge the model by must not be in
    RATINGS; --test holds one out.
    """
    space = _ranges(search, setting)
    for name, fraction in (("validation", validation), ("test", test)):
        if fraction is not None and not 0 < fraction < 1:
            raise typer.BadParameter(f"--{name} is {fraction:g}, expected a fraction between 0 and 1")
    if output is not None:
        require_writable(output, None)
    if report is not None:
        import matplotlib  # noqa: F401  # what is missing shows before the search

        report.mkdir(parents=True, exist_ok=True)
    if solver is not None:
        solver_of(solver, {"seed": seed}, setting)  # a mistake shows before the long read
    data = ratings.read(path, user, item, rating, timestamp, duplicates, bad_lines, delimiter)
    start = solver_of(solver or ("als" if data.rated else "implicit-als"), {"seed": seed}, setting)

    from eckart.recommend.tune import tune as search_for

    if budget is None and trials is None:
        budget = 60.0
    total = trials if budget is None else max(round(budget), 1)
    with terminal.epochs_bar(total or 1, "tuning (trials)" if budget is None else "tuning (seconds)") as bar:

        def on_epoch(record: dict[str, Any]) -> None:
            done = record["trial"] if budget is None else min(int(record["seconds"]), total or 1)
            best = {} if record["best"] is None else {"best": record["best"]}
            bar({"epoch": done, "trial": record["trial"] + 1, **best})

        tuning = search_for(
            data, start, budget=budget, trials=trials, metric=metric, validation=validation, by=by, test=test,
            space=space, epochs=epochs, splits=splits, seed=seed, threads=threads, callback=on_epoch,
        )  # fmt: skip
    if report is not None:
        from eckart.cli.tune_text import write_report

        write_report(tuning, report, _command(path, tuning.solver))
    result = _summary(tuning, path, data)
    if tuning.stopped == "interrupted":
        _show(tuning, result, as_json)
        terminal.note("eckart: interrupted: the best so far is shown, no model is fitted")
        raise typer.Exit(130)
    if output is not None:
        fitted(dataclasses.replace(tuning.solver, threads=threads), data, None, False).save(output)  # type: ignore[type-var]
        result["model"] = str(output)
    _show(tuning, result, as_json)


def _ranges(search: list[str] | None, setting: list[str] | None) -> dict[str, tuple[float, float] | None]:
    # What is given with -s is not searched.
    space: dict[str, tuple[float, float] | None] = {text.partition("=")[0]: None for text in setting or []}
    for text in search or []:
        name, _, ends = text.partition("=")
        low, colon, high = ends.partition(":")
        try:
            if not colon:
                raise ValueError
            limits = (float(low), float(high))
        except ValueError:
            raise typer.BadParameter(f"got --range {text!r}, expected --range name=low:high") from None
        if name in space:
            raise typer.BadParameter(f"{name} is given twice: as a value and as a range, or as two ranges")
        space[name] = limits
    return space


def _command(path: str, solver: Solver) -> str:
    """Shell command that fits these settings."""
    from eckart.recommend.solver import solver_name

    settings = dataclasses.asdict(solver)  # type: ignore[call-overload]
    words = ["eckart", "fit", path, "-o", "MODEL", "--solver", solver_name(solver)]
    for name in ("rank", "reg", "epochs", "seed"):
        if name in settings:
            words += [f"--{name}", str(settings.pop(name))]
    default = type(solver)()
    for name, value in settings.items():
        if value != getattr(default, name) and name != "threads":
            words += ["-s", f"{name}={value}"]
    return shlex.join(words)


def _summary(tuning: Tuning, path: str, data: Interactions) -> dict[str, Any]:
    from eckart.recommend.solver import solver_name

    return {
        "solver": solver_name(tuning.solver),
        "settings": dataclasses.asdict(tuning.solver),  # type: ignore[call-overload]
        "metric": tuning.metric,
        "validation": tuning.value,
        "read": {"users": len(data.users), "items": len(data.items), "entries": data.nnz, "rated": data.rated},
        "trials": tuning.trials.num_rows,
        "stopped": tuning.stopped,
        "command": _command(path, tuning.solver),
    }


def _show(tuning: Tuning, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        test = {} if tuning.test is None else {"test": tuning.test.to_dict()}
        terminal.print_json({**result, "trials": tuning.trials.to_pylist(), **test})
        return
    columns = [name for name in tuning.trials.column_names if name not in ("at", "rung")]
    best_first = tuning.ranked().select(columns).slice(0, _SHOWN)
    terminal.print_table(columns, [tuple(row.values()) for row in best_first.to_pylist()])
    print()
    terminal.print_facts("tuned", result)
    if tuning.test is not None:
        print()
        terminal.print_table(*terminal.report_rows(tuning.test))

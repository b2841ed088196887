"""``eckart fit``: from a file of ratings to a model directory."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eckart.cli import features, ratings, terminal

if TYPE_CHECKING:
    from eckart.data.feature_table import Features
    from eckart.data.interactions import Interactions
    from eckart.recommend.recommender import Recommender
    from eckart.recommend.solver import Solver

__all__ = ["fit", "fitted", "require_writable", "solver_of"]

_OWN = "[default: the solver's, see eckart info]"


def fit(
    path: Annotated[str, typer.Argument(metavar="RATINGS", help="CSV, TSV, '::' or Parquet file, or a prepared store")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="directory to write")],
    solver: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="als, implicit-als, sgd, svd, gibbs or two-tower  [default: als if there are ratings]"
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help=f"number of factors  {_OWN}")] = None,
    reg: Annotated[float | None, typer.Option(help=f"strength of the L2 penalty  {_OWN}")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"sweeps over the data  {_OWN}")] = None,
    seed: Annotated[int | None, typer.Option(help=f"of the starting factors and of --test  {_OWN}")] = None,
    threads: Annotated[int | None, typer.Option(help="[default: the cores this process may use]")] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="stop after so many epochs without a better validation value")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="any other setting of the solver"),
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="hold out this fraction, fit to the rest and evaluate  [default: fit to all]"),
    ] = None,
    by: Annotated[
        Literal["random", "time", "user", "leave_one_out"] | None,
        typer.Option(help="how --test holds out  [default: random]", show_default=False),
    ] = None,
    user_features: features.UserFile = None,
    item_features: features.ItemFile = None,
    feature_kind: features.Kinds = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep the state after every epoch here")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint")] = False,
    user: ratings.UserColumn = None,
    item: ratings.ItemColumn = None,
    rating: ratings.RatingColumn = None,
    timestamp: ratings.TimeColumn = None,
    duplicates: ratings.Duplicates = "last",
    bad_lines: ratings.BadLines = "error",
    delimiter: ratings.Delimiter = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Fit a model to a file of ratings, or of pairs, and save it.

    With --test the model learns from the training part only; fit again without it to use all ratings. With features
    it serves users and items that have no ratings, too.
    """
    if resume and checkpoint is None:
        raise typer.BadParameter("--resume needs the directory to go on from: --checkpoint DIR")
    if test is not None and not 0 < test < 1:
        raise typer.BadParameter(f"--test is {test:g}, expected a fraction between 0 and 1")
    require_writable(output, checkpoint)

    from eckart.recommend.evaluate import evaluate
    from eckart.recommend.solver import require_features_taken

    shared = {"rank": rank, "reg": reg, "epochs": epochs, "seed": seed, "threads": threads}
    shared["early_stopping"] = early_stopping
    given = {name: value for name, value in shared.items() if value is not None}
    if solver is not None or not setting:  # a mistake shows before the long read
        early = solver_of(solver or "als", given, setting)
        if user_features is not None or item_features is not None:
            require_features_taken(early)
    known = features.read(user_features, item_features, features.kinds_of(feature_kind), user, item)
    data = ratings.read(path, user, item, rating, timestamp, duplicates, bad_lines, delimiter)
    chosen = solver_of(solver or ("als" if data.rated else "implicit-als"), given, setting)
    known = {name: features.with_ids_as(x, getattr(data, name.replace("_features", "s"))) for name, x in known.items()}
    chosen = _reading(chosen, known)
    train, held_out = data, None
    if test is not None or by is not None:
        from eckart.data.split import split

        train, held_out = split(data, test=test or 0.1, by=by or "random", seed=chosen.seed)

    started = time.perf_counter()
    model = fitted(chosen, train, checkpoint, resume, known)
    seconds = time.perf_counter() - started
    model.save(output)
    report = None
    if held_out is not None:
        with terminal.waiting("evaluating"):
            report = evaluate(model, held_out, fold_in=0.8 if by == "user" else None)
    result = _summary(model, output, data, seconds)
    for name, x in known.items():
        ids = getattr(model, name.replace("_features", "s")).ids
        result[name] = {"rows": len(x), "of_those_fitted": int((x.ids.rows(ids) >= 0).sum())}
    if as_json:
        terminal.print_json(result | ({} if report is None else {"test": report.to_dict()}))
        return
    terminal.print_facts("fitted", result)
    if report is not None:
        print()
        terminal.print_table(*terminal.report_rows(report))


def require_writable(output: Path, checkpoint: Path | None) -> None:
    """Refuse an output that could not be written, before hours have gone into it."""
    from eckart.core.store import check_replaceable

    check_replaceable(output, "recommender")
    if checkpoint is not None and output.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise typer.BadParameter("the model and the checkpoint are in one directory: give each its own")
    for path in (output, checkpoint):
        if path is None:
            continue
        parent = next(p for p in (path.resolve(), *path.resolve().parents) if p.exists())
        if not parent.is_dir():
            raise NotADirectoryError(f"{parent} is a file, so {path} cannot be written: choose another path")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{parent} is not writable, so {path} cannot be written: choose another path")


def solver_of(name: str, shared: dict[str, Any], settings: list[str] | None) -> Solver:
    """Build the solver that --solver, the shared options and every -s name=value describe."""
    from eckart.recommend.solver import named_solver

    try:
        # The fields of the solver say what there is and of which type; the defaults stay with it.
        kinds = {field.name: str(field.type) for field in dataclasses.fields(named_solver(name, {}))}  # type: ignore[arg-type]
        given = dict(shared)
        for text in settings or []:
            key, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"got -s {text!r}, expected -s name=value")
            if key not in kinds:
                raise ValueError(f"{name} has no setting {key!r}: it has {', '.join(kinds)}")
            if key in given:
                raise ValueError(f"{key} is given twice")
            given[key] = _typed(key, value, kinds[key])
        return named_solver(name, given)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _typed(name: str, text: str, kind: str) -> Any:
    kind = kind.removesuffix(" | None")
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            expected = "an integer" if kind == "int" else "a number"
            raise ValueError(f"{name} is {text!r}, expected {expected}") from None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} is {text!r}, expected true or false")
        return text.lower() == "true"
    return text


def _reading(solver: Solver, known: Mapping[str, Features]) -> Solver:
    """Give two towers a part that reads the features: the command line cannot spell parts."""
    from eckart.recommend.towers.parts import MLP, Ids
    from eckart.recommend.towers.solver import TwoTower

    if not isinstance(solver, TwoTower):
        return solver
    return dataclasses.replace(solver, **{name.removesuffix("_features"): (Ids(), MLP()) for name in known})


def fitted(
    solver: Solver,
    train: Interactions,
    checkpoint: Path | None,
    resume: bool,
    known: Mapping[str, Features] | None = None,
) -> Recommender:
    """Fit with a bar on stderr; an interruption says what is kept."""
    done, epochs = 0, getattr(solver, "epochs", 1)  # svd has none: it is one step
    try:
        with terminal.epochs_bar(epochs, "fitting") as bar:

            def on_epoch(record: dict[str, Any]) -> None:
                nonlocal done
                done = record["epoch"]
                bar(record)

            fit: Any = solver.fit
            return fit(train, callback=on_epoch, checkpoint=checkpoint, resume=resume, **(known or {}))
    except KeyboardInterrupt:
        when = f"after epoch {done} of {epochs}" if done else "before an epoch was done"
        if checkpoint is None:
            kept = "nothing is saved (--checkpoint DIR would keep it)"
        elif done or resume:
            kept = f"{checkpoint} holds what was done, the same command with --resume goes on"
        else:
            kept = "nothing is saved yet"
        raise KeyboardInterrupt(f"{when}: {kept}") from None


def _summary(model: Recommender, output: Path, data: Interactions, seconds: float) -> dict[str, Any]:
    from eckart.recommend.solver import solver_name

    return {
        "model": str(output),
        "solver": solver_name(model.solver),
        "settings": dataclasses.asdict(model.solver),  # type: ignore[call-overload]
        "read": {
            "users": len(data.users),
            "items": len(data.items),
            "entries": data.nnz,
            "rated": data.rated,
        },
        "fitted_to": {"users": len(model.users), "items": len(model.items), "entries": int(model.seen.nnz)},
        "epochs": len(model.history),
        "objective": model.history[-1]["objective"] if model.history else None,
        "seconds": round(seconds, 3),
    }

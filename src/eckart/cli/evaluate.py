"""``eckart evaluate``: how good a model is on ratings it has not seen."""

from __future__ import annotations

from typing import Annotated

import typer

from eckart.cli import ids, ratings, terminal

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="directory that eckart fit wrote")],
    test: Annotated[str, typer.Argument(metavar="TEST", help="file of held-out ratings")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="length of the lists")] = 10,
    relevant: Annotated[
        float | None,
        typer.Option(metavar="X", help="only ratings of at least X count as targets  [default: all]"),
    ] = None,
    fold_in: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="the test users are new: show the model this share of their ratings"),
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
    """Evaluate a model on a file of held-out ratings.

    What each number is, and what it can be compared with, is in docs/evaluation.md.
    """
    if fold_in is not None and not 0 < fold_in < 1:
        raise typer.BadParameter(f"--fold-in is {fold_in:g}, expected a share between 0 and 1")

    import eckart

    fitted = eckart.load(model)
    data = ratings.read(test, user, item, rating, timestamp, duplicates, bad_lines, delimiter)
    data = ids.as_in_model(data, fitted, users_known=fold_in is None)
    with terminal.waiting("evaluating"):
        report = eckart.evaluate(fitted, data, k, relevant=relevant, fold_in=fold_in)
    if report["seen_entries"]:
        share = f"{report['seen_entries']:,} of {report['entries']:,} test entries"
        terminal.note(f"eckart: {share} are in the training data: no list can hold them, and errors look small")
    if as_json:
        asked = {"model": model, "test": test, "k": k, "relevant": relevant, "fold_in": fold_in}
        terminal.print_json(asked | report.to_dict())
    else:
        terminal.print_table(*terminal.report_rows(report))

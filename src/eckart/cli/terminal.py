"""What a person or a pipe sees: results on stdout, everything else on stderr.

Ids come from strangers. They are shown as text, never as markup, and what could steer a terminal (escapes,
line ends, marks that reverse the writing) is spelt out; only ``--json`` gives them as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from eckart.recommend.evaluate import Report

__all__ = [
    "check_picture",
    "entries_bar",
    "epochs_bar",
    "note",
    "print_facts",
    "print_json",
    "print_table",
    "report_rows",
    "safe",
    "stages_bar",
    "waiting",
]


def safe(text: object) -> str:
    r"""Text on one line that cannot steer a terminal.

    Examples
    --------
    >>> safe("Heat\x1b[2J\n")
    'Heat\\x1b[2J\\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Say something on stderr."""
    print(safe(text), file=sys.stderr)


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on one line. In ASCII, so that no locale can spoil it."""
    print(json.dumps(result, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows: a table on a terminal, else tab-separated values with a header, nothing cut off."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(safe(_written(x, ".6g")) for x in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        numeric = all(isinstance(row[place], (int, float, type(None))) for row in rows)
        # A narrow window folds the ids and leaves the numbers whole.
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe(_written(x, ".4f"))) for x in row))
    Console(file=sys.stdout, highlight=False).print(table)


def print_facts(title: str, facts: dict[str, Any]) -> None:
    """Write a table of names and what they are; a dict's entries on one line."""
    print_table([title, ""], [(name, _on_a_line(value)) for name, value in facts.items()])


def _on_a_line(value: Any) -> Any:
    if isinstance(value, dict):
        return "  ".join(f"{k} {_on_a_line(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else value


def _written(x: object, number: str) -> str:
    if x is None:
        return ""
    return format(x, number) if isinstance(x, float) else str(x)


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be drawn, before the work that it would show."""
    if path is None:
        return
    import matplotlib  # noqa: F401  # what is missing shows now

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path}: pictures are .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no such directory")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner on stderr meanwhile, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(safe(what))):
        yield


@contextmanager
def epochs_bar(epochs: int, label: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a bar on stderr that moves with each epoch's record, if that is a terminal.

    Yields
    ------
    callable
        The ``callback`` of a solver's ``fit``.
    """
    if not sys.stderr.isatty():
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=epochs, numbers="")

        def show(record: dict[str, Any]) -> None:
            numbers = "  ".join(f"{k.replace('_', ' ')} {v:,.5g}" for k, v in record.items() if k != "epoch")
            progress.update(task, completed=record["epoch"], numbers=numbers)

        yield show


@contextmanager
def stages_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for a job of several stages, if that is a terminal.

    Yields
    ------
    callable
        Called with a stage, what is done of it and how much there is in all.
    """
    with entries_bar(label) as show:
        yield lambda stage, done, total: show(f"{label}: {stage} {done}/{total}", done, total)


@contextmanager
def entries_bar(label: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar on stderr that moves with the entries of each stage, if that is a terminal.

    Yields
    ------
    callable
        The ``progress`` of `eckart.prepare`.
    """
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(safe(label), total=None)

        def show(stage: str, done: int, total: int | None) -> None:
            many = f"  {done:,} entries" if total is None and done else ""
            progress.update(task, description=safe(f"{stage}{many}"), completed=done, total=total)

        yield show


def report_rows(report: Report) -> tuple[list[str], Sequence[tuple[object, ...]]]:
    """Columns and rows of an evaluation, for `print_table`."""
    level = f"{100 * (report.level or 0):g} %"
    rows = [(name, x, *report.intervals.get(name, (None, None))) for name, x in report.items()]
    return ["metric", "value", f"{level} from", "to"], rows

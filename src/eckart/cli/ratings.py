"""Options of every command that reads a file of ratings, and the reading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eckart.cli import terminal

if TYPE_CHECKING:
    from eckart.data.interactions import Interactions

__all__ = [
    "BadLines",
    "Delimiter",
    "Duplicates",
    "ItemColumn",
    "RatingColumn",
    "TimeColumn",
    "UserColumn",
    "column",
    "read",
]

_COLUMN = "name of the {} column, or its number from 0  [default: found by its name]"
UserColumn = Annotated[str | None, typer.Option("--user", metavar="COL", help=_COLUMN.format("user"))]
ItemColumn = Annotated[str | None, typer.Option("--item", metavar="COL", help=_COLUMN.format("item"))]
RatingColumn = Annotated[str | None, typer.Option("--rating", metavar="COL", help=_COLUMN.format("rating"))]
TimeColumn = Annotated[str | None, typer.Option("--timestamp", metavar="COL", help=_COLUMN.format("timestamp"))]
Duplicates = Annotated[
    Literal["last", "mean", "sum", "error"], typer.Option(help="several ratings of one user for one item")
]
BadLines = Annotated[Literal["error", "skip"], typer.Option(help="a line that cannot be used")]
Delimiter = Annotated[str | None, typer.Option(metavar="TEXT", help="between fields  [default: found out]")]


def read(
    path: str,
    user: str | None,
    item: str | None,
    rating: str | None,
    timestamp: str | None,
    duplicates: Literal["last", "mean", "sum", "error"],
    bad_lines: Literal["error", "skip"],
    delimiter: str | None,
) -> Interactions:
    """Read a file of ratings as the options say; see `eckart.read`."""
    import eckart

    with terminal.waiting(f"reading {path}"):
        return eckart.read(
            path,
            user=column(user),
            item=column(item),
            rating=column(rating),
            timestamp=column(timestamp),
            duplicates=duplicates,
            bad_lines=bad_lines,
            delimiter=delimiter,
        )


def column(text: str | None) -> str | int | None:
    """Take what a column option says: a position where it is a number, else a name."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() else text

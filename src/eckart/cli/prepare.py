"""``eckart prepare``: ratings sorted on disk, for more of them than memory holds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli import ratings, terminal

__all__ = ["prepare"]


def prepare(
    path: Annotated[str, typer.Argument(metavar="RATINGS", help="CSV, TSV, '::' or Parquet file")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="directory to write")],
    user: ratings.UserColumn = None,
    item: ratings.ItemColumn = None,
    rating: ratings.RatingColumn = None,
    timestamp: ratings.TimeColumn = None,
    duplicates: ratings.Duplicates = "last",
    bad_lines: ratings.BadLines = "error",
    delimiter: ratings.Delimiter = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Sort a file of ratings, by user and by item, into a directory that fit and evaluate take in its place.

    Its entries stay on disk: neither preparing nor fitting needs memory for all of them. It takes 16 bytes per rating,
    24 with timestamps, and twice that while it is made.
    """
    import eckart
    from eckart.data.prepared import open_prepared

    started = time.perf_counter()
    with terminal.entries_bar(f"reading {path}") as progress:
        eckart.prepare(
            path,
            output,
            user=ratings.column(user),
            item=ratings.column(item),
            rating=ratings.column(rating),
            timestamp=ratings.column(timestamp),
            duplicates=duplicates,
            bad_lines=bad_lines,
            delimiter=delimiter,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    with terminal.waiting(f"checking {output}"):
        data = open_prepared(output)
    result = {
        "store": str(output),
        "users": len(data.users),
        "items": len(data.items),
        "entries": data.nnz,
        "rated": data.rated,
        "bytes": sum(file.stat().st_size for file in os.scandir(output)),
        "seconds": round(seconds, 3),
    }
    if as_json:
        terminal.print_json(result)
    else:
        terminal.print_facts("prepared", result)

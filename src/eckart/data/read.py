"""Read ratings from a file or a table: ids become row numbers here, once.

Whatever the source, it becomes a stream of small Arrow batches (data/source.py) that hold the user, item, rating
and time columns only; each is checked and encoded (data/encode.py) as it comes by, so that no more than a batch
of the source's own representation is ever held.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from eckart.data import encode
from eckart.data.columns import find_columns, looks_like_header, positional_columns, quoted
from eckart.data.duplicates import POLICIES, merge_duplicates
from eckart.data.interactions import Interactions
from eckart.data.prepared import is_prepared, open_prepared
from eckart.data.source import Table, one_line, open_source
from eckart.data.text import TextFile

__all__ = ["Skipped", "open_table", "read", "sound_batches", "warn_of"]


def read(
    source: Any,
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    rating: str | int | Literal[False] | None = None,
    timestamp: str | int | Literal[False] | None = None,
    duplicates: Literal["last", "mean", "sum", "error"] = "last",
    bad_lines: Literal["error", "skip"] = "error",
    header: bool | None = None,
    delimiter: str | None = None,
) -> Interactions:
    """Read who rated what, and how, from a file or a table.

    Parameters
    ----------
    source : path, table or dict
        A text file (CSV, TSV, MovieLens '::' and the like, UTF-8, with or without header, plain or
        compressed by gzip, bzip2 or zstd), a Parquet file, an Arrow table, any object with
        ``__arrow_c_stream__`` (pandas, Polars, DuckDB, `Interactions`), a dict of arrays or lists, or a
        directory that `prepare` wrote: its entries stay on disk, and all that follows was settled there.
    user, item, rating, timestamp : str or int, optional
        Name or position (from 0) of the column. By default it is found by its name and the common synonyms
        ('userId', 'movie_id', 'stars', ...), in a file without header by its place: user, item, rating,
        timestamp. ``rating=False`` and ``timestamp=False`` do without such a column.
    duplicates : {"last", "mean", "sum", "error"}
        What becomes of several entries of one user for one item: 'last' keeps the latest by timestamp, the
        last in the source where there is none or they are equal; 'mean' and 'sum' keep the latest timestamp.
    bad_lines : {"error", "skip"}
        Whether a line with a missing id, a rating that is not a finite number, a timestamp that is no time,
        or too few or many fields is an error or left out, with one warning that counts them.
    header : bool, optional
        Whether the first line of a text file names the columns; by default found out from that line.
    delimiter : str, optional
        What separates the fields of a text file; by default found out from its first line.

    Returns
    -------
    Interactions
        Ids are integers where the column holds integers (in a text file: where every value reads as one,
        without leading zeros), else strings. Ratings are float32; without a rating column every pair counts
        1 and ``rated`` is False, except that ``duplicates='sum'`` makes counts of them, which are ratings.
        Times are as in the source, dates in seconds since 1970 (UTC where they name no zone); they are None
        if any entry that is kept has none.

    Raises
    ------
    ValueError
        With one sentence, if the source or an argument will not do; it names the file and, where there is
        one, the line (from 1, header and blank lines counted) or the row (from 0) of a table.
    FileNotFoundError
        No such file.
    TypeError
        `source` is none of the above.

    Examples
    --------
    >>> data = read({"user": ["ann", "bob", "ann"], "item": [10, 10, 7], "stars": [4, 5, 3]})
    >>> data
    Interactions(3 ratings, 2 users x 2 items, 75.00 % of the cells)
    >>> data.matrix.toarray()
    array([[3., 4.],
           [0., 5.]], dtype=float32)
    """
    chosen = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    if is_prepared(source):
        if (*chosen.values(), duplicates, bad_lines, header, delimiter) != (None,) * 4 + ("last", "error", None, None):
            raise ValueError(f"{source}: is prepared already: give the options of reading to prepare, not here.")
        return open_prepared(source)
    table = open_table(source, chosen, duplicates, bad_lines, header, delimiter)
    parts, skipped = _encoded(table, skip=bad_lines == "skip")
    warn_of(skipped, table.name, bool(parts["user"]))
    user_rows, users = encode.join_ids(parts.pop("user"), table.is_text)
    item_rows, items = encode.join_ids(parts.pop("item"), table.is_text)
    rated = "rating" in parts
    values = np.concatenate(parts.pop("rating")) if rated else np.ones(len(user_rows), dtype=np.float32)
    times = np.concatenate(parts.pop("timestamp")) if "timestamp" in parts else None
    try:
        merged = merge_duplicates(user_rows, item_rows, values, times, users, items, duplicates)
    except ValueError as error:
        raise ValueError(f"{table.name}: {error}") from None
    del user_rows, item_rows, values, times
    return Interactions.of(*merged[:3], users, items, merged[3], rated or duplicates == "sum")


def open_table(
    source: Any,
    chosen: Mapping[str, str | int | bool | None],
    duplicates: str,
    bad_lines: str,
    header: bool | None,
    delimiter: str | None,
) -> Table:
    """Check the arguments of `read` and open its source, which is no prepared one."""
    if duplicates not in POLICIES:
        raise ValueError(f"duplicates={duplicates!r}: expected one of {quoted(POLICIES)}.")
    if bad_lines not in ("error", "skip"):
        raise ValueError(f"bad_lines={bad_lines!r}: expected 'error' or 'skip'.")
    return open_source(
        source,
        lambda names, where: find_columns(names, chosen, where),
        lambda file: _columns_of_text(file, chosen, header),
        ids=2,
        what="ratings",
        advice=" Drop or mend that line, or pass bad_lines='skip'.",
        delimiter=delimiter,
        skip=bad_lines == "skip",
    )


def _columns_of_text(
    file: TextFile, chosen: Mapping[str, str | int | bool | None], header: bool | None
) -> tuple[bool, dict[str, int]]:
    named = looks_like_header(file.first, chosen) if header is None else header
    if len(file.first) == 1:
        raise ValueError(
            f"{file.name}: one column only, the first line is {quoted(file.first)}: expected a user and an "
            f"item at least, separated by ',' or tab or ';' or '|' or '::' (else pass delimiter=)."
        )
    if named:
        return True, find_columns(file.first, chosen, file.name)
    return False, positional_columns(len(file.first), chosen, file.name)


def warn_of(skipped: Skipped, name: str, any_left: bool) -> None:
    """Warn of the lines that were left out, and raise ValueError where there are no others."""
    if skipped.count:
        what = "1 line" if skipped.count == 1 else f"{skipped.count:,} lines"
        warnings.warn(f"{name}: {what} left out, the first because {skipped.first}", stacklevel=3)
    if not any_left:
        which = "no line that can be used" if skipped.count else "no rows, only column names"
        raise ValueError(f"{name}: has {which}: expected a line for each rating.")


class Skipped:
    """How many lines were left out, and why the first was."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def add(self, why: str, count: int = 1) -> None:
        """Count lines left out, and keep why the first one was."""
        self.first = self.first or why
        self.count += count


def _encoded(table: Table, skip: bool) -> tuple[dict[str, list[Any]], Skipped]:
    """Chunks of codes, ratings and times, by role; without 'timestamp' where one is missing."""
    parts: dict[str, list[Any]] = {role: [] for role in table.labels}
    skipped = Skipped()
    for values, undated in sound_batches(table, skip, skipped):
        if undated:
            parts.pop("timestamp", None)
        for role in parts:
            parts[role].append(values[role])
    return parts, skipped


def sound_batches(table: Table, skip: bool, skipped: Skipped) -> Iterator[tuple[dict[str, Any], bool]]:
    """Batches of codes, ratings and times, by role, the bad lines left out; and whether a time is missing."""
    seen = 0
    for batch in table.batches(skipped.add):
        columns = dict(zip(table.labels, batch.columns, strict=True))
        values, bad, missing = _encode(columns, table.name)
        any_bad = np.logical_or.reduce(list(bad.values()))
        if any_bad.any():
            at = int(np.argmax(any_bad))
            role = next(role for role in table.labels if bad[role][at])
            why = encode.complaint(role, columns[role][at].as_py())
            what = "line" if table.is_text else "row"
            if not skip:
                place = table.place(seen + at)
                raise ValueError(f"{table.name}, {place}: {why}. Drop or mend that {what}, or pass bad_lines='skip'.")
            skipped.add(why, int(np.count_nonzero(any_bad)))
            keep = ~any_bad
            kept = pa.array(keep)
            values = {r: v.filter(kept) if r in ("user", "item") else v[keep] for r, v in values.items()}
            missing = missing[keep]
        if len(values["user"]):
            yield values, bool(missing.any())
        seen += batch.num_rows


def _encode(columns: dict[str, pa.Array], name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    values: dict[str, Any] = {}
    bad: dict[str, np.ndarray] = {}
    missing = np.zeros(len(columns["user"]), dtype=bool)
    try:
        for role, column in columns.items():
            if role in ("user", "item"):
                values[role], bad[role] = encode.encode_ids(column, role)
            elif role == "rating":
                values[role], bad[role] = encode.encode_ratings(column)
            else:
                values[role], missing, bad[role] = encode.encode_times(column)
    except ValueError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    return values, bad, missing

"""Read what is known of users or of items from a file or a table.

The source is opened as one of ratings is (data/source.py). Its ids become the rows, each other column is given a kind
and its values are checked (data/feature_columns.py); an error names the column, the id and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import issparse

from eckart.data.columns import find_id, is_number, quoted
from eckart.data.encode import complaint, encode_ids, join_ids
from eckart.data.feature_columns import column_of, sparse_column
from eckart.data.feature_table import KINDS, Column, Features, no_column
from eckart.data.source import Table, open_source
from eckart.data.text import TextFile
from eckart.data.vocabulary import Vocabulary

__all__ = ["Column", "Features", "column_names", "read_features"]


def read_features(
    source: Any,
    id: str | int | None = None,
    *,
    kinds: Mapping[str, str | None] | None = None,
    separator: str | None = "|",
    header: bool | None = None,
    delimiter: str | None = None,
) -> Features:
    """Read what is known of users or of items from a file or a table.

    Parameters
    ----------
    source : path, table or dict
        A text file (CSV, TSV and the like, UTF-8, plain or compressed), a Parquet file, an Arrow table, any object
        with ``__arrow_c_stream__`` (pandas, Polars, DuckDB), or a dict of arrays, lists, 2-D arrays (vectors) and
        SciPy sparse matrices (categories, called by column number '0', '1', ..., with weights).
    id : str or int, optional
        Name or position of the column of ids, each of which stands in one row; by default the one called 'id', or
        as the column of users or of items is in ratings ('userId', 'movie_id', ...).
    kinds : mapping of column to kind, optional
        'number', 'categories', 'text', 'vector', 'image' (a path); None leaves the column out. Of other columns the
        kind is found out: numbers and dates (in days since 1970) are 'number', lists of text are 'categories', other
        lists of one length 'vector'. Text is 'number' if (nearly) all of it reads as numbers, 'image' if all of it
        ends as names of images do, 'categories' if the separator is usual or it is short and either repeats itself
        or has no blanks, else 'text'.
    separator : str, optional
        Between the categories of one cell; None: a cell is one category.
    header : bool, optional
        Whether the first line of a text file names the columns, which are '0', '1', ... if not; by default it does
        unless a field of it is a number.
    delimiter : str, optional
        What separates the fields of a text file; by default found out from its first line.

    Returns
    -------
    Features
        Rows by ascending id. Empty cells, null and blank text are missing values. Columns without a name are left out.

    Raises
    ------
    ValueError
        With one sentence that names column, id and line (or row): an id that is missing or stands twice, a number
        that is none or not finite, text of more than 100,000 characters, vectors of different widths, more than
        1,000,000 categories; or an unknown column in `kinds`.
    FileNotFoundError, TypeError
        There is no such source.

    Examples
    --------
    >>> import eckart as ek
    >>> people = {"user": ["bob", "ann"], "age": [31, None], "job": ["cook", "nurse"]}
    >>> ek.read_features(people, kinds={"job": "categories"})
    Features(2 rows: age (number), job (2 categories))
    """
    kinds = dict(kinds or {})
    _check_options(kinds, separator)
    sparse: dict[str, Any] = {}
    if isinstance(source, Mapping):
        sparse = {name: values for name, values in source.items() if issparse(values)}
        source = {name: _with_rows(name, values) for name, values in source.items() if name not in sparse}

    def pick(names: Sequence[str], where: str) -> dict[str, int]:
        place = find_id(names, id, where)
        _check_names(kinds, [*names, *sparse], names[place], where)
        wanted = [i for i, name in enumerate(names) if i != place and name.strip() and not _left_out(kinds, name)]
        listed = [names[i] for i in wanted]
        if len(set(listed)) < len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise ValueError(f"{where}: several columns are called {quoted([twice])}: give them different names.")
        return {names[i]: i for i in (place, *wanted)}

    def pick_text(file: TextFile) -> tuple[bool, dict[str, int]]:
        if len(file.first) == 1:
            raise ValueError(
                f"{file.name}: one column only, the first line is {quoted(file.first)}: expected ids and features, "
                f"separated by ',' or tab or ';' or '|' or '::' (else pass delimiter=)."
            )
        named = not any(map(is_number, file.first)) if header is None else header
        return named, pick(file.first if named else [str(i) for i in range(len(file.first))], file.name)

    advice = " Drop or mend that line."
    table = open_source(source, pick, pick_text, ids=1, what="features", advice=advice, delimiter=delimiter)
    label, *names = table.labels
    chunks: dict[str, list[pa.Array]] = {name: [] for name in table.labels}
    for batch in table.batches(lambda _: None):
        for name, column in zip(table.labels, batch.columns, strict=True):
            chunks[name].append(column)
    if not sum(map(len, chunks[label])):
        raise ValueError(f"{table.name}: has no rows, only column names: expected a line for each id.")
    rows, ids = _ids(table, chunks.pop(label))

    order = np.argsort(rows)
    columns = {}
    for name in names:
        data = pa.chunked_array(chunks.pop(name))
        columns[name] = column_of(data, kinds.get(name), separator, _complain(table, ids, rows, name)).take(order)
    for name, matrix in sparse.items():
        if _left_out(kinds, name):
            continue
        complain = _complain(table, ids, rows, name)
        if kinds.get(name) not in (None, "categories"):
            raise complain(None, f"is sparse and so of kind 'categories', not {kinds[name]!r}")
        if matrix.shape[0] != len(rows):
            raise complain(None, f"has {matrix.shape[0]:,} rows, the others have {len(rows):,}")
        columns[name] = sparse_column(matrix, complain).take(order)
    return Features(ids, columns)


def column_names(path: str) -> list[str]:
    """Names of all columns of a file, as `read_features` calls them: what its kinds can be given for."""
    found: list[str] = []

    def pick(names: Sequence[str], _: str) -> dict[str, int]:
        found.extend(names)
        return {}

    def pick_text(file: TextFile) -> tuple[bool, dict[str, int]]:
        named = not any(map(is_number, file.first))
        return named, pick(file.first if named else [str(i) for i in range(len(file.first))], file.name)

    open_source(path, pick, pick_text, ids=1, what="features", advice="")
    return found


def _ids(table: Table, chunks: list[pa.Array]) -> tuple[np.ndarray, Vocabulary]:
    """Row number of each record's id, and the ids."""
    encoded, seen = [], 0
    for chunk in chunks:
        try:
            codes, bad = encode_ids(chunk, "id")
        except ValueError as error:
            raise ValueError(f"{table.name}: {error}") from None
        if bad.any():
            at = int(np.argmax(bad))
            why = complaint("id", chunk[at].as_py())
            raise ValueError(f"{table.name}, {table.place(seen + at)}: {why}. Drop or mend that row.")
        encoded.append(codes)
        seen += len(chunk)
    rows, ids = join_ids(encoded, table.is_text)
    counts = np.bincount(rows)
    if counts.max() > 1:
        first = int(np.argmax(counts > 1))
        places = " and ".join(table.place(int(i)) for i in np.flatnonzero(rows == first)[:2])
        others = np.count_nonzero(counts > 1) - 1
        many = f" (and so do {others:,} more)" if others else ""
        whose = _quoted_id(ids, first)
        raise ValueError(f"{table.name}: id {whose} stands twice, in {places}{many}: keep one row an id.")
    return rows, ids


def _complain(table: Table, ids: Vocabulary, rows: np.ndarray, name: str) -> Callable[[int | None, str], ValueError]:
    def complain(record: int | None, why: str) -> ValueError:
        what = f"column {quoted([name])}"
        if record is None:
            return ValueError(f"{table.name}: {what} {why}.")
        whose = _quoted_id(ids, int(rows[record]))
        try:
            place = f", {table.place(record)}"
        except ValueError:  # a field before it is too long for the reader that counts lines
            place = ""
        return ValueError(f"{table.name}{place}: {what} of id {whose} {why}.")

    return complain


def _quoted_id(ids: Vocabulary, row: int) -> str:
    return quoted(ids.ids[row : row + 1].tolist())


def _with_rows(name: Any, values: Any) -> Any:
    """Values of a dict as Arrow takes them: the rows of a 2-D array as lists of one length."""
    if (
        isinstance(values, (list, tuple))
        or hasattr(values, "__arrow_c_stream__")
        or hasattr(values, "__arrow_c_array__")
    ):
        return values
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] and array.dtype.kind in "fiub":
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).ravel()), array.shape[1])
    return array.tolist() if array.dtype.kind == "T" else array


def _check_options(kinds: Mapping[str, str | None], separator: str | None) -> None:
    for name, kind in kinds.items():
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"kinds: {name!r} is to be {kind!r}, expected one of {quoted(KINDS)}, or None to leave it out."
            )
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise ValueError(f"separator={separator!r}: expected a character or a few, or None.")


def _check_names(kinds: Mapping[str, str | None], names: Sequence[str], id: str, where: str) -> None:
    for name in kinds:
        if name == id:
            raise ValueError(f"{where}: column {quoted([name])} is that of the ids: leave it out of kinds.")
        if name not in names:
            raise ValueError(f"{where}: {no_column(name, names)}")


def _left_out(kinds: Mapping[str, str | None], name: str) -> bool:
    return name in kinds and kinds[name] is None

"""Open a file or a table as a stream of small Arrow batches, of the wanted columns only.

Text (data/text.py), Parquet, whatever offers an Arrow stream, and dicts of arrays become the same thing: record
batches whose columns are in the caller's order, once their offsets and their text are known to be sound. Which
columns those are is the caller's to say, with a function from the names of all columns to the places of his.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from eckart.data import text
from eckart.data.columns import quoted

__all__ = ["Pick", "PickText", "Table", "one_line", "open_source"]

_ROWS = 1 << 18  # of a table or Parquet file at a time

Pick = Callable[[Sequence[str], str], dict[str, int]]  # names, what the source is called -> label and place of each
PickText = Callable[[text.TextFile], tuple[bool, dict[str, int]]]  # -> whether the first line is a header, the same


@dataclass(frozen=True)
class Table:
    """A source, opened.

    Parameters
    ----------
    name : str
        What it is called in an error.
    labels : list of str
        What the columns of a batch are called by who picked them, in their order.
    batches : callable
        Gives its record batches; its argument is called with a sentence for each record left out on the way.
    place : callable
        From the number of a record to 'line 7' or 'row 7'.
    is_text : bool
        Whether an integer may come as text.
    """

    name: str
    labels: list[str]
    batches: Callable[[Callable[[str], None]], Iterator[pa.RecordBatch]]
    place: Callable[[int], str]
    is_text: bool = False


def open_source(
    source: Any,
    pick: Pick,
    pick_text: PickText,
    *,
    ids: int,
    what: str,
    advice: str,
    delimiter: str | None = None,
    skip: bool = False,
) -> Table:
    """Open a path, a table or a dict of arrays.

    Parameters
    ----------
    source : path, table or dict
    pick, pick_text : callable
        Which columns are wanted: of named ones, and of a text file by its head.
    ids : int
        So many of them come first and hold ids: from a text file these are dictionary-encoded.
    what : str
        What the lines of the source tell, for errors: "ratings".
    advice : str
        What the error about a line that will not do ends with.
    delimiter : str, optional
        Of a text file.
    skip : bool
        Whether lines of a text file that have too few or too many fields are left out.

    Raises
    ------
    ValueError, FileNotFoundError, TypeError
        There is no such source, or it cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return _file(source, pick, pick_text, ids, what, advice, delimiter, skip)
    return _memory(source, pick, what)


def _file(
    source: str | os.PathLike[str],
    pick: Pick,
    pick_text: PickText,
    ids: int,
    what: str,
    advice: str,
    delimiter: str | None,
    skip: bool,
) -> Table:
    path = Path(source)
    name = _shown(path)
    try:
        if path.is_dir():
            known = " or what eckart prepare wrote" if what == "ratings" else ""
            raise ValueError(f"{name}: is a directory, expected a file{known}.")
        if not path.exists():
            raise FileNotFoundError(f"{name}: no such file.")
        with path.open("rb") as file:
            magic = file.read(4)
        if magic.startswith(b"PK\x03\x04"):
            raise ValueError(f"{name}: is a zip archive (as .xlsx files are): unpack it and read the file inside.")
        if magic == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(path, name, pick)
        return _delimited(text.open_text(path, name, delimiter, what), pick_text, ids, advice, skip)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file.") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{name}: cannot be read: {one_line(error)}") from None


def _delimited(file: text.TextFile, pick_text: PickText, ids: int, advice: str, skip: bool) -> Table:
    named, found = pick_text(file)

    def batches(on_bad: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        good = 0
        columns = list(found.values())
        try:
            for batch in text.text_batches(file, named, columns, ids, on_bad if skip else None):
                yield batch
                good += batch.num_rows
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            why = text.broken_line(file, named, columns, 0 if skip else good, skip)
            if why:
                raise ValueError(f"{file.name}, {why}{'' if skip or 'UTF-8' in why else advice}") from None
            raise ValueError(f"{file.name}: cannot be read as text: {one_line(error)}") from None

    def place(record: int) -> str:
        return f"line {text.line_of(file, named, record):,}"

    return Table(file.name, list(found), batches, place, is_text=True)


def _parquet(path: Path, name: str, pick: Pick) -> Table:
    file = _unless_damaged(name, lambda: pyarrow.parquet.ParquetFile(path))
    names = file.schema_arrow.names
    found = pick(names, name)
    wanted = [names[i] for i in found.values()]
    if twice := [column for column in wanted if names.count(column) > 1]:
        raise ValueError(f"{name}: several columns are called {quoted(twice[:1])}: give them different names.")

    def batches(_: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        stream = file.iter_batches(batch_size=_ROWS, columns=wanted)
        while (batch := _unless_damaged(name, lambda: next(stream, None))) is not None:
            arrays = [batch.column(column) for column in wanted]
            yield from _checked(pa.RecordBatch.from_arrays(arrays, names=list(found)), name)

    return Table(name, list(found), batches, "row {:,}".format)


def _unless_damaged(name: str, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except Exception as error:  # from a damaged file pyarrow raises what it likes, UnicodeDecodeError, too
        raise ValueError(f"{name}: cannot be read as Parquet: {one_line(error)}") from None


def _memory(source: Any, pick: Pick, what: str) -> Table:
    name = type(source).__name__
    try:
        if isinstance(source, Mapping):
            source = pa.table({key: _column(key, values) for key, values in source.items()})
        if not hasattr(source, "__arrow_c_stream__"):
            raise TypeError(f"cannot read {what} from {name}: expected a path, a table, or a dict of arrays.")
        stream = pa.RecordBatchReader.from_stream(source)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{name}: cannot be read as a table: {one_line(error)}") from None
    found = pick(stream.schema.names, name)

    def batches(_: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in stream:
                columns = [batch.column(i) for i in found.values()]
                yield from _checked(pa.RecordBatch.from_arrays(columns, names=list(found)), name)
        except pa.ArrowException as error:
            raise ValueError(f"{name}: cannot be read as a table: {one_line(error)}") from None

    return Table(name, list(found), batches, "row {:,}".format)


def _column(key: Any, values: Any) -> Any:
    if not isinstance(key, str):
        raise ValueError(f"a column is called {key!r}, expected names that are strings.")
    if hasattr(values, "__arrow_c_stream__"):
        return pa.chunked_array(values)
    if isinstance(values, (list, tuple)) or hasattr(values, "__arrow_c_array__"):
        return pa.array(values)
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"column {quoted([key])} has {array.ndim} dimensions, expected 1.")
    return pa.array(array)


def _checked(batch: pa.RecordBatch, name: str) -> Iterator[pa.RecordBatch]:
    """Slices of a batch that came from elsewhere, once its offsets and its text are known to be sound."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: is damaged: {one_line(error)}") from None
    for start in range(0, batch.num_rows, _ROWS):
        yield batch.slice(start, _ROWS)


def _shown(path: Path) -> str:
    name = str(path)
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 120 else f"...{name[-117:]}"


def one_line(error: BaseException) -> str:
    """Say what an exception says in one printable line of at most 200 characters."""
    line = " ".join(str(error).split())
    line = line if line.isprintable() else ascii(line)
    return line if len(line) <= 200 else f"{line[:197]}..."

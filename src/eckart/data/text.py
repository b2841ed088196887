"""Text files as Arrow batches of strings, and the true line of any record.

Arrow's CSV reader does the work at some 500 MB/s; it knows neither line numbers, nor '::', nor where a
header ends after blank lines and a byte order mark. So the first record is read here, the rest is handed to
Arrow, and only when something is wrong is the file read again, slowly, to say where.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

__all__ = ["TextFile", "broken_line", "line_of", "open_text", "sniff_compression", "text_batches"]

_BOM = b"\xef\xbb\xbf"
_UNIT = "\x1f"  # ASCII unit separator: stands in for a delimiter of several characters, such as '::'
_HEAD = 1 << 20
_COMPRESSION = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
# Two blocks are in flight; at 16 MiB a block has some 600,000 ratings and one dictionary of its ids.
_BLOCK = 16 << 20


@dataclass(frozen=True)
class TextFile:
    """What the head of a delimited text file tells.

    Parameters
    ----------
    path : Path
    name : str
        What the file is called in an error.
    delimiter : str
        One character or more; a field may be in double quotes where it is one character.
    first : tuple of str
        Fields of the first record.
    first_end : int
        Byte, after decompression, at which the first record ends.
    first_lines : int
        Lines up to and with the first record.
    start : int
        Byte at which it begins (after a byte order mark).
    """

    path: Path
    name: str
    delimiter: str
    first: tuple[str, ...]
    first_end: int
    first_lines: int
    start: int


def sniff_compression(path: Path) -> str | None:
    """Compression of a file by its first bytes: 'gzip', 'bz2', 'zstd' or None."""
    with path.open("rb") as file:
        magic = file.read(4)
    return next((name for mark, name in _COMPRESSION.items() if magic.startswith(mark)), None)


def open_text(path: Path, name: str, delimiter: str | None, what: str = "ratings") -> TextFile:
    """Read the head of a text file, of ratings or `what` else: its delimiter and its first record.

    Raises
    ------
    ValueError
        An empty file, one that is not UTF-8 text, or a delimiter that cannot be one.
    """
    if delimiter is not None and (not delimiter or not isinstance(delimiter, str) or set(delimiter) & set('"\r\n')):
        raise ValueError(f"delimiter={delimiter!r}: expected a character such as ',' or a few such as '::'.")
    with pa.input_stream(path, compression=sniff_compression(path)) as file:
        head = file.read(_HEAD)
    start = len(_BOM) if head.startswith(_BOM) else 0
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name}: looks like UTF-16: save it as UTF-8.")
    if b"\0" in head:
        raise ValueError(f"{name}: holds NUL bytes, expected text (CSV, TSV, '::') or Parquet.")
    lines = list(io.StringIO(head[start:].decode("utf-8", "surrogateescape"), newline=""))
    if not any(line.strip("\r\n") for line in lines):
        raise ValueError(f"{name}: is empty, expected lines of {what}.")
    delimiter = delimiter or _sniff_delimiter(_unquoted_opening(lines), path)
    reader = _csv_reader(lines, delimiter)
    try:
        first = next(fields for fields in reader if fields)
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num:,}: {error}.") from None
    if any("\udc80" <= c <= "\udcff" for field in first for c in field):
        raise ValueError(f"{name}, line {reader.line_num:,}: is not UTF-8 text: save the file as UTF-8.")
    end = start + len("".join(lines[: reader.line_num]).encode("utf-8", "surrogateescape"))
    if end >= _HEAD:
        raise ValueError(f"{name}: the first record is longer than {_HEAD:,} bytes: is a quote left open?")
    return TextFile(path, name, delimiter, tuple(first), end, reader.line_num, start)


def text_batches(
    text: TextFile, header: bool, columns: Sequence[int], ids: int, on_bad: Callable[[str], None] | None
) -> Iterator[pa.RecordBatch]:
    """Batches of the given columns as strings, the first `ids` of them dictionary-encoded.

    Parameters
    ----------
    text : TextFile
    header : bool
        Whether the first record is to be passed over.
    columns : sequence of int
    ids : int
    on_bad : callable or None
        Called with a sentence for each record that has the wrong number of fields, which is then left out;
        None makes such a record an error.

    Raises
    ------
    pyarrow.ArrowInvalid
        Text that Arrow cannot read; `broken_line` finds out which.
    """
    expected = len(text.first)

    def skip(row: Any) -> str:
        assert on_bad is not None
        on_bad(f"{_fields(row.actual_columns)}, expected {expected}")
        return "skip"

    names = [str(i) for i in range(expected)]
    encoded = pa.dictionary(pa.int32(), pa.string())
    # Arrow hands the text of a bad record over as str and, where it is not UTF-8, loses the exception
    with _open_rest(text, header, strict=on_bad is not None) as rest:
        try:
            reader = pyarrow.csv.open_csv(
                rest,
                read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=_BLOCK),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=_one_character(text.delimiter),
                    quote_char='"' if _has_quotes(text.delimiter) else False,
                    newlines_in_values=_has_quotes(text.delimiter),
                    invalid_row_handler=skip if on_bad else None,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=[str(i) for i in columns],
                    column_types={str(c): encoded if n < ids else pa.string() for n, c in enumerate(columns)},
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):  # nothing but a header
                return
            raise
        with reader:
            yield from reader


def line_of(text: TextFile, header: bool, record: int) -> int:
    """Line (from 1) on which a record (from 0, header not counted) begins."""
    for n, (line, _) in enumerate(_records(text, header)):
        if n == record:
            return line
    raise IndexError(f"{text.name} has no record {record}")


def broken_line(text: TextFile, header: bool, columns: Sequence[int], good: int, skip: bool) -> str | None:
    """Sentence about the first record after `good` good ones that Arrow cannot have liked, if there is one.

    That is one with too few or many fields or not UTF-8 in the given columns; where bad lines are skipped,
    one that is not UTF-8 anywhere.
    """
    expected = len(text.first)
    for n, (line, fields) in enumerate(_records(text, header)):
        if n < good:
            continue
        if len(fields) != expected and not skip:
            hint = " (is a quote left open?)" if any("\n" in field for field in fields) else ""
            return f"line {line:,}: {_fields(len(fields))}, expected {expected}{hint}."
        checked = fields if skip else [fields[i] for i in columns]
        if any("\udc80" <= c <= "\udcff" for field in checked for c in field):
            return f"line {line:,}: is not UTF-8 text: save the file as UTF-8."
    return None


def _records(text: TextFile, header: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record, blank lines passed over as Arrow does."""
    before = text.first_lines if header else 0
    with _open_rest(text, header) as rest:
        reader = _csv_reader(
            io.TextIOWrapper(rest, encoding="utf-8", errors="surrogateescape", newline=""),
            _one_character(text.delimiter),
        )
        line = before + 1
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = before + reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{text.name}, line {line:,}: {error}.") from None


def _csv_reader(lines: Iterable[str], delimiter: str) -> Any:
    if not _has_quotes(delimiter):
        lines = (line.replace(delimiter, _UNIT) for line in lines)
    quoting = csv.QUOTE_MINIMAL if _has_quotes(delimiter) else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=_one_character(delimiter), quoting=quoting)


def _open_rest(text: TextFile, header: bool, strict: bool = False) -> io.BufferedReader:
    file = pa.input_stream(text.path, compression=sniff_compression(text.path))
    file.read(text.first_end if header else text.start)
    old = b"" if _has_quotes(text.delimiter) else text.delimiter.encode()
    return io.BufferedReader(_Stream(file, old, strict), buffer_size=1 << 20)


class _Stream(io.RawIOBase):
    """A file with each `old` in it replaced by the unit separator and, where strict, checked to be UTF-8."""

    def __init__(self, file: pa.NativeFile, old: bytes, strict: bool) -> None:
        self._file, self._old, self._held = file, old, b""
        self._decoder = codecs.getincrementaldecoder("utf-8")() if strict else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            read = self._file.read(len(buffer) - len(self._held))
            if self._decoder:
                self._decoder.decode(read, final=not read)
            data = self._held + read
            if self._old:
                data = data.replace(self._old, _UNIT.encode())
                # the beginning of a delimiter at the end of what was read waits for the rest of it
                cut = next((k for k in range(len(self._old) - 1, 0, -1) if data.endswith(self._old[:k])), 0)
                cut = cut if read else 0
                data, self._held = data[: len(data) - cut], data[len(data) - cut :]
            if data or not read:
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _unquoted_opening(lines: Sequence[str]) -> str:
    """The first record, its quoted fields taken out, before it is known what separates the fields."""
    record = ""
    for line in lines:
        record += line.strip("\r\n") and line
        bare = re.sub(r'(^|[\t,;|])"(?:[^"]|"")*"', r"\1", record)
        if record and not re.search(r'(^|[\t,;|])"', bare):
            return bare
        if len(record) > 10_000:  # a quote that is never closed
            break
    return record


def _sniff_delimiter(line: str, path: Path) -> str:
    if any(suffix.lower() == ".csv" for suffix in path.suffixes) and set(line) & {",", ";"}:
        return max(",;", key=line.count)
    if "\t" in line:  # hardly ever part of an id, as commas and colons are
        return "\t"
    if line.count("::") > 1:
        return "::"
    return max(",;|", key=line.count) if set(line) & set(",;|") else "::"


def _has_quotes(delimiter: str) -> bool:
    # MovieLens' '::' files quote nothing: a double quote in a title is a character like any other
    return len(delimiter.encode()) == 1


def _one_character(delimiter: str) -> str:
    return delimiter if _has_quotes(delimiter) else _UNIT


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"

"""One property of every user or item: what kinds there are, and how a column of a table becomes one.

A kind is found out from the type of a column and, for text, from its values: cells in which a separator is usual,
or few distinct short ones, are categories; the rest is text. Nothing depends on the order of the rows. Every row
may lack its value, and none may hold a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy.sparse import csr_array

from eckart.core.csr import csr, fault_of, take_rows
from eckart.data.encode import decoded, encode_numbers, join_ids

__all__ = ["KINDS", "Column", "Complain", "check_column", "column_of", "sparse_column"]

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

KINDS = ("number", "categories", "text", "vector", "image")
Complain = Callable[[int | None, str], ValueError]  # number of a row (None: all), what is wrong -> what to raise

_STRING = np.dtypes.StringDType()
_CHARACTERS = 100_000  # of a cell; a long novel has ten times as many, a long abstract a tenth of this
_NAME = 1_000  # characters of a category
_NAMES = 1_000_000  # categories of a column
_WIDTH = 65_536  # numbers of a vector
_IMAGE = r"(?i)\.(jpe?g|png|gif|webp|bmp|tiff?)$"


class Column(NamedTuple):
    """One property of n users or items.

    Attributes
    ----------
    kind : {"number", "categories", "text", "vector", "image"}
    values : array
        'number': (n,) float32, NaN where missing. 'categories': csr_array (n, c) float32, the positive weight of
        each category (1 for a plain one), an empty row where missing. 'text' and 'image' (a path): (n,) StringDType,
        "" where missing. 'vector': (n, d) float32, a row of NaN where missing, d = 0 if it is missing everywhere.
    names : ndarray of shape (c,), StringDType, optional
        What the categories are called, ascending; None for other kinds.
    """

    kind: str
    values: Any
    names: np.ndarray | None = None

    def missing(self) -> np.ndarray:
        """Which rows have no value, (n,) bool."""
        if self.kind == "number":
            return np.isnan(self.values)
        if self.kind == "categories":
            return np.diff(self.values.indptr) == 0
        if self.kind == "vector":
            return np.isnan(self.values[:, 0]) if self.values.shape[1] else np.ones(len(self.values), bool)
        return self.values == ""

    def take(self, rows: np.ndarray) -> Column:
        """Give the column of these rows, in this order; a row of -1 is a missing one."""
        if self.kind == "categories":
            M = self.values
            indptr = np.append(M.indptr, M.indptr[-1])  # one more row, which is empty
            more = csr(M.data, M.indices, indptr, (M.shape[0] + 1, M.shape[1]))
            return self._replace(values=take_rows(more, np.where(rows < 0, M.shape[0], rows)))
        nothing = "" if self.values.dtype == _STRING else np.nan
        taken = np.full((len(rows), *self.values.shape[1:]), nothing, self.values.dtype)
        known = rows >= 0
        taken[known] = self.values[rows[known]]
        return self._replace(values=taken)


def check_column(column: Column, rows: int) -> str | None:
    """Say what is wrong with a column that someone made, None where it is sound."""
    kind, names = column.kind, column.names
    values: Any = column.values
    if kind not in KINDS:
        return f"is of kind {kind!r}, expected one of {', '.join(KINDS)}"
    if kind == "categories":
        return _fault_of_categories(values, names, rows)
    if names is not None:
        return f"is of kind {kind!r} and has names, which only categories have"
    ndim, dtype = (2 if kind == "vector" else 1), (_STRING if kind in ("text", "image") else np.dtype(np.float32))
    if not isinstance(values, np.ndarray) or values.ndim != ndim or values.dtype != dtype:
        got = f"{np.ndim(values)}-D {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        return f"is {got}, expected a {ndim}-D array of {dtype} for kind {kind!r}"
    if len(values) != rows:
        return f"has {len(values)} rows, expected {rows}"
    if kind == "number" and bool(np.isinf(values).any()):
        return "holds infinity, expected finite numbers, NaN where they are missing"
    if kind == "vector" and values.shape[1] > _WIDTH:
        return f"has {values.shape[1]:,} numbers a row, expected at most {_WIDTH:,}"
    if kind == "vector" and not np.all(np.isfinite(values).all(axis=1) | np.isnan(values).all(axis=1)):
        return "holds a row with NaN or infinity among its numbers, expected finite ones, or NaN throughout"
    return None


def _fault_of_categories(M: Any, names: Any, rows: int) -> str | None:
    if not isinstance(M, csr_array) or M.ndim != 2 or M.dtype != np.float32:
        return "is no csr_array of float32, as categories are"
    if not isinstance(names, np.ndarray) or names.dtype != _STRING or names.ndim != 1:
        return "has no 1-D array of StringDType as names, as categories have"
    if M.shape != (rows, len(names)):
        return f"is {' x '.join(map(str, M.shape))}, expected {rows} rows and {len(names)} categories"
    if fault := fault_of(M.indptr, M.indices, M.data, M.shape[1]):
        return f"will not do: {fault}"
    if M.nnz and M.data.min() <= 0:
        return f"has a weight of {M.data.min()}, expected positive ones"
    if len(names) and (not np.all(names[:-1] < names[1:]) or names[0] == ""):
        return "has names that are empty or not unique and ascending"
    return None


def sparse_column(matrix: Any, complain: Complain) -> Column:
    """Categories of a sparse matrix, called by the numbers of its columns."""
    if matrix.ndim != 2 or matrix.shape[1] > _NAMES:
        raise complain(None, f"has shape {matrix.shape}, expected two dimensions and at most {_NAMES:,} columns")
    M: Any = csr_array(matrix, dtype=np.float32, copy=True)
    M.sum_duplicates()
    M.eliminate_zeros()
    wrong = ~(np.isfinite(M.data) & (M.data > 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        row = int(np.searchsorted(M.indptr, at, side="right")) - 1
        raise complain(row, f"has a weight of {M.data[at]}, expected a finite one of at least 0")
    order = sorted(range(M.shape[1]), key=str)  # names ascend as text: '10' before '2'
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    M.indices = rank[M.indices]
    M.has_sorted_indices = False
    M.sort_indices()
    return Column("categories", M, np.array([str(i) for i in order], dtype=_STRING))


def column_of(data: pa.ChunkedArray, kind: str | None, separator: str | None, complain: Complain) -> Column:
    """Make a column of Arrow values.

    Parameters
    ----------
    data : ChunkedArray of shape (n,)
    kind : str or None
        None: found out.
    separator : str or None
        Between the categories of one cell of text.
    complain : callable

    Raises
    ------
    ValueError
        From `complain`: values of another kind, or beyond the bounds.
    """
    try:
        chunks = [_plain(chunk) for chunk in data.chunks]
    except pa.ArrowException:
        raise complain(None, "holds bytes that are not UTF-8 text: leave it out with its kind None") from None
    kind = kind or _guess(chunks, data.type, separator, complain)
    if kind == "number":
        return Column(kind, _numbers(chunks, complain))
    if kind == "vector":
        return Column(kind, _vectors(chunks, data.type, complain))
    if kind == "categories":
        return _categories(chunks, len(data), separator, complain)
    return Column(kind, _texts(chunks, kind, complain))


def _guess(chunks: list[Any], declared: pa.DataType, separator: str | None, complain: Complain) -> str:
    kind = chunks[0].type if chunks else declared
    t = pa.types
    if kind == pa.string():
        return _guess_text(pa.chunked_array(chunks, kind), separator)
    if t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind) or t.is_null(kind):
        return "number"
    if t.is_date(kind) or t.is_timestamp(kind):
        return "number"
    if _is_list(kind):
        of = kind.value_type
        if _is_text(of):
            return "categories"
        if t.is_fixed_size_list(kind) or t.is_floating(of) or t.is_null(of):
            return "vector"
        if t.is_integer(of):
            raise complain(None, "holds lists of integers: say whether its kind is 'vector' or 'categories'")
    raise complain(None, f"is {str(kind)[:60]}, which is of no kind: leave it out with its kind None")


def _guess_text(cells: pa.ChunkedArray, separator: str | None) -> str:
    values = pc.value_counts(pc.utf8_trim_whitespace(cells.drop_null()))
    text, count = values.field("values"), values.field("counts").to_numpy()
    kept = pc.not_equal(text, "").to_numpy(zero_copy_only=False)
    text, count = text.filter(pa.array(kept)), count[kept]
    if not len(text):
        return "number"  # missing everywhere: whatever it is, it says nothing
    total = count.sum()

    def share(mask: Any) -> float:
        return count[mask.to_numpy(zero_copy_only=False)].sum() / total

    if share(pc.match_substring_regex(text, _IMAGE)) == 1:
        return "image"
    # A few cells of a column of numbers that are none are for the caller to mend, so the column stays one; but
    # '01234' is a code: as a number it would be one with '1234'.
    codes = pc.any(pc.match_substring_regex(text, r"^0[0-9]+$")).as_py()
    if not codes and share(pa.array(~encode_numbers(text)[1])) >= 0.9:
        return "number"
    longest = pc.max(pc.utf8_length(text)).as_py()
    if separator and share(pc.match_substring(text, separator)) >= 0.1:
        parts = pc.list_flatten(pc.split_pattern(text, separator))
        return "categories" if pc.max(pc.utf8_length(parts)).as_py() <= 100 else "text"
    few = len(text) <= 0.75 * total or not pc.any(pc.match_substring_regex(text, r"\s")).as_py()
    return "categories" if longest <= 100 and few else "text"


def _numbers(chunks: list[Any], complain: Complain) -> np.ndarray:
    parts = [np.empty(0, np.float32)]
    for seen, chunk in _counted(chunks):
        try:
            values, bad = encode_numbers(chunk)
        except ValueError as error:
            raise complain(None, str(error)) from None
        if bad.any():
            at = int(np.argmax(bad))
            what = _shown(chunk[at].as_py())
            raise complain(
                seen + at, f"is {what}, expected a finite number or nothing: mend it, or choose another kind"
            )
        parts.append(values)
    return np.concatenate(parts)


def _texts(chunks: list[Any], kind: str, complain: Complain) -> np.ndarray:
    cells: list[str] = []
    for seen, chunk in _counted(chunks):
        if pa.types.is_null(chunk.type):
            chunk = chunk.cast(pa.string())
        if chunk.type != pa.string():
            raise complain(None, f"is {str(chunk.type)[:60]}, expected text for kind {kind!r}")
        _check_cells(chunk, seen, complain)
        blank = pc.equal(pc.utf8_trim_whitespace(chunk), "")
        cells += pc.if_else(blank, "", chunk).fill_null("").to_pylist()
    return np.array(cells, dtype=_STRING)


def _check_cells(chunk: Any, seen: int, complain: Complain) -> None:
    length = pc.utf8_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
    if len(length) and length.max() > _CHARACTERS:
        at = int(np.argmax(length > _CHARACTERS))
        raise complain(seen + at, f"has {length[at]:,} characters, at most {_CHARACTERS:,} are read: shorten it")
    nul = pc.match_substring(chunk, "\0").fill_null(False).to_numpy(zero_copy_only=False)
    if nul.any():  # StringDType compares only up to a NUL
        raise complain(seen + int(np.argmax(nul)), "holds a NUL character: take it out")


def _categories(chunks: list[Any], rows: int, separator: str | None, complain: Complain) -> Column:
    owners, codes = [np.empty(0, np.int64)], []
    for seen, chunk in _counted(chunks):
        owner, flat = _parts(chunk, seen, separator, complain)
        flat = pc.utf8_trim_whitespace(flat)
        there = pc.fill_null(pc.not_equal(flat, ""), False)
        owner, flat = owner[there.to_numpy(zero_copy_only=False)], flat.filter(there)
        length = pc.utf8_length(flat).to_numpy(zero_copy_only=False)
        if len(length) and length.max() > _NAME:
            at = int(np.argmax(length > _NAME))
            raise complain(
                int(owner[at]), f"has a category of {length[at]:,} characters, at most {_NAME:,} can be: is it text?"
            )
        owners.append(owner)
        codes.append(flat.dictionary_encode())
    names, columns = np.empty(0, _STRING), np.empty(0, np.int32)
    if sum(map(len, codes)):
        columns, vocabulary = join_ids(codes, infer=False)
        names = vocabulary.ids
    if len(names) > _NAMES:
        raise complain(
            None, f"has {len(names):,} categories, at most {_NAMES:,} can be: leave it out or take its kind as text"
        )
    owner = np.concatenate(owners)
    M = csr_array((np.ones(len(columns), np.float32), (owner, columns)), shape=(rows, len(names)))
    M.sum_duplicates()
    return Column("categories", M, names)


def _parts(chunk: Any, seen: int, separator: str | None, complain: Complain) -> tuple[np.ndarray, Any]:
    """Categories of all rows of a chunk, as text, one after the other, and whose each is."""
    t = pa.types
    if t.is_null(chunk.type):
        chunk = chunk.cast(pa.string())
    if not _is_list(chunk.type):
        chunk = _as_text(chunk, complain)
        _check_cells(chunk, seen, complain)
        if not separator:
            return seen + np.arange(len(chunk)), chunk
        chunk = pc.split_pattern(chunk, separator)
        return seen + pc.list_parent_indices(chunk).to_numpy(), pc.list_flatten(chunk)
    owner, flat = seen + pc.list_parent_indices(chunk).to_numpy(), _as_text(decoded(pc.list_flatten(chunk)), complain)
    nul = pc.match_substring(flat, "\0").fill_null(False).to_numpy(zero_copy_only=False)
    if nul.any():
        raise complain(int(owner[np.argmax(nul)]), "holds a NUL character: take it out")
    return owner, flat


def _as_text(cells: Any, complain: Complain) -> Any:
    kind = cells.type
    if kind == pa.string():
        return cells
    if pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return cells.cast(pa.string())
    if pa.types.is_floating(kind):  # what pandas makes of integers with a missing one among them
        try:
            return cells.cast(pa.int64()).cast(pa.string())
        except pa.ArrowInvalid:
            raise complain(None, "holds numbers with a fraction, expected text or integers as categories") from None
    raise complain(None, f"is {str(kind)[:60]}, expected text or integers as categories")


def _vectors(chunks: list[Any], declared: pa.DataType, complain: Complain) -> np.ndarray:
    rows = sum(map(len, chunks))
    for _, chunk in _counted(chunks):
        if not _is_list(chunk.type) and not pa.types.is_null(chunk.type):
            raise complain(None, f"is {str(chunk.type)[:60]}, expected lists of numbers for kind 'vector'")
    if not chunks or pa.types.is_null(chunks[0].type):
        return np.empty((rows, 0), np.float32)
    lengths = [pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
    length = np.concatenate(lengths).astype(np.int64)
    there = length > 0
    if not there.any():
        return np.empty((rows, 0), np.float32)
    widths, count = np.unique(length[there], return_counts=True)
    width = int(widths[np.argmax(count)])
    if len(widths) > 1:
        at = int(np.argmax(there & (length != width)))
        raise complain(at, f"has {length[at]:,} numbers, the other rows have {width:,}")
    if width > _WIDTH:
        raise complain(None, f"has {width:,} numbers a row, at most {_WIDTH:,} can be")
    values = np.full((rows, width), np.nan, np.float32)
    for seen, chunk in _counted(chunks):
        own = seen + np.flatnonzero(there[seen : seen + len(chunk)])
        flat = pc.list_flatten(chunk)  # passes over the lists that are null
        if pa.types.is_boolean(flat.type) or flat.type == pa.string():
            raise complain(None, f"holds lists of {flat.type}, expected lists of numbers for kind 'vector'")
        try:
            numbers, _ = encode_numbers(flat)
        except ValueError:
            raise complain(None, f"holds lists of {str(flat.type)[:60]}, expected numbers for kind 'vector'") from None
        block = numbers.reshape(-1, width)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            at = int(own[np.argmin(finite)])
            raise complain(at, "holds null, NaN or infinity among its numbers: give null for the whole vector")
        values[own] = block
    return values


def _counted(chunks: list[Any]) -> Iterator[tuple[int, Any]]:
    seen = 0
    for chunk in chunks:
        yield seen, chunk
        seen += len(chunk)


def _plain(chunk: Any) -> Any:
    chunk = decoded(chunk)
    t = pa.types
    if t.is_list_view(chunk.type) or t.is_large_list_view(chunk.type):
        return chunk.cast(pa.list_(chunk.type.value_type))
    return chunk


def _is_list(kind: pa.DataType) -> bool:
    t = pa.types
    return t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_dictionary(kind):
        kind = kind.value_type
    return t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 40 else f"{shown[:30]}...{shown[-6:]}"

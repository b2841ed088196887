"""How a column of a table becomes a column of features.

Its kind is found out from the type of a column and, for text, from its values: cells in which a separator is usual,
or few distinct short ones, are categories; the rest is text. Nothing depends on the order of the rows. Every row
may lack its value, and none may hold a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy.sparse import csr_array

from eckart.data.encode import decoded, encode_numbers, join_ids
from eckart.data.feature_table import WIDTH, Column

__all__ = ["Complain", "column_of", "sparse_column"]

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

Complain = Callable[[int | None, str], ValueError]  # number of a row (None: all), what is wrong -> what to raise

_STRING = np.dtypes.StringDType()
_CHARACTERS = 100_000  # of a cell; a long novel has ten times as many, a long abstract a tenth of this
_NAME = 1_000  # characters of a category
_NAMES = 1_000_000  # categories of a column
_IMAGE = r"(?i)\.(jpe?g|png|gif|webp|bmp|tiff?)$"


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
        return _owners(chunk, seen), pc.list_flatten(chunk)
    owner, flat = _owners(chunk, seen), _as_text(decoded(pc.list_flatten(chunk)), complain)
    nul = pc.match_substring(flat, "\0").fill_null(False).to_numpy(zero_copy_only=False)
    if nul.any():
        raise complain(int(owner[np.argmax(nul)]), "holds a NUL character: take it out")
    return owner, flat


def _owners(chunk: Any, seen: int) -> np.ndarray:
    """Whose each part of the lists is; of a null nobody's, though Arrow allows that there are some behind it."""
    length = pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
    return seen + np.repeat(np.arange(len(chunk)), length)


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
    if width > WIDTH:
        raise complain(None, f"has {width:,} numbers a row, at most {WIDTH:,} can be")
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

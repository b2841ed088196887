"""Arrow columns to codes and numbers: ids, ratings and times of one batch, and which of them will not do.

Each `encode_*` takes one column of one batch and gives its values with a mask of the bad ones, so that the
caller can stop at the first or leave them all out. `join_ids` then makes row numbers of all batches' codes.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from eckart.data.vocabulary import Vocabulary

__all__ = [
    "complaint",
    "decoded",
    "encode_ids",
    "encode_numbers",
    "encode_ratings",
    "encode_times",
    "join_ids",
    "order_ids",
]

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

# '007' and '+7' are no integers here: as integers they would be one id with '7'
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INT64 = r"^-?([0-9]{1,18}|[0-8][0-9]{18})$"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_ISO = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([ T][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]+)?)?{_ZONE}?)?$"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_IDS = ("user", "item", "id")
_EXPECTED = dict.fromkeys(_IDS, "an id") | {"rating": "a number", "timestamp": "seconds or an ISO date"}


def complaint(role: str, value: Any) -> str:
    """Say what is wrong with a value that an `encode_*` function marked as bad.

    Examples
    --------
    >>> complaint("rating", "five")
    "rating is 'five', expected a number"
    """
    is_nan = isinstance(value, float) and value != value
    if value is None or (isinstance(value, str) and not value.strip()) or (is_nan and role in _IDS):
        return f"{role} is missing, expected {_EXPECTED[role]}"
    shown = str(value) if isinstance(value, float) else repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:30]}...{shown[-6:]}"
    if role in _IDS:
        return f"{role} is {shown}, which holds a NUL character"
    finite = role == "rating" and not (isinstance(value, str) and _not_a_number(value))
    return f"{role} is {shown}, expected {'a finite number' if finite else _EXPECTED[role]}"


def encode_ids(column: pa.Array, role: str) -> tuple[pa.DictionaryArray, np.ndarray]:
    """Dictionary-encode ids; bad are the missing, the empty and those with a NUL character.

    Parameters
    ----------
    column : Array of integers, integral floats or strings, dictionary-encoded or not
    role : str

    Returns
    -------
    DictionaryArray of int64 or string, codes int32
    ndarray of bool
        Which are bad.

    Raises
    ------
    ValueError
        A column of another type, floats with a fraction, integers beyond 64 bits.

    Examples
    --------
    >>> encoded, bad = encode_ids(pa.array(["a", "b", "", "a"]), "user")
    >>> encoded.indices.to_pylist(), bad.tolist()
    ([0, 1, 2, 0], [False, False, True, False])
    """
    if not _is_ready(column):
        column = decoded(column)
        column = _as_ids(column, role).dictionary_encode()
    values, codes = column.dictionary, column.indices
    bad = _mask(pc.is_null(codes))
    if values.type == pa.string():
        # StringDType compares only up to a NUL, so an id with one could not be told from another
        wrong = _mask(pc.or_(pc.equal(values, ""), pc.match_substring(values, "\0")))
        if wrong.any():
            bad = bad | wrong[_numbers(codes, 0)]
    return column, bad


def join_ids(chunks: Sequence[pa.DictionaryArray], infer: bool) -> tuple[np.ndarray, Vocabulary]:
    """Row numbers of ids that came in batches, and the vocabulary they number.

    Parameters
    ----------
    chunks : sequence of DictionaryArray
        From `encode_ids`, the bad ones left out, so without nulls.
    infer : bool
        Ids are text that stands for integers if every one of them is one (blanks around it aside).

    Returns
    -------
    ndarray of shape (n,), int32
    Vocabulary

    Examples
    --------
    >>> join_ids([pa.array(["10", "9"]).dictionary_encode(), pa.array(["9"]).dictionary_encode()], infer=True)
    (array([1, 0, 0], dtype=int32), Vocabulary(2 ids: 9, 10))
    """
    whole = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([_numbers(chunk.indices) for chunk in whole.chunks])
    values = whole.chunk(0).dictionary
    rank, vocabulary = order_ids(values, np.flatnonzero(np.bincount(codes, minlength=len(values))), infer)
    return rank[codes], vocabulary


def order_ids(values: pa.Array, used: np.ndarray, infer: bool) -> tuple[np.ndarray, Vocabulary]:
    """Vocabulary of the ids ``values[used]``, and the row number in it of each of `values` up to the last used.

    Examples
    --------
    >>> order_ids(pa.array(["10", "x", "9"]), np.array([0, 2]), infer=True)
    (array([1, 0, 0], dtype=int32), Vocabulary(2 ids: 9, 10))
    """
    values = values.take(pa.array(used))
    rank = np.zeros(int(used[-1]) + 1, dtype=np.int32)  # of each code among the sorted ids
    integers = _as_integers(values) if infer or values.type != pa.string() else None
    if integers is not None:
        ids, rank[used] = np.unique(integers, return_inverse=True)
    else:
        order = pc.sort_indices(values)
        ids = np.array(values.take(order).to_pylist(), dtype=np.dtypes.StringDType())
        rank[used[_numbers(order)]] = np.arange(len(ids))
    return rank, Vocabulary(ids)


def encode_ratings(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Ratings as float32, and which are missing, no numbers, or not finite in float32.

    Raises
    ------
    ValueError
        A column that is neither numbers nor text.

    Examples
    --------
    >>> encode_ratings(pa.array(["4.5", " 3", "five", "1e39"]))
    (array([4.5, 3. , nan, inf], dtype=float32), array([False, False,  True,  True]))
    """
    column = decoded(column)
    if column.type == pa.string():
        numbers = _parsed(column)
    elif _is_numeric(column.type) or pa.types.is_null(column.type):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        raise ValueError(f"the rating column is {column.type}, expected numbers: name another, or rating=False.")
    with np.errstate(over="ignore"):
        ratings = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    return ratings, ~np.isfinite(ratings)


def encode_numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as float32, NaN where there is none, and which are there but are no finite numbers in float32.

    Truth values are 0 and 1, dates and times are days since 1970.

    Raises
    ------
    ValueError
        A column that holds nothing of the kind.

    Examples
    --------
    >>> encode_numbers(pa.array(["4.5", " ", "five", None]))
    (array([4.5, nan, nan, nan], dtype=float32), array([False, False,  True, False]))
    """
    column = decoded(column)
    if column.type == pa.string():
        text = pc.ascii_trim_whitespace(column)
        missing = _mask(pc.is_in(text, pa.array([None, ""], pa.string())))
        numbers = _parsed(pc.if_else(missing, None, text))
    elif _is_numeric(column.type) or pa.types.is_null(column.type) or pa.types.is_boolean(column.type):
        missing = _mask(pc.is_null(column))
        numbers = (column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column).cast(
            pa.float64(), safe=False
        )
    elif pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        seconds, missing, _ = encode_times(column)
        numbers = pa.array(seconds / 86400, mask=missing)
    else:
        raise ValueError(f"is {str(column.type)[:60]}, expected numbers")
    with np.errstate(over="ignore"):
        values = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
    return values, ~(missing | np.isfinite(values))


def encode_times(column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times as int64 (dates in seconds since 1970), which are missing, and which will not do.

    Numbers stay in their own unit, cut to whole ones; dates without a zone are taken as UTC.

    Raises
    ------
    ValueError
        A column that is neither numbers nor times nor text.

    Examples
    --------
    >>> encode_times(pa.array(["978301968", "2000-12-31T22:32:48Z", "", "soon"]))[0]
    array([978301968, 978301968,         0,         0])
    """
    column = decoded(column)
    missing = _mask(pc.is_null(column))
    kind = column.type
    if kind == pa.string():
        return _parsed_times(column)
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        if kind == pa.uint64():
            beyond = missing | (_numbers(column, 0) >= 2**63)
            return np.where(beyond, 0, _numbers(column, 0)).astype(np.int64), missing, beyond & ~missing
        return _numbers(column.cast(pa.int64()), 0), missing, np.zeros(len(column), dtype=bool)
    if _is_numeric(kind):
        times, bad = _whole(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        nan = missing | _mask(pc.is_nan(column.cast(pa.float64(), safe=False).fill_null(0)))
        return times, nan, bad & ~nan
    if pa.types.is_date(kind):
        days = _numbers(column.cast(pa.date32()).cast(pa.int32()), 0).astype(np.int64)
        return days * 86400, missing, np.zeros(len(column), dtype=bool)
    if pa.types.is_timestamp(kind):
        times = _numbers(column.cast(pa.int64()), 0) // _PER_SECOND[kind.unit]
        return times, missing, np.zeros(len(column), dtype=bool)
    raise ValueError(f"the timestamp column is {kind}, expected times: name another, or timestamp=False.")


def _is_ready(column: pa.Array) -> bool:
    """Whether the column is text encoded as we would: a caller's dictionary may hold nulls and repeats."""
    if not isinstance(column, pa.DictionaryArray) or column.type != pa.dictionary(pa.int32(), pa.string()):
        return False
    values = column.dictionary
    return not values.null_count and len(values.unique()) == len(values)


def decoded(column: pa.Array) -> pa.Array:
    """Give the column without dictionary, its text as `pa.string()`."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.string())
    return column


def _as_ids(column: pa.Array, role: str) -> pa.Array:
    kind = column.type
    if kind == pa.string():
        return column
    if pa.types.is_integer(kind) or pa.types.is_null(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise ValueError(f"an id in the {role} column is beyond 64-bit integers: give them as strings.") from None
    if pa.types.is_floating(kind):  # what pandas makes of integers with a missing one among them
        column = column.cast(pa.float64())
        whole = column.to_numpy(zero_copy_only=False)
        odd = whole[(whole != np.floor(whole)) | (np.abs(whole) > 2**53)]
        odd = odd[~np.isnan(odd)]
        if len(odd):
            raise ValueError(f"the {role} column holds {odd[0]}, expected integers or strings as ids.")
        return pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
    raise ValueError(f"the {role} column is {kind}, expected integers or strings as ids.")


def _as_integers(values: pa.Array) -> np.ndarray | None:
    if values.type != pa.string():
        return _numbers(values)
    trimmed = pc.ascii_trim_whitespace(values)
    if not pc.all(pc.match_substring_regex(trimmed, _INTEGER)).as_py():
        return None
    try:
        return _numbers(trimmed.cast(pa.int64()))
    except pa.ArrowInvalid:  # beyond 64 bits
        return None


def _parsed(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return _where_matches(pc.ascii_trim_whitespace(column), _NUMBER).cast(pa.float64())


def _parsed_times(column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    good = np.zeros(len(column), dtype=bool)
    hexadecimal = pc.any(pc.or_(pc.match_substring(column, "x"), pc.match_substring(column, "X"))).as_py()
    try:
        if not hexadecimal and not column.null_count:  # Arrow would take 0x1F for an integer
            return _numbers(column.cast(pa.int64())), good, good
    except pa.ArrowInvalid:
        pass
    text = pc.ascii_trim_whitespace(column)
    missing = _mask(pc.is_in(text, pa.array([None, "", "nan", "NaN"], pa.string())))
    integers = _where_matches(text, _INT64).cast(pa.int64())
    numbers, beyond = _whole(_where_matches(text, _NUMBER).cast(pa.float64()).to_numpy(zero_copy_only=False))
    times = np.where(_mask(pc.is_valid(integers)), _numbers(integers, 0), numbers)
    good = _mask(pc.is_valid(integers)) | ~beyond
    iso = _where_matches(text, _ISO)
    if iso.null_count < len(iso):
        seconds = _iso_seconds(iso)
        dated = _mask(pc.is_valid(seconds))
        times, good = np.where(dated, _numbers(seconds, 0), times), good | dated
    return times, missing, ~(good | missing)


def _iso_seconds(iso: pa.Array) -> pa.Array:
    whole = pc.replace_substring_regex(iso, r"\.[0-9]+", "")
    zoned = pc.match_substring_regex(whole, rf":[0-9]{{2}}{_ZONE}$")
    try:
        with_zone = pc.if_else(zoned, whole, None).cast(pa.timestamp("s", "UTC")).cast(pa.int64())
        without = pc.if_else(zoned, None, whole).cast(pa.timestamp("s")).cast(pa.int64())
        return pc.coalesce(with_zone, without)
    except pa.ArrowInvalid:  # some day is not in the calendar: one by one
        return pa.array([_iso_second(text) for text in whole.to_pylist()], pa.int64())


def _iso_second(text: str | None) -> int | None:
    try:
        moment = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp())


def _where_matches(text: pa.Array, pattern: str) -> pa.Array:
    return pc.if_else(pc.match_substring_regex(text, pattern), text, None)


def _whole(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    beyond = ~(np.abs(numbers) < 2.0**63)  # nan, too
    return np.where(beyond, 0, np.floor(numbers)).astype(np.int64), beyond


def _is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _numbers(column: pa.Array, missing: int | None = None) -> np.ndarray:
    return (column if missing is None else column.fill_null(missing)).to_numpy(zero_copy_only=False)


def _mask(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(bool)


def _not_a_number(text: str) -> bool:
    return not re.match(rf"{_NUMBER}|^[+-]?(nan|inf|infinity)$", text.strip(), re.IGNORECASE)

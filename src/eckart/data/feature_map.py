"""Features as a sparse matrix X, by a map that is fitted on the rows of training and then stays as it is.

    categories, text   log(1 + w_t) idf_t for term t of weight w_t, idf_t = log((1 + n) / (1 + n_t)) + 1, each row
                       to unit length over all its terms: sqrt(1 / c) in each of the c columns it has any in; of text,
                       the terms are the words that two rows or more have
    number             (x - mean) / std and, where training lacked some, a column that is 1 where x is missing
    vector             (x - mean) / sqrt(mean ||x - mean||^2)
    the last column    1: the intercept

What is missing is 0. Nothing depends on the order of rows, to the bit: the only sums over rows are counts, and sums
of numbers that were made integers first. The idf is Salton's with the smoothing that keeps a term of every row.

Symbols: n rows of training, n_t of them with term t.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import blocks, column_counts, csr, row_numbers
from eckart.data.columns import quoted
from eckart.data.feature_table import Column, Features
from eckart.data.vocabulary import Vocabulary

__all__ = ["FeatureMap"]

_STRING = np.dtypes.StringDType()
_WORD = re.compile(r"\w{2,}")
_WORDS = 50_000  # of a column of text
_LONGEST = 100  # characters of a word
_ROWS = 1 << 14  # of vectors at a time
_FAR = 1e6  # deviations: a value of training is within sqrt(n), a later one is cut to this
_DAMAGED = "copy the model again, or fit it anew"


class _Number(NamedTuple):
    mean: float
    scale: float
    indicator: bool


class _Vector(NamedTuple):
    center: np.ndarray  # (d,) float64
    scale: float


class _Terms(NamedTuple):
    kind: str  # "categories" or "text"
    names: np.ndarray  # (c,) StringDType, ascending
    idf: np.ndarray  # (c,) float64


_Fitted = _Number | _Vector | _Terms


@dataclass(frozen=True, eq=False, repr=False)
class FeatureMap:
    """A fitted map from `Features` to a sparse matrix; make one with `fit`.

    Parameters
    ----------
    fitted : mapping of column to what was learned about it
        In the order of their blocks in X.

    Examples
    --------
    >>> import eckart as ek
    >>> films = ek.read_features({"item": [1, 2, 3], "genres": ["a|b", "a", None], "year": [1990, None, 2000]})
    >>> to_matrix = FeatureMap.fit(films)
    >>> to_matrix.blocks, to_matrix.width
    ({'genres': (0, 2), 'year': (2, 4)}, 5)
    >>> to_matrix.matrix(films).toarray().round(2)
    array([[ 0.61,  0.8 , -1.  ,  0.  ,  1.  ],
           [ 1.  ,  0.  ,  0.  ,  1.  ,  1.  ],
           [ 0.  ,  0.  ,  1.  ,  0.  ,  1.  ]], dtype=float32)
    """

    fitted: Mapping[str, _Fitted]

    @classmethod
    def fit(cls, features: Features, columns: Sequence[str] | None = None) -> FeatureMap:
        """Learn means, deviations, terms and their weights.

        Parameters
        ----------
        features : Features of shape (n, ...)
            Rows of training only.
        columns : sequence of str, optional
            Which to use, all by default.

        Raises
        ------
        ValueError
            There is no such column, or it holds images.
        """
        if columns is not None:
            features = features.select(columns)
        return cls({name: _fit(name, column) for name, column in features.columns.items()})

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """Which columns of X are a column's: begin and end."""
        found, begin = {}, 0
        for name, fitted in self.fitted.items():
            found[name] = (begin, begin + _width(fitted))
            begin += _width(fitted)
        return found

    @property
    def width(self) -> int:
        """Number of columns of X, the intercept with them."""
        return sum(map(_width, self.fitted.values())) + 1

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each column, as `read_features` takes them."""
        return {name: _kind(fitted) for name, fitted in self.fitted.items()}

    def matrix(self, features: Features) -> csr_array:
        """X of these features, (n, width) float32, its indices ascending in a row.

        A column that is missing everywhere may be of any kind; other columns than those fitted are passed over.

        Raises
        ------
        ValueError
            A column is not there, of another kind than in training, or has vectors of another width.
        """
        parts = []
        for name, fitted in self.fitted.items():
            column = features.columns.get(name)
            if column is None:
                there = quoted(list(features.columns)) or "none"
                raise ValueError(f"features lack column {quoted([name])} of the training, there are {there}: add it")
            missing = column.missing()
            if not missing.all():
                _check_like_training(name, column, fitted)
            parts.append(_block(column, missing, fitted))
        _share_length(
            [part for part, fitted in zip(parts, self.fitted.values(), strict=True) if isinstance(fitted, _Terms)]
        )
        return _beside([*parts, csr_array(np.ones((len(features), 1), np.float32))], len(features), self.width)

    def unknown(self, rows: int) -> Features:
        """Features of rows of which nothing is known."""
        blank = Column("text", np.full(rows, "", dtype=_STRING))
        return Features(Vocabulary(np.arange(rows)), dict.fromkeys(self.fitted, blank))

    def config(self) -> dict[str, Any]:
        """Everything that is no array, as JSON values."""
        columns = []
        for name, fitted in self.fitted.items():
            entry: dict[str, Any] = {"name": name, "kind": _kind(fitted)}
            if isinstance(fitted, _Number):
                entry |= {"mean": fitted.mean, "scale": fitted.scale, "indicator": fitted.indicator}
            elif isinstance(fitted, _Vector):
                entry |= {"scale": fitted.scale}
            columns.append(entry)
        return {"columns": columns}

    def tensors(self) -> dict[str, np.ndarray]:
        """Arrays of numbers, called by number of column and what they are: '0.idf'."""
        found = {}
        for i, fitted in enumerate(self.fitted.values()):
            if isinstance(fitted, _Terms):
                found[f"{i}.idf"] = fitted.idf
            elif isinstance(fitted, _Vector):
                found[f"{i}.center"] = fitted.center
        return found

    def ids(self) -> dict[str, np.ndarray]:
        """Names of terms, StringDType, called by number of column: '0'."""
        return {str(i): fitted.names for i, fitted in enumerate(self.fitted.values()) if isinstance(fitted, _Terms)}

    @classmethod
    def restore(
        cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]
    ) -> FeatureMap:
        """Make the map again of what `config`, `tensors` and `ids` gave, and believe nothing of it.

        Raises
        ------
        ValueError
            Something is missing, too much, of another shape or type, not finite, or not in order.
        """
        if not isinstance(config, Mapping) or set(config) != {"columns"} or not isinstance(config["columns"], list):
            raise ValueError(f"the feature map is damaged (its config lists no columns): {_DAMAGED}")
        fitted: dict[str, _Fitted] = {}
        tensors, ids = dict(tensors), dict(ids)
        for i, entry in enumerate(config["columns"]):
            try:
                name = entry["name"] if isinstance(entry, dict) else None
                if not isinstance(name, str) or name in fitted:
                    raise ValueError("its name is no text, or another's")
                fitted[name] = _restored(entry, f"{i}", tensors, ids)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"the feature map is damaged (column {i}: {error}): {_DAMAGED}") from None
        if tensors or ids:
            raise ValueError(f"the feature map is damaged (nobody's {quoted([*tensors, *ids])}): {_DAMAGED}")
        return cls(fitted)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name} ({end - begin:,})" for name, (begin, end) in self.blocks.items())
        return f"FeatureMap({listed}{', ' if listed else ''}intercept)"


def _kind(fitted: _Fitted) -> str:
    return fitted.kind if isinstance(fitted, _Terms) else "number" if isinstance(fitted, _Number) else "vector"


def _width(fitted: _Fitted) -> int:
    if isinstance(fitted, _Number):
        return 1 + fitted.indicator
    return len(fitted.idf if isinstance(fitted, _Terms) else fitted.center)


# ---- fitting ---------------------------------------------------------------------------------------------


def _fit(name: str, column: Column) -> _Fitted:
    if column.kind == "image":
        raise ValueError(
            f"column {quoted([name])} holds images, which are no numbers yet: encode it first, with "
            f"features.encoded({name!r}, image_encoder(...)), or choose other columns"
        )
    if column.kind in ("categories", "text"):
        return _fit_terms(column)
    missing = column.missing()
    x = column.values[~missing]
    if column.kind == "number":
        mean, scale = _center_and_scale(x[:, None])
        return _Number(float(mean[0]), scale, bool(missing.any()))
    return _Vector(*_center_and_scale(x))


def _fit_terms(column: Column) -> _Terms:
    M, names = _terms(column)
    n, counts = M.shape[0], column_counts(M)
    kept = np.flatnonzero(counts >= (2 if column.kind == "text" else 1))
    if column.kind == "text" and len(kept) > _WORDS:  # the most frequent, of equals the first
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:_WORDS]])
    return _Terms(column.kind, names[kept], np.log((1 + n) / (1 + counts[kept])) + 1)


def _center_and_scale(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean row of (n, d) numbers, and the root of the mean squared distance to it, 1 if that is 0."""
    n = max(len(x), 1)
    mean = _sums(x, lambda rows: rows) / n
    scale = float(np.sqrt((_sums(x, lambda rows: (rows - mean) ** 2) / n).sum()))
    return mean, scale if scale > 0 else 1.0


def _sums(x: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sum over rows of ``of(x)``, (d,): each column in whole multiples of one power of two, so in any order the same.

    With n rows a value keeps 62 - log2(n) bits below the largest of its column, 38 of ten million.
    """
    parts = [slice(begin, begin + _ROWS) for begin in range(0, len(x), _ROWS)]
    largest = np.zeros(x.shape[1])
    for part in parts:
        np.maximum(largest, np.abs(of(x[part].astype(np.float64))).max(axis=0), out=largest)
    shift = 62 - len(x).bit_length() - np.frexp(largest)[1]
    total = np.zeros(x.shape[1], np.int64)
    for part in parts:
        total += np.rint(np.ldexp(of(x[part].astype(np.float64)), shift)).astype(np.int64).sum(axis=0)
    return np.ldexp(total.astype(np.float64), -shift)


# ---- X ---------------------------------------------------------------------------------------------------


def _check_like_training(name: str, column: Column, fitted: _Fitted) -> None:
    what = f"column {quoted([name])}"
    if column.kind != _kind(fitted):
        hint = (
            "encode it" if column.kind in ("text", "image") and isinstance(fitted, _Vector) else "read it with kinds="
        )
        raise ValueError(f"{what} is of kind {column.kind!r}, in training it was {_kind(fitted)!r}: {hint}")
    if isinstance(fitted, _Vector) and column.values.shape[1] != len(fitted.center):
        got, wanted = column.values.shape[1], len(fitted.center)
        raise ValueError(f"{what} has {got:,} numbers a row, in training it had {wanted:,}: use the same encoder")


def _block(column: Column, missing: np.ndarray, fitted: _Fitted) -> csr_array:
    n, width = len(missing), _width(fitted)
    if missing.all():
        ones = np.ones((n, int(isinstance(fitted, _Number) and fitted.indicator)), np.float32)
        return _rows_of(ones, missing, width, 1)
    if isinstance(fitted, _Terms):
        return _weighted(column, fitted)
    center = fitted.mean if isinstance(fitted, _Number) else fitted.center
    values = column.values if column.values.ndim == 2 else column.values[:, None]
    dense = np.empty((n - np.count_nonzero(missing), values.shape[1]), np.float32)
    known = np.flatnonzero(~missing)
    for begin in range(0, len(known), _ROWS):
        rows = values[known[begin : begin + _ROWS]].astype(np.float64)
        dense[begin : begin + _ROWS] = np.clip((rows - center) / fitted.scale, -_FAR, _FAR)
    X = _rows_of(dense, ~missing, width, 0)
    if isinstance(fitted, _Number) and fitted.indicator:
        X = csr_array(X + _rows_of(np.ones((n - len(known), 1), np.float32), missing, width, 1))
        X.sort_indices()
    return X


def _rows_of(dense: np.ndarray, where: np.ndarray, width: int, first: int) -> csr_array:
    """Sparse rows, those `where` true from `dense`, whose columns begin at `first`."""
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(where * dense.shape[1])])
    columns = np.tile(np.arange(first, first + dense.shape[1], dtype=np.int32), len(dense))
    return csr(dense.ravel(), columns, indptr, (len(where), width))


def _weighted(column: Column, fitted: _Terms) -> csr_array:
    M, names = _terms(column)
    to = Vocabulary(fitted.names).rows(names).astype(np.int32)  # ascends with names, so rows stay in order
    columns, rows = to[M.indices], row_numbers(M.indptr, 0, M.nnz)
    known = columns >= 0
    columns, rows = columns[known], rows[known]
    weights = np.log1p(M.data[known].astype(np.float64)) * fitted.idf[columns]
    length = np.sqrt(np.bincount(rows, weights**2, minlength=M.shape[0]))
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(rows, minlength=M.shape[0]))])
    return csr((weights / length[rows]).astype(np.float32), columns, indptr, (M.shape[0], len(fitted.names)))


def _terms(column: Column) -> tuple[csr_array, np.ndarray]:
    """How much of each term a row has, and the terms, ascending: its categories, or the words of its text."""
    if column.kind == "categories":
        assert column.names is not None
        return column.values, column.names
    number: dict[str, int] = {}
    columns: list[int] = []
    values: list[int] = []
    indptr = [0]
    for text in column.values:
        counts = Counter(word for word in _WORD.findall(text.casefold()) if len(word) <= _LONGEST)
        columns += [number.setdefault(word, len(number)) for word in counts]
        values += counts.values()
        indptr.append(len(columns))
    names = sorted(number)
    rank = np.empty(len(names), np.int32)
    rank[[number[name] for name in names]] = np.arange(len(names))
    M = csr(
        np.array(values, np.float32), rank[np.array(columns, np.int64)], np.array(indptr), (len(indptr) - 1, len(names))
    )
    M.sort_indices()
    return M, np.array(names, dtype=_STRING)


def _share_length(parts: Sequence[csr_array]) -> None:
    """Scale rows of unit length such that those of one row have unit length side by side."""
    if len(parts) < 2:
        return
    counts = [np.diff(part.indptr) for part in parts]
    scale = 1 / np.sqrt(np.maximum(np.sum([count > 0 for count in counts], axis=0), 1))
    for part, count in zip(parts, counts, strict=True):
        part.data *= np.repeat(scale, count).astype(np.float32)


def _beside(parts: Sequence[csr_array], rows: int, width: int) -> csr_array:
    """One matrix of matrices of equal rows, side by side."""
    counts = [np.diff(part.indptr).astype(np.int64) for part in parts]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(sum(counts, np.zeros(rows, np.int64)))])
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    free, first = indptr[:-1].copy(), 0
    for part, count in zip(parts, counts, strict=True):
        to = free - part.indptr[:-1]  # from the place of a row's entries in the part to that in the whole
        for begin, end in blocks(part.nnz):
            place = np.arange(begin, end) + to[row_numbers(part.indptr, begin, end)]
            indices[place] = part.indices[begin:end] + first
            values[place] = part.data[begin:end]
        free += count
        first += part.shape[1]
    return csr(values, indices, indptr, (rows, width))


# ---- from a file -----------------------------------------------------------------------------------------


def _restored(entry: dict[str, Any], stem: str, tensors: dict[str, np.ndarray], ids: dict[str, np.ndarray]) -> _Fitted:
    kind = entry.get("kind")
    wanted: dict[str, type] = {"name": str, "kind": str}
    if kind == "number":
        wanted |= {"mean": float, "scale": float, "indicator": bool}
    elif kind == "vector":
        wanted |= {"scale": float}
    elif kind not in ("categories", "text"):
        raise ValueError("its kind is none that a map has")
    if {key: type(value) for key, value in entry.items()} != wanted:
        raise ValueError(f"it does not state {', '.join(wanted)} as expected")
    if "scale" in entry and not 0 < entry["scale"] < np.inf:
        raise ValueError("its scale is no positive number")
    if kind == "number":
        if not np.isfinite(entry["mean"]):
            raise ValueError("its mean is not finite")
        return _Number(entry["mean"], entry["scale"], entry["indicator"])
    numbers = tensors.pop(f"{stem}.{'center' if kind == 'vector' else 'idf'}")
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype != np.float64:
        raise ValueError("its numbers are no 1-D array of float64")
    if not np.isfinite(numbers).all():
        raise ValueError("its numbers are not finite")
    if kind == "vector":
        return _Vector(numbers, entry["scale"])
    names = ids.pop(stem)
    if not isinstance(names, np.ndarray) or names.dtype != _STRING or names.shape != numbers.shape:
        raise ValueError("its names are not text, or not as many as their weights")
    if len(names) and not (numbers.min() > 0 and names[0] != "" and np.all(names[:-1] < names[1:])):
        raise ValueError("its names are not unique and ascending, or a weight of theirs is not positive")
    return _Terms(kind, names, numbers)

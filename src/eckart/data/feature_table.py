"""What is known of users or of items beside their ratings: text, categories, numbers, vectors, images.

`Features` is a table of such columns whose rows are ids, in the order of a `Vocabulary`. A value may be missing
anywhere, no number is NaN or infinite else, and ids may be there that nobody rated. data/features.py reads one;
which numbers it becomes for a solver is data/feature_map.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import csr, fault_of, take_rows
from eckart.data.columns import nearest, quoted
from eckart.data.vocabulary import Vocabulary

__all__ = ["KINDS", "WIDTH", "Column", "Features", "no_column"]

KINDS = ("number", "categories", "text", "vector", "image")
WIDTH = 65_536  # numbers of a vector, at most

_STRING = np.dtypes.StringDType()


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


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Columns of features of users or of items.

    Parameters
    ----------
    ids : Vocabulary
        Whose features they are, one row an id.
    columns : mapping of str to Column

    Raises
    ------
    ValueError
        A column that is not as its kind says, or has another number of rows.

    Examples
    --------
    >>> import eckart as ek
    >>> table = {"item": [7, 3, 9], "genres": ["Crime|Drama", None, "Drama"], "year": [1995, 1979, None]}
    >>> films = ek.read_features(table)
    >>> films
    Features(3 rows: genres (2 categories), year (number))
    >>> films.ids.ids.tolist(), films.columns["year"].values.tolist()
    ([3, 7, 9], [1979.0, 1995.0, nan])
    >>> films.columns["genres"].values.toarray().tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    """

    ids: Vocabulary
    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", dict(self.columns))
        for name, column in self.columns.items():
            if not isinstance(name, str) or not isinstance(column, Column):
                raise ValueError(f"column {name!r} is a {type(column).__name__}, expected names and Columns")
            if fault := _fault_of_column(column, len(self)):
                raise ValueError(f"column {quoted([name])} {fault}")

    def aligned(self, ids: Vocabulary) -> Features:
        """Give the rows of these ids, in their order; everything is missing of an id without features.

        Raises
        ------
        ValueError
            Not one of `ids` has features, for example because they are text here and integers there.

        Examples
        --------
        >>> import eckart as ek
        >>> years = ek.read_features({"item": [7, 3], "year": [1995, 1979]})
        >>> years.aligned(Vocabulary([1, 3])).columns["year"].values
        array([  nan, 1979.], dtype=float32)
        """
        rows = self.ids.rows(ids.ids)
        if len(ids) and not bool(np.any(rows >= 0)):
            here, there = ("text" if v.is_text else "integers" for v in (self.ids, ids))
            why = f"are {here}, the others {there}" if here != there and len(self) else "are not of the same things"
            raise ValueError(
                f"features of {_shown(self.ids)}, none of which is among {_shown(ids)}: the ids {why}: read the "
                f"features by the ids of the ratings, id= says which column."
            )
        return Features(ids, {name: column.take(rows) for name, column in self.columns.items()})

    def take(self, rows: Any) -> Features:
        """Give these rows only; `rows` ascending row numbers or a mask.

        Raises
        ------
        ValueError
            There is no such row, they do not ascend, or a mask is of another length.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (len(self),):
            rows = np.flatnonzero(rows)
        if rows.size and (rows.dtype.kind not in "iu" or rows.ndim != 1 or rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"rows are no mask of {len(self)} and no ascending numbers of 0 to {len(self) - 1}")
        rows = rows.astype(np.int64)
        ids = self.ids.take(rows)
        return Features(ids, {name: column.take(rows) for name, column in self.columns.items()})

    def select(self, names: str | Sequence[str]) -> Features:
        """Give these columns only, in this order.

        Raises
        ------
        ValueError
            There is no such column.
        """
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            self._column(name)
        return Features(self.ids, {name: self.columns[name] for name in names})

    def encoded(
        self,
        column: str,
        encoder: Callable[[list[str]], Any],
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """Replace a column of texts or of images by the vectors that an encoder gives; missing ones stay missing.

        Equal texts are encoded once, and texts of about the same length together.

        Parameters
        ----------
        column : str
        encoder : callable
            From a list of b texts (or paths of images) to an array of shape (b, d), d always the same:
            `sentence_encoder`, `image_encoder` or your own.
        batch : int
            Largest b.
        progress : callable, optional
            ``progress(done, total)``, after each batch.

        Raises
        ------
        ValueError
            The column is no text or image, or missing everywhere; the encoder gives another shape, or NaN or infinity.

        Examples
        --------
        >>> import eckart as ek
        >>> films = ek.read_features({"item": [1, 2], "plot": ["A ship answers a call.", None]})
        >>> films.encoded("plot", lambda texts: [[len(text), 1] for text in texts]).columns["plot"].values
        array([[22.,  1.],
               [nan, nan]], dtype=float32)
        """
        was = self._column(column)
        what = f"column {quoted([column])}"
        if was.kind not in ("text", "image"):
            raise ValueError(f"{what} is of kind {was.kind!r}: only text and images are encoded")
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least 1")
        there = ~was.missing()
        texts, place = np.unique(was.values[there], return_inverse=True)
        if not len(texts):
            raise ValueError(f"{what} is missing everywhere: there is nothing to encode")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors: np.ndarray | None = None
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            given = _checked_vectors(encoder([str(texts[i]) for i in chosen]), len(chosen), what)
            if vectors is None:
                vectors = np.empty((len(texts), given.shape[1]), np.float32)
            if given.shape[1] != vectors.shape[1]:
                raise ValueError(
                    f"{what}: the encoder gave vectors of {given.shape[1]} numbers after some of {vectors.shape[1]}: "
                    f"expected one width"
                )
            vectors[chosen] = given
            if progress:
                progress(begin + len(chosen), len(order))
        assert vectors is not None
        values = np.full((len(self), vectors.shape[1]), np.nan, np.float32)
        values[there] = vectors[place]
        return Features(self.ids, {**self.columns, column: Column("vector", values)})

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            raise ValueError(no_column(name, self.columns))
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        more = {name: column.kind for name, column in self.columns.items()}
        for name, column in self.columns.items():
            if column.kind in ("categories", "vector"):
                more[name] = f"{column.values.shape[1]:,} {'categories' if column.kind == 'categories' else 'numbers'}"
        listed = ", ".join(f"{name} ({what})" for name, what in more.items())
        return f"Features({len(self):,} rows: {listed or 'no columns'})"


def no_column(name: object, names: Collection[str]) -> str:
    """Say that there is no such column, and which was meant.

    Examples
    --------
    >>> no_column("genre", ["title", "genres"])
    "no column 'genre', there are 'title', 'genres'. Did you mean 'genres'?"
    """
    return (
        f"no column {quoted([str(name)])}, there are {quoted(list(names)) or 'none'}.{nearest(str(name), list(names))}"
    )


def _fault_of_column(column: Column, rows: int) -> str | None:
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
    if kind == "vector" and values.shape[1] > WIDTH:
        return f"has {values.shape[1]:,} numbers a row, expected at most {WIDTH:,}"
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


def _checked_vectors(given: Any, count: int, what: str) -> np.ndarray:
    try:
        vectors = np.asarray(given)
    except Exception as error:  # a tensor that wants gradients or is on another device, ragged lists, ...
        raise ValueError(f"{what}: the encoder gave no array ({' '.join(str(error).split())[:150]})") from None
    if vectors.dtype.kind not in "fiu":
        raise ValueError(f"{what}: the encoder gave an array of {vectors.dtype}, expected numbers")
    if vectors.ndim != 2 or len(vectors) != count or not vectors.shape[1]:
        raise ValueError(f"{what}: the encoder gave shape {vectors.shape} for {count} texts, expected ({count}, d)")
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"{what}: the encoder gave NaN or infinity, expected finite numbers")
    return vectors


def _shown(ids: Vocabulary) -> str:
    first = ", ".join(quoted([x]) for x in ids.ids[:3].tolist())
    return f"{len(ids):,} ids ({first}{', ...' if len(ids) > 3 else ''})" if len(ids) else "no ids"

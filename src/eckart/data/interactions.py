"""Observed entries of a users x items matrix, with the ids of its rows and columns.

R is kept by user, in CSR: R.indices ascending in a row, int32, R.data float32; R.indptr is int64 from 2^31
entries on (core/csr.py). The entries of R that are not stored are unknown, not zero; an observed rating of 0 is
stored. The arrays may be mapped from disk (data/prepare.py): then nothing here makes a copy of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import csr, fault_of, transposed
from eckart.data.vocabulary import Vocabulary

__all__ = ["Interactions"]


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Ratings (or positive-only events) of `users` for `items`.

    Parameters
    ----------
    matrix : csr_array of shape (users, items), float32, finite
        One entry per observed pair, columns ascending within a row.
    users, items : Vocabulary
        Ids of rows and columns.
    times : ndarray of shape (nnz,), int64, optional
        When each entry was made, in the order of ``matrix.data`` (unit as in the source, usually seconds).
    rated : bool
        False for positive-only data: the source had no rating column and every entry counts 1.
    """

    matrix: csr_array
    users: Vocabulary
    items: Vocabulary
    times: np.ndarray | None = None
    rated: bool = True

    def __post_init__(self) -> None:
        shape = (len(self.users), len(self.items))
        if self.matrix.shape != shape:
            raise ValueError(f"matrix is {self.matrix.shape}, the vocabularies say {shape}")
        R = self.matrix
        if R.format != "csr" or R.dtype != np.float32 or R.indices.dtype not in (np.int32, np.int64):
            raise ValueError("matrix is not CSR of float32: use Interactions.of")
        if fault := fault_of(R.indptr, R.indices, R.data, shape[1]):
            raise ValueError(f"matrix will not do: {fault}; sort its entries with Interactions.of, leave out NaN")
        if self.times is not None and self.times.shape != self.matrix.data.shape:
            raise ValueError(f"{self.times.size} times for {self.matrix.nnz} entries")

    @classmethod
    def of(
        cls,
        user_rows: np.ndarray,
        item_rows: np.ndarray,
        values: np.ndarray,
        users: Vocabulary,
        items: Vocabulary,
        times: np.ndarray | None = None,
        rated: bool = True,
    ) -> Interactions:
        """Build from unique (user row, item row) pairs in any order."""
        key = user_rows.astype(np.int64) * max(len(items), 1) + item_rows
        if not bool(np.all(key[:-1] < key[1:])):  # 20 M entries take 5 s to sort, 0.1 s to find in order
            order = np.argsort(key, kind="stable")
            item_rows, values = item_rows[order], values[order]
            times = None if times is None else times[order]
        counts = np.bincount(user_rows, minlength=len(users))
        indptr = np.concatenate(([0], np.cumsum(counts)))
        shape = (len(users), len(items))
        matrix = csr(values.astype(np.float32), item_rows.astype(np.int32), indptr, shape)
        return cls(matrix, users, items, times, rated)

    @property
    def nnz(self) -> int:
        """Number of observed entries."""
        return int(self.matrix.nnz)

    def user_rows(self) -> np.ndarray:
        """Row number of each entry, in the order of ``matrix.data``."""
        return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.matrix.indptr))

    def by_item(self) -> csr_array:
        """Entries by item, (items, users): the transpose of ``matrix``, kept once it was asked for."""
        return self._by_item

    @cached_property
    def _by_item(self) -> csr_array:  # of prepared data, data/prepare.py puts the mapped one here
        return transposed(self.matrix)

    def select(self, keep: np.ndarray) -> Interactions:
        """Entries where the mask `keep` (in the order of ``matrix.data``) is true; ids no entry uses go."""
        rows, cols = self.user_rows()[keep], self.matrix.indices[keep]
        used_rows, rows = _renumbered(rows, len(self.users))
        used_cols, cols = _renumbered(cols, len(self.items))
        return Interactions.of(
            rows,
            cols,
            self.matrix.data[keep],
            self.users.take(used_rows),
            self.items.take(used_cols),
            None if self.times is None else self.times[keep],
            self.rated,
        )

    def aligned(self, users: Vocabulary, items: Vocabulary) -> tuple[csr_array, np.ndarray]:
        """Renumber to other vocabularies: the matrix over `users` x `items`, and which entries are in it."""
        to_row = users.rows(self.users.ids)
        to_col = items.rows(self.items.ids)
        rows, cols = to_row[self.user_rows()], to_col[self.matrix.indices]
        known = (rows >= 0) & (cols >= 0)
        there = Interactions.of(rows[known], cols[known], self.matrix.data[known], users, items)
        return there.matrix, known

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Arrow stream of user, item, rating (and timestamp) columns with the original ids."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> Any:
        """Table of user, item, rating (unless positive-only) and timestamp (where known)."""
        import pyarrow as pa

        def taken(vocabulary: Vocabulary, rows: np.ndarray) -> pa.Array:
            ids = vocabulary.ids.tolist() if vocabulary.is_text else vocabulary.ids
            return pa.array(ids, pa.string() if vocabulary.is_text else pa.int64()).take(pa.array(rows))

        columns = {
            "user": taken(self.users, self.user_rows()),
            "item": taken(self.items, self.matrix.indices),
        }
        if self.rated:
            columns["rating"] = pa.array(self.matrix.data)
        if self.times is not None:
            columns["timestamp"] = pa.array(self.times)
        return pa.table(columns)

    def __repr__(self) -> str:
        users, items = len(self.users), len(self.items)
        cells = users * items
        dense = f"{100 * self.nnz / cells:.2f} % of the cells" if cells else "no cells"
        kind = "ratings" if self.rated else "positive-only pairs"
        return f"Interactions({self.nnz:,} {kind}, {users:,} users x {items:,} items, {dense})"


def _renumbered(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows occur, and the rows numbered among those."""
    occurs = np.zeros(count, dtype=bool)
    occurs[rows] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[rows]

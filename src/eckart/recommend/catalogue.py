"""Items laid out for top-k, and which of them compete.

Scores are q . h_j + c_j. A batch of queries reads the items as float32 panels (kernels/top_k.cpp) and is bound by
arithmetic; a few queries read them as bytes (kernels/top_one.cpp), a quarter of the memory, and are bound by that.
Both go from large norms to small ones, pass over what cannot get in, and give the same bits.

Three kinds of filter, none of which can return the wrong number of items while enough are left:

- what a query's own user has seen: a sorted list per query, looked up when a score would be kept;
- banned for every query: such an item's c_j is -inf, so it beats nothing;
- an allow-list: its items are gathered into a catalogue of their own, at a cost in proportion to the list.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import take_rows
from eckart.core.kernels import kernels

__all__ = ["Catalogue", "Entries", "entries_of", "no_entries", "row_list"]

# Up to this many queries read the bytes: of 26,744 items at k = 64, one query takes 0.02 to 0.15 ms that way, by how
# much is passed over, and up to 8 together take the panels' 0.04 to 0.45 ms (one thread, benchmarks/recommend_all.py).
_FEW = 3
# To gather and pack a row costs about as much as to score it for this many queries.
_GATHER = 16

Entries = tuple[np.ndarray, np.ndarray]  # indptr (q + 1,) int64 and ascending item rows, int32, of q queries


class Catalogue:
    """Item factors and biases, in the layouts that the kernels read, each made when it is first needed.

    Parameters
    ----------
    H : ndarray of shape (m, k), float32
    bias : ndarray of shape (m,), float32
    threads : int >= 1
        For the layouts.
    """

    def __init__(self, H: np.ndarray, bias: np.ndarray, threads: int = 1) -> None:
        self.H, self.bias, self.threads = H, bias, threads

    def __len__(self) -> int:
        return len(self.H)

    @cached_property
    def _order(self) -> np.ndarray:
        # Best first for a query as long as an item is on average; any order gives the same lists.
        with np.errstate(over="ignore", invalid="ignore"):  # the kernels know what to do with such factors
            norms = np.linalg.norm(self.H, axis=1)
            likely = norms.sum() / max(len(norms), 1) * norms + self.bias
        return np.argsort(-likely, kind="stable").astype(np.int32)

    @cached_property
    def _panels(self) -> tuple[np.ndarray, np.ndarray]:
        return kernels.pack_items(self.H, self.bias, self._order, self.threads)

    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray, bool]:
        return kernels.pack_codes(self.H, self.bias, self._order, self.threads)

    def best(
        self,
        Q: np.ndarray,
        top: int,
        seen: Entries,
        threads: int,
        *,
        allowed: np.ndarray | None = None,
        banned: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best `top` items of each query, ties to the lower row.

        Parameters
        ----------
        Q : ndarray of shape (q, k), float32
        top : int >= 1
        seen : Entries
            What each query leaves out.
        threads : int >= 1
            The result does not depend on it.
        allowed, banned : ndarray of int64, ascending, optional
            Rows that alone compete; rows that do not.

        Returns
        -------
        items : ndarray of shape (q, top), int32
            -1 where no more are left.
        scores : ndarray of shape (q, top), float32
        """
        bias = self.bias
        if allowed is not None:
            if banned is not None:
                allowed = np.setdiff1d(allowed, banned, assume_unique=True)
            if len(allowed) * (len(Q) + _GATHER) < len(self) * len(Q):
                return self._best_of(allowed, Q, top, seen, threads)
            bias = np.full_like(bias, -np.inf)
            bias[allowed] = self.bias[allowed]
        elif banned is not None and len(banned):
            bias = bias.copy()
            bias[banned] = -np.inf
        # A factor that is huge or not finite (comparing with NaN is False) is beyond what the bounds allow for.
        if len(Q) <= _FEW and len(self) > 1000 and self._codes[2] and np.abs(Q).max(initial=0) < 1e12:
            return kernels.top_one(Q, self.H, *self._codes[:2], self._order, bias, *seen, top, threads)
        return kernels.top_k(Q, *self._panels, self._order, bias, *seen, top, threads)

    def _best_of(
        self, allowed: np.ndarray, Q: np.ndarray, top: int, seen: Entries, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        # What was seen, in row numbers of the smaller catalogue; what is not in it is left away.
        indptr, indices = seen
        place = np.searchsorted(allowed, indices)
        inside = np.zeros(len(indices) + 1, np.int64)
        if len(allowed):
            np.cumsum(allowed[np.minimum(place, len(allowed) - 1)] == indices, out=inside[1:])
        mine = inside[indptr], place[np.diff(inside) > 0].astype(np.int32)
        items, scores = Catalogue(self.H[allowed], self.bias[allowed]).best(Q, top, mine, threads)
        there = items >= 0
        items[there] = allowed[items[there]]
        return items, scores


def no_entries(queries: int) -> Entries:
    """Nothing left out."""
    return np.zeros(queries + 1, np.int64), np.zeros(0, np.int32)


def entries_of(matrix: csr_array, rows: np.ndarray) -> Entries:
    """Columns of these rows of a matrix."""
    if len(rows) == 1:  # a view: SciPy takes longer to take one row than the kernel to score 20,000 items
        row = rows[0]
        columns = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
        indptr = np.array([0, len(columns)], np.int64)
    else:
        part = take_rows(matrix, rows)
        indptr, columns = part.indptr.astype(np.int64, copy=False), part.indices
    return indptr, columns.astype(np.int32, copy=False)


def row_list(rows: Any, items: int) -> np.ndarray | None:
    """Row numbers a caller gave, ascending and each once; ValueError where one is no row of `items`."""
    if rows is None:
        return None
    listed = np.asarray(rows)
    if listed.ndim != 1 or (listed.size and listed.dtype.kind not in "iu"):
        raise ValueError(f"item rows are {listed.dtype} of {listed.ndim} dimensions, expected a list of integers")
    listed = np.unique(listed.astype(np.int64))
    if len(listed) and not 0 <= listed[0] <= listed[-1] < items:
        odd = listed[0] if listed[0] < 0 else listed[-1]
        raise ValueError(f"item row {odd} is outside 0..{items - 1}")
    return listed

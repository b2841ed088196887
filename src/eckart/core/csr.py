"""Compressed rows, in memory or mapped from disk, also past 2^31 entries.

A matrix is kept as `values` and `indices` (its columns, ascending in a row) with one entry per observed cell, and
`indptr` that says where each row begins. Indices are int32 whatever the number of entries; `indptr` is int32 below
2^31 entries, as SciPy has it, and int64 from there on, where SciPy would also widen the indices: 8.6 GB more, and a
copy where they were mapped. The kernels take int64 and int32.

Everything here walks the entries in blocks, so that its temporaries do not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy.sparse import csr_array

__all__ = [
    "blocks",
    "column_counts",
    "csr",
    "entries",
    "fault_of",
    "kernel_arrays",
    "row_numbers",
    "sparse_product",
    "take_rows",
    "transposed",
]

_BLOCK = 1 << 17  # entries at a time: their temporaries fit the second-level cache
_WIDE = 2**31  # entries from which indptr is int64


def csr(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Make a matrix of these arrays as they are: nothing but `indptr` is ever copied.

    From 2^31 entries on, SciPy's own operations on it work but may widen all indices to int64 meanwhile.

    Parameters
    ----------
    values : ndarray of shape (nnz,)
    indices : ndarray of shape (nnz,), int32
    indptr : ndarray of shape (rows + 1,), int64 or int32
    shape : (int, int)

    Examples
    --------
    >>> indices = np.array([1, 0], np.int32)
    >>> matrix = csr(np.ones(2, np.float32), indices, np.array([0, 1, 2]), (2, 2))
    >>> matrix.indices is indices, matrix.nnz
    (True, 2)
    """
    matrix: Any = csr_array(shape, dtype=values.dtype)  # its constructor would give all indices indptr's width
    matrix.data, matrix.indices = values, indices
    matrix.indptr = indptr.astype(np.int32 if len(indices) < _WIDE else np.int64, copy=False)
    return matrix


def blocks(entries: int, size: int = 0) -> Iterator[tuple[int, int]]:
    """Begin and end of each block of entries; `size` entries at least."""
    step = max(_BLOCK, size)
    return ((begin, min(begin + step, entries)) for begin in range(0, entries, step))


def row_numbers(indptr: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Row of each of the entries `begin` to `end`, int32.

    Examples
    --------
    >>> row_numbers(np.array([0, 2, 2, 5]), 1, 4)
    array([0, 2, 2], dtype=int32)
    """
    if begin == end:
        return np.empty(0, np.int32)
    first, last = np.searchsorted(indptr, [begin, end - 1], side="right") - 1
    bounds = np.clip(indptr[first : last + 2], begin, end)
    return np.repeat(np.arange(first, last + 1, dtype=np.int32), np.diff(bounds))


def kernel_arrays(matrix: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give (indptr, indices, values) as the kernels take them: int64, int32 and as they are; copies only to widen."""
    return matrix.indptr.astype(np.int64, copy=False), matrix.indices.astype(np.int32, copy=False), matrix.data


def entries(matrix: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each entry, int64.

    Examples
    --------
    >>> rows, columns = entries(csr_array(np.array([[0, 7], [8, 9]])))
    >>> rows.tolist(), columns.tolist()
    ([0, 1, 1], [1, 0, 1])
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)


def fault_of(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, columns: int) -> str | None:
    """Say what is wrong with arrays from a stranger, in one pass; None where they are a matrix.

    Examples
    --------
    >>> fault_of(np.array([0, 2]), np.array([1, 0], np.int32), np.ones(2), 2)
    'the columns of a row do not ascend'
    """
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices) or bool(np.any(indptr[1:] < indptr[:-1])):
        return "its rows do not cut its entries"
    last = -1
    for begin, end in blocks(len(indices)):
        part = indices[begin:end]
        if part.min() < 0 or part.max() >= columns:
            return f"a column is outside 0 to {columns - 1}"
        rises = np.empty(len(part), bool)
        rises[0] = part[0] > last
        np.greater(part[1:], part[:-1], out=rises[1:])
        first, after = np.searchsorted(indptr, [begin, end])
        rises[indptr[first:after] - begin] = True  # where a row begins
        if not rises.all():
            return "the columns of a row do not ascend"
        if not np.isfinite(values[begin:end]).all():
            return "a value is NaN or infinity"
        last = part[-1]
    return None


def column_counts(matrix: csr_array) -> np.ndarray:
    """Count the entries of each column, (columns,) int64."""
    columns = matrix.shape[1]
    counts = np.zeros(columns, np.int64)
    for begin, end in blocks(matrix.nnz, columns):
        counts += np.bincount(matrix.indices[begin:end], minlength=columns)
    return counts


def take_rows(matrix: csr_array, rows: np.ndarray) -> csr_array:
    """Matrix of these rows, in this order; only their entries are touched.

    Examples
    --------
    >>> matrix = csr_array(np.array([[1, 0], [2, 3]]))
    >>> take_rows(matrix, np.array([1, 0])).toarray()
    array([[2, 3],
           [1, 0]])
    """
    begin = matrix.indptr[rows].astype(np.int64)
    counts = matrix.indptr[rows + 1] - begin
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    place = np.arange(indptr[-1]) + np.repeat(begin - indptr[:-1], counts)
    return csr(matrix.data[place], matrix.indices[place], indptr, (len(rows), matrix.shape[1]))


def transposed(matrix: csr_array) -> csr_array:
    """By column what was by row: a counting sort, and no memory but the result's."""
    if matrix.nnz < _WIDE:
        return csr_array(matrix.T.tocsr())  # three times as fast
    n, m = matrix.shape
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(column_counts(matrix))])
    rows, values = np.empty(matrix.nnz, np.int32), np.empty(matrix.nnz, matrix.dtype)
    free = indptr[:-1].copy()  # where the next entry of each column goes
    for begin, end in blocks(matrix.nnz, m):
        order = np.argsort(matrix.indices[begin:end], kind="stable")
        columns = matrix.indices[begin:end][order]
        counts = np.bincount(columns, minlength=m)
        earlier = np.cumsum(counts) - counts
        place = np.arange(end - begin) + (free - earlier)[columns]
        rows[place] = row_numbers(matrix.indptr, begin, end)[order]
        values[place] = matrix.data[begin:end][order]
        free += counts
    return csr(values, rows, indptr, (m, n))


def sparse_product(A: csr_array | np.ndarray, X: np.ndarray, threads: int) -> np.ndarray:
    """A @ X; a sparse A by ranges of rows, side by side, each row's sum in the order of its entries.

    Examples
    --------
    >>> sparse_product(csr_array(np.array([[1.0, 2.0], [0.0, 3.0]])), np.ones((2, 1)), threads=2)
    array([[3.],
           [3.]])
    """
    if isinstance(A, np.ndarray) or threads == 1:
        return A @ X
    # SciPy lets go of the interpreter lock in its product; ranges hold equal numbers of entries.
    cuts = np.searchsorted(A.indptr, np.linspace(0, A.nnz, threads + 1)[1:-1])
    ends = [0, *cuts.tolist(), A.shape[0]]
    out = np.empty((A.shape[0], X.shape[1]), np.result_type(A.dtype, X.dtype))

    def part(t: int) -> None:
        first, last = ends[t], ends[t + 1]
        out[first:last] = A[first:last] @ X

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
    return out

"""Interactions that stay on disk: the directory that `prepare` writes, opened.

    by_user.safetensors    indptr (users + 1,), indices and values (entries,), times (entries,) where known
    by_item.safetensors    the same by item: indptr (items + 1,), indices (of users), values
    users.ids, items.ids   the vocabularies, which are read into memory

It is a directory of core/store.py, of kind "ratings"; its entries are mapped. Everything is read once when it is
opened: checksums, bounds, order, finiteness. After that only what is touched is paged in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from eckart.core import store
from eckart.core.csr import csr, fault_of
from eckart.core.replace import backup_of
from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary

__all__ = ["KIND", "is_prepared", "open_prepared"]

KIND = "ratings"


def is_prepared(source: Any) -> bool:
    """Whether `source` is a directory that claims to be a prepared one (or that one is being replaced)."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    return os.path.exists(Path(source, "config.json")) or backup_of(Path(os.path.realpath(source))).is_dir()


def open_prepared(path: str | os.PathLike[str]) -> Interactions:
    """Open what `prepare` wrote, and believe nothing in it.

    Returns
    -------
    Interactions
        Its arrays are mapped and read-only, and so are those of ``by_item()``.

    Raises
    ------
    ValueError
        Another directory, a damaged one, or one of a newer version.
    """
    config, tensors, ids = store.read_directory(path, KIND, mapped=("by_user", "by_item"))
    try:
        users, items = Vocabulary(ids["users"]), Vocabulary(ids["items"])
        rated = config["rated"]
        if not isinstance(rated, bool):
            raise ValueError(f"rated is {rated!r}")
        matrix = _order(tensors, "by_user", len(users), len(items))
        times = None
        if "times" in tensors["by_user"]:
            times = store.take_tensor(tensors, "by_user", "times", (matrix.nnz,), np.int64)
        data = Interactions(matrix, users, items, times, rated)  # checks order, bounds and finiteness
        data.__dict__["_by_item"] = by_item = _order(tensors, "by_item", len(items), len(users))
        if fault := fault_of(by_item.indptr, by_item.indices, by_item.data, len(users)):
            raise ValueError(f"by item, {fault}")
        if by_item.nnz != matrix.nnz:
            raise ValueError(f"{matrix.nnz} entries by user, {by_item.nnz} by item")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is damaged ({error}): prepare it again") from None
    return data


def _order(tensors: Mapping[str, Mapping[str, np.ndarray]], name: str, rows: int, columns: int) -> csr_array:
    indptr = store.take_tensor(tensors, name, "indptr", (rows + 1,), np.int64)
    indices = store.take_tensor(tensors, name, "indices", (None,), np.int32)
    values = store.take_tensor(tensors, name, "values", (len(indices),), np.float32)
    if indptr[0] != 0 or indptr[-1] != len(indices) or np.any(indptr[1:] < indptr[:-1]):  # before it is cut to int32
        raise ValueError(f"{name}: its rows do not cut its entries")
    return csr(values, indices, indptr, (rows, columns))

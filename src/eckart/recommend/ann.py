"""Approximate top-k for very large catalogues: a graph index (HNSW) over the item side.

The exact search reads every item, if only as bytes; a hierarchical small-world graph (Malkov and Yashunin 2018)
visits a few hundred. A score is an inner product in one dimension more, (w_u, 1) . (h_i, c_i), plus what is the same
for all items, so an inner-product index ranks as the model does, up to its recall, which `AnnIndex.recall` measures.
Items that are found are scored as the model scores them: only which items are found is approximate.

Needs the extra ``eckart[ann]`` (voyager). ``docs/ann.md`` says from which catalogue size on this pays.
"""

from __future__ import annotations

import importlib
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.core import store
from eckart.core.kernels import kernels, resolve_threads
from eckart.recommend.catalogue import entries_of, row_list
from eckart.recommend.ids import at_least_one, several
from eckart.recommend.table import recommendation_table

if TYPE_CHECKING:
    import pyarrow as pa

    from eckart.recommend.recommender import Recommender
    from eckart.recommend.solver import ItemSide

__all__ = ["AnnIndex", "build_ann", "load_ann"]


class AnnIndex:
    """A graph over the items of one model; made by `build_ann` or `load_ann`.

    It serves any model with the same item side: the fitted one and those that `Recommender.fold_in` makes of it.
    """

    def __init__(self, graph: Any, fingerprint: int) -> None:
        self._graph, self._fingerprint = graph, fingerprint
        self._fits: ItemSide | None = None  # the item side that was last found to have the fingerprint

    def top_k(
        self,
        model: Recommender,
        user_rows: np.ndarray,
        k: int,
        exclude_seen: bool = True,
        *,
        exclude: np.ndarray | None = None,
        effort: int = 100,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearly the best `k` items of each user row; see `Recommender.top_k`.

        Enough items are fetched to leave some out afterwards. A user of whom too few are left, and one without a
        history, gets the exact list, so a filter never shortens a list.

        Parameters
        ----------
        model : Recommender
        user_rows : ndarray of int
        k : int >= 1
        exclude_seen : bool
        exclude : array_like of int, optional
        effort : int >= 1
            Candidates of the graph search ("ef"): more are slower and find more.

        Returns
        -------
        items : ndarray of shape (q, k), int32
        scores : ndarray of shape (q, k), float32

        Raises
        ------
        ValueError
            The index is of other items than the model's.
        """
        self._require(model)
        rows, k, effort = np.asarray(user_rows, dtype=np.int64), at_least_one(k), at_least_one(effort)
        m, banned = len(model.items), row_list(exclude, len(model.items))
        items = np.full((len(rows), k), -1, np.int32)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        begin, end = model.seen.indptr[np.maximum(rows, 0)], model.seen.indptr[np.maximum(rows, 0) + 1]
        need = k + (end - begin if exclude_seen else 0 * end) + (0 if banned is None else len(banned))
        # A graph search takes time in proportion to what it fetches: the exact one is better at many.
        served = np.flatnonzero((rows >= 0) & (end > begin) & (need <= min(m, 4 * max(k, effort))))
        if len(served):
            size = min(m, max(effort, int(need[served].max())))
            self._search(model, rows, served, size, exclude_seen, banned, items, scores)
        short = np.flatnonzero(items[:, -1] < 0)
        if len(short):
            items[short], scores[short] = model.top_k(rows[short], k, exclude_seen, exclude=banned)
        return items, scores

    def recommend(
        self, model: Recommender, users: Any, k: int = 10, *, exclude_seen: bool = True, exclude: Any = None
    ) -> pa.Table:
        """Nearly what `Recommender.recommend` gives, in the same columns.

        Parameters
        ----------
        model : Recommender
        users : id or sequence of ids
        k : int >= 1
        exclude_seen : bool
        exclude : id or sequence of ids, optional

        Returns
        -------
        pyarrow.Table
        """
        asked = several(users)
        rows = model.users.rows(asked)
        left_out = None if exclude is None else model.items.rows(several(exclude))
        left_out = None if left_out is None else left_out[left_out >= 0]
        best, score = self.top_k(model, rows, min(at_least_one(k), len(model.items)), exclude_seen, exclude=left_out)
        status = model.statuses(rows), model.item_side.cold
        return recommendation_table(best, score, status, model.users, model.items, list(asked))

    def recall(self, model: Recommender, users: Any = None, k: int = 10, *, effort: int = 100) -> float:
        """Share of the exact best `k` that the index finds, over these users (None: all of the model).

        Parameters
        ----------
        model : Recommender
        users : sequence of ids, optional
            An unknown one gets the exact list.
        k : int >= 1
        effort : int >= 1

        Returns
        -------
        float
            0 to 1.
        """
        rows = np.arange(len(model.users)) if users is None else model.users.rows(several(users))
        exact, _ = model.top_k(rows, k)
        found, _ = self.top_k(model, rows, k, effort=effort)
        both = (exact[:, :, None] == found[:, None, :]) & (exact >= 0)[:, :, None]
        return float(both.sum() / max(np.count_nonzero(exact >= 0), 1))

    def save(self, path: str | Path) -> None:
        """Write the index as a directory of its own, beside the model's; see ``docs/model-directory.md``."""
        graph = np.frombuffer(self._graph.as_bytes(), np.uint8)
        store.write_directory(path, "ann", {"fingerprint": self._fingerprint}, {"graph": {"voyager": graph}}, {})

    def _require(self, model: Recommender) -> None:
        if model.item_side is self._fits:
            return
        width = model.H.shape[1] + 1
        fits = (self._graph.num_elements, self._graph.num_dimensions) == (len(model.items), width)
        if not fits or self._fingerprint != _fingerprint(model):
            raise ValueError("the index is of other items than the model's: build_ann(model) makes one that fits")
        self._fits = model.item_side

    def _search(
        self,
        model: Recommender,
        rows: np.ndarray,
        these: np.ndarray,
        size: int,
        exclude_seen: bool,
        banned: np.ndarray | None,
        items: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        # Fetch `size` items of each user, drop what is left out, score, and keep the best: in the order of the model.
        m, k, threads = len(model.items), items.shape[1], resolve_threads(model.solver.threads)
        W = model.W[rows[these]]
        queries = np.concatenate([W, np.ones((len(these), 1), np.float32)], axis=1)
        try:
            fetched = self._graph.query(queries, k=size, num_threads=threads, query_ef=size)[0].astype(np.int64)
        except importlib.import_module(
            "voyager"
        ).RecallError:  # the graph reached fewer than `size` items: the exact search will answer
            return
        fetched.sort(axis=1)
        owner = np.repeat(np.arange(len(these)), size)
        one = fetched.ravel()
        keep = np.ones(len(one), bool)
        if exclude_seen:
            indptr, columns = entries_of(model.seen, rows[these])
            seen = np.repeat(np.arange(len(these)) * m, np.diff(indptr)) + columns
            place = np.minimum(np.searchsorted(seen, owner * m + one), len(seen) - 1)  # `seen` ascends
            keep &= seen[place] != owner * m + one
        if banned is not None:
            keep &= ~np.isin(one, banned)
        side = model.item_side
        none = np.zeros(len(these), np.float32)
        score = kernels.pair_scores(W, side.H, none, side.bias, 0.0, owner, one, threads)
        score = np.where(keep, score, -np.inf).reshape(len(these), size)
        order = np.argsort(-score, axis=1, kind="stable")[:, :k]  # ascending rows before: ties to the lower
        best, item = np.take_along_axis(score, order, 1), np.take_along_axis(fetched, order, 1)
        enough = best[:, -1] > -np.inf
        rest = (model.user_bias[rows[these]] + np.float32(side.mean))[:, None]
        items[these[enough]], scores[these[enough]] = item[enough], (best + rest)[enough]


def build_ann(model: Recommender, *, links: int = 16, effort: int = 200, seed: int = 0) -> AnnIndex:
    """Build the index of a model's items.

    Parameters
    ----------
    model : Recommender
    links : int >= 2
        Neighbours of an item in the graph ("M"): more take more memory and find more.
    effort : int >= 1
        Candidates looked at to place an item ("ef_construction").
    seed : int >= 0
        Of the graph's random levels. With several threads the graph still depends on their timing.

    Returns
    -------
    AnnIndex

    Raises
    ------
    ImportError
        voyager is not installed.
    """
    voyager: Any = importlib.import_module("voyager")
    points = np.concatenate([model.H, model.item_side.bias[:, None]], axis=1)
    graph = voyager.Index(
        voyager.Space.InnerProduct,
        num_dimensions=points.shape[1],
        M=at_least_one(links),
        ef_construction=at_least_one(effort),
        random_seed=seed,
        max_elements=max(len(points), 1),
    )
    # Large norms first: voyager turns inner products into distances by the largest norm it has met so far, so what was
    # placed before a larger one lies wrong. Recall at 10 of 5,000 items with log-normal norms: 0.999, by row 0.57; of a
    # fitted model of 4,000: 0.9995, by row 0.98. It is no cure-all: of a model fitted to 4 entries an item, 0.65, by
    # row 0.995. So recall() is to be asked.
    order = np.argsort(-np.linalg.norm(points, axis=1))
    if len(points):
        graph.add_items(points[order], ids=order.tolist(), num_threads=resolve_threads(model.solver.threads))
    return AnnIndex(graph, _fingerprint(model))


def load_ann(path: str | Path) -> AnnIndex:
    """Read an index that `AnnIndex.save` wrote.

    Its size and checksum are checked, and the items' when it is used; the graph itself is read by voyager, which
    trusts it. So load only an index that you or someone you trust has built: it can always be built again.

    Parameters
    ----------
    path : path

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        Not an index, or a damaged one.
    """
    voyager: Any = importlib.import_module("voyager")
    config, tensors, _ = store.read_directory(path, "ann")
    graph = store.take_tensor(tensors, "graph", "voyager", (None,), np.uint8)
    fingerprint = config.get("fingerprint")
    if not isinstance(fingerprint, int) or isinstance(fingerprint, bool):
        raise ValueError(f"{path}: config.json has no fingerprint of the items: build the index again")
    try:
        loaded = voyager.Index.load(io.BytesIO(graph.tobytes()))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: the graph cannot be read ({error}): build the index again") from None
    return AnnIndex(loaded, fingerprint)


def _fingerprint(model: Recommender) -> int:
    crc = 0
    for array in (model.H, model.item_side.bias):
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc

"""The one fitted model: ids outside, row numbers inside, a score is mean + b_u + c_i + w_u . h_i.

Who gets what, by what the model knows of a user:

=======  ==================================================  =========================================
hot      was in the training data                            the trained row
warm     was not, but has a history (`fold_in`,              the row solved from it in closed form
         ``history=``)
cold     has no history, but features (``features=``)        the row that the encoder gives
unknown  nothing is known                                    the same list for everyone: mean + item bias where
                                                             ratings are predicted, else an item's popularity
=======  ==================================================  =========================================

Every recommendation says which of the four the user is, and whether the item is hot or cold: trained, or added by its
features alone (`add_items`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import entries
from eckart.core.kernels import kernels, resolve_threads
from eckart.data.features import Features
from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.added import one_person, points_of_users, with_items, with_users
from eckart.recommend.catalogue import Catalogue, entries_of, no_entries, row_list
from eckart.recommend.drift import Drift, Steps, check_bins, drift_at, fit_drift, fit_steps, steps_at
from eckart.recommend.encoder import Encoder
from eckart.recommend.explain import Explanation, explanation_of
from eckart.recommend.ids import at_least_one, id_column, known_rows, newcomer, several
from eckart.recommend.solver import ItemSide, Solver, popularity_of
from eckart.recommend.spread import half_width
from eckart.recommend.table import recommendation_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Explanation", "Recommender"]

Id = int | str


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A fitted model; made by a solver's ``fit``, by `fold_in` or by `load`.

    Parameters
    ----------
    solver : Solver
        What fitted it, with its hyper-parameters.
    users, items : Vocabulary
        Ids of the n users and m items.
    W : ndarray of shape (n, k), float32
        User factors.
    user_bias : ndarray of shape (n,), float32
    item_side : ItemSide
        Item factors H (m, k), item biases (m,), the mean rating, and how popular each item was in training.
    seen : csr_array of shape (n, m), float32
        What the users' rows were solved from.
    history : list of dict
        One record per epoch: ``epoch``, ``objective`` and, with validation data, a ``validation_...``.
    warm : bool
        Whether the users were folded in, not trained.
    drift : Drift, optional
        What is added to the biases at a time, see `with_drift`.
    user_encoder, item_encoder : Encoder, optional
        From features to factors, where the model was fitted with features.
    user_points : ndarray of shape (n, k + 1), float32, optional
        What the encoder says of each user, with a `user_encoder`.
    """

    solver: Solver
    users: Vocabulary
    items: Vocabulary
    W: np.ndarray
    user_bias: np.ndarray
    item_side: ItemSide
    seen: csr_array
    history: list[dict[str, Any]]
    warm: bool = False
    drift: Drift | None = None
    user_encoder: Encoder | None = None
    item_encoder: Encoder | None = None
    user_points: np.ndarray | None = None

    @property
    def H(self) -> np.ndarray:
        """Item factors, (m, k) float32."""
        return self.item_side.H

    @property
    def predicts_ratings(self) -> bool:
        """Whether scores are on the scale of the ratings (else they only rank)."""
        return self.solver.predicts_ratings

    @property
    def uses_times(self) -> bool:
        """Whether a prediction depends on when it is for."""
        return self.drift is not None

    # -- scores ------------------------------------------------------------------------------------------------

    def predict(self, users: Any, items: Any, times: Any = None) -> np.ndarray:
        """Score of each (user, item) pair.

        Parameters
        ----------
        users, items : array_like of ids, of equal length
            An unknown id contributes nothing: an unknown user with a known item scores mean + item bias.
        times : array_like of int, of the same length, optional
            When, in the unit of the training times; None: now, after all that was seen. Makes a difference to a
            model whose biases drift alone.

        Returns
        -------
        ndarray of shape (pairs,), float32

        Raises
        ------
        ValueError
            Lengths differ.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> model = ek.ALS(rank=4, epochs=3).fit(data)
        >>> model.predict([0, 1], [5, 6]).shape
        (2,)
        """
        rows, columns = self.users.rows(several(users)), self.items.rows(several(items))
        if len(rows) != len(columns):
            raise ValueError(f"got {len(rows)} users and {len(columns)} items: give one item per user")
        if times is not None:
            times = np.asarray(times, dtype=np.int64)
            if times.shape != rows.shape:
                raise ValueError(f"got {len(rows)} users and times of shape {times.shape}: give one time per user")
        scores = self.static_scores(rows, columns)
        return scores if self.drift is None else scores + drift_at(self.drift, rows, columns, times)

    def static_scores(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Score pairs of row numbers, drift left out: the array form of `predict`.

        Parameters
        ----------
        rows, columns : ndarray of shape (pairs,), int64
            -1: unknown, contributes nothing.

        Returns
        -------
        ndarray of shape (pairs,), float32
        """
        side, threads = self.item_side, resolve_threads(self.solver.threads)
        return kernels.pair_scores(self.W, side.H, self.user_bias, side.bias, side.mean, rows, columns, threads)

    def predict_std(self, users: Any, items: Any, *, noise: bool = True) -> np.ndarray:
        """Standard deviation of each (user, item) pair's rating about its prediction.

        Between the kept samples of the posterior, within each of them, and the noise of a rating: the law of total
        variance, see ``spread.py``.

        Parameters
        ----------
        users, items : array_like of ids, of equal length
            An unknown user has the spread of anybody; of an unknown item nothing is known: NaN.
        noise : bool
            False: of the predicted mean alone, not of a rating.

        Returns
        -------
        ndarray of shape (pairs,), float32

        Raises
        ------
        ValueError
            The solver gives one estimate and no posterior; lengths differ.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> model = ek.Gibbs(rank=4, epochs=10).fit(data)
        >>> model.predict_std([0, 1], [5, 6]).shape
        (2,)
        """
        variance = getattr(self.solver, "variance", None)
        if variance is None:
            raise ValueError(f"{type(self.solver).__name__} gives one estimate and no spread: fit with ek.Gibbs")
        rows, columns = self.users.rows(several(users)), self.items.rows(several(items))
        if len(rows) != len(columns):
            raise ValueError(f"got {len(rows)} users and {len(columns)} items: give one item per user")
        return np.sqrt(variance(self.W, self.seen, rows, columns, self.item_side, noise)).astype(np.float32)

    def predict_interval(self, users: Any, items: Any, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Interval that holds each pair's rating with probability `level`: prediction -+ z std, noise included.

        Not cut to the scale of the ratings, which the model does not know; cutting it changes no coverage.

        Parameters
        ----------
        users, items : array_like of ids, of equal length
        level : float, above 0 and below 1

        Returns
        -------
        low, high : ndarray of shape (pairs,), float32

        Raises
        ------
        ValueError
            As `predict_std`; a level that is no share.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> low, high = ek.Gibbs(rank=4, epochs=10).fit(data).predict_interval([0, 1], [5, 6], level=0.8)
        >>> bool((low < high).all())
        True
        """
        width = np.float32(half_width(level))
        score, std = self.predict(users, items), self.predict_std(users, items)
        return score - width * std, score + width * std

    def top_k(
        self,
        user_rows: np.ndarray,
        k: int,
        exclude_seen: bool = True,
        *,
        allow: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best `k` items of each user row: the array form of `recommend`.

        Parameters
        ----------
        user_rows : ndarray of int
            Row numbers; -1 is a user nobody knows.
        k : int >= 1
        exclude_seen : bool
            Leave out what the user's row was solved from.
        allow : array_like of int, optional
            Item rows that alone compete, in any order. A short list costs in proportion to its length.
        exclude : array_like of int, optional
            Item rows left out for every user.

        Returns
        -------
        items : ndarray of shape (q, k), int32
            Item rows, the best first, by row number where scores are equal before mean and user bias are added; -1
            where there are no more.
        scores : ndarray of shape (q, k), float32
        """
        rows = np.asarray(user_rows, dtype=np.int64)
        k = at_least_one(k)
        allowed, banned = row_list(allow, len(self.items)), row_list(exclude, len(self.items))
        kept = min(k, max(len(self.items) if allowed is None else len(allowed), 1))
        items = np.full((len(rows), k), -1, dtype=np.int32)
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
        unknown = self._is_unknown(rows)
        if unknown.any():
            best = self._order_for_all if allowed is None else allowed[_descending(self._scores_for_all[allowed])]
            best = best[: kept + (0 if banned is None else len(banned))]
            best = (best if banned is None else best[~np.isin(best, banned)])[:kept]
            items[unknown, : len(best)] = best
            scores[unknown, : len(best)] = self._scores_for_all[best]
        known = rows[~unknown]
        if len(known):
            seen = entries_of(self.seen, known) if exclude_seen else no_entries(len(known))
            threads = resolve_threads(self.solver.threads)
            best, score = self._catalogue.best(self.W[known], kept, seen, threads, allowed=allowed, banned=banned)
            score += (self.user_bias[known] + np.float32(self.item_side.mean))[:, None]
            if self.drift is not None:
                score += steps_at(self.drift.users, known, None)[:, None]
            items[~unknown, :kept], scores[~unknown, :kept] = best, score
        return items, scores

    def statuses(self, rows: np.ndarray) -> np.ndarray:
        """Say what each user row (-1: unknown) is served as: "hot", "warm", "cold" or "unknown", (q,) str."""
        rows = np.asarray(rows, dtype=np.int64)
        without = "unknown" if self.user_points is None else "cold"
        status = np.where(self._without_history(rows), without, "warm" if self.warm else "hot")
        return np.where(rows < 0, "unknown", status)

    def recommend(
        self,
        users: Any = None,
        k: int = 10,
        *,
        history: Mapping[Any, float] | Iterable[Any] | None = None,
        features: Features | Mapping[str, Any] | None = None,
        exclude_seen: bool = True,
        items: Any = None,
        exclude: Any = None,
    ) -> pa.Table:
        """Recommend the best `k` items for each user, or for someone new with a `history`.

        Parameters
        ----------
        users : id or sequence of ids, optional
            None, without `history` and `features`: every user of the model. An id that the model does not know is
            served as unknown.
        k : int >= 1
            Fewer rows come where fewer items are left.
        history : mapping of item id to rating, or iterable of item ids, optional
            Ratings of one new person, folded in by closed form. A solver of ratings needs the mapping.
        features : Features, or mapping of column to value, optional
            What is known of people nobody has seen, or of one of them; of the one new person, beside a `history`.
        exclude_seen : bool
            Leave out the items in the user's history.
        items : id or sequence of ids, optional
            Only these items compete: what is in stock, what came out this year.
        exclude : id or sequence of ids, optional
            Left out for every user, besides what is seen. An id the model does not know is left out anyway.

        Returns
        -------
        pyarrow.Table
            Columns user (null for someone without an id), item, score (float32), rank (int32, from 1), status ("hot",
            "warm", "cold" or "unknown") and item_status ("hot" or "cold"), in the order of `users`, the best item
            first. Exports ``__arrow_c_stream__``.

        Raises
        ------
        ValueError
            An item of the history or of `items` is unknown, `users` given beside `history` or `features`, features
            that the model was not fitted to, k < 1.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> model = ek.ALS(rank=4, epochs=3).fit(data)
        >>> model.recommend([7], k=3).column_names
        ['user', 'item', 'score', 'rank', 'status', 'item_status']
        >>> model.recommend(history={3: 5.0}, k=2)["status"].to_pylist()
        ['warm', 'warm']
        >>> sorted(model.recommend([7], items=[3, 4, 5], exclude_seen=False)["item"].to_pylist())
        [3, 4, 5]
        """
        allow = None if items is None else known_rows(self.items, several(items))
        left_out = None if exclude is None else self.items.rows(several(exclude))
        if left_out is not None:
            left_out = left_out[left_out >= 0]

        def table(model: Recommender, rows: np.ndarray, asked: Sequence[Any] | np.ndarray | None) -> pa.Table:
            best, score = model.top_k(
                rows, min(at_least_one(k), max(len(model.items), 1)), exclude_seen, allow=allow, exclude=left_out
            )
            status = model.statuses(rows), model.item_side.cold
            return recommendation_table(best, score, status, model.users, model.items, asked)

        if users is not None and (history is not None or features is not None):
            raise ValueError(f"got users and {'a history' if history is not None else 'features'}: give one of them")
        if history is not None:
            person = None if features is None else one_person(self.user_encoder, features)
            folded = self.fold_in(newcomer(history, self.items, self.predicts_ratings), person)
            return table(folded, np.zeros(1, np.int64), None)
        if features is not None:
            if not isinstance(features, Features):
                return table(self.encode_users(one_person(self.user_encoder, features)), np.zeros(1, np.int64), None)
            people = self.encode_users(features)
            return table(people, np.arange(len(features)), people.users.ids.tolist())
        if users is None:
            ids = self.users.ids
            return table(self, np.arange(len(self.users)), ids.tolist() if self.users.is_text else ids)
        ids = several(users)
        return table(self, self.users.rows(ids), list(ids))

    def similar(self, items: Any, k: int = 10) -> pa.Table:
        """Items whose factors point the same way, by cosine: h_i . h_j / (|h_i| |h_j|).

        Parameters
        ----------
        items : id or sequence of ids
        k : int >= 1

        Returns
        -------
        pyarrow.Table
            Columns item, similar, score (cosine, -1 to 1, float32), rank (int32, from 1).

        Raises
        ------
        ValueError
            An unknown item: there is no neighbour of nothing.
        """
        import pyarrow as pa

        ids = several(items)
        rows = known_rows(self.items, ids)
        k = at_least_one(k)
        unit = self._unit_items
        itself = np.arange(len(rows) + 1, dtype=np.int64), rows.astype(np.int32)
        best, score = unit.best(unit.H[rows], min(k, len(unit)), itself, resolve_threads(self.solver.threads))
        query, place = np.nonzero(best >= 0)
        return pa.table(
            {
                "item": id_column(self.items, rows[query]),
                "similar": id_column(self.items, best[query, place]),
                "score": score[query, place],
                "rank": (place + 1).astype(np.int32),
            }
        )

    # -- people the model was not trained on ---------------------------------------------------------------------

    def fold_in(self, interactions: Interactions, features: Features | None = None) -> Recommender:
        """Make the same model for other users: their rows solved in closed form from their interactions.

        Parameters
        ----------
        interactions : Interactions
            Histories of any users, also of trained ones whose history has grown. Items that the model does not
            know are left out.
        features : Features, optional
            What is known of them, of a model that was fitted with features of users.

        Returns
        -------
        Recommender
            Its users are those of `interactions`; ``recommend`` and ``evaluate`` serve them as warm.

        Raises
        ------
        ValueError
            Pairs without ratings and a model of ratings; ids of another type; features that the model was not fitted
            to, or of none of the users.
        """
        if self.predicts_ratings and not interactions.rated:
            raise ValueError("the histories have no ratings, and this model predicts ratings: give item and rating")
        if interactions.nnz and interactions.items.is_text != self.items.is_text:
            here, there = ("text", "integers") if self.items.is_text else ("integers", "text")
            raise ValueError(f"item ids are {here} in the model and {there} in the histories: give both as the same")
        seen, known = interactions.aligned(interactions.users, self.items)
        points = None
        if features is not None or self.user_encoder is not None:
            points = points_of_users(self.user_encoder, features, interactions.users)
        solve: Any = self.solver.solve_users
        W, bias = solve(seen, self.item_side) if points is None else solve(seen, self.item_side, points)
        folded = dataclasses.replace(
            self, users=interactions.users, W=W, user_bias=bias, seen=seen, warm=True, user_points=points
        )
        if self.drift is not None:
            times = None if interactions.times is None else interactions.times[known]
            folded = dataclasses.replace(folded, drift=self.drift._replace(users=folded._user_steps(times)))
        return folded.with_catalogue_of(self)

    def with_all(self, data: Interactions, features: Features | None = None) -> Recommender:
        """Make the same model after training on a part of `data`: every user's row solved from all of it."""
        side = self.item_side._replace(popularity=popularity_of(data.matrix))
        return dataclasses.replace(self.fold_in(data, features), item_side=side, warm=False)

    # -- people and items of which only features are known -------------------------------------------------------------

    def encode_users(self, features: Features) -> Recommender:
        """Make the same model for people nobody has seen, by their features.

        Parameters
        ----------
        features : Features
            With the columns of the training.

        Returns
        -------
        Recommender
            Its users are the rows of `features`, and cold.

        Raises
        ------
        ValueError
            The model was fitted without features of users, or to others.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> people = ek.read_features({"user": list(range(60)), "town": ["Rom", "Oslo", "Riga"] * 20})
        >>> model = ek.ALS(rank=4, epochs=3).fit(data, user_features=people)
        >>> model.recommend(features={"town": "Oslo"}, k=1)["status"].to_pylist()
        ['cold']
        """
        return with_users(self, features)

    def add_items(self, features: Features) -> Recommender:
        """Make the same model with more items, known by their features alone; nothing is trained again.

        Parameters
        ----------
        features : Features
            With the columns of the training. Items that the model knows stay as they are.

        Returns
        -------
        Recommender
            The new items are cold; nobody's factors, and no known item's, have changed.

        Raises
        ------
        ValueError
            The model was fitted without features of items, or to others; ids of another type.

        Examples
        --------
        >>> import eckart as ek
        >>> data = ek.synthetic(users=50, items=40, entries=600, seed=0)
        >>> films = ek.read_features({"item": list(range(60)), "genre": ["crime", "drama", "war"] * 20})
        >>> model = ek.ALS(rank=4, epochs=3).fit(data, item_features=films).add_items(films)
        >>> len(model.items), int(model.item_side.cold.sum())
        (60, 20)
        """
        return with_items(self, features)

    def with_drift(self, data: Interactions, user_bins: int = 10, item_bins: int = 0, reg: float = 10.0) -> Recommender:
        """Make the same model with biases that drift in time, fitted to its errors on `data`.

        min  sum of (error - d_u(t) - f_i(t))^2 + reg (sum of the squares of all steps), see
        ``eckart.recommend.drift``.

        Parameters
        ----------
        data : Interactions
            What the model was fitted to, with times.
        user_bins, item_bins : int >= 0
            Steps of each user and each item, of equally many of its own entries; 0: none.
        reg : float > 0
            How many entries it takes for a step to be half of what they say.

        Returns
        -------
        Recommender
            ``predict`` takes times; ``recommend`` is for now, the last step.

        Raises
        ------
        ValueError
            No times, a model that predicts no ratings, other users than the model's.

        Examples
        --------
        >>> import eckart as ek
        >>> columns = {"user": [1, 1, 2, 2], "item": [5, 6, 5, 6], "rating": [5, 4, 2, 1], "timestamp": [1, 2, 3, 9]}
        >>> data = ek.read(columns)
        >>> model = ek.ALS(rank=1).fit(data).with_drift(data, user_bins=2, reg=1.0)
        >>> early, late = model.predict([1, 1], [5, 5], times=[1, 2])
        >>> bool(early > late)
        True
        """
        check_bins(user_bins, item_bins, reg)
        if data.times is None or not (data.rated and self.predicts_ratings):
            raise ValueError("drift is fitted to ratings with timestamps, by a model of ratings: give both")
        if data.users != self.users or data.items != self.items:
            raise ValueError("drift is fitted to the data that the model was: these have other users or items")
        rows, columns = entries(data.matrix)
        error = data.matrix.data - self.static_scores(rows, columns).astype(np.float64)
        drift = fit_drift(rows, columns, data.times, error, data.matrix.shape, user_bins, item_bins, reg)
        return dataclasses.replace(self, drift=drift)

    def explain(self, user: Id, item: Id) -> Explanation:
        """Which entries of the user's history carry the score of `item`, exactly.

        The score is linear in what the user's row was solved from, so it splits into one contribution per entry
        of the history (Hu, Koren, Volinsky 2008, section 5, extended to ratings and biases).

        Parameters
        ----------
        user, item : id
            Both known.

        Returns
        -------
        Explanation
            ``score == baseline + sum(reasons["contribution"])`` to float32 rounding of the stored factors.

        Raises
        ------
        ValueError
            An unknown user or item.
        """
        row = int(self.users.rows([user])[0])
        if row < 0:
            raise ValueError(f"user {user!r} is not in the model: recommend(history=...) serves someone new")
        target = int(known_rows(self.items, [item])[0])
        begin, end = self.seen.indptr[row], self.seen.indptr[row + 1]
        columns, values = self.seen.indices[begin:end], self.seen.data[begin:end]
        split: Any = self.solver.contributions
        if begin == end:  # nothing was solved: the score is what features say, or anybody's
            baseline, shares = float(self.static_scores(np.array([row]), np.array([target]))[0]), np.zeros(0)
        elif self.user_points is None:
            baseline, shares = split(columns, values, target, self.item_side)
        else:
            baseline, shares = split(columns, values, target, self.item_side, self.user_points[row])
        if not self.warm and getattr(self.solver, "rows_are_trained", False):  # beyond what the history says of it
            score = self.static_scores(np.array([row]), np.array([target]))[0]
            baseline = float(score) - float(shares.sum())
        if self.drift is not None:
            baseline += float(drift_at(self.drift, np.array([row]), np.array([target]), None)[0])
        return explanation_of(columns, values, baseline, shares, self.items)

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a model directory; one that is there is replaced at once or not at all.

        See ``docs/model-directory.md``. The same model gives the same bytes.

        Raises
        ------
        FileExistsError
            `path` is something else than a model directory or an empty one.
        """
        from eckart.recommend.files import save  # here, because loading needs this module

        save(self, path)

    # -- inside -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        n, m = self.seen.shape
        return f"Recommender({self.solver!r}, {n:,} users, {m:,} items, {self.seen.nnz:,} entries)"

    def _user_steps(self, times: np.ndarray | None) -> Steps:
        """Drift of the users, solved from what they have been seen to do, at these times; unknown: none."""
        assert self.drift is not None
        rows, columns = entries(self.seen)
        error = self.seen.data - self.static_scores(rows, columns).astype(np.float64)
        if times is None:
            times, error = np.zeros(len(rows), np.int64), 0 * error
        else:
            error -= steps_at(self.drift.items, columns, times)
        return fit_steps(rows, times, error, len(self.W), self.drift.users.heights.shape[1], self.drift.reg)

    @cached_property
    def _item_bias_now(self) -> np.ndarray:
        bias = self.item_side.bias
        return bias if self.drift is None else bias + steps_at(self.drift.items, np.arange(len(bias)), None)

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self.H, self._item_bias_now, resolve_threads(self.solver.threads))

    def with_catalogue_of(self, other: Recommender) -> Recommender:
        """Share what another model has built of the same items."""
        self.__dict__["_catalogue"] = other._catalogue
        return self

    @cached_property
    def _unit_items(self) -> Catalogue:
        norms = np.linalg.norm(self.H, axis=1, keepdims=True)
        unit, none = self.H / np.where(norms > 0, norms, 1), np.zeros(len(self.H), np.float32)
        return Catalogue(unit, none, resolve_threads(self.solver.threads))

    @cached_property
    def _scores_for_all(self) -> np.ndarray:
        if self.predicts_ratings:
            return self._item_bias_now + np.float32(self.item_side.mean)
        return self.item_side.popularity

    @cached_property
    def _order_for_all(self) -> np.ndarray:
        return _descending(self._scores_for_all)

    def _without_history(self, rows: np.ndarray) -> np.ndarray:
        without = rows < 0
        known = rows[~without]
        without[~without] = self.seen.indptr[known] == self.seen.indptr[known + 1]
        return without

    def _is_unknown(self, rows: np.ndarray) -> np.ndarray:
        return rows < 0 if self.user_points is not None else self._without_history(rows)


def _descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")

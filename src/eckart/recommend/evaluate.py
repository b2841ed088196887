"""From a model and held-out entries to numbers: who is asked, what counts as right, what is averaged.

Every item of the catalogue competes for the k places, except those the user already has in training; no
negatives are sampled. The formulas are in metrics.py, the protocols and what compares with what in
docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_array

from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.ids import several
from eckart.recommend.metrics import bootstrap_intervals, coverage, mae, novelty, ranking_metrics, rmse, strata_recall

__all__ = ["Model", "Report", "evaluate"]

_USERS = 4096  # lists scored at a time: at k = 100 the look-up's temporaries are about 10 MB
_ENTRIES = 1 << 20  # predictions asked at a time: 16 MB of string ids a side


class Model(Protocol):
    """What `evaluate` asks of a model; `Recommender` has it, and so can a wrapper around a peer's model."""

    @property
    def users(self) -> Vocabulary:
        """Ids of the rows of `seen`."""
        ...

    @property
    def items(self) -> Vocabulary:
        """Ids of the catalogue."""
        ...

    @property
    def seen(self) -> csr_array:
        """Training entries, users x items."""
        ...

    @property
    def predicts_ratings(self) -> bool:
        """False where a score is no rating (implicit models)."""
        ...

    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Score of each (user id, item id) pair, unknown ids included."""
        ...

    def top_k(self, user_rows: np.ndarray, k: int, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Best item rows (q, k), padded with -1, and their scores; user row -1 is someone unknown."""
        ...

    def fold_in(self, interactions: Interactions) -> Model:
        """Model whose users are those of `interactions`, the items left as they are."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Report(Mapping[str, float]):
    """Named numbers, some with a bootstrap interval; prints as a table.

    Parameters
    ----------
    numbers : dict of str to float
        Metrics, then counts (integers).
    intervals : dict of str to (float, float)
    level : float, optional
        Confidence level of the intervals.

    Examples
    --------
    >>> report = Report({"rmse": 0.8731, "users": 6040}, {"rmse": (0.8655, 0.8802)}, 0.95)
    >>> report
            value  95 % interval
    rmse   0.8731  0.8655 .. 0.8802
    users   6,040
    >>> report["rmse"], report.intervals["rmse"]
    (0.8731, (0.8655, 0.8802))
    """

    numbers: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    level: float | None = None

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON: every number by name, then ``intervals`` and their ``level``."""
        ends = {name: list(pair) for name, pair in self.intervals.items()}
        return {**self.numbers, "intervals": ends, "level": self.level}

    def __repr__(self) -> str:
        def written(x: float) -> str:
            return f"{x:,}" if isinstance(x, int) else f"{x:.4f}"

        name_width = max(map(len, self.numbers), default=0)
        width = max([len("value"), *(len(written(x)) for x in self.numbers.values())])
        head = f"{'':{name_width}}  {'value':>{width}}"
        lines = [head if self.level is None else f"{head}  {100 * self.level:g} % interval"]
        for name, x in self.numbers.items():
            line = f"{name:{name_width}}  {written(x):>{width}}"
            if name in self.intervals:
                line += "  {:.4f} .. {:.4f}".format(*self.intervals[name])
            lines.append(line)
        return "\n".join(lines)


def evaluate(
    model: Model,
    test: Interactions,
    k: int = 10,
    *,
    relevant: float | None = None,
    fold_in: float | None = None,
    items: Any = None,
    strata: int | None = None,
    intervals: float | None = 0.95,
    seed: int = 0,
) -> Report:
    """Measure a model on held-out entries.

    Rating errors are over all test entries, and present where both the model and `test` have ratings; a model
    whose biases drift is asked at each entry's time, where `test` has times.
    Ranking metrics are means over the users with at least one target, each served the k best items of
    the catalogue that are not among the user's training entries. Unknown users are served the model's cold
    answer and count; unknown items are targets that no list can hold, and count.

    Parameters
    ----------
    model : Model
        A fitted `Recommender`, or anything with the same members.
    test : Interactions
        Held-out entries under their own vocabularies, disjoint from training.
    k : int >= 1
        Length of the lists.
    relevant : float, optional
        Only test ratings of at least this are targets. By default every test entry is one.
    fold_in : float in (0, 1), optional
        Strong generalisation (Liang et al. 2018): no test user may be known; this share of the entries of
        each, drawn at random and rounded up, becomes the history the model folds in, the rest is the
        test. Each side gets at least one entry; users with fewer than two are left out.
    items : id or sequence of ids, optional
        Only these items compete, and only test entries on them count: the cold ones, what is in stock. Needs a model
        whose ``top_k`` takes ``allow``, as a `Recommender`'s does.
    strata : int >= 1, optional
        Also tell the recall apart by the popularity of the targets, in so many groups, see
        ``eckart.recommend.metrics.strata_recall``.
    intervals : float in (0, 1) or None
        Level of the bootstrap intervals over users; None leaves them out.
    seed : int
        Of the fold-in draw and the bootstrap.

    Returns
    -------
    Report
        ``rmse``, ``mae``; ``recall@k``, ``recall_capped@k``, ``precision@k``, ``ndcg@k``, ``map@k``,
        ``mrr@k``, ``hit_rate@k`` (k as a number); ``coverage@k``, ``novelty@k`` (absent if no list holds
        anything); ``recall@k 1/q`` to ``recall@k q/q`` from the least popular of q `strata`; and the counts

        - ``entries``: test entries, after folding in
        - ``users``, ``targets``: users the ranking metrics average over, and their targets
        - ``users_without_targets``: test users left out of the ranking metrics
        - ``unknown_users``, ``unknown_item_entries``: test users, and entries on items, the model lacks
        - ``seen_entries``: test entries that are in training, which no list can hold; 0 in a fair test
        - ``folded_entries``, ``too_short_users``: entries given as history, users left out (`fold_in` only)

    Raises
    ------
    ValueError
        k or `strata` below 1; a share or level outside (0, 1); an empty test; `items` of which the model or the test
        has none; `relevant` without ratings or above all of them; with `fold_in`, a test user in training or no user
        with two entries; a prediction that is not finite.

    References
    ----------
    Liang, Krishnan, Hoffman, Jebara 2018, "Variational autoencoders for collaborative filtering", section 4.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=300, items=80, entries=6000, seed=0)
    >>> train, test = ek.split(data, test=0.2, seed=0)
    >>> report = ek.evaluate(ek.ALS(rank=4, epochs=5, threads=1).fit(train), test, k=5)
    >>> low, high = report.intervals["rmse"]
    >>> low < report["rmse"] < high, report["entries"], report["seen_entries"]
    (True, 1200, 0)
    """
    _check(test, k, relevant, fold_in, strata, intervals)
    if model.items.is_text != test.items.is_text:
        here, there = ("text", "integers") if model.items.is_text else ("integers", "text")
        raise ValueError(f"item ids are {here} in the model and {there} in the test: give both as the same")
    allow, keep = None, np.ones(test.nnz, dtype=bool)
    if items is not None:
        allow, keep = _competing(model, test, items)
    test = test.select(keep)  # drops ids without entries: they are no test users
    served, folded = model, {}
    if fold_in is not None:
        history, test, too_short = _split_histories(model, test, fold_in, seed)
        served = model.fold_in(history)
        folded = {"folded_entries": history.nnz, "too_short_users": too_short}
    wanted = test
    if relevant is not None:
        wanted = test.select(test.matrix.data >= relevant)
        if not wanted.nnz:
            raise ValueError(
                f"no test rating reaches relevant = {relevant}: the highest is {test.matrix.data.max()}, "
                "choose at most that"
            )

    numbers, bounds = {}, {}
    if served.predicts_ratings and test.rated:
        numbers, bounds = _rating_errors(served, test, intervals, seed)
    ranked, scores, targets = _rankings(served, wanted, k, allow)
    numbers |= {f"{name}@{k}": float(x.mean()) for name, x in scores.items()}
    if intervals is not None:
        ends = bootstrap_intervals(np.column_stack(list(scores.values())), np.ones(len(ranked)), intervals, seed=seed)
        bounds |= {f"{name}@{k}": _pair(x) for name, x in zip(scores, ends, strict=True)}
    if np.any(ranked >= 0):
        # Popularity is that of training, also when the served model knows only the folded-in users.
        holders = np.bincount(model.seen.indices, minlength=len(model.items))
        numbers[f"coverage@{k}"] = coverage(ranked, len(model.items) if allow is None else len(allow))
        numbers[f"novelty@{k}"] = novelty(ranked, holders, len(model.users))
    if strata is not None:
        # A target that the model does not know is the least popular there is.
        holders = np.zeros(targets.shape[1], np.int64)  # type: ignore[reportGeneralTypeIssues]
        holders[: len(model.items)] = np.bincount(model.seen.indices, minlength=len(model.items))
        shares = strata_recall(ranked, targets, holders, strata).tolist()
        numbers |= {f"recall@{k} {g}/{strata}": x for g, x in enumerate(shares, 1) if x == x}
    return Report(
        numbers
        | {
            "entries": test.nnz,
            "users": len(wanted.users),
            "targets": wanted.nnz,
            "users_without_targets": len(test.users) - len(wanted.users),
        }
        | _overlap(served, test)
        | folded,
        bounds,
        intervals,
    )


def _competing(model: Model, test: Interactions, items: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the items that compete, and which test entries are on them."""
    ids = Vocabulary.of(several(items))
    rows = model.items.rows(ids.ids)
    rows = rows[rows >= 0]
    keep = (ids.rows(test.items.ids) >= 0)[test.matrix.indices]
    if not len(rows) or not keep.any():
        who = "the model" if not len(rows) else "the test"
        raise ValueError(f"none of the {len(ids):,} items is in {who}: give items that it has, or leave items out")
    return rows, keep


def _check(
    test: Interactions,
    k: int,
    relevant: float | None,
    fold_in: float | None,
    strata: int | None,
    intervals: float | None,
) -> None:
    if strata is not None and not 1 <= strata <= 100:
        raise ValueError(f"strata is {strata}: choose 1 to 100")
    if not 1 <= k <= 10_000:
        raise ValueError(f"k is {k}: choose 1 to 10,000")
    for name, x in (("fold_in", fold_in), ("intervals", intervals)):
        if x is not None and not 0 < x < 1:
            raise ValueError(f"{name} is {x}: choose a number between 0 and 1, or None")
    if not test.nnz:
        raise ValueError("test has no entries: give at least one held-out entry")
    if relevant is not None and not test.rated:
        raise ValueError(f"relevant is {relevant}, but test is positive-only: leave relevant out")


def _split_histories(
    model: Model, test: Interactions, share: float, seed: int
) -> tuple[Interactions, Interactions, int]:
    """Deal each new user's entries at random into a history and a test, and count the users too short for it.

    The draw is over entries in the order of ids, so the order of a file does not matter.
    """
    known = test.users.ids[model.users.rows(test.users.ids) >= 0]
    if len(known):
        raise ValueError(
            f"{len(known):,} of {len(test.users):,} test users were in training (first: {known.tolist()[0]!r}): "
            "fold_in measures new users, so split with by='user' or leave fold_in out"
        )
    n = np.diff(test.matrix.indptr)
    if not np.any(n >= 2):
        raise ValueError("every test user has a single entry: fold_in needs at least two, one to give and one to find")
    # Mult-VAE holds out floor((1 - share) n). The step back keeps 0.55 * 100 = 55.00000000000001 at 55.
    given = np.clip(np.ceil(share * n - 1e-9), 1, np.maximum(n - 1, 1)).astype(np.int64)
    rows = test.user_rows()
    order = np.lexsort((np.random.default_rng(seed).random(test.nnz), rows))
    place = np.empty(test.nnz, dtype=np.int64)
    place[order] = np.arange(test.nnz) - np.repeat(test.matrix.indptr[:-1], n)
    in_history, dealt = place < given[rows], n[rows] >= 2
    return test.select(in_history & dealt), test.select(~in_history & dealt), int(np.count_nonzero(n < 2))


def _rating_errors(
    model: Model, test: Interactions, level: float | None, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    rows, cols, observed = test.user_rows(), test.matrix.indices, test.matrix.data
    # A model with `uses_times` (a Recommender has it, a wrapper need not) is asked for each entry's own time.
    predict: Any = model.predict
    times = test.times if getattr(model, "uses_times", False) else None
    predicted = np.empty(test.nnz, dtype=np.float32)
    for start in range(0, test.nnz, _ENTRIES):
        part = slice(start, start + _ENTRIES)
        pairs = test.users.ids[rows[part]], test.items.ids[cols[part]]
        predicted[part] = predict(*pairs) if times is None else predict(*pairs, times[part])
    bad = test.nnz - np.count_nonzero(np.isfinite(predicted))
    if bad:
        raise ValueError(f"{bad:,} of {test.nnz:,} predictions are not finite numbers: fit the model again")
    numbers = {"rmse": rmse(predicted, observed), "mae": mae(predicted, observed)}
    if level is None:
        return numbers, {}
    error = predicted.astype(np.float64) - observed
    per_user = np.column_stack([np.bincount(rows, error**2), np.bincount(rows, np.abs(error))])
    squared, absolute = bootstrap_intervals(per_user, np.bincount(rows), level, seed=seed)
    return numbers, {"rmse": _pair(np.sqrt(squared)), "mae": _pair(absolute)}


def _rankings(
    model: Model, wanted: Interactions, k: int, allow: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray], csr_array]:
    """Lists of the users of `wanted`, (users, k) item rows, every ranking metric of every user, and their targets."""
    # An unknown item gets a column of its own past the catalogue: it is a target, and in no list.
    column = model.items.rows(wanted.items.ids)
    column = np.where(column < 0, len(model.items) + np.arange(len(column)), column)
    targets = csr_array(
        (wanted.matrix.data, column[wanted.matrix.indices], wanted.matrix.indptr),
        shape=(len(wanted.users), len(model.items) + len(column)),
    )
    rows = model.users.rows(wanted.users.ids)
    ranked = np.empty((len(rows), k), dtype=np.int32)
    top_k: Any = model.top_k
    if allow is not None:
        top_k = partial(top_k, allow=allow)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(rows), _USERS):
        part = slice(start, start + _USERS)
        ranked[part] = top_k(rows[part], k, exclude_seen=True)[0]
        parts.append(ranking_metrics(ranked[part], targets[part]))
    return ranked, {name: np.concatenate([scores[name] for scores in parts]) for name in parts[0]}, targets


def _overlap(model: Model, test: Interactions) -> dict[str, int]:
    """How test and model meet: what the model does not know, and what it has been shown."""
    row, col = model.users.rows(test.users.ids), model.items.rows(test.items.ids)
    rows, cols = row[test.user_rows()], col[test.matrix.indices]
    both = (rows >= 0) & (cols >= 0)
    # Ones for ratings: a seen rating of 0 would read as not seen.
    ones = np.ones(model.seen.nnz, dtype=np.int8)
    seen = csr_array((ones, model.seen.indices, model.seen.indptr), shape=model.seen.shape)
    return {
        "unknown_users": int(np.count_nonzero(row < 0)),
        "unknown_item_entries": int(np.count_nonzero(cols < 0)),
        "seen_entries": int(seen[rows[both], cols[both]].sum()) if np.any(both) else 0,
    }


def _pair(ends: np.ndarray) -> tuple[float, float]:
    low, high = ends.tolist()
    return low, high

"""What a model is worth to those it knows, to new items and to new people: three protocols, one fit.

    warm         a random tenth of what trained users have of trained items: every trained item competes
    cold items   what trained users have of the items held out: these alone compete, by their features
    cold users   what the users held out have of trained items: they are served by their features

What a held-out user has of a held-out item is neither learnt nor asked, so either protocol is about one kind of
newcomer. Beside each stands what needs no features: popularity in training, or a random order where nothing is popular
yet, as Volkovs, Yu, Poutanen (2017, "DropoutNet") compare them. Of new items there is also an oracle: the one list for
everyone by their popularity in the very test, which nobody has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.core.csr import csr
from eckart.data.features import Features
from eckart.data.interactions import Interactions
from eckart.data.split import split
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.baselines import popularity
from eckart.recommend.evaluate import Report, evaluate
from eckart.recommend.random_order import random_order
from eckart.recommend.solver import Solver, require_features_taken

if TYPE_CHECKING:
    from eckart.recommend.recommender import Recommender

__all__ = ["ColdStart", "cold_start"]

_WARM = 0.1  # of the entries that are left when the newcomers have been taken out


@dataclass(frozen=True, eq=False, repr=False)
class ColdStart(Mapping[str, Report]):
    """Reports by protocol; prints as a table.

    Parameters
    ----------
    reports : dict of str to Report
        "warm", "cold items", "cold users", each followed by its baselines: "warm: popularity", where it is asked for
        "warm: without features", "cold items: random order", "cold items: oracle", "cold users: popularity". Protocols
        without features are not there.
    """

    reports: dict[str, Report]

    def __getitem__(self, name: str) -> Report:
        return self.reports[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reports)

    def __len__(self) -> int:
        return len(self.reports)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types for JSON."""
        return {name: report.to_dict() for name, report in self.items()}

    def __repr__(self) -> str:
        shown = ("rmse", "ndcg@", "recall@", "hit_rate@", "users", "targets")
        first = next(iter(self.values()))
        names = [
            name for start in shown for name in first if name.startswith(start) and name != "users_without_targets"
        ]
        rows = [["", *names]]
        for label, report in self.items():
            cells = [report.get(name) for name in names]
            rows.append([label, *("" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:.4f}" for x in cells)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def cold_start(
    solver: Solver,
    data: Interactions,
    *,
    user_features: Features | None = None,
    item_features: Features | None = None,
    share: float = 0.2,
    k: int = 10,
    relevant: float | None = None,
    seed: int = 0,
    compare: bool = False,
    intervals: float | None = None,
) -> ColdStart:
    """Hold out items, users and entries, fit once to the rest, and measure what the model does for each.

    Parameters
    ----------
    solver : Solver
        One that learns from features: `ALS`, `ImplicitALS` or `TwoTower`.
    data : Interactions
    user_features, item_features : Features, optional
        At least one. Users are held out where there are features of users, items where there are features of items;
        of an id without features everything is missing.
    share : float, 0 < share < 1
        Of the items, and of the users, that are held out.
    k : int >= 1
        Length of the lists.
    relevant : float, optional
        Only ratings of at least this are targets, see `evaluate`.
    seed : int
        Of what is held out and of the intervals; the fit has the solver's own.
    compare : bool
        Fit the solver a second time, to the same data without features, for its warm figures.
    intervals : float, optional
        Confidence level of bootstrap intervals; None: none.

    Returns
    -------
    ColdStart
        A mapping of "warm", "cold items", "cold users" and their baselines to reports of `evaluate`. Trained users
        alone are asked about cold items. The numbers of a random order are expectations, in closed form; those of the
        oracle are no bound on lists that differ by user. There is no novelty of newcomers, whose lists it would not
        tell apart.

    Raises
    ------
    ValueError
        No features, a solver that learns from none, a `share` outside (0, 1), features that fit to no id, a part of
        the data without entries; what `fit` and `evaluate` raise.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, seed=0)
    >>> films = ek.read_features({"item": list(range(100)), "genre": ["crime", "drama"] * 50})
    >>> result = ek.cold_start(ek.ALS(rank=4, epochs=3, threads=1), data, item_features=films)
    >>> list(result)
    ['warm', 'warm: popularity', 'cold items', 'cold items: random order', 'cold items: oracle']
    >>> result["cold items"]["entries"] > 0
    True
    """
    given = {"user_features": user_features, "item_features": item_features}
    given = {name: features for name, features in given.items() if features is not None}
    if not given:
        raise ValueError("there are no features, and so nobody is known before day one: give item_features= or more")
    require_features_taken(solver)
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a fraction between 0 and 1")

    rest, of_items, of_users = data, None, None
    if item_features is not None:
        rest, of_items = split(rest, share, by="item", seed=seed)
        given["item_features"] = _without(item_features, of_items.items)
    if user_features is not None:
        rest, of_users = split(rest, share, by="user", seed=seed)
        given["user_features"] = _without(user_features, of_users.users)
    train, held = split(rest, _WARM, by="random", seed=seed)
    fit: Any = solver.fit
    model = fit(train, **given)

    how: dict[str, Any] = {"k": k, "relevant": relevant, "seed": seed, "intervals": intervals}
    by_popularity = popularity(train)
    reports = {"warm": evaluate(model, held, **how), "warm: popularity": evaluate(by_popularity, held, **how)}
    if compare:
        reports["warm: without features"] = evaluate(fit(train), held, **how)
    if of_items is not None and item_features is not None:
        new = of_items.items
        asked = of_items.select((train.users.rows(of_items.users.ids) >= 0)[of_items.user_rows()])
        report = evaluate(model.add_items(item_features.aligned(new)), asked, items=new.ids, **how)
        reports["cold items"] = _without_novelty(report)
        wanted = asked if relevant is None else asked.select(asked.matrix.data >= relevant)
        reports["cold items: random order"] = _random_report(asked, wanted, len(new), k)
        reports["cold items: oracle"] = _without_novelty(evaluate(_oracle(wanted), wanted, **how))
    if of_users is not None and user_features is not None:
        people = model.encode_users(user_features.aligned(of_users.users))
        reports["cold users"] = _without_novelty(evaluate(people, of_users, **how))
        reports["cold users: popularity"] = _without_novelty(evaluate(by_popularity, of_users, **how))
    return ColdStart(reports)


def _without(features: Features, ids: Vocabulary) -> Features:
    return features.take(np.flatnonzero(ids.rows(features.ids.ids) < 0))


def _without_novelty(report: Report) -> Report:
    left = {name: x for name, x in report.items() if not name.startswith("novelty@")}
    return dataclasses.replace(report, numbers=left)


def _oracle(wanted: Interactions) -> Recommender:
    """Serve everybody the most popular targets, as someone who has seen none of them."""
    n, m = wanted.matrix.shape
    seen = csr(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(n + 1, np.int64), (n, m))
    return dataclasses.replace(popularity(wanted), seen=seen)


def _random_report(test: Interactions, wanted: Interactions, items: int, k: int) -> Report:
    """What `evaluate` would say on average if the lists were drawn from the items at random."""
    targets = np.diff(wanted.matrix.indptr)
    numbers = {f"{name}@{k}": float(x.mean()) for name, x in random_order(targets, items, k).items()}
    without = len(test.users) - len(wanted.users)
    counts = {"entries": test.nnz, "users": len(targets), "targets": wanted.nnz, "users_without_targets": without}
    return Report(numbers | counts, {})

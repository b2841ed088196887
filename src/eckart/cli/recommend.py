"""``eckart recommend`` and ``eckart similar``: ask a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import features, ids, ratings, terminal

if TYPE_CHECKING:
    from eckart.data.feature_table import Features
    from eckart.recommend.recommender import Recommender

__all__ = ["recommend", "similar"]

_NEWCOMER = "newcomer"
_REASONS = 3  # shown for each item; --json gives as many

Model = Annotated[str, typer.Argument(metavar="MODEL", help="directory that eckart fit wrote")]
Length = Annotated[int, typer.Option("--k", "-k", min=1, help="length of a list")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def recommend(
    model: Model,
    users: Annotated[list[str] | None, typer.Argument(metavar="USER...", help="ids of users")] = None,
    k: Length = 10,
    history: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM=RATING", help="what someone new has rated, once for each item; instead of USER"),
    ] = None,
    feature: features.One = None,
    add_items: features.AddedItems = None,
    item: ratings.ItemColumn = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM|@FILE", help="recommend only this item, or those in a file, one a line; repeatable"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM|@FILE", help="leave this item out, or those in a file, one a line; repeatable"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="say which of the user's own entries carry each score")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recommend items to users of the model, or to someone new.

    What a user has rated is left out. A user the model does not know gets the list for everyone (status
    "unknown"). Someone new is told of by --history, --feature or both. With --only other items do not compete. An id
    that begins with a dash goes after "--".
    """
    if bool(users) == bool(history or feature):
        raise typer.BadParameter(
            "give either USER, or for someone new --history ITEM=RATING, --feature NAME=VALUE or both"
        )
    if item is not None and add_items is None:
        raise typer.BadParameter("--item is the column of ids in the file of --add-items: give that, too")

    import eckart

    fitted = eckart.load(model)
    if add_items is not None:
        new = features.read_known(add_items, "item", fitted.item_encoder, item)
        fitted = fitted.add_items(features.with_ids_as(new, fitted.items))
    person = features.of_one(feature, fitted.user_encoder) if feature else None
    if history:
        served, asked = _with_newcomer(fitted, history, person), [_NEWCOMER]
    elif person is not None:
        served, asked = fitted.encode_users(person), [_NEWCOMER]
    else:
        served, asked = fitted, ids.typed(users or [], fitted.users)
    wanted, unwanted = ids.listed(only, fitted.items), ids.listed(exclude, fitted.items)
    rows = served.recommend(asked, k, items=wanted, exclude=unwanted).to_pylist()
    for row in rows:  # one unknown user who is text makes text of the whole column
        row["user"] = ids.typed([str(row["user"])], served.users)[0]
    for one in dict.fromkeys(row["user"] for row in rows if row["status"] == "unknown"):
        cure = "" if fitted.user_encoder is None else "; --feature NAME=VALUE says what is known of someone new"
        terminal.note(f"eckart: the model knows nothing of user {one}: the list is the one for everyone{cure}")
    if explain:
        for row in rows:
            row |= _reasons(served, row)
    if as_json:
        terminal.print_json({"recommendations": rows})
        return
    columns = ["user", "rank", "item", "score", "status"]
    if fitted.item_side.cold is not None:
        columns.append("item_status")
    shown = [[row[name] for name in columns] for row in rows]
    if explain:
        columns.append("because of")
        shown = [[*cells, _because(row)] for cells, row in zip(shown, rows, strict=True)]
    terminal.print_table(columns, shown)


def similar(
    model: Model,
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="ids of items")],
    k: Length = 10,
    as_json: AsJson = False,
) -> None:
    """List the items whose factors point the same way; the score is the cosine."""
    import eckart

    fitted = eckart.load(model)
    table = fitted.similar(ids.typed(items, fitted.items), k)
    if as_json:
        terminal.print_json({"similar": table.to_pylist()})
        return
    columns = ["item", "rank", "similar", "score"]
    terminal.print_table(columns, [[row[name] for name in columns] for row in table.to_pylist()])


def _with_newcomer(model: Recommender, history: list[str], person: Features | None) -> Recommender:
    """Fold in one new user, whose entries are 'ITEM=RATING' or, where the model only ranks, 'ITEM'."""
    from eckart.data.read import read

    entries = [_entry(text, model) for text in history]
    rated = [value is not None for _, value in entries]
    if any(rated) != all(rated):
        raise ValueError("some items of the history have a rating and some have none: give all of them one")
    if model.predicts_ratings and not all(rated):
        raise ValueError("this model predicts ratings: give the history as ITEM=RATING")
    items = [item for item, _ in entries]
    if len(set(items)) < len(items):
        raise ValueError("an item stands twice in the history: give it once")
    model.similar(items, 1)  # its error names an unknown item, and the one that may be meant
    columns: dict[str, list[Any]] = {"user": [_NEWCOMER] * len(items), "item": items}
    if all(rated):
        columns["rating"] = [value for _, value in entries]
    return model.fold_in(read(columns), person)


def _entry(text: str, model: Recommender) -> tuple[int | str, float | None]:
    whole = ids.typed([text], model.items)[0]
    name, equals, number = text.rpartition("=")
    if not equals or (not model.predicts_ratings and whole in model.items):
        return whole, None
    try:
        return ids.typed([name], model.items)[0], float(number)
    except ValueError:
        raise ValueError(f"the rating of {name!r} in the history is {number!r}, expected a number") from None


def _reasons(model: Recommender, row: dict[str, Any]) -> dict[str, Any]:
    if row["status"] == "unknown":
        return {"baseline": row["score"], "reasons": []}
    explanation = model.explain(row["user"], row["item"])
    return {"baseline": explanation.baseline, "reasons": explanation.reasons.slice(0, _REASONS).to_pylist()}


def _because(row: dict[str, Any]) -> str:
    return "; ".join(f"{x['item']} ({x['value']:g}): {x['contribution']:+.3f}" for x in row["reasons"])

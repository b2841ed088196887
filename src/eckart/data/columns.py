"""Which column is the user, the item, the rating, the time.

A name counts by what it says, not how it is written: 'User-ID', 'userId' and 'user_id:token' are all
'userid'. The synonyms of a role stand in tiers; a column of an earlier tier wins over one of a later tier,
and two columns of the same tier are a question for the caller, never a guess.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

__all__ = [
    "ROLES",
    "find_columns",
    "find_id",
    "is_number",
    "looks_like_header",
    "nearest",
    "positional_columns",
    "quoted",
]

ROLES = ("user", "item", "rating", "timestamp")

_NOUNS = {
    "user": "customer member reviewer visitor buyer account person subscriber listener reader rater player",
    "item": "movie product book article track song artist album video business film game anime recipe joke "
    "restaurant place location venue hotel course job page app post news document paper",
}
_SYNONYMS: dict[str, tuple[set[str], ...]] = {
    "user": (
        {"user", "users", "userid", "uid"},
        {form for noun in _NOUNS["user"].split() for form in (noun, noun + "id")},
        {"username", "reviewername"},
    ),
    "item": (
        {"item", "items", "itemid", "iid"},
        {form for noun in _NOUNS["item"].split() for form in (noun, noun + "id")}
        | {"isbn", "asin", "sku", "poi", "poiid", "url"},
        {"title", "itemname", "movietitle", "producttitle", "parentasin"},
    ),
    "rating": (
        {"rating", "ratings"},
        {"score", "stars", "star", "overall", "value", "preference"}
        | {"reviewscore", "bookrating", "movierating", "userrating", "starrating"},
        {
            "count",
            "counts",
            "plays",
            "playcount",
            "listens",
            "clicks",
            "views",
            "weight",
            "quantity",
            "hours",
        },
    ),
    "timestamp": (
        {"timestamp", "unixtime", "unixreviewtime"},
        {"time", "ts", "date", "datetime", "createdat", "reviewtime", "reviewdate"},
    ),
}
_ALL = set().union(*(tier for tiers in _SYNONYMS.values() for tier in tiers))


def find_columns(names: Sequence[str], chosen: Mapping[str, str | int | bool | None], where: str) -> dict[str, int]:
    """Position of each role's column in a source whose columns have names.

    Parameters
    ----------
    names : sequence of str
    chosen : mapping from role to name, position, None (find it) or False (do without it)
    where : str
        What the source is called in an error.

    Returns
    -------
    dict of str to int
        Always with 'user' and 'item', with 'rating' and 'timestamp' where there are such columns.

    Raises
    ------
    ValueError
        A column that is missing, ambiguous, or wanted for two roles.

    Examples
    --------
    >>> none = dict.fromkeys(ROLES)
    >>> find_columns(["movieId", "title", "User-ID", "stars"], none, "ratings.csv")
    {'user': 2, 'item': 0, 'rating': 3}
    """
    found = _chosen_positions(names, chosen, where)
    spoken = [_plain(name) for name in names]
    for role in ROLES:
        if role in found or chosen[role] is False:
            continue
        free = [i for i in range(len(names)) if i not in found.values()]
        matches = next((m for tier in _SYNONYMS[role] if (m := [i for i in free if spoken[i] in tier])), [])
        if len(matches) > 1:
            listed = quoted([names[i] for i in matches])
            raise ValueError(f"{where}: the {role} column could be {listed}: say which one with {role}=.")
        if matches:
            found[role] = matches[0]
        elif role in ("user", "item"):
            raise ValueError(f"{where}: no {role} column among {quoted(names)}: say which one it is with {role}=.")
    return {role: found[role] for role in ROLES if role in found}


def find_id(names: Sequence[str], chosen: str | int | None, where: str) -> int:
    """Position of the column of ids in a table that tells of users or of items.

    Parameters
    ----------
    names : sequence of str
    chosen : str, int or None
        Name or position; None: the column called 'id', or as a user's or an item's is.
    where : str
        What the source is called in an error.

    Raises
    ------
    ValueError
        There is no such column, or several could be it.

    Examples
    --------
    >>> find_id(["title", "genres", "movieId"], None, "movies.csv")
    2
    """
    if chosen is not None:
        return _chosen_positions(names, {"id": chosen}, where)["id"]
    spoken = [_plain(name) for name in names]
    for n, (users, items) in enumerate(zip(_SYNONYMS["user"], _SYNONYMS["item"], strict=True)):
        tier = users | items | ({"id"} if n == 0 else set())
        matches = [i for i, name in enumerate(spoken) if name in tier]
        if len(matches) > 1:
            listed = quoted([names[i] for i in matches])
            raise ValueError(f"{where}: the column of ids could be {listed}: say which one with id=.")
        if matches:
            return matches[0]
    raise ValueError(f"{where}: no column of ids among {quoted(names)}: say which one it is with id=.")


def positional_columns(count: int, chosen: Mapping[str, str | int | bool | None], where: str) -> dict[str, int]:
    """Position of each role's column where columns have no names: user, item, rating, timestamp in order.

    Raises
    ------
    ValueError
        More than four columns and not told which are the user and the item; a column chosen by name.

    Examples
    --------
    >>> positional_columns(3, dict.fromkeys(ROLES), "u.data")
    {'user': 0, 'item': 1, 'rating': 2}
    """
    for role, choice in chosen.items():
        if isinstance(choice, str):
            raise ValueError(
                f"{where}: no column {quoted([choice])}, for the file has no header: give {role}= a position."
            )
    found = _chosen_positions([""] * count, chosen, where)
    if count > 4 and not {"user", "item"} <= found.keys():
        raise ValueError(f"{where}: {count} columns and no header: give the positions with user=, item=, rating=.")
    free = [i for i in range(count) if i not in found.values()] if count <= 4 else []
    for role in ROLES:
        if role not in found and free:
            place = free.pop(0)  # a column that is to be ignored is still passed over
            if chosen[role] is not False:
                found[role] = place
    for role in ("user", "item"):
        if role not in found:
            raise ValueError(f"{where}: no column is left for the {role}: give its position with {role}=.")
    return {role: found[role] for role in ROLES if role in found}


def looks_like_header(fields: Sequence[str], chosen: Mapping[str, str | int | bool | None]) -> bool:
    """Whether the first line of a file names its columns.

    It does where a field is a name the caller gave; else where no field is a number and either a field is a
    known name or the third one, a rating if this were data, is there.

    Examples
    --------
    >>> none = dict.fromkeys(ROLES)
    >>> [looks_like_header(line.split(","), none) for line in ("userId,what", "u1,book,5", "a,b,c", "a,b")]
    [True, False, True, False]
    """
    if any(isinstance(name, str) and name in fields for name in chosen.values()):
        return True
    if any(is_number(field) for field in fields):
        return False
    return any(_plain(field) in _ALL for field in fields) or (len(fields) > 2 and bool(fields[2].strip()))


def is_number(text: str) -> bool:
    """Whether the text reads as a number (nan and inf included)."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def quoted(names: Sequence[str], most: int = 8) -> str:
    """Names for an error message: quoted, shortened, and not too many."""
    shown = ", ".join(text if len(text) <= 32 else text[:29] + "..." for text in map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: str, names: Sequence[str]) -> str:
    """Say which of `names` is meant by one that is not among them: " Did you mean 'genres'?", or nothing.

    Examples
    --------
    >>> nearest("genre", ["title", "genres"])
    " Did you mean 'genres'?"
    """
    plain = {_plain(other): other for other in reversed(names)}
    close = difflib.get_close_matches(_plain(name)[:100], list(plain), 1)
    return f" Did you mean {quoted([plain[close[0]]])}?" if close else ""


def _plain(name: str) -> str:
    # 'user_id:token' is how RecBole writes a name and its type
    return re.sub(r"[\W_]", "", name.split(":")[0].casefold())


def _chosen_positions(
    names: Sequence[str], chosen: Mapping[str, str | int | bool | None], where: str
) -> dict[str, int]:
    found: dict[str, int] = {}
    for role, choice in chosen.items():
        if choice is None or (choice is False and role in ("rating", "timestamp")):
            continue
        if isinstance(choice, str):
            place = _named(names, choice, role, where)
        elif isinstance(choice, bool) or not hasattr(choice, "__index__"):
            raise ValueError(f"{role}={choice!r}: expected the name or the position of a column.")
        elif not 0 <= choice < len(names):
            raise ValueError(f"{where}: {role}={choice}, but the columns are numbered 0 to {len(names) - 1}.")
        else:
            place = int(choice)
        if place in found.values():
            other = next(r for r, p in found.items() if p == place)
            raise ValueError(f"{where}: {other}= and {role}= are the same column: give each its own.")
        found[role] = place
    return found


def _named(names: Sequence[str], name: str, role: str, where: str) -> int:
    exact = [i for i, n in enumerate(names) if n == name]
    matches = exact or [i for i, n in enumerate(names) if _plain(n) == _plain(name)]
    if not matches:
        raise ValueError(f"{where}: no column {quoted([name])}, there are {quoted(names)}: give {role}= one of these.")
    if len(matches) > 1:
        raise ValueError(f"{where}: {len(matches)} columns are called {quoted([name])}: give {role}= a position.")
    return matches[0]

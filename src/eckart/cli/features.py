"""Features on the command line: files of them with their kinds, and those of one person as NAME=VALUE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli import terminal

if TYPE_CHECKING:
    from eckart.data.feature_table import Features
    from eckart.data.vocabulary import Vocabulary
    from eckart.recommend.encoder import Encoder

__all__ = [
    "AddedItems",
    "ItemFile",
    "Kinds",
    "One",
    "UserFile",
    "kinds_of",
    "of_one",
    "read",
    "read_known",
    "with_ids_as",
]

_FILE = "what is known of {0}: a CSV, TSV or Parquet file with a column of their ids"
UserFile = Annotated[str | None, typer.Option("--user-features", metavar="FILE", help=_FILE.format("users"))]
ItemFile = Annotated[str | None, typer.Option("--item-features", metavar="FILE", help=_FILE.format("items"))]
AddedItems = Annotated[
    str | None, typer.Option("--add-items", metavar="FILE", help="features of items that the model does not know yet")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--feature-kind",
        metavar="NAME=KIND",
        help="number, categories, text, vector, or none to leave it out; repeatable  [default: found out]",
    ),
]
One = Annotated[
    list[str] | None,
    typer.Option("--feature", metavar="NAME=VALUE", help="what is known of someone new; instead of USER; repeatable"),
]


def kinds_of(given: list[str] | None) -> dict[str, str | None]:
    """Kinds by column, from every --feature-kind NAME=KIND."""
    from eckart.data.feature_table import KINDS

    kinds: dict[str, str | None] = {}
    for text in given or []:
        name, equals, kind = text.rpartition("=")
        if not equals or kind not in (*KINDS, "none"):
            raise typer.BadParameter(f"got --feature-kind {text!r}, expected NAME=KIND: {', '.join(KINDS)} or none")
        if name in kinds:
            raise typer.BadParameter(f"the kind of {name!r} is given twice")
        kinds[name] = None if kind == "none" else kind
    return kinds


def read(
    user_file: str | None, item_file: str | None, kinds: Mapping[str, str | None], user: str | None, item: str | None
) -> dict[str, Features]:
    """Read the files there are; a kind is for each file that has the column.

    The column of ids is the one that --user or --item names, where a file has it, else found by its name.

    Raises
    ------
    ValueError
        A kind for a column that no file has; what `read_features` raises.
    """
    from eckart.data.columns import quoted
    from eckart.data.features import column_names

    files = {"user": (user_file, user), "item": (item_file, item)}
    there = {side: (path, column_names(path), ids) for side, (path, ids) in files.items() if path is not None}
    known = [name for _, names, _ in there.values() for name in names]
    if odd := [name for name in kinds if name not in known]:
        where = f"the features are {quoted(known)}" if there else "no file of features is given"
        raise ValueError(f"--feature-kind is for {odd[0]!r}, but {where}: give the name of one of them")
    return {
        f"{side}_features": _read(path, side, {n: kinds[n] for n in names if n in kinds}, names, ids)
        for side, (path, names, ids) in there.items()
    }


def read_known(path: str, side: str, encoder: Encoder | None, ids: str | None) -> Features:
    """Read those columns of a file that a fitted model knows, as of the kinds they had in training."""
    from eckart.data.columns import find_id
    from eckart.data.features import column_names
    from eckart.recommend.added import required

    kinds, names = required(encoder, f"{side}s").features.kinds, column_names(path)
    try:
        label = ids if ids in names else names[find_id(names, None, path)]
    except ValueError as error:
        raise ValueError(_as_told_here(str(error), side)) from None
    return _read(path, side, {name: kinds.get(name) for name in names if name != label and name.strip()}, names, ids)


def _read(path: str, side: str, kinds: dict[str, str | None], names: list[str], ids: str | None) -> Features:
    import eckart

    try:
        with terminal.waiting(f"reading {path}"):
            return eckart.read_features(path, id=ids if ids in names else None, kinds=kinds)
    except ValueError as error:
        raise ValueError(_as_told_here(str(error), side)) from None


def _as_told_here(message: str, side: str) -> str:
    return message.replace("with id=", f"with --{side} COL").replace("kinds=", "--feature-kind NAME=KIND")


def with_ids_as(features: Features, vocabulary: Vocabulary) -> Features:
    """Give the features with ids as text where those of the ratings are, though all of this file's are integers."""
    if not vocabulary.is_text or features.ids.is_text:
        return features
    import numpy as np

    from eckart.data.feature_table import Features
    from eckart.data.vocabulary import Vocabulary

    texts = np.array([str(x) for x in features.ids.ids.tolist()], dtype=np.dtypes.StringDType())
    order = np.argsort(texts)
    return Features(Vocabulary(texts[order]), {name: x.take(order) for name, x in features.columns.items()})


def of_one(given: list[str], encoder: Encoder | None) -> Features:
    """Features of one person from every --feature NAME=VALUE, each of the kind that the column had in training."""
    from eckart.recommend.added import one_person, required

    kinds = required(encoder, "users").features.kinds
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"got --feature {text!r}, expected --feature NAME=VALUE")
        if name in values:
            raise typer.BadParameter(f"feature {name!r} is given twice: several categories are written 'a|b'")
        values[name] = _typed(name, value, kinds.get(name, "")) if value else None
    return one_person(encoder, values)


def _typed(name: str, text: str, kind: str) -> Any:
    if kind not in ("number", "vector"):
        return text
    try:
        return float(text) if kind == "number" else [float(x) for x in text.split(",")]
    except ValueError:
        expected = "a number" if kind == "number" else "numbers with commas between them"
        raise ValueError(f"feature {name!r} is {text!r}, expected {expected}") from None

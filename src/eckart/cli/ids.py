"""Ids from outside in the type that the model has: what is typed is text, what is read may be either."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.data.interactions import Interactions
    from eckart.data.vocabulary import Vocabulary
    from eckart.recommend.recommender import Recommender

__all__ = ["as_in_model", "listed", "typed"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


def typed(texts: Sequence[str], vocabulary: Vocabulary) -> list[int | str]:
    """Ids from the command line: '42' is 42 where the model's ids are integers."""
    if vocabulary.is_text:
        return list(texts)
    return [int(text) if _INTEGER.fullmatch(text) else text for text in texts]


def listed(given: Sequence[str] | None, vocabulary: Vocabulary) -> list[int | str] | None:
    """Ids of repeated options, each an id or '@FILE' with one id a line (an id that is so called comes first).

    Raises
    ------
    ValueError
        The file is not UTF-8.
    OSError
        It cannot be read.
    """
    if given is None:
        return None
    texts: list[str] = []
    for one in given:
        if not one.startswith("@") or one in vocabulary:
            texts.append(one)
            continue
        try:
            lines = Path(one[1:]).read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{one[1:]}: is not UTF-8 text, expected one item id a line") from None
        texts += [line.strip() for line in lines if line.strip()]
    return typed(texts, vocabulary)


def as_in_model(test: Interactions, model: Recommender, users_known: bool) -> Interactions:
    """Test ratings with the ids as text where the model has them so, though all of this file's are integers.

    Raises
    ------
    ValueError
        The model has integers and the file has text, or the model knows none of the items.
    """
    sides = [("item", test.items, model.items)]
    if users_known:
        sides.append(("user", test.users, model.users))
    cast = [name for name, here, there in sides if there.is_text and not here.is_text]
    for name, here, there in sides:
        if here.is_text and not there.is_text:
            odd = next(x for x in here.ids.tolist() if not _INTEGER.fullmatch(x))
            raise ValueError(f"{name} ids are integers in the model, the test has {odd!r}: give it the same ids")
    if cast:
        import pyarrow as pa

        from eckart.data.read import read

        table = test.to_arrow()
        for name in cast:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast(pa.string()))
        test = read(table)
    if not (model.items.rows(test.items.ids) >= 0).any():
        first = str(test.items.ids[0])
        raise ValueError(f"the model knows none of the {len(test.items):,} items of the test (first: {first!r})")
    return test

"""Examples to learn from, as tokens and which of them count: text, prompt and completion, or chat.

A file's columns say what its rows are:

    text                       every token counts
    prompt, completion         only the completion's tokens count, the end of text among them
    messages                   a chat, as the tokenizer's template writes it; only what the assistant says counts

and where a file has other columns, patterns make a prompt and a completion of them: "Review: {sentence}", " {label}".

Examples are packed: one after another into windows of one length, as many as fit, none cut in two. Positions begin
again with each example, by which models of transformers keep each one's attention to itself.
"""

from __future__ import annotations

import csv
import json
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pyarrow import parquet

__all__ = ["UNCOUNTED", "Example", "Packed", "drawn", "encode", "pack", "read_rows"]

UNCOUNTED = -100  # the label of a token whose loss does not count, as torch's cross entropy has it


class Example(NamedTuple):
    """One example."""

    tokens: list[int]
    counted: list[bool]  # whether the loss of predicting this token counts


class Packed(NamedTuple):
    """Windows of examples."""

    tokens: torch.Tensor  # (windows, context) int64
    labels: torch.Tensor  # the same, UNCOUNTED where a token's loss does not count
    positions: torch.Tensor  # the same, from 0 in each example
    examples: torch.Tensor  # the same, which example it is of; -1 where none is

    def rows(self, which: torch.Tensor | slice) -> Packed:
        """Some of the windows."""
        return Packed(*(x[which] for x in self))


def read_rows(path: str | os.PathLike[str], split: str | None = None) -> list[dict[str, Any]]:
    """Read a table of examples: .jsonl (an object a line), .parquet or .csv with a header.

    Parameters
    ----------
    path : path
    split : str, optional
        Only rows whose column "split" says this.

    Returns
    -------
    list of dict

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, another format, no rows, or no such split.
    """
    kind = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _lines, ".ndjson": _lines}
    if kind not in readers:
        raise ValueError(f"{path}: examples are read from .jsonl, .parquet and .csv, not from {kind or 'this'!r}")
    rows = readers[kind](Path(path))
    if split is not None and rows:
        if not any("split" in row for row in rows):
            raise ValueError(f"{path} has no column 'split': it has {', '.join(sorted(rows[0]))}")
        rows = [row for row in rows if row.get("split") == split]
    if not rows:
        raise ValueError(f"{path} has no rows" + (f" of the split {split!r}" if split is not None else ""))
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        return parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _csv(path: Path) -> list[dict[str, Any]]:
    """Rows as text: 007 stays what it is."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for place, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {place:,} has more or fewer cells than the header")
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {place:,} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {place:,} is no object: expected one a line")
            rows.append(row)
    return rows


def drawn(rows: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Draw so many rows, or all if there are fewer, in random order: those of a smaller count come first.

    Examples
    --------
    >>> sorted(drawn("abc", 5, seed=0)), drawn("abcdef", 4, seed=0)[:2] == drawn("abcdef", 2, seed=0)
    (['a', 'b', 'c'], True)
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[int(i)] for i in order[:count]]


def encode(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, prompt: str | None = None, completion: str | None = None
) -> list[Example]:
    """Turn rows into tokens.

    Parameters
    ----------
    rows : sequence of mapping
        All with the same columns.
    tokenizer : tokenizer of transformers
    prompt, completion : str, optional
        Patterns with names of columns in braces, in place of columns of those names; both or neither.

    Returns
    -------
    list of Example

    Raises
    ------
    ValueError
        Columns that are none of the kinds, a pattern with a name that no column has, an empty cell, or a chat
        template that rewrites what was said before.
    """
    if (prompt is None) != (completion is None):
        raise ValueError("give patterns for both the prompt and the completion, or for neither")
    columns = {name for row in rows for name in row}
    if prompt is not None and completion is not None:
        patterns = [_parsed(pattern, columns) for pattern in (prompt, completion)]
        return [_answered(tokenizer, *(_filled(pattern, row) for pattern in patterns)) for row in rows]
    if "messages" in columns:
        return [_chat(tokenizer, row.get("messages")) for row in rows]
    if {"prompt", "completion"} <= columns:
        return [_answered(tokenizer, _text(row, "prompt"), _text(row, "completion")) for row in rows]
    if "text" in columns:
        ids = [[*_begin(tokenizer), *_ids(tokenizer, _text(row, "text")), *_end(tokenizer)] for row in rows]
        return [Example(tokens, [True] * len(tokens)) for tokens in ids]
    raise ValueError(
        f"the rows have {', '.join(sorted(columns))}, expected text, prompt and completion, or messages: "
        "give patterns that make a prompt and a completion of them"
    )


def pack(examples: Sequence[Example], context: int, pad: int = 0, together: bool = True) -> tuple[Packed, int]:
    """Put examples into windows, in their order, each into the first of the last few that has room.

    Parameters
    ----------
    examples : sequence of Example
    context : int
        Tokens a window, at least 2.
    pad : int
        Token that fills what is left; it does not count.
    together : bool
        Whether windows take more than one.

    Returns
    -------
    (Packed, int)
        And how many examples were longer than a window, and left out.

    Raises
    ------
    ValueError
        No example fits.

    Examples
    --------
    >>> three = [Example([1, 2, 3], [False, True, True]), Example([4, 5], [True, True]), Example([6] * 9, [True] * 9)]
    >>> packed, left_out = pack(three, context=6)
    >>> packed.tokens.tolist(), packed.labels.tolist(), packed.positions.tolist(), packed.examples.tolist(), left_out
    ([[1, 2, 3, 4, 5, 0]], [[-100, 2, 3, -100, 5, -100]], [[0, 1, 2, 0, 1, 0]], [[0, 0, 0, 1, 1, -1]], 1)
    """
    windows: list[list[int]] = []
    room: list[int] = []
    left_out = 0
    for index, example in enumerate(examples):
        size = len(example.tokens)
        if size > context:
            left_out += 1
            continue
        # Only the last few: what was packed long ago stays, and the search does not grow with the data.
        fitting = (i for i in range(max(0, len(windows) - 16), len(windows)) if together and room[i] >= size)
        place = next(fitting, len(windows))
        if place == len(windows):
            windows.append([])
            room.append(context)
        windows[place].append(index)
        room[place] -= size
    if not windows:
        shortest = min((len(x.tokens) for x in examples), default=0)
        raise ValueError(f"no example fits a window of {context} tokens, the shortest has {shortest:,}")
    tokens = torch.full((len(windows), context), pad, dtype=torch.int64)
    labels, owners = (torch.full_like(tokens, empty) for empty in (UNCOUNTED, -1))
    positions = torch.zeros_like(tokens)
    for row, window in enumerate(windows):
        start = 0
        for index in window:
            ids, counted = examples[index]
            stop = start + len(ids)
            tokens[row, start:stop] = torch.tensor(ids, dtype=torch.int64)
            positions[row, start:stop] = torch.arange(len(ids))
            owners[row, start:stop] = index
            # Nothing of this example stands before its first token: it cannot be predicted.
            kept = torch.tensor(counted, dtype=torch.bool) & (torch.arange(len(ids)) > 0)
            labels[row, start:stop] = torch.where(kept, tokens[row, start:stop], UNCOUNTED)
            start = stop
        positions[row, start:] = torch.arange(context - start)  # what fills up is an example of its own
    return Packed(tokens, labels, positions, owners), left_out


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _begin(tokenizer: Any) -> list[int]:
    """Give the beginning of text, where the tokenizer puts one: what the model was trained with."""
    ids = list(tokenizer("", verbose=False)["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row.get(column), str) or not row[column]:
        raise ValueError(f"a row has the {column} {row.get(column)!r:.60}, expected a text: {dict(row)!r:.80}")
    return row[column]


def _parsed(pattern: str, columns: set[str]) -> list[tuple[str, str | None, str]]:
    """Take a pattern apart: text, and the column and format that follow it."""
    try:
        parts = [(text, name, spec or "") for text, name, spec, _ in string.Formatter().parse(pattern)]
    except ValueError as error:
        raise ValueError(f"the pattern {pattern!r:.60}: {error}") from None
    for _, name, spec in parts:
        if name is not None and (name not in columns or "{" in spec):
            raise ValueError(f"the pattern names {name!r}, and the rows have {', '.join(sorted(columns))}")
    return parts


def _filled(parts: list[tuple[str, str | None, str]], row: Mapping[str, Any]) -> str:
    said = []
    for text, name, spec in parts:
        said.append(text)
        if name is None:
            continue
        if row.get(name) in (None, ""):
            raise ValueError(f"a row has nothing in {name!r}, where a pattern needs it: {dict(row)!r:.80}")
        try:
            said.append(format(row[name], spec))
        except (TypeError, ValueError) as error:
            raise ValueError(f"a pattern cannot write {name!r} of the row {dict(row)!r:.80}: {error}") from None
    return "".join(said)


def _answered(tokenizer: Any, prompt: str, completion: str) -> Example:
    asked = [*_begin(tokenizer), *_ids(tokenizer, prompt)]
    answer = [*_ids(tokenizer, completion), *_end(tokenizer)]
    return Example(asked + answer, [False] * len(asked) + [True] * len(answer))


def _chat(tokenizer: Any, messages: Any) -> Example:
    """Tokens of a chat, its new text tokenized each time somebody begins to speak: as when it is answered."""
    if not tokenizer.chat_template:
        raise ValueError("the rows are chats, and the tokenizer has no chat template")
    try:
        roles = [message["role"] for message in messages]
    except (TypeError, KeyError):
        raise ValueError(f"messages is {messages!r:.60}, expected a list of role and content") from None
    tokens: list[int] = []
    counted: list[bool] = []
    before = ""
    for turn in (i for i, role in enumerate(roles) if role == "assistant"):
        for until, ask in ((turn, True), (turn + 1, False)):
            try:
                text = tokenizer.apply_chat_template(messages[:until], tokenize=False, add_generation_prompt=ask)
            except Exception as error:  # templates are programs, and raise what they like
                raise ValueError(f"the chat template refuses {messages!r:.60}: {str(error)[:100]}") from None
            if not text.startswith(before):
                raise ValueError(
                    "the tokenizer's chat template rewrites what was said before: its answers cannot be told"
                )
            ids = _ids(tokenizer, text[len(before) :])
            tokens += ids
            counted += [not ask] * len(ids)
            before = text
    if not tokens:
        raise ValueError(f"nobody is the assistant in the chat {messages!r:.60}")
    return Example(tokens, counted)

"""Ratings of any number, sorted by user and by item on disk, in bounded memory.

An external distribution sort (Knuth, The Art of Computer Programming, vol. 3, section 5.4.9): the source is streamed
once; its entries go to a file in the order of the source, from there into buckets, each a range of users of at most
`_BLOCK` entries (or one user), and each bucket is sorted in memory. How many entries a user has is known by then, so
all buckets lie in one file, each at its own place. The by-item order is made from the by-user order in the same way.

In memory are the two vocabularies, two counters for each user and item, and about 100 bytes for each of the entries
of a block. The files in between are nameless: whenever the process ends, the system takes them back.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from eckart.core import store
from eckart.core.csr import blocks, row_numbers
from eckart.data import encode
from eckart.data.duplicates import count_repeats, merge_duplicates
from eckart.data.prepared import KIND
from eckart.data.read import Skipped, open_table, sound_batches, warn_of
from eckart.data.source import Table
from eckart.data.vocabulary import Vocabulary

__all__ = ["prepare"]

_BLOCK = 1 << 21  # entries that are sorted in memory
Progress = Callable[[str, int, int | None], None]


def prepare(
    source: Any,
    path: str | os.PathLike[str],
    *,
    user: str | int | None = None,
    item: str | int | None = None,
    rating: str | int | Literal[False] | None = None,
    timestamp: str | int | Literal[False] | None = None,
    duplicates: Literal["last", "mean", "sum", "error"] = "last",
    bad_lines: Literal["error", "skip"] = "error",
    header: bool | None = None,
    delimiter: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Sort ratings into a directory that `read` opens without reading them into memory.

    ``read(path)`` then gives the same `Interactions`, to the bit, as ``read(source)`` with these options; its entries
    stay on disk, by user and by item, so that more of them can be fitted than memory holds. The memory that preparing
    takes does not depend on the number of entries: see docs/scale.md.

    Parameters
    ----------
    source, user, item, rating, timestamp, duplicates, bad_lines, header, delimiter
        As for `read`.
    path : path
        Directory to write: a new name, an empty directory, or one that `prepare` wrote, which is then replaced. The
        disk it is on needs room for 48 bytes per entry meanwhile (32 without timestamps); 24 stay (16).
    progress : callable, optional
        ``progress(stage, done, total)`` with a number of entries, the total None where it is not known.

    Raises
    ------
    FileExistsError
        `path` is something else.
    ValueError, FileNotFoundError, TypeError
        As for `read`.

    Examples
    --------
    >>> import eckart as ek
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     ek.prepare({"user": ["ann", "bob"], "item": [10, 7], "stars": [4, 5]}, f"{folder}/store")
    ...     ek.read(f"{folder}/store")
    Interactions(2 ratings, 2 users x 2 items, 50.00 % of the cells)
    """
    chosen = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    store.check_replaceable(path, KIND)
    table = open_table(source, chosen, duplicates, bad_lines, header, delimiter)
    say = progress or (lambda stage, done, total: None)
    folder = Path(os.path.realpath(path)).parent
    folder.mkdir(parents=True, exist_ok=True)
    rated = "rating" in table.labels or duplicates == "sum"
    with ExitStack() as opened:

        def pile(kind: Any) -> _Pile:
            file = opened.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
            return _Pile(file.fileno(), np.dtype(kind))

        users, items = _Side(), _Side()
        record = [("user", "<i4"), ("item", "<i4"), ("value", "<f4"), ("time", "<i8")]
        arrived = pile(record if "timestamp" in table.labels else record[:3])
        dated = _gather(table, bad_lines == "skip", users, items, arrived, say)
        for side in (users, items):
            side.settle(table.is_text)

        sorting = pile(arrived.kind)
        buckets = _distribute(_by_row(arrived, users, items), "user", users.counts, sorting)
        arrived.empty()
        names = {"indices": "<i4", "values": "<f4"} | ({"times": "<i8"} if dated else {})
        by_user = {name: pile(kind) for name, kind in names.items()}
        for place, (begin, end) in enumerate(buckets):
            say("sorting by user", begin, sorting.length)
            found = sorting.read(begin, end)
            entries = found["user"], found["item"], found["value"], found["time"] if dated else None
            later = functools.partial(_repeats, sorting, buckets[place + 1 :], len(items.ids))
            try:
                merged = merge_duplicates(*entries, users.ids, items.ids, duplicates, later)
            except ValueError as error:
                raise ValueError(f"{table.name}: {error}") from None
            users.kept += np.bincount(merged[0], minlength=len(users.ids))
            items.kept += np.bincount(merged[1], minlength=len(items.ids))
            for name, column in zip(names, merged[1:], strict=False):
                by_user[name].add(np.asarray(column))
        sorting.empty()

        sorting = pile(record[:3])
        buckets = _distribute(_by_user(by_user, users.indptr()), "item", items.kept, sorting)
        by_item = {"indices": pile("<i4"), "values": pile("<f4")}
        for begin, end in buckets:
            say("sorting by item", begin, sorting.length)
            found = sorting.read(begin, end)
            order = _stable_order(found["item"] - found["item"].min())
            by_item["indices"].add(found["user"][order])
            by_item["values"].add(found["value"][order])
        sorting.empty()

        say("writing", 0, None)
        tensors = {
            "by_user": {"indptr": users.indptr(), **{name: column.mapped() for name, column in by_user.items()}},
            "by_item": {"indptr": items.indptr(), **{name: column.mapped() for name, column in by_item.items()}},
        }
        store.write_directory(path, KIND, {"rated": rated}, tensors, {"users": users.ids.ids, "items": items.ids.ids})


class _Pile:
    """Entries, or one number of each, in a file that has no name."""

    def __init__(self, fd: int, kind: np.dtype) -> None:
        self.fd, self.kind, self.length = fd, kind, 0

    def add(self, entries: np.ndarray) -> None:
        self.put(self.length, entries)

    def put(self, at: int, entries: np.ndarray) -> None:
        data = np.ascontiguousarray(entries, self.kind).view(np.uint8).data
        offset = at * self.kind.itemsize
        while len(data):
            written = os.pwrite(self.fd, data, offset)
            data, offset = data[written:], offset + written
        self.length = max(self.length, at + len(entries))

    def read(self, begin: int, end: int) -> np.ndarray:
        entries = np.empty(end - begin, self.kind)
        data, offset = entries.view(np.uint8).data, begin * self.kind.itemsize
        while len(data):
            got = os.preadv(self.fd, [data], offset)
            data, offset = data[got:], offset + got
        return entries

    def blocks(self) -> Iterator[np.ndarray]:
        return (self.read(at, min(at + _BLOCK, self.length)) for at in range(0, self.length, _BLOCK))

    def mapped(self) -> np.ndarray:
        return np.frombuffer(mmap.mmap(self.fd, 0, prot=mmap.PROT_READ), self.kind)

    def empty(self) -> None:
        """Give the disk its room back."""
        os.ftruncate(self.fd, 0)


class _Side:
    """The users or the items: codes as they come, then row numbers; `counts` and `kept` entries of each row."""

    ids: Vocabulary
    rows: np.ndarray  # of each code
    kept: np.ndarray

    def __init__(self) -> None:
        self.values: Any = None  # an Arrow array, once there are some
        self.counts = np.zeros(0, np.int64)

    def codes(self, chunks: list[pa.DictionaryArray]) -> np.ndarray:
        """Number ids in the order in which they come first."""
        if self.values is not None:
            known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self.values)
            chunks = [known, *chunks]
        whole = pa.chunked_array(chunks).unify_dictionaries()
        self.values = whole.chunk(0).dictionary
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in whole.chunks])
        new = np.bincount(codes, minlength=len(self.values))
        new[: len(self.counts)] += self.counts
        self.counts = new
        return codes

    def settle(self, infer: bool) -> None:
        """Put the ids in order; from here on all is by row number."""
        assert self.values is not None
        used = np.flatnonzero(self.counts)
        self.rows, self.ids = encode.order_ids(self.values, used, infer)
        counts, self.values = self.counts, None
        self.counts, self.kept = np.zeros(len(self.ids), np.int64), np.zeros(len(self.ids), np.int64)
        np.add.at(self.counts, self.rows[used], counts[used])  # '7' and ' 7' are one integer

    def indptr(self) -> np.ndarray:
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.kept)])


def _gather(table: Table, skip: bool, users: _Side, items: _Side, arrived: _Pile, say: Progress) -> bool:
    """Put the entries of the source on a pile, as codes; whether every one has a time."""
    skipped, dated = Skipped(), "timestamp" in table.labels
    parts: list[dict[str, Any]] = []

    def flush() -> None:
        entries = np.empty(sum(len(part["user"]) for part in parts), arrived.kind)
        entries["user"] = users.codes([part["user"] for part in parts])
        entries["item"] = items.codes([part["item"] for part in parts])
        entries["value"] = np.concatenate([part["rating"] for part in parts]) if "rating" in table.labels else 1
        if "timestamp" in table.labels:
            entries["time"] = np.concatenate([part["timestamp"] for part in parts])
        arrived.add(entries)
        parts.clear()
        say("reading", arrived.length, None)

    waiting = 0
    for values, undated in sound_batches(table, skip, skipped):
        dated &= not undated
        parts.append(values)
        waiting += len(values["user"])
        # With many ids the blocks grow with them, or each would be looked up once a block.
        if waiting >= max(_BLOCK, len(users.counts), len(items.counts)):
            flush()
            waiting = 0
    warn_of(skipped, table.name, bool(parts or arrived.length))
    if parts:
        flush()
    return dated


def _by_row(arrived: _Pile, users: _Side, items: _Side) -> Iterator[np.ndarray]:
    for entries in arrived.blocks():
        entries["user"], entries["item"] = users.rows[entries["user"]], items.rows[entries["item"]]
        yield entries


def _by_user(columns: dict[str, _Pile], indptr: np.ndarray) -> Iterator[np.ndarray]:
    for begin, end in blocks(columns["indices"].length):
        entries = np.empty(end - begin, [("user", "<i4"), ("item", "<i4"), ("value", "<f4")])
        entries["user"] = row_numbers(indptr, begin, end)
        entries["item"], entries["value"] = (columns[name].read(begin, end) for name in ("indices", "values"))
        yield entries


def _distribute(parts: Iterable[np.ndarray], side: str, counts: np.ndarray, pile: _Pile) -> list[tuple[int, int]]:
    """Put entries into buckets of consecutive rows, the order within each kept; where each bucket lies."""
    ends = np.cumsum(counts)
    cuts = [0]  # the first row of each bucket
    while cuts[-1] < len(counts):
        before = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + _BLOCK, side="right"))))
    bounds = np.concatenate([[0], ends])[cuts]
    free = bounds[:-1].copy()
    for entries in parts:
        bucket = np.searchsorted(cuts, entries[side], side="right") - 1
        entries = entries[_stable_order(bucket)]
        sizes = np.bincount(bucket, minlength=len(free))
        begin = 0
        for b in np.flatnonzero(sizes):
            pile.put(int(free[b]), entries[begin : begin + sizes[b]])
            begin += sizes[b]
        free += sizes
    return list(itertools.pairwise(bounds.tolist()))


def _repeats(pile: _Pile, buckets: list[tuple[int, int]], items: int) -> int:
    parts = itertools.starmap(pile.read, buckets)
    return sum(count_repeats(part["user"], part["item"], items) for part in parts)


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    # NumPy sorts 16 bits by radix: 2 million in 20 ms, where 32 bits take 170
    return np.argsort(numbers.astype(np.uint16) if numbers.max(initial=0) < 2**16 else numbers, kind="stable")

"""Scale on one machine: seconds per epoch and peak memory, 5 to 40 million entries, from memory and from a store.

    pip install eckart
    python benchmarks/scale.py [--millions 5 10 20 40] [--solver als] [--rank 64] [--grow users]
    python benchmarks/scale.py --past-2-31 /disk/with/36/GB

Users grow with the entries (6,925 a million, the shape of MovieLens-20M) and items stay 26,744; with --grow entries
both stay, and the dearest part of a short row, its factorization, does not grow. Every fit is in a process of its
own. `linear` is the time of an epoch against twice that of half the entries, `linear_by_cpu` the same of processor
time, which a busy machine disturbs less; `peak` is the highest memory of the
process, less what it took once everything was imported and had run once, against both orders of the entries (8 bytes
an entry and order) and the factors. From a store the entries are mapped, and only anonymous memory is counted: file
pages are the system's to take back.

--past-2-31 fits to 2,149,171,200 entries, 34 GB of them, whatever memory there is.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import eckart as ek
from eckart.core import store
from eckart.core.csr import csr

ITEMS, USERS_PER_MILLION = 26_744, 6_925
SOLVERS = {"als": ek.ALS, "implicit-als": ek.ImplicitALS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--solver", choices=SOLVERS, default="als")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4, help="of which the first is not counted")
    parser.add_argument("--grow", choices=["users", "entries"], default="users")
    parser.add_argument("--stores", action="store_true", help="fit from a store as well")
    parser.add_argument("--past-2-31", metavar="DIR", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], Path(args.one[1]), args)
    elif args.past_2_31:
        past_2_31(args)
    else:
        grow(args)


def grow(args: argparse.Namespace) -> None:
    fits = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for millions in args.millions:
            users = USERS_PER_MILLION * (millions if args.grow == "users" else max(args.millions))
            data = ek.synthetic(users=users, items=ITEMS, entries=millions * 10**6, seed=0, rated=args.solver == "als")
            for name in ("data", "indices", "indptr"):
                np.save(f"{folder}/{name}.npy", getattr(data.matrix, name))
            if args.stores:
                ek.prepare(data, f"{folder}/store")
            del data
            gc.collect()
            for way in ["memory"] + ["store"] * args.stores:
                command = [sys.executable, __file__, "--solver", args.solver, "--rank", str(args.rank)]
                command += ["--epochs", str(args.epochs), "--one", way, folder]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                fits.append(json.loads(said))
                print(said, end="", file=sys.stderr)
    at = {(fit["entries"], fit["from"]): fit for fit in fits}
    for fit in fits:
        half = at.get((fit["entries"] // 2, fit["from"]))
        for name, of in (("linear", "seconds_per_epoch"), ("linear_by_cpu", "cpu_seconds_per_epoch")):
            fit[name] = None if half is None else round(fit[of] / (2 * half[of]), 3)
    report = {"benchmark": "scale", "solver": args.solver, "rank": args.rank, "grows": args.grow, "fits": fits}
    print(json.dumps(report))


def one(way: str, folder: Path, args: argparse.Namespace) -> None:
    small = ek.synthetic(users=300, items=200, entries=6000, rated=args.solver == "als")
    solver = SOLVERS[args.solver]
    solver(rank=args.rank, epochs=1).fit(small)
    base, peak = anonymous(), Peak()
    if way == "store":
        data = ek.read(folder / "store")
    else:
        parts = [np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr")]
        shape = (len(parts[2]) - 1, ITEMS)
        ids = [ek.Vocabulary(np.arange(n)) for n in shape]
        data = ek.Interactions(csr(*parts, shape), *ids, rated=args.solver == "als")
        del parts
    ends = [(time.perf_counter(), time.process_time())]

    def at_end(_: object) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    model = solver(rank=args.rank, epochs=args.epochs).fit(data, callback=at_end)
    seconds, cpu = (np.diff(column).tolist()[args.epochs > 1 :] for column in zip(*ends, strict=True))
    n, m = model.seen.shape
    orders, factors = 16 * data.nnz + 8 * (n + m + 2), 4 * (args.rank + 1) * (n + m)
    least = factors if way == "store" else orders + factors
    highest = peak.end() - base
    result = {
        "from": way,
        "users": n,
        "items": m,
        "entries": data.nnz,
        "epochs": [round(s, 3) for s in seconds],
        "cpu_seconds_per_epoch": round(statistics.median(cpu), 3),
        "seconds_per_epoch": round(statistics.median(seconds), 3),
        "orders_mb": round(orders / 1e6, 1),
        "factors_mb": round(factors / 1e6, 1),
        "peak_mb": round(highest / 1e6, 1),
        "peak": round(highest / least, 3),
        "objective": model.history[-1]["objective"],
    }
    print(json.dumps(result))


def anonymous() -> int:
    """Bytes of memory that belong to this process alone: what is neither a file's nor shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak(threading.Thread):
    """The highest anonymous memory, looked up every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.over = 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Look, until the end."""
        while not self.over.wait(0.005):
            self.highest = max(self.highest, anonymous())

    def end(self) -> int:
        """Stop looking, and tell."""
        self.over.set()
        self.join()
        return max(self.highest, anonymous())


class Made:
    """An array that is computed where it is sliced: 34 GB need no room but the store's."""

    ndim = 1

    def __init__(self, size: int, dtype: type, of) -> None:
        self.shape, self.dtype, self.of = (size,), np.dtype(dtype), of
        self.itemsize, self.nbytes = self.dtype.itemsize, size * self.dtype.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.of(part.start, min(part.stop, self.shape[0])).astype(self.dtype, copy=False)


def past_2_31(args: argparse.Namespace) -> None:
    """User u has the items u % 477 to u % 477 + 1023 of 1500, with ratings that depend on both."""
    items, length, users = 1500, 1024, 477 * 4400
    starts = items - length + 1
    i = np.arange(items)
    low, high = np.maximum(0, i - length + 1), np.minimum(starts - 1, i)
    by_user = np.arange(users + 1, dtype=np.int64) * length
    by_item = np.concatenate([[0], np.cumsum((high - low + 1) * (users // starts))])

    def stars(user: np.ndarray, item: np.ndarray) -> np.ndarray:
        return ((user * 7 ^ item * 3) & 7).astype(np.float32)

    u = np.arange(8 * starts)[:, None]  # all repeats after so many users
    of_users = [
        x.ravel() for x in ((u % starts + np.arange(length)).astype(np.int32), stars(u, u % starts + np.arange(length)))
    ]

    def from_users(which: int, a: int, b: int) -> np.ndarray:
        tile = of_users[which]
        first = a % len(tile)
        return np.concatenate([tile[first : first + b - a], tile[: max(0, first + b - a - len(tile))]])

    @functools.lru_cache(maxsize=1)
    def of_item(i: int) -> list[np.ndarray]:
        u = (starts * np.arange(users // starts)[:, None] + np.arange(low[i], high[i] + 1)).ravel()
        return [u.astype(np.int32), stars(u, np.full_like(u, i))]

    def from_items(which: int, a: int, b: int) -> np.ndarray:
        first, last = np.searchsorted(by_item, [a, b - 1], side="right") - 1
        parts = [of_item(i)[which][max(0, a - by_item[i]) : b - by_item[i]] for i in range(first, last + 1)]
        return np.concatenate(parts)

    entries = int(by_user[-1])
    assert entries == by_item[-1] > 2**31
    tensors = {
        "by_user": {
            "indptr": by_user,
            "indices": Made(entries, np.int32, functools.partial(from_users, 0)),
            "values": Made(entries, np.float32, functools.partial(from_users, 1)),
        },
        "by_item": {
            "indptr": by_item,
            "indices": Made(entries, np.int32, functools.partial(from_items, 0)),
            "values": Made(entries, np.float32, functools.partial(from_items, 1)),
        },
    }
    folder = args.past_2_31
    began = time.perf_counter()
    if not (folder / "store").exists():
        ids = {"users": np.arange(users), "items": np.arange(items)}
        store.write_directory(folder / "store", "ratings", {"rated": True}, tensors, ids)
    print(f"written in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    command = [sys.executable, __file__, "--rank", "8", "--epochs", "1", "--one", "store", str(folder)]
    began = time.perf_counter()
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said |= {"seconds": round(time.perf_counter() - began, 1), "memory_of_the_machine_mb": round(memory / 1e6)}
    print(json.dumps({"benchmark": "scale past 2^31 entries", **said}))


if __name__ == "__main__":
    main()

"""Stratified SGD beside LIBMF: seconds an epoch, test RMSE, and seconds from the text file to the fitted model.

    git clone https://github.com/cjlin1/libmf && make -C libmf DFLAG='-DUSEAVX -DUSEOMP'     # with -mavx in CXXFLAGS
    python benchmarks/sgd.py --libmf libmf/mf-train [--rank 64] [--users 138493 --items 26744 --entries 20000000]

Both read the same file, a line 'user item rating' each for nine tenths of the entries, and use as many threads. An
epoch's time is that between two lines that LIBMF prints, or two calls of our callback; processor time is shown beside
it, for it does not suffer when others use the machine. End to end is the time from the start of the process until the
model is there (LIBMF: trained and written; eckart: read, fitted, users solved exactly), with imports. LIBMF's test
RMSE comes from a run of its own, which is not timed. Turns alternate; ratios are those of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

import eckart as ek
from eckart.core.kernels import kernel_info, resolve_threads

FIT = """
import sys, time, json
import eckart as ek
train, test, rank, reg, step, epochs = sys.argv[1:]
data = ek.read(train, user=0, item=1, rating=2, delimiter=" ", header=False)
read = time.perf_counter()
wall, cpu = [], []
def note(record):
    wall.append(time.perf_counter()); cpu.append(time.process_time())
solver = ek.SGD(rank=int(rank), reg=float(reg), step=float(step), epochs=int(epochs))
model = solver.fit(data, callback=note)
print("done", flush=True)
fitted = time.perf_counter()
test = ek.read(test, user=0, item=1, rating=2, delimiter=" ", header=False)
scores = model.predict(test.users.ids[test.user_rows()], test.items.ids[test.matrix.indices])
rmse = float(((scores - test.matrix.data).astype(float) ** 2).mean() ** 0.5)
print(json.dumps({"wall": wall, "cpu": cpu, "rmse": rmse, "fit": fitted - read, "users": fitted - wall[-1]}))
"""


def write(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    data = ek.synthetic(users=args.users, items=args.items, entries=args.entries, seed=0)
    held_out = np.random.default_rng(0).random(data.nnz) < 0.1
    paths = folder / "train.txt", folder / "test.txt"
    for path, keep in zip(paths, (~held_out, held_out), strict=True):
        columns = data.user_rows()[keep], data.matrix.indices[keep], data.matrix.data[keep]
        table = pa.table(dict(zip("uir", columns, strict=True)))
        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(include_header=False, delimiter=" "))
    return paths


def libmf(args: argparse.Namespace, train: Path, *more: str) -> dict[str, list[float] | float]:
    threads = str(resolve_threads(None))
    command = [args.libmf, "-s", threads, "-k", str(args.rank), "-t", str(args.epochs), "-l2", str(args.libmf_reg)]
    command += ["-r", str(args.libmf_step), *more, str(train), str(train.parent / "libmf.model")]
    began, wall, cpu, last = time.perf_counter(), [], [], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.split()[:1] and line.split()[0].isdigit():
                last = line
                wall.append(time.perf_counter())
                fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                cpu.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    if process.returncode:
        raise RuntimeError(f"{command} gave {process.returncode}")
    total = time.perf_counter() - began
    return {"wall": list(np.diff(wall)), "cpu": list(np.diff(cpu)), "total": total, "rmse": float(last.split()[2])}


def eckart(args: argparse.Namespace, train: Path, test: Path) -> dict[str, list[float] | float]:
    command = [sys.executable, "-c", FIT, str(train), str(test)]
    command += [str(x) for x in (args.rank, args.reg, args.step, args.epochs)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if process.stdout.readline() != "done\n":
            raise RuntimeError("the fit failed")
        total = time.perf_counter() - began
        result = json.loads(process.stdout.readline())
    result |= {"wall": list(np.diff(result["wall"])), "cpu": list(np.diff(result["cpu"])), "total": total}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libmf", required=True, help="path of mf-train")
    for name, default in (("rank", 64), ("users", 138_493), ("items", 26_744), ("entries", 20_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("epochs", 10), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    # Each chosen by the RMSE after ten epochs on a tenth of a training set of 5 M entries.
    for name, default in (("reg", 0.03), ("step", 0.05), ("libmf-reg", 0.03), ("libmf-step", 0.1)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--folder", help="keeps the text files, and uses those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        train, test = folder / "train.txt", folder / "test.txt"
        if not test.exists():
            train, test = write(folder, args)
        ours, theirs = [], []
        for _ in range(args.turns):
            theirs.append(libmf(args, train))
            ours.append(eckart(args, train, test))
        their_rmse = libmf(args, train, "-p", str(test))["rmse"]

    def median(runs: list[dict], what: str) -> float:
        return round(float(statistics.median(np.concatenate([np.atleast_1d(run[what]) for run in runs]))), 3)

    result = {"benchmark": "SGD", "shape": [args.users, args.items, args.entries], "settings": vars(args)}
    result |= {"threads": resolve_threads(None), "isa": kernel_info()["isa"]}
    for what, key in (("epoch seconds", "wall"), ("epoch processor seconds", "cpu"), ("end to end seconds", "total")):
        mine, peer = median(ours, key), median(theirs, key)
        result[what] = {"eckart": mine, "libmf": peer, "ratio": round(peer / mine, 2)}
    result["test rmse"] = {"eckart": round(ours[0]["rmse"], 4), "libmf": round(their_rmse, 4)}
    result["eckart fit seconds, of which users"] = [median(ours, "fit"), median(ours, "users")]
    print(json.dumps(result))


if __name__ == "__main__":
    main()

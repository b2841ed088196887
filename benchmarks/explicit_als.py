"""Exact explicit ALS against cmfrec's and Spark's: seconds per iteration and test RMSE, same data, same run.

    pip install eckart cmfrec pyspark pyarrow       # and a Java 17 runtime
    python benchmarks/explicit_als.py [--peers cmfrec,spark] [--users 30000 --items 8000 --entries 2000000]

An iteration is both half-sweeps, every row solved exactly. Neither peer says how long one takes, so theirs is the
difference of a fit of `--iterations` and one of none, over their number: reading, indexing and, for Spark, starting
up fall out. Ours is timed sweep by sweep, once before and once after each peer, so
that a machine whose speed drifts slows all alike. Processor seconds are given beside those of the clock: a busy
machine stretches the latter.

All three penalise a row of n ratings by reg n |x|^2 (cmfrec: ``scale_lam``, Spark: always), with the same reg. cmfrec
and eckart fit biases under the same penalty; Spark has none, and is given ratings less the training mean, which is
what the other two subtract. The RMSE is of equal numbers of iterations, each from its own random factors: from small
ones, as cmfrec's and ours are, the first sweeps fit little but biases, while Spark's rows have length 1. `--start 1`
gives ours that length, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix, csr_array

import eckart as ek
from eckart.core.kernels import kernel_info, kernels, resolve_threads
from eckart.recommend.als import half_sweep
from eckart.recommend.initial import initial_factors
from eckart.recommend.metrics import rmse
from eckart.recommend.validation import held_out_entries

Factors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]  # W, H, the biases of each, the mean


class Clock(NamedTuple):
    """Seconds of the clock, and of the processor: this process's, with all its threads, and another's."""

    wall: float
    cpu: float

    @classmethod
    def now(cls, other: int | None = None) -> Clock:
        """Read this process's, and that of process `other`."""
        spent = time.process_time()
        if other is not None:
            fields = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
        return cls(time.perf_counter(), spent)

    def since(self, earlier: Clock) -> Clock:
        """What passed between two readings."""
        return Clock(self.wall - earlier.wall, self.cpu - earlier.cpu)


def test_rmse(model: Factors, test: csr_array) -> float:
    rows = np.repeat(np.arange(test.shape[0]), np.diff(test.indptr))
    scores = kernels.pair_scores(*model, rows, test.indices.astype(np.int64), resolve_threads(None))
    return rmse(scores, test.data)


def sweeps(
    R: csr_array, by_item: csr_array, test: csr_array, args: argparse.Namespace
) -> tuple[list[Clock], list[float]]:
    """Time of each of our iterations, from the start, and the test RMSE after it."""
    threads, mean = resolve_threads(None), float(R.data.mean(dtype=np.float64))
    reg_users, reg_items = ((args.reg * np.diff(M.indptr)).astype(np.float32) for M in (R, by_item))
    W, user_bias = initial_factors(R, by_item, args.rank, 0), np.zeros(R.shape[0], np.float32)
    W *= np.float32(args.start / 0.1)  # whose rows are about 0.1 long
    seconds, errors = [], []
    for _ in range(args.iterations):
        began = Clock.now()
        H, item_bias, _ = half_sweep(by_item, W, user_bias, mean, reg_items, threads)
        W, user_bias, _ = half_sweep(R, H, item_bias, mean, reg_users, threads)
        seconds.append(Clock.now().since(began))
        errors.append(test_rmse((W, H, user_bias, item_bias, mean), test))
    return seconds, errors


def cmfrec_fits(R: csr_array, args: argparse.Namespace) -> tuple[Callable[[int], Factors], int | None]:
    """cmfrec's Cholesky in float32: what fits so many iterations, in this process."""
    from cmfrec import CMF

    X = coo_matrix(R)

    def fit(iterations: int) -> Factors:
        model = CMF(
            k=args.rank,
            lambda_=args.reg,
            scale_lam=True,
            method="als",
            use_cg=False,
            niter=iterations,
            user_bias=True,
            item_bias=True,
            use_float=True,
            precompute_for_predictions=False,
            random_state=0,
            nthreads=resolve_threads(None),
            verbose=False,
        ).fit(X)
        return model.A_, model.B_, model.user_bias_, model.item_bias_, float(model.glob_mean_)

    return fit, None


def spark_fits(R: csr_array, args: argparse.Namespace, folder: Path) -> tuple[Callable[[int], Factors], int | None]:
    """Spark MLlib on as many local cores: what fits so many iterations, and its process."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    mean, (n, m) = float(R.data.mean(dtype=np.float64)), R.shape
    users = np.repeat(np.arange(n, dtype=np.int32), np.diff(R.indptr))
    columns = {"user": users, "item": R.indices.astype(np.int32), "rating": R.data - np.float32(mean)}
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=1 << 20)
    spark = (
        SparkSession.builder.master(f"local[{resolve_threads(None)}]")
        .config("spark.driver.memory", "8g")
        .config("spark.local.dir", str(folder))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    ratings = spark.read.parquet(str(folder / "train.parquet"))

    def als(iterations: int) -> ALS:
        named = {"userCol": "user", "itemCol": "item", "ratingCol": "rating"}
        return ALS(rank=args.rank, maxIter=iterations, regParam=args.reg, seed=0, **named)

    def factors(frame, rows: int, path: Path) -> np.ndarray:
        frame.write.parquet(str(path))
        table = pq.read_table(path)
        X = np.zeros((rows, args.rank), np.float32)
        X[table["id"].to_numpy()] = table["features"].combine_chunks().flatten().to_numpy().reshape(-1, args.rank)
        return X

    def fit(iterations: int) -> Factors:
        model = als(iterations).fit(ratings)
        W = factors(model.userFactors, n, folder / f"users-{iterations}")
        H = factors(model.itemFactors, m, folder / f"items-{iterations}")
        model.userFactors.unpersist()
        model.itemFactors.unpersist()
        return W, H, np.zeros(n, np.float32), np.zeros(m, np.float32), mean

    als(3).fit(ratings.sample(0.05, seed=0))  # its compiler warms up
    return fit, spark.sparkContext._gateway.proc.pid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("rank", 64),
        ("users", 138_493),
        ("items", 26_744),
        ("entries", 20_000_000),
        ("iterations", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--reg", type=float, default=0.07)
    parser.add_argument("--start", type=float, default=0.1, help="length of our starting rows (0.1)")
    parser.add_argument("--peers", default="cmfrec,spark")
    args = parser.parse_args()
    data = ek.synthetic(users=args.users, items=args.items, entries=args.entries, rated=True, seed=0)
    train, rest = ek.split(data, test=0.1, seed=0)
    R, by_item, test = train.matrix, train.by_item(), held_out_entries(rest, train)

    def note(what: str, value: object) -> None:
        print(json.dumps({what: value, "load": [round(x, 1) for x in os.getloadavg()]}), file=sys.stderr, flush=True)

    ours, errors = sweeps(R, by_item, test, args)
    note("eckart", [ours, errors])
    peers = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer in args.peers.split(","):
            fit, process = cmfrec_fits(R, args) if peer == "cmfrec" else spark_fits(R, args, Path(folder))
            fits, error = [], 0.0
            for iterations in (0, args.iterations):
                began = Clock.now(process)
                model = fit(iterations)
                fits.append(Clock.now(process).since(began))
                error = test_rmse(model, test)
                note(peer, [iterations, fits[-1], error])
            turn, _ = sweeps(R, by_item, test, args)
            note("eckart", turn)
            ours += turn
            each = [seconds / args.iterations for seconds in fits[1].since(fits[0])]
            peers[peer] = {
                "version": version({"spark": "pyspark"}.get(peer, peer)),
                f"fits of 0 and {args.iterations} iterations": [round(s.wall, 2) for s in fits],
                "seconds": round(each[0], 3),
                "processor seconds": round(each[1], 3),
                "test RMSE after them": round(error, 4),
            }
    wall, cpu = (statistics.median(seconds) for seconds in zip(*ours, strict=True))
    for peer in peers.values():
        peer["ratio"] = round(peer["seconds"] / wall, 2)
        peer["ratio of processor seconds"] = round(peer["processor seconds"] / cpu, 2)
    print(
        json.dumps(
            {
                "benchmark": "exact explicit ALS, seconds per iteration",
                "shape": [args.users, args.items, args.entries],
                "rank": args.rank,
                "reg": args.reg,
                "start": args.start,
                "threads": resolve_threads(None),
                "isa": kernel_info()["isa"],
                "load": [round(x, 1) for x in os.getloadavg()],
                "eckart": {
                    "every": [round(s.wall, 3) for s in ours],
                    "seconds": round(wall, 3),
                    "processor seconds": round(cpu, 3),
                    "test RMSE after each": [round(e, 4) for e in errors],
                },
                **peers,
            }
        )
    )


if __name__ == "__main__":
    main()

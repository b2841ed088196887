"""What one row takes by its length, rank and way of solving, one thread; and how well ``row_cost`` predicts it.

    python benchmarks/row_solve.py [--ranks 64 128]

Prints every way's microseconds, the cost model's, the speed of long exact rows beside the matrix product of NumPy's
BLAS, and the median factor by which the model is off, after the one factor that the machine's speed is. Least of
several turns: other work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from eckart.core.kernels import kernels
from eckart.recommend.rows import METHODS

WAYS = {"primal": 1, "dual": 1, "cg": METHODS["cg"].steps, "block": METHODS["block"].steps}
LENGTHS = (1, 8, 16, 32, 64, 128, 256, 1024, 8192)


def least_seconds(call, turns: int = 15) -> float:
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def microseconds(k: int, n: int, way: str) -> tuple[float, float]:
    """What a row of n entries takes, measured and by the model."""
    rng = np.random.default_rng(0)
    rows, columns = max(100, int(2e6 / (n * k + k * k))), 2000
    Y = (rng.standard_normal((columns, k)) / k**0.5).astype(np.float32)
    indptr = n * np.arange(rows + 1)
    indices = rng.integers(0, columns, rows * n).astype(np.int32)
    values, reg = np.ones(rows * n, np.float32), np.full(rows, 1 + n / 10, np.float32)
    shared = {"spectrum": np.ones(k, np.float32), "start": np.zeros((rows, k), np.float32)}
    took = least_seconds(
        lambda: kernels.implicit_rows(indptr, indices, values, Y, 1.0, reg, 1, method=way, steps=WAYS[way], **shared)
    )
    return 1e6 * took / rows, kernels.row_cost(indptr, k, way, WAYS[way]) / rows / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 64, 128, 256])
    args = parser.parse_args()
    table, off = [], []
    for k in args.ranks:
        for n in LENGTHS:
            ways = [way for way in WAYS if way != "dual" or n < k]
            took = {way: microseconds(k, n, way) for way in ways}
            table.append({"k": k, "entries": n} | {way: [round(x, 2) for x in pair] for way, pair in took.items()})
            off += [measured / predicted for measured, predicted in took.values()]
    A = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    sgemm = 2e-9 * 1000**3 / least_seconds(lambda: A @ A)
    long_rows = {k: 1e-3 * 1024 * k * (k + 1) / microseconds(k, 1024, "primal")[0] for k in args.ranks}
    speed = float(np.median(off))
    print(
        json.dumps(
            {
                "benchmark": "one row, microseconds: [measured, predicted]",
                "isa": kernels.isa,
                "rows": table,
                "exact rows of 1,024 entries, GFLOP/s by k": {k: round(x, 1) for k, x in long_rows.items()},
                "sgemm GFLOP/s": round(sgemm, 1),
                "machine against the model's": round(speed, 2),
                "median factor the model is off by, after that": round(
                    float(np.exp(np.median(np.abs(np.log(np.array(off) / speed))))), 2
                ),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""Speed of one row's exact solve by its length, beside the matrix product of NumPy's BLAS, one thread.

    python benchmarks/row_solve.py

A row of n entries costs n k (k + 1) flops for its normal equations and k^3 / 3 for their factorization; a row of one
entry is all factorization.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from eckart.core.kernels import kernels


def best_seconds(call, turns: int = 7) -> float:
    """Least of several turns: other work on the machine only ever adds."""
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    rng = np.random.default_rng(0)
    columns, report = 2000, []
    for k in (64, 128):
        Y = (0.1 * rng.standard_normal((columns, k))).astype(np.float32)
        gram = kernels.gram(Y)
        for length, rows in ((1, 20_000), (145, 10_000), (2000, 1_000)):
            indptr = length * np.arange(rows + 1)
            indices = np.concatenate([np.sort(rng.permutation(columns)[:length]) for _ in range(rows)]).astype(np.int32)
            values, reg = np.ones(len(indices), np.float32), np.ones(rows, np.float32)
            solve = partial(kernels.implicit_rows, indptr, indices, values, Y, gram, 1.0, reg)
            row = best_seconds(solve) / rows
            flops = length * k * (k + 1) + k**3 / 3
            report.append(
                {
                    "k": k,
                    "entries": length,
                    "us a row": round(1e6 * row, 2),
                    "GFLOP/s": round(flops / row / 1e9, 1),
                }
            )
    A = rng.standard_normal((1000, 1000)).astype(np.float32)
    sgemm = round(2e9 / best_seconds(lambda: A @ A) / 1e9, 1)
    print(json.dumps({"benchmark": "row solve", "isa": kernels.isa, "rows": report, "sgemm GFLOP/s": sgemm}, indent=1))


if __name__ == "__main__":
    main()

"""Explicit ALS on MovieLens: settings chosen on a split of train, then the test once.

    python benchmarks/movielens.py DATA        # DATA/ml-1m/ratings.parquet, DATA/ml-100k/ratings.parquet

MovieLens-1M: test is ``np.random.default_rng(0).random(n) < 0.1``, rows in file order. MovieLens-100K: the official
u1 to u5. Validation is a tenth of the training part, drawn with seed 1. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import eckart as ek


def part(table: pa.Table, mask: np.ndarray) -> ek.Interactions:
    return ek.read(table.filter(pa.array(mask)), timestamp=False)


def tried(train: pa.Table, regs: tuple[float, ...], rank: int) -> dict[str, float]:
    """Best and last validation RMSE of each reg on a tenth of train."""
    held = np.random.default_rng(1).random(train.num_rows) < 0.1
    fit, valid = part(train, ~held), part(train, held)
    return {
        str(reg): round(ek.ALS(rank=rank, reg=reg).fit(fit, valid).history[-1]["validation_rmse"], 4) for reg in regs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rank", type=int, default=64)
    args = parser.parse_args()

    ml1m = pq.read_table(args.data / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
    test = np.random.default_rng(0).random(ml1m.num_rows) < 0.1
    train = ml1m.filter(pa.array(~test))
    tuning = tried(train, (0.03, 0.05, 0.07, 0.08, 0.09), args.rank)
    solver = ek.ALS(rank=args.rank)
    began = time.perf_counter()
    model = solver.fit(part(ml1m, ~test))
    seconds = time.perf_counter() - began
    report = ek.evaluate(model, part(ml1m, test))
    ml1m_result = {
        "validation rmse by reg": tuning,
        "solver": repr(solver),
        "test rmse": round(report["rmse"], 4),
        "seconds": round(seconds, 2),
    }

    ml100k = pq.read_table(args.data / "ml-100k/ratings.parquet", columns=["user", "item", "rating", "u_fold"])
    fold = ml100k["u_fold"].to_numpy()
    first = ml100k.filter(pa.array(fold != 1)).drop_columns("u_fold")
    tuning = tried(first, (0.07, 0.1, 0.12, 0.15), args.rank)
    solver = ek.ALS(rank=args.rank, reg=float(min(tuning, key=tuning.__getitem__)))
    ml100k = ml100k.drop_columns("u_fold")
    folds = [ek.evaluate(solver.fit(part(ml100k, fold != f)), part(ml100k, fold == f))["rmse"] for f in range(1, 6)]
    ml100k_result = {
        "validation rmse by reg, u1": tuning,
        "solver": repr(solver),
        "test rmse, u1 to u5": [round(x, 4) for x in folds],
        "mean": round(float(np.mean(folds)), 4),
    }
    print(json.dumps({"benchmark": "MovieLens", "ml-1m": ml1m_result, "ml-100k": ml100k_result}, indent=1))


if __name__ == "__main__":
    main()

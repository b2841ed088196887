"""Gibbs sampling on MovieLens: settings looked at on a split of train, then the test once; intervals counted.

    python benchmarks/gibbs.py DATA [--ranks 16 32 48] [--part 1m] [--part 100k]

MovieLens-1M: test is ``np.random.default_rng(0).random(n) < 0.1``, rows in file order. MovieLens-100K: the official
u1 to u5, with the settings of MovieLens-1M. Validation is a tenth of the training part, drawn with seed 1. `coverage`
is the share of test ratings inside the interval of each nominal level. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import eckart as ek
from eckart.recommend.spread import coverage

LEVELS = (0.5, 0.8, 0.9, 0.95)


def part(table: pa.Table, mask: np.ndarray) -> ek.Interactions:
    return ek.read(table.filter(pa.array(mask)), timestamp=False)


def result(solver: ek.Gibbs, table: pa.Table, test: np.ndarray) -> dict[str, Any]:
    began = time.perf_counter()
    model = solver.fit(part(table, ~test))
    seconds = time.perf_counter() - began
    users, items, ratings = (table[name].to_numpy()[test] for name in ("user", "item", "rating"))
    errors = ratings - model.predict(users, items)
    known = model.items.rows(items) >= 0
    began = time.perf_counter()
    std = model.predict_std(users[known], items[known])
    return {
        "rmse": round(float(np.sqrt(np.mean(errors.astype(np.float64) ** 2))), 4),
        "seconds": round(seconds, 1),
        "coverage": dict(zip(LEVELS, (round(x, 3) for x in coverage(errors[known], std, LEVELS)), strict=True)),
        "mean std": round(float(std.mean()), 3),
        "seconds of std": round(time.perf_counter() - began, 1),
        "test ratings of unknown items": int((~known).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--ranks", type=int, nargs="*", default=[], help="validate these first")
    parser.add_argument("--part", choices=["1m", "100k"], action="append", help="[default: both]")
    args = parser.parse_args()
    solver = ek.Gibbs()
    report: dict[str, Any] = {"benchmark": "Gibbs", "solver": repr(solver), "isa": ek.kernel_info()["isa"]}

    if "1m" in (args.part or ["1m", "100k"]):
        ml1m = pq.read_table(args.data / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
        test = np.random.default_rng(0).random(ml1m.num_rows) < 0.1
        train = ml1m.filter(pa.array(~test))
        held = np.random.default_rng(1).random(train.num_rows) < 0.1
        report["ml-1m validation rmse by rank"] = {
            rank: round(
                ek.Gibbs(rank=rank).fit(part(train, ~held), part(train, held)).history[-1]["validation_rmse"], 4
            )
            for rank in args.ranks
        }
        report["ml-1m"] = result(solver, ml1m, test)

    if "100k" in (args.part or ["1m", "100k"]):
        table = pq.read_table(args.data / "ml-100k/ratings.parquet", columns=["user", "item", "rating", "u_fold"])
        fold, table = table["u_fold"].to_numpy(), table.drop_columns("u_fold")
        folds = [result(solver, table, fold == f) for f in range(1, 6)]
        report["ml-100k"] = {
            "rmse, u1 to u5": [one["rmse"] for one in folds],
            "mean": round(float(np.mean([one["rmse"] for one in folds])), 4),
            "coverage": {x: round(float(np.mean([one["coverage"][x] for one in folds])), 3) for x in LEVELS},
            "seconds": [one["seconds"] for one in folds],
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

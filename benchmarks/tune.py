"""The tuner against settings found by hand, on MovieLens; it sees training ratings only, then the test once.

    python benchmarks/tune.py DATA [--seconds-1m 240] [--seconds-100k 40] [--solver als] [--only ml-1m]

MovieLens-1M: test is ``np.random.default_rng(0).random(n) < 0.1``, rows in file order. MovieLens-100K: the official
u1 to u5, tuned five times, each on its own training part. The solver's defaults and, for ALS, settings found by hand
(those of tests/test_quality.py), fitted in the same run, stand beside it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import eckart as ek
from eckart.recommend.solver import named_solver

BY_HAND = {
    "ml-1m": {"reg": 0.6, "exponent": 0.7, "epochs": 10, "implicit_reg": 50.0},
    "ml-100k": {"rank": 24, "reg": 1.2, "exponent": 0.6, "epochs": 12, "implicit_reg": 30.0},
}


def tuned(table: pa.Table, test: np.ndarray, solver: str, seconds: float, name: str) -> dict[str, Any]:
    train, held_out = (ek.read(table.filter(pa.array(mask)), timestamp=False) for mask in (~test, test))

    def rmse(solver: Any) -> float:
        return round(ek.evaluate(solver.fit(train), held_out, intervals=None)["rmse"], 4)

    start = named_solver(solver, {})
    began = time.perf_counter()
    tuning = ek.tune(train, start, budget=seconds)
    spent = time.perf_counter() - began
    return {
        "chosen": {k: v for k, v in dataclasses.asdict(tuning.solver).items() if v != getattr(start, k)},
        "trials": tuning.trials.num_rows,
        "epochs": sum(tuning.trials["epochs"].to_pylist()),
        "seconds": round(spent, 1),
        "stopped": tuning.stopped,
        "validation rmse": round(tuning.value, 4),
        "test rmse": rmse(tuning.solver),
        "test rmse of the defaults": rmse(start),
    } | ({"test rmse by hand": rmse(named_solver(solver, BY_HAND[name]))} if solver == "als" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--solver", default="als")
    parser.add_argument("--seconds-1m", type=float, default=240)
    parser.add_argument("--seconds-100k", type=float, default=40)
    parser.add_argument("--only", choices=["ml-1m", "ml-100k"])
    args = parser.parse_args()

    result: dict[str, Any] = {"benchmark": "tune", "solver": args.solver}
    if args.only != "ml-100k":
        ml1m = pq.read_table(args.data / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
        test = np.random.default_rng(0).random(ml1m.num_rows) < 0.1
        result["ml-1m"] = tuned(ml1m, test, args.solver, args.seconds_1m, "ml-1m")
    if args.only != "ml-1m":
        ml100k = pq.read_table(args.data / "ml-100k/ratings.parquet", columns=["user", "item", "rating", "u_fold"])
        fold = ml100k["u_fold"].to_numpy()
        ml100k = ml100k.drop_columns("u_fold")
        folds = [tuned(ml100k, fold == f, args.solver, args.seconds_100k, "ml-100k") for f in range(1, 6)]
        means = {key: round(float(np.mean([one[key] for one in folds])), 4) for key in folds[0] if "test" in key}
        result["ml-100k"] = {"folds": folds, "mean": means}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

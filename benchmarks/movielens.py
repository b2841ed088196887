"""Explicit ALS on MovieLens: settings chosen on a split of train, then the test once, cmfrec beside it where installed.

    python benchmarks/movielens.py DATA        # DATA/ml-1m/ratings.parquet, DATA/ml-100k/ratings.parquet

MovieLens-1M: test is ``np.random.default_rng(0).random(n) < 0.1``, rows in file order. MovieLens-100K: the official
u1 to u5, all with the settings chosen inside u1's training part. Validation is a tenth of the training part, drawn
with seed 1. Each family of settings (ratings alone, with implicit features, with drifting biases) takes its best to
the test. u1 to u5 are random splits: with drift, a rating is also predicted from the user's later ones. cmfrec runs
with the settings its authors' benchmark has. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import eckart as ek

Settings = dict[str, Any]

PLAIN_1M = [{"rank": 64, "reg": reg} for reg in (0.05, 0.07, 0.09)] + [{"rank": 64, "reg": 0.2, "exponent": 0.8}]
IMPLICIT_1M = [
    {"rank": 64, "epochs": 10, "reg": reg, "exponent": exponent, "implicit_reg": implicit_reg}
    for reg, exponent, implicit_reg in ((0.5, 0.7, 50.0), (0.6, 0.7, 50.0), (0.5, 0.7, 100.0), (0.4, 0.75, 50.0))
]
PLAIN_100K = [{"rank": 64, "reg": reg} for reg in (0.1, 0.12, 0.15)]
IMPLICIT_100K = [
    {"rank": 24, "epochs": 12, "reg": reg, "exponent": exponent, "implicit_reg": implicit_reg}
    for reg, exponent, implicit_reg in (
        (1.0, 0.6, 30.0),
        (1.2, 0.6, 30.0),
        (1.2, 0.6, 50.0),
        (1.0, 0.6, 50.0),
        (1.6, 0.5, 30.0),
    )
]
BINS_100K = [
    {"user_time_bins": bins, "time_reg": reg} for bins, reg in ((5, 10.0), (10, 5.0), (10, 10.0), (20, 10.0))
] + [{"user_time_bins": 10, "item_time_bins": 3, "time_reg": 10.0}]


def part(table: pa.Table, mask: np.ndarray) -> ek.Interactions:
    return ek.read(table.filter(pa.array(mask)), timestamp="timestamp" if "timestamp" in table.column_names else False)


def rmse(settings: Settings, train: ek.Interactions, test: ek.Interactions) -> float:
    return ek.evaluate(ek.ALS(**settings).fit(train), test, intervals=None)["rmse"]


def tuned(train: pa.Table, tried: list[Settings]) -> tuple[Settings, list[dict[str, Any]]]:
    """Best of the settings on a random tenth of train, and what each gave there."""
    held = np.random.default_rng(1).random(train.num_rows) < 0.1
    fit, valid = part(train, ~held), part(train, held)
    losses = [rmse(settings, fit, valid) for settings in tried]
    table = [{**s, "validation rmse": round(loss, 4)} for s, loss in zip(tried, losses, strict=True)]
    return tried[int(np.argmin(losses))], table


def ml1m(table: pa.Table) -> dict[str, Any]:
    test = np.random.default_rng(0).random(table.num_rows) < 0.1
    train, held_out = part(table, ~test), part(table, test)
    result: dict[str, Any] = {}
    for family, tried in {"ratings alone": PLAIN_1M, "implicit features": IMPLICIT_1M}.items():
        best, tuning = tuned(table.filter(pa.array(~test)), tried)
        began = time.perf_counter()
        model = ek.ALS(**best).fit(train)
        seconds = round(time.perf_counter() - began, 2)
        error = round(ek.evaluate(model, held_out, intervals=None)["rmse"], 4)
        result[family] = {"tuning": tuning, "solver": repr(model.solver), "test rmse": error, "seconds": seconds}
    if importlib.util.find_spec("cmfrec"):
        result["cmfrec, implicit features"] = cmfrec(table, test)
    return result


def ml100k(table: pa.Table) -> dict[str, Any]:
    fold, table = table["u_fold"].to_numpy(), table.drop_columns("u_fold")
    first = table.filter(pa.array(fold != 1))
    plain, plain_tuning = tuned(first, PLAIN_100K)
    implicit, implicit_tuning = tuned(first, IMPLICIT_100K)
    drifting, drifting_tuning = tuned(first, [implicit | bins for bins in BINS_100K])
    result: dict[str, Any] = {}
    for family, best, tuning in (
        ("ratings alone", plain, plain_tuning),
        ("implicit features", implicit, implicit_tuning),
        ("implicit features and drift", drifting, drifting_tuning),
    ):
        began = time.perf_counter()
        folds = [rmse(best, part(table, fold != f), part(table, fold == f)) for f in range(1, 6)]
        result[family] = {
            "tuning in u1": tuning,
            "solver": repr(ek.ALS(**best)),
            "test rmse, u1 to u5": [round(x, 4) for x in folds],
            "mean": round(float(np.mean(folds)), 4),
            "seconds": round(time.perf_counter() - began, 2),
        }
    return result


def cmfrec(table: pa.Table, test: np.ndarray) -> dict[str, Any]:
    """Fit the peer with implicit features on the same split, unknown ids predicted as it does."""
    import pandas as pd
    from cmfrec import CMF

    frame = table.to_pandas().rename(columns={"user": "UserId", "item": "ItemId", "rating": "Rating"})
    settings: dict[str, Any] = {"k": 60, "lambda_": 0.065, "scale_lam": True, "niter": 12, "use_cg": False}
    began = time.perf_counter()
    model = CMF(**settings, add_implicit_features=True, w_implicit=1.0, nthreads=2, verbose=False)
    model.fit(pd.DataFrame(frame[~test][["UserId", "ItemId", "Rating"]]))
    seconds = round(time.perf_counter() - began, 2)
    predicted = np.asarray(model.predict(frame["UserId"][test].to_numpy(), frame["ItemId"][test].to_numpy()))
    predicted = np.where(np.isfinite(predicted), predicted, frame["Rating"][~test].mean())
    error = float(np.sqrt(np.mean((predicted - frame["Rating"][test].to_numpy()) ** 2)))
    return {"settings": settings | {"w_implicit": 1.0}, "test rmse": round(error, 4), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    columns = ["user", "item", "rating"]
    large = pq.read_table(args.data / "ml-1m/ratings.parquet", columns=columns)
    small = pq.read_table(args.data / "ml-100k/ratings.parquet", columns=[*columns, "timestamp", "u_fold"])
    print(json.dumps({"benchmark": "MovieLens", "ml-1m": ml1m(large), "ml-100k": ml100k(small)}, indent=1))


if __name__ == "__main__":
    main()

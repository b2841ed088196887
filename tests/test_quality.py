"""Quality on real ratings, where they lie beside the checkout: settings were chosen on splits of train.

``benchmarks/movielens.py`` shows how, and prints the same numbers with their tuning.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import eckart as ek

DATA = Path(os.environ.get("ECKART_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="MovieLens may not be passed on: set ECKART_DATA to a folder with ml-1m and ml-100k"
)


def rmse(table: pa.Table, test: np.ndarray, solver: ek.ALS | ek.Gibbs) -> float:
    timestamp = "timestamp" if "timestamp" in table.column_names else False
    train, held_out = (ek.read(table.filter(pa.array(mask)), timestamp=timestamp) for mask in (~test, test))
    return ek.evaluate(solver.fit(train), held_out, intervals=None)["rmse"]


def ml1m() -> tuple[pa.Table, np.ndarray]:
    table = pq.read_table(DATA / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
    return table, np.random.default_rng(0).random(table.num_rows) < 0.1


def over_folds(solver: ek.ALS, *more: str) -> float:
    columns = ["user", "item", "rating", "u_fold", *more]
    table = pq.read_table(DATA / "ml-100k/ratings.parquet", columns=columns)
    fold, table = table["u_fold"].to_numpy(), table.drop_columns("u_fold")
    return float(np.mean([rmse(table, fold == f, solver) for f in range(1, 6)]))


def test_movielens_1m_random_tenth():
    assert rmse(*ml1m(), ek.ALS()) <= 0.850


def test_movielens_1m_with_implicit_features():
    assert rmse(*ml1m(), ek.ALS(reg=0.6, exponent=0.7, epochs=10, implicit_reg=50.0)) <= 0.823


def test_movielens_100k_official_folds():
    assert over_folds(ek.ALS(reg=0.12)) <= 0.925


IMPLICIT_100K = {"rank": 24, "reg": 1.2, "exponent": 0.6, "epochs": 12, "implicit_reg": 30.0}


def test_movielens_100k_with_implicit_features():
    assert over_folds(ek.ALS(**IMPLICIT_100K)) <= 0.886


def test_movielens_100k_with_drifting_biases():
    assert over_folds(ek.ALS(**IMPLICIT_100K, user_time_bins=10, time_reg=10.0), "timestamp") <= 0.877


def test_movielens_1m_by_a_short_chain_with_its_intervals():
    table = pq.read_table(DATA / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
    test = np.random.default_rng(0).random(table.num_rows) < 0.1
    model = ek.Gibbs(epochs=40, samples=20, burn_in=0.5).fit(ek.read(table.filter(pa.array(~test)), timestamp=False))
    users, items, ratings = (table[name].to_numpy()[test] for name in ("user", "item", "rating"))
    errors = ratings - model.predict(users, items)
    assert np.sqrt(np.mean(errors.astype(np.float64) ** 2)) <= 0.828
    some = np.flatnonzero(model.items.rows(items) >= 0)[:2000]
    low, high = model.predict_interval(users[some], items[some], level=0.9)
    assert 0.87 <= np.mean((low <= ratings[some]) & (ratings[some] <= high)) <= 0.93

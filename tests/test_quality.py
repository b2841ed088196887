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
    train, held_out = (ek.read(table.filter(pa.array(mask)), timestamp=False) for mask in (~test, test))
    return ek.evaluate(solver.fit(train), held_out, intervals=None)["rmse"]


def test_movielens_1m_random_tenth():
    table = pq.read_table(DATA / "ml-1m/ratings.parquet", columns=["user", "item", "rating"])
    test = np.random.default_rng(0).random(table.num_rows) < 0.1
    assert rmse(table, test, ek.ALS()) <= 0.850


def test_movielens_100k_official_folds():
    table = pq.read_table(DATA / "ml-100k/ratings.parquet", columns=["user", "item", "rating", "u_fold"])
    fold, table = table["u_fold"].to_numpy(), table.drop_columns("u_fold")
    errors = [rmse(table, fold == f, ek.ALS(reg=0.12)) for f in range(1, 6)]
    assert np.mean(errors) <= 0.925


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

"""Articles nobody has saved yet: two towers on citeulike-a, tags and citations, DropoutNet's cold split.

    python benchmarks/tower_cold.py DATA [--tune]     # DATA/citeulike-a/{interactions,item_content}.npz

Recall@100 is over all of a user's cold test articles, ranking the 3,396 cold articles alone, averaged over the users
who have any. The item tower is a free vector, left out of half of the batches, and a linear map of the TF-IDF of tags
and citations; a cold article has the map alone. Settings are chosen on a fifth of the training articles (seed 0) made
cold, the test is read once. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

import eckart as ek

ITEMS = 16_980
LINEAR = (ek.Ids(dropout=0.5), ek.MLP(hidden=()))
CHOSEN = ek.TwoTower(item=LINEAR, rank=64, epochs=15, temperature=0.2, threads=1)
TRIED = [
    dataclasses.replace(CHOSEN, item=item, temperature=t, rank=rank)
    for item, t, rank in (
        (LINEAR, 0.1, 64),
        (LINEAR, 0.2, 64),
        (LINEAR, 0.25, 128),
        (ek.MLP(hidden=()), 0.1, 64),
        (ek.MLP(hidden=()), 0.2, 64),
        (ek.MLP(hidden=(256,), dropout=0.5), 0.15, 64),
        (ek.MLP(hidden=(256,), dropout=0.5), 0.25, 64),
    )
]


def pairs_and_features(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, ek.Features]:
    """Users, articles, whether a pair is of the cold test, and what is known of all articles."""
    z, content = np.load(data / "citeulike-a/interactions.npz"), np.load(data / "citeulike-a/item_content.npz")

    def matrix(name: str) -> csr_array:
        indices, indptr = content[f"{name}_indices"], content[f"{name}_indptr"]
        return csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(ITEMS, int(indices.max()) + 1))

    columns = {"item": np.arange(ITEMS), "tag": matrix("tag"), "citation": matrix("citation")}
    features = ek.read_features(columns, id="item")
    return z["user"].astype(np.int64), z["item"].astype(np.int64), z["dropoutnet_cold_test"].astype(bool), features


def recall(
    model: ek.Recommender, features: ek.Features, users: np.ndarray, items: np.ndarray, cold: np.ndarray
) -> float:
    """Mean recall@100 of these pairs among the cold items; a user nobody knows has none."""
    more = model.add_items(features.take(cold))
    rows = more.users.rows(users)
    ranked, _ = more.top_k(np.unique(rows[rows >= 0]), 100, allow=more.items.rows(cold))
    best = dict(zip(np.unique(rows[rows >= 0]).tolist(), more.items.ids[ranked], strict=True))
    found = {user: [] for user in np.unique(users).tolist()}
    for user, row, item in zip(users.tolist(), rows.tolist(), items.tolist(), strict=True):
        found[user].append(row >= 0 and item in best[row])
    return float(np.mean([np.mean(hits) for hits in found.values()]))


def timed(
    solver: ek.TwoTower, features: ek.Features, pairs: tuple[np.ndarray, np.ndarray], test: np.ndarray, cold: np.ndarray
) -> dict[str, object]:
    users, items = pairs
    began = time.process_time()
    model = solver.fit(ek.read({"user": users[~test], "item": items[~test]}), item_features=features)
    seconds = round(time.process_time() - began, 1)
    found = recall(model, features, users[test], items[test], cold)
    return {"solver": repr(solver), "cpu seconds": seconds, "recall@100": round(found, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tune", action="store_true", help="validate every setting that was tried")
    args = parser.parse_args()
    users, items, test, features = pairs_and_features(args.data)
    tuning = []
    if args.tune:
        train = users[~test], items[~test]
        known = np.unique(train[1])
        cold = np.sort(np.random.default_rng(0).choice(known, len(known) // 5, replace=False))
        for solver in TRIED:
            tuning.append(timed(solver, features, train, np.isin(train[1], cold), cold))
            print(tuning[-1], flush=True)
    found = timed(CHOSEN, features, (users, items), test, np.unique(items[test]))
    result = {"benchmark": "citeulike-a, cold articles, two towers", "validation": tuning, "test": found}
    print(json.dumps(result | {"target": {"recall@100": 0.65}}))


if __name__ == "__main__":
    main()

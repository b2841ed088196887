"""NCF's leave-one-out on MovieLens-1M: settings chosen on entries left out of train, then the test once.

    python benchmarks/ncf.py DATA [--tune]     # DATA/ml-1m/ratings.parquet, DATA/ml-1m/ncf_leave_one_out.npz

The test is that of He et al. 2017: each user's latest item among 99 they did not touch, HR@10 and NDCG@10. Those
figures compare with published ones and with nothing else (docs/evaluation.md). Validation leaves out one random
training entry of each user (64 % of the timestamps are missing, so it cannot be the latest one), among 99 items drawn
from those the user does not have in train. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import eckart as ek
from eckart.recommend.sampled_negatives import rank_among

CHOSEN = ek.ImplicitALS(rank=192, reg=0.007, unobserved_weight=0.3, epochs=12)
TRIED = [
    ek.ImplicitALS(rank=192, reg=reg, unobserved_weight=weight, epochs=12)
    for reg, weight in ((0.007, 0.3), (0.003, 0.3), (0.015, 0.3), (0.007, 0.1), (0.007, 1.0))
]


def pairs(users: np.ndarray, items: np.ndarray) -> ek.Interactions:
    return ek.read({"user": users, "item": items})


def figures(place: np.ndarray) -> dict[str, float]:
    hit = place <= 10
    return {"HR@10": round(float(hit.mean()), 4), "NDCG@10": round(float(np.mean(hit / np.log2(place + 1))), 4)}


def left_out(users: np.ndarray, items: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which entry of each user is left out, and 99 items that the user does not have."""
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(users)), users))
    last = np.flatnonzero(np.diff(users[order], append=-1))
    catalogue = np.unique(items)
    negatives = np.empty((len(last), 99), items.dtype)
    for row, (begin, end) in enumerate(zip([0, *(last[:-1] + 1)], last + 1, strict=True)):
        free = np.setdiff1d(catalogue, items[order[begin:end]])
        negatives[row] = rng.choice(free, 99, replace=False)
    return order[last], negatives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tune", action="store_true", help="validate every setting that was tried")
    args = parser.parse_args()
    table = pq.read_table(args.data / "ml-1m/ratings.parquet", columns=["user", "item"])
    held = np.load(args.data / "ml-1m/ncf_leave_one_out.npz")
    users, items = (table[name].to_numpy().astype(np.int64) for name in ("user", "item"))
    key = users * 10_000 + items
    train = ~np.isin(key, held["user"].astype(np.int64) * 10_000 + held["item"])
    users, items = users[train], items[train]

    tuning = []
    if args.tune:
        out, negatives = left_out(users, items, seed=1)
        keep = np.ones(len(users), bool)
        keep[out] = False
        fit = pairs(users[keep], items[keep])
        for solver in TRIED:
            began = time.perf_counter()
            found = figures(rank_among(solver.fit(fit), users[out], items[out], negatives))
            tuning.append({"solver": repr(solver)} | found | {"seconds": round(time.perf_counter() - began, 1)})
            print(tuning[-1], flush=True)

    began = time.perf_counter()
    model = CHOSEN.fit(pairs(users, items))
    seconds = time.perf_counter() - began
    ids = (held[name].astype(np.int64) for name in ("user", "item", "negatives"))
    result = figures(rank_among(model, *ids))
    print(
        json.dumps(
            {
                "benchmark": "MovieLens-1M, NCF leave-one-out",
                "validation": tuning,
                "solver": repr(CHOSEN),
                "seconds": round(seconds, 1),
                "test": result,
                "targets": {"HR@10": 0.729, "NDCG@10": 0.452},
            }
        )
    )


if __name__ == "__main__":
    main()

"""From which catalogue size on an approximate index pays: exact and graph search for one user, and the recall.

    pip install 'eckart[ann]'
    python benchmarks/ann.py [--items 26744,200000,1000000] [--rank 64]

Factors are clustered Gaussians whose norms vary as popularity does (log-normal), not fitted ones: 200 tastes, users
and items around them. One thread a query, turns alternate user by user, medians. Recall is against the exact list.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time

import numpy as np
from scipy.sparse import csr_array

import eckart as ek
from eckart.recommend.solver import ItemSide

USERS = 500


def catalogue(items: int, rank: int, spread: float) -> ek.Recommender:
    rng = np.random.default_rng(0)
    tastes = rng.standard_normal((200, rank))
    H = tastes[rng.integers(0, 200, items)] + 0.7 * rng.standard_normal((items, rank))
    H *= np.exp(spread * rng.standard_normal((items, 1))) / rank**0.5
    W = tastes[rng.integers(0, 200, USERS)] + 0.7 * rng.standard_normal((USERS, rank))
    seen = csr_array(
        (np.ones(20 * USERS, np.float32), np.sort(rng.integers(0, items // 20, (USERS, 20))
         + items // 20 * np.arange(20)).astype(np.int32).ravel(), 20 * np.arange(USERS + 1)),
        shape=(USERS, items),
    )  # fmt: skip
    none = np.zeros(items, np.float32)
    side = ItemSide(H.astype(np.float32), none, 0.0, none)
    ids = ek.Vocabulary(np.arange(USERS)), ek.Vocabulary(np.arange(items))
    solver = ek.ImplicitALS(rank=rank, threads=1)
    return ek.Recommender(solver, *ids, W.astype(np.float32), np.zeros(USERS, np.float32), side, seen, [])


def milliseconds(call) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", default="26744,200000,1000000")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--spread", type=float, default=0.7, help="of the logarithm of the norms; 0: all alike")
    parser.add_argument("--build-threads", type=int, default=None)
    args = parser.parse_args()
    report = []
    for items in map(int, args.items.split(",")):
        model = catalogue(items, args.rank, args.spread)
        model.top_k([0], 10)
        built = ek.ImplicitALS(rank=args.rank, threads=args.build_threads)
        began = time.perf_counter()
        index = ek.build_ann(dataclasses.replace(model, solver=built))
        row = {"items": items, "build s": round(time.perf_counter() - began, 1)}
        for effort in (50, 100, 400):
            exact = [milliseconds(lambda u=u, m=model: m.top_k([u], 10)) for u in range(USERS)]
            ann = [
                milliseconds(lambda u=u, i=index, m=model, e=effort: i.top_k(m, [u], 10, effort=e))
                for u in range(USERS)
            ]
            row |= {
                "exact ms": round(statistics.median(exact), 3),
                f"effort {effort} ms": round(statistics.median(ann), 3),
                f"effort {effort} recall": round(index.recall(model, effort=effort), 4),
            }
        report.append(row)
    print(
        json.dumps(
            {"benchmark": "approximate index", "rank": args.rank, "spread": args.spread, "rows": report}, indent=1
        )
    )


if __name__ == "__main__":
    main()

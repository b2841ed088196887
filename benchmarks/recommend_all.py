"""Top 10 for all users, beside implicit and beside the machine's matrix product; and for one user.

    pip install eckart implicit threadpoolctl
    python benchmarks/recommend_all.py [--rank 64] [--users 20000 --items 26744 --entries 2900000]

Everything gets the same factors, fitted here in two epochs, leaves out what a user has seen, and uses the same number
of threads. Turns alternate, and medians are compared. The rate counts 2 k flops a user and item, whatever else is
done; sgemm's is NumPy's float32 product of two square matrices, which is faster than that of the shape in question
(it would have to write users x items); a rate above it is what passing over panels saves, and with all norms alike none
can be. One user: calls inside the process, each for another user, on one thread;
"ablation" is the same calls by the batch kernel, by the bytes in the order of the catalogue, where no panel is passed
over, and by the bytes in the order of the norms; `random factors` has all norms alike, which is the worst case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import implicit
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

import eckart as ek
from eckart.core.kernels import kernel_info, kernels, resolve_threads
from eckart.recommend.catalogue import Catalogue, no_entries


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def one_by_one(call, users: int = 1000) -> dict[str, float]:
    times = [1e3 * seconds(lambda u=u: call(u)) for u in range(users)]
    return {"median ms": round(statistics.median(times), 4), "least ms": round(min(times), 4)}


def ablation(Q: np.ndarray, H: np.ndarray, rank: int) -> dict[str, dict[str, float]]:
    none = np.zeros(2, np.int64), np.zeros(0, np.int32)
    bias, report = np.zeros(len(H), np.float32), {}
    orders = {"bytes": np.arange(len(H)), "bytes, large norms first": np.argsort(-np.linalg.norm(H, axis=1))}
    for name, order in orders.items():
        order = order.astype(np.int32)
        panels, (codes, bounds, _) = kernels.pack_items(H, bias, order), kernels.pack_codes(H, bias, order)
        report[name.replace("bytes", "float32 panels")] = one_by_one(
            lambda u: kernels.top_k(Q[u : u + 1], *panels, order, bias, *none, 10, 1)  # noqa: B023
        )
        report[name] = one_by_one(lambda u: kernels.top_one(Q[u : u + 1], H, codes, bounds, order, bias, *none, 10, 1))  # noqa: B023
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rank", 64), ("users", 20_000), ("items", 26_744), ("entries", 2_900_000), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    data = ek.synthetic(users=args.users, items=args.items, entries=args.entries, rated=False, seed=0)
    threads, n, m = resolve_threads(None), len(data.users), len(data.items)
    model = ek.ImplicitALS(rank=args.rank, epochs=2).fit(data)
    peer = AlternatingLeastSquares(factors=args.rank, num_threads=threads)
    peer.user_factors, peer.item_factors = model.W, model.H
    rows, seen = np.arange(n), csr_matrix(model.seen)
    A = np.random.default_rng(0).standard_normal((3000, 3000)).astype(np.float32)
    rng = np.random.default_rng(0)
    R = (rng.standard_normal((n + m, args.rank)) / args.rank**0.5).astype(np.float32)
    even = Catalogue(R[n:].copy(), np.zeros(m, np.float32), threads)
    ours, theirs, sgemm, table, unpruned = [], [], [], [], []
    lists: dict[str, np.ndarray] = {}

    def run_ours() -> None:
        lists["ours"] = model.top_k(rows, 10)[0]

    def run_theirs() -> None:
        lists["theirs"] = peer.recommend(rows, seen, N=10, filter_already_liked_items=True)[0]

    for _ in range(args.turns + 1):  # the first warms up
        ours.append(seconds(run_ours))
        with threadpool_limits(1, "blas"):  # as implicit asks: its own threads call BLAS
            theirs.append(seconds(run_theirs))
        sgemm.append(2 * 3000**3 / seconds(lambda: A @ A) / 1e9)
        table.append(seconds(lambda: model.recommend(k=10)))
        unpruned.append(seconds(lambda: even.best(R[:n], 10, no_entries(n), threads)))
    ours, theirs, sgemm, table, unpruned = (statistics.median(x[1:]) for x in (ours, theirs, sgemm, table, unpruned))
    rate, even_rate = (2 * n * m * args.rank / took / 1e9 for took in (ours, unpruned))

    alone = ek.Recommender(
        ek.ImplicitALS(rank=args.rank, threads=1), *(data.users, data.items, model.W, model.user_bias),
        *(model.item_side, model.seen, []),
    )  # fmt: skip
    ids = data.users.ids.tolist()
    print(
        json.dumps(
            {
                "benchmark": "top 10 for all users, and for one",
                "shape": [n, m, data.nnz],
                "rank": args.rank,
                "threads": threads,
                "isa": kernel_info()["isa"],
                "eckart top_k s": round(ours, 3),
                "eckart recommend (a table of ids) s": round(table, 3),
                f"implicit {implicit.__version__} recommend s": round(theirs, 3),
                "ratio": round(theirs / ours, 2),
                "same items": round(float(np.mean(lists["ours"] == lists["theirs"])), 5),
                "eckart GFLOP/s": round(rate, 1),
                "sgemm GFLOP/s": round(sgemm, 1),
                "of sgemm": round(rate / sgemm, 3),
                "of sgemm, all norms alike": round(even_rate / sgemm, 3),
                "one user, one thread": {
                    "model.top_k": one_by_one(lambda u: alone.top_k([u], 10)),
                    "model.recommend": one_by_one(lambda u: alone.recommend(ids[u])),
                    "implicit recommend": one_by_one(lambda u: peer.recommend(u, seen[u], N=10), 200),
                    "ablation": ablation(model.W, model.H, args.rank),
                    "ablation, random factors": ablation(R[:1000], even.H, args.rank),
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

"""Exact implicit ALS against implicit's Cholesky solver: seconds per iteration, same data, same run.

    pip install eckart implicit
    python benchmarks/implicit_als.py [--rank 64] [--users 138493 --items 26744 --entries 20000000]

An iteration is both half-sweeps. Turns alternate, so that a machine whose speed drifts slows both alike; the
ratio is that of the medians. Both solve one k x k system per row by Cholesky; the losses differ only in how the
weight of an observed cell is counted (implicit: 1 + alpha r; here: alpha r on top of the weight of every cell).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as implicit asks: its own threads call BLAS

import implicit
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_array, csr_matrix

import eckart as ek
from eckart.core.kernels import kernel_info, resolve_threads
from eckart.recommend.implicit import half_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("rank", 64),
        ("users", 138_493),
        ("items", 26_744),
        ("entries", 20_000_000),
        ("turns", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    data = ek.synthetic(users=args.users, items=args.items, entries=args.entries, rated=False, seed=0)
    threads = resolve_threads(None)
    R, solver = data.matrix, ek.ImplicitALS(rank=args.rank)
    by_item = csr_array(R.T.tocsr())
    W = (0.1 * np.random.default_rng(0).standard_normal((args.users, args.rank)) / args.rank**0.5).astype(np.float32)

    peer_seconds: list[float] = []
    peer = AlternatingLeastSquares(
        factors=args.rank,
        regularization=0.01,
        alpha=1.0,
        use_cg=False,
        iterations=1,
        num_threads=threads,
        random_state=0,
    )
    peer.fit_callback = lambda iteration, seconds, *_: peer_seconds.append(seconds)
    peer_matrix = csr_matrix(R)

    our_seconds: list[float] = []
    for _ in range(args.turns + 1):
        began = time.perf_counter()
        H, _ = half_sweep(by_item, W, solver.alpha, solver.unobserved_weight, solver._row_reg(by_item), threads)
        W, objective = half_sweep(R, H, solver.alpha, solver.unobserved_weight, solver._row_reg(R), threads)
        our_seconds.append(time.perf_counter() - began)
        peer.fit(peer_matrix, show_progress=False)  # goes on from where it is
    ours, theirs = (
        statistics.median(our_seconds[1:]),
        statistics.median(peer_seconds[1:]),
    )  # the first warms up
    print(
        json.dumps(
            {
                "benchmark": "implicit ALS, exact, seconds per iteration",
                "shape": [args.users, args.items, args.entries],
                "rank": args.rank,
                "threads": threads,
                "isa": kernel_info()["isa"],
                "eckart": [round(s, 3) for s in our_seconds[1:]],
                f"implicit {implicit.__version__} cholesky": [round(s, 3) for s in peer_seconds[1:]],
                "ratio": round(theirs / ours, 2),
                "objective finite": bool(np.isfinite(objective)),
            }
        )
    )


if __name__ == "__main__":
    main()

"""Implicit ALS against implicit's: seconds per iteration and the objective reached, same data, same start, same run.

    pip install eckart implicit
    python benchmarks/implicit_als.py [--rank 64] [--solver exact|cg|block] [--entries 20000000]

An iteration is both half-sweeps. Turns alternate, so that a machine whose speed drifts slows both alike; the ratio is
that of the medians. implicit runs its Cholesky solver beside ``exact``, its conjugate gradients (3 steps, its default)
beside ``cg`` and ``block``.

The two libraries write one objective in two ways. implicit: c (1 - s)^2 on observed cells, s^2 on the others, L2
lambda. Here: w (1 - s)^2 on observed cells, s^2 on all of them. On binary data, with w = c - 1 and t = w / c, the
second is t^2 times the first at s' = t s and lambda' = t lambda: so implicit's factors, scaled by sqrt(t), are measured
with the same function, and the start is scaled alike.
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
from eckart.core.kernels import kernel_info, kernels, resolve_threads
from eckart.recommend.eigenbasis import eigenbasis, spectrum
from eckart.recommend.implicit import half_sweep
from eckart.recommend.rows import EXACT, METHODS

REG, WEIGHT = 5.0, 1.0  # lambda and w: every row is penalised alike, as implicit does


def objective(R: csr_array, W: np.ndarray, H: np.ndarray, threads: int) -> float:
    """w (1 - s)^2 over the entries, s^2 over all cells, lambda (|W|^2 + |H|^2)."""
    users = np.repeat(np.arange(R.shape[0]), np.diff(R.indptr))
    none = np.zeros(R.shape[0], np.float32), np.zeros(R.shape[1], np.float32)
    s = kernels.pair_scores(W, H, *none, 0.0, users, R.indices.astype(np.int64), threads).astype(np.float64)
    every = np.sum(kernels.gram(W, threads).astype(np.float64) * kernels.gram(H, threads))
    return float(WEIGHT * np.sum((1 - s) ** 2) + every + REG * sum(np.sum(X.astype(np.float64) ** 2) for X in (W, H)))


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
    parser.add_argument("--solver", choices=list(METHODS), default="exact")
    args = parser.parse_args()
    data = ek.synthetic(users=args.users, items=args.items, entries=args.entries, rated=False, seed=0)
    threads, method = resolve_threads(None), METHODS[args.solver]
    R = data.matrix
    by_item = csr_array(R.T.tocsr())
    rng, scale = np.random.default_rng(0), np.float32(np.sqrt(WEIGHT / (WEIGHT + 1)))
    W, H = (0.1 * rng.standard_normal((n, args.rank)).astype(np.float32) for n in R.shape)

    peer_seconds: list[float] = []
    peer = AlternatingLeastSquares(
        factors=args.rank,
        regularization=REG / scale**2,
        alpha=WEIGHT + 1,
        use_cg=args.solver != "exact",
        iterations=1,
        num_threads=threads,
        random_state=0,
    )
    peer.user_factors, peer.item_factors = W / scale, H / scale
    peer.fit_callback = lambda iteration, seconds, *_: peer_seconds.append(seconds)
    peer_matrix = csr_matrix(R)

    def solved(matrix: csr_array, Y: np.ndarray, X: np.ndarray, reg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        Q = eigenbasis(Y, threads)
        Y = kernels.rotate(Y, Q, threads)
        start = None if method == EXACT else kernels.rotate(X, Q, threads)
        return half_sweep(matrix, Y, WEIGHT, spectrum(Y, 1.0), reg, threads, method, start)[0], Y

    our_seconds: list[float] = []
    reg_users, reg_items = (np.full(n, REG, np.float32) for n in R.shape)
    for _ in range(args.turns + 1):
        began = time.perf_counter()
        W, H = solved(R, H, W, reg_users)
        H, W = solved(by_item, W, H, reg_items)
        our_seconds.append(time.perf_counter() - began)
        peer.fit(peer_matrix, show_progress=False)  # goes on from where it is
    ours, theirs = (statistics.median(seconds[1:]) for seconds in (our_seconds, peer_seconds))  # the first warms up
    reached = objective(R, W, H, threads)
    peer_reached = objective(R, scale * np.asarray(peer.user_factors), scale * np.asarray(peer.item_factors), threads)
    print(
        json.dumps(
            {
                "benchmark": f"implicit ALS, {args.solver}, seconds per iteration",
                "shape": [args.users, args.items, args.entries],
                "rank": args.rank,
                "threads": threads,
                "isa": kernel_info()["isa"],
                "eckart": [round(s, 3) for s in our_seconds[1:]],
                f"implicit {implicit.__version__} {'cg' if peer.use_cg else 'cholesky'}": [
                    round(s, 3) for s in peer_seconds[1:]
                ],
                "ratio": round(theirs / ours, 2),
                f"objective after {args.turns + 1} iterations": [reached, peer_reached],
            }
        )
    )


if __name__ == "__main__":
    main()

"""A LoRA update resized from its factors, beside building the product and its SVD.

    python benchmarks/lora_resize.py [--size 4096] [--rank 64] [--to 16] [--turns 5]

Prints seconds of both, the ratio (medians; the product's SVD runs once), and how far the two results are apart beside
the size of the best approximation. NumPy, float64, the same threads for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from eckart.core.lowrank import LowRank
from eckart.core.resize import factor_svd


def seconds(call) -> tuple[float, object]:
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def by_product(matrix: LowRank, rank: int) -> tuple[np.ndarray, np.ndarray]:
    U, s, Vt = np.linalg.svd(matrix.dense(), full_matrices=False)
    return U[:, :rank] * s[:rank], Vt[:rank].T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--to", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    # singular values that fall, as those of trained updates do
    factors = [rng.standard_normal((args.size, args.rank)) for _ in range(2)]
    matrix = LowRank(factors[0] * 0.93 ** np.arange(args.rank), factors[1])
    turns = [seconds(lambda: factor_svd(matrix).cut(args.to)) for _ in range(args.turns)]
    ours, cut = statistics.median(took for took, _ in turns), turns[-1][1]
    assert isinstance(cut, LowRank)
    theirs, (left, right) = seconds(lambda: by_product(matrix, args.to))
    apart = np.linalg.norm(cut.dense() - left @ right.T) / np.linalg.norm(left @ right.T)
    answer = {"size": args.size, "rank": args.rank, "to": args.to, "factors_s": ours, "product_s": theirs}
    print(json.dumps({**answer, "ratio": theirs / ours, "apart": float(apart)}))


if __name__ == "__main__":
    main()

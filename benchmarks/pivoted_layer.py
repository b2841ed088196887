"""A pivoted layer beside its dense one, its plain factors, and its outputs ordered one by one: milliseconds, medians.

    python benchmarks/pivoted_layer.py [--inputs 1 8 512 1024] [--shape 1536 576] [--rank 360] [--rounds 40]

In float32, without gradients; the ways take turns. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from eckart.nn.linear import LowRankLinear


def one_by_one(layer: LowRankLinear, x: torch.Tensor) -> torch.Tensor:
    z = F.linear(x, layer.right)
    return torch.cat([z, F.linear(z, layer.left)], dim=-1).index_select(-1, layer.order)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, nargs="+", default=[1, 8, 512, 1024])
    parser.add_argument("--shape", type=int, nargs=2, default=[1536, 576])
    parser.add_argument("--rank", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args()
    torch.manual_seed(0)
    m, n = asked.shape
    dense = nn.Linear(n, m, bias=False)
    factors, pivoted = (LowRankLinear(n, m, asked.rank, bias=False, pivoted=form) for form in (False, True))
    for parameter in (*factors.parameters(), *pivoted.parameters()):
        parameter.normal_()
    pivoted.order.copy_(torch.randperm(m))
    ways = {"dense": dense, "factors": factors, "pivoted": pivoted, "one by one": lambda x: one_by_one(pivoted, x)}
    results: dict[str, object] = {"threads": torch.get_num_threads(), "shape": [m, n], "rank": asked.rank}
    for inputs in asked.inputs:
        x = torch.randn(1, inputs, n)
        torch.testing.assert_close(pivoted(x), one_by_one(pivoted, x), rtol=1e-3, atol=1e-2)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way, compute in ways.items():
                started = time.perf_counter()
                compute(x)
                taken[way].append(1e3 * (time.perf_counter() - started))
        results[f"{inputs} inputs"] = {way: round(statistics.median(all_of), 3) for way, all_of in taken.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

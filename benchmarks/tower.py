"""Two towers of ids alone on Gowalla, LightGCN's split: settings chosen on train alone, then the test once.

    python benchmarks/tower.py DATA [--tune]     # DATA/gowalla/lightgcn_split.npz

Data, metrics and validation are those of gowalla.py. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
from gowalla import figures, hold_out, read_parts

import eckart as ek

CHOSEN = ek.TwoTower(rank=128, epochs=60, loss="softmax", temperature=0.1, draws=2000, batch=512, warm_start=True)
TRIED = [dataclasses.replace(CHOSEN, temperature=t, rank=rank) for t, rank in ((0.1, 64), (0.1, 128))]


def timed(solver: ek.TwoTower, train: ek.Interactions, held: ek.Interactions) -> dict[str, object]:
    began, cpu = time.perf_counter(), time.process_time()
    model = solver.fit(train)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    spent = {"seconds": round(seconds, 1), "cpu seconds": round(cpu, 1)}
    return {"solver": repr(solver), **spent, "objective": model.history[-1]["objective"]} | figures(model, held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tune", action="store_true", help="validate every setting that was tried")
    args = parser.parse_args()
    train, test = read_parts(args.data)
    tuning = []
    if args.tune:
        fit, held = hold_out(train, 0.2, seed=0)
        some = np.sort(np.random.default_rng(5).choice(len(train.users), 10_000, replace=False))
        some = some[np.random.default_rng(6).permutation(10_000)[:4000]]
        held = held.select(np.isin(held.user_rows(), held.users.rows(some)))
        for solver in TRIED:
            tuning.append(timed(solver, fit, held))
            print(tuning[-1], flush=True)
    result = {"benchmark": "Gowalla, LightGCN's split, two towers of ids", "validation": tuning}
    print(json.dumps(result | {"test": timed(CHOSEN, train, test), "target": {"recall@20": 0.183, "minutes": 20}}))


if __name__ == "__main__":
    main()

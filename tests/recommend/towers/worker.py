"""One process of a fit by several, started by torchrun: python -m torch.distributed.run ... worker.py OUT."""

import json
import os
import sys
from pathlib import Path

import numpy as np

import eckart as ek


def fitted(checkpoint: Path | None = None) -> ek.Recommender:
    data = ek.synthetic(users=61, items=40, entries=700, rated=False, seed=0)
    films = ek.read_features({"item": list(range(40)), "year": [1950.0 + i for i in range(40)]})
    solver = ek.TwoTower(rank=4, epochs=4, batch=16, draws=12, threads=1, item=(ek.Ids(), ek.MLP(hidden=(5,))))
    return solver.fit(data, item_features=films, checkpoint=checkpoint)


def main(out: Path) -> None:
    model, rank = fitted(out / "checkpoint"), os.environ["RANK"]
    np.savez(out / f"{rank}.npz", W=model.W, H=model.H)
    (out / f"{rank}.json").write_text(json.dumps(model.history))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A recommender as a model directory (core/store.py), and back, believing nothing in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eckart.core import store
from eckart.core.csr import csr, fault_of
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.drift import Drift, Steps
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, named_solver, solver_name

__all__ = ["load", "save"]


def save(model: Recommender, path: str | Path) -> None:
    """Write a model directory: see `Recommender.save`."""
    side = model.item_side
    settings = {k: v for k, v in dataclasses.asdict(model.solver).items() if k != "threads"}  # type: ignore[call-overload]
    config = {
        "solver": solver_name(model.solver),
        "hyperparameters": json.loads(json.dumps(settings)),  # tuples are lists there
        "mean": side.mean,
        "history": model.history,
        "warm": model.warm,
    }
    factors = {
        "W": model.W,
        "H": side.H,
        "user_bias": model.user_bias,
        "item_bias": side.bias,
        "popularity": side.popularity,
    }
    seen = {
        "indptr": model.seen.indptr.astype(np.int64, copy=False),
        "indices": model.seen.indices.astype(np.int32, copy=False),
        "values": model.seen.data,
    }
    ids = {"users": model.users.ids, "items": model.items.ids}
    extra = {"extra": dict(side.extra)} if side.extra else {}
    drift = {} if model.drift is None else {"drift": _drift_tensors(model.drift)}
    store.write_directory(path, "recommender", config, {"factors": factors, "seen": seen, **extra, **drift}, ids)


def load(path: str | Path) -> Recommender:
    """Read a model directory. No code is run from it; every shape and bound is checked.

    Parameters
    ----------
    path : path
        What `Recommender.save` wrote.

    Returns
    -------
    Recommender

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        Not a model directory, a damaged one, or one of a newer version.
    """
    config, tensors, ids = store.read_directory(path, "recommender", mapped=("seen",))  # it may be larger than memory
    try:
        name, settings, mean = config["solver"], config["hyperparameters"], float(config["mean"])
        history, warm = config["history"], config["warm"]
        solver = named_solver(name, {**settings, "threads": None})
        users, items = Vocabulary(ids["users"]), Vocabulary(ids["items"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: config.json or an id table is damaged ({error}): copy the model again") from None
    if not (np.isfinite(mean) and isinstance(warm, bool) and isinstance(history, list)):
        raise ValueError(f"{path}: config.json has a wrong mean, warm or history: copy the model again")
    n, m, k = len(users), len(items), solver.width
    f32 = np.float32

    def factor(name: str, *shape: int) -> np.ndarray:
        return store.take_tensor(tensors, "factors", name, shape, f32, finite=True)

    W, H, user_bias, item_bias = (
        factor("W", n, k),
        factor("H", m, k),
        factor("user_bias", n),
        factor("item_bias", m),
    )
    indptr = store.take_tensor(tensors, "seen", "indptr", (n + 1,), np.int64)
    indices = store.take_tensor(tensors, "seen", "indices", (None,), np.int32)
    values = store.take_tensor(tensors, "seen", "values", (len(indices),), f32)
    if fault := fault_of(indptr, indices, values, m):
        raise ValueError(f"{path}: seen.safetensors is damaged ({fault}): copy the model again")
    seen = csr(values, indices, indptr, (n, m))
    extra = {
        key: store.take_tensor(tensors, "extra", key, shape, f32, finite=True)
        for key, shape in solver.extra_shapes(m).items()
    }
    side = ItemSide(H, item_bias, mean, factor("popularity", m), extra)
    drift = _drift(path, tensors, n, m) if "drift" in tensors else None
    return Recommender(solver, users, items, W, user_bias, side, seen, history, warm, drift)


def _drift_tensors(drift: Drift) -> dict[str, np.ndarray]:
    return {
        "user_edges": drift.users.edges,
        "user_heights": drift.users.heights,
        "item_edges": drift.items.edges,
        "item_heights": drift.items.heights,
        "reg": np.array([drift.reg]),
    }


def _drift(path: str | Path, tensors: Mapping[str, Mapping[str, np.ndarray]], n: int, m: int) -> Drift:
    def steps(side: str, count: int) -> Steps:
        heights = store.take_tensor(tensors, "drift", f"{side}_heights", (count, None), np.float32, finite=True)
        bins = max(heights.shape[1], 1)
        edges = store.take_tensor(tensors, "drift", f"{side}_edges", (count, bins - 1), np.int64)
        if np.any(edges[:, 1:] < edges[:, :-1]):
            raise ValueError(f"{path}: the time bins in drift.safetensors are out of order: copy the model again")
        return Steps(edges, heights)

    reg = float(store.take_tensor(tensors, "drift", "reg", (1,), np.float64, finite=True)[0])
    if not reg > 0:
        raise ValueError(f"{path}: reg in drift.safetensors is {reg}, expected a number above 0: copy the model again")
    return Drift(steps("user", n), steps("item", m), reg)

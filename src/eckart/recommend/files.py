"""A recommender as a model directory (core/store.py), and back, believing nothing in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eckart.core import store
from eckart.core.csr import csr, fault_of
from eckart.data.feature_map import FeatureMap
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.drift import Drift, Steps
from eckart.recommend.encoder import Encoder
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, named_solver, require_features_taken, solver_name

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
    tensors = {"factors": factors, "seen": seen, **extra, **drift}
    if side.cold is not None:
        factors["cold"] = side.cold.astype(np.uint8)
    if model.user_points is not None:
        factors["user_points"] = model.user_points
    for name, encoder in (("user_encoder", model.user_encoder), ("item_encoder", model.item_encoder)):
        if encoder is None:
            continue
        config[name] = encoder.config()
        tensors[name] = encoder.tensors()
        tensors[f"{name}.features"] = encoder.features.tensors()
        ids |= {f"{name}.{key}": names for key, names in encoder.features.ids().items()}
    store.write_directory(path, "recommender", config, tensors, ids)


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
        return _model(path, config, tensors, ids)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(f"{path}: ") else f"{path}: {said}") from None


def _model(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    ids: Mapping[str, np.ndarray],
) -> Recommender:
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
    cold = None
    if "cold" in tensors["factors"]:
        flags = store.take_tensor(tensors, "factors", "cold", (m,), np.uint8)
        if flags.size and flags.max() > 1:
            raise ValueError(f"{path}: cold in factors.safetensors holds more than 0 and 1: copy the model again")
        cold = flags > 0
    side = ItemSide(H, item_bias, mean, factor("popularity", m), extra, cold)
    drift = _drift(path, tensors, n, m) if "drift" in tensors else None
    encoders = {name: _encoder(path, name, config, tensors, ids, k) for name in ("user_encoder", "item_encoder")}
    if any(encoders.values()):
        try:
            require_features_taken(solver)
        except ValueError as error:
            raise ValueError(f"{path}: it has an encoder, and {error}: copy the model again") from None
    points = factor("user_points", n, k + 1) if "user_points" in tensors["factors"] else None
    if (points is None) != (encoders["user_encoder"] is None):
        raise ValueError(f"{path}: it has one of user_points and user_encoder and not the other: copy the model again")
    return Recommender(
        solver, users, items, W, user_bias, side, seen, history, warm, drift, **encoders, user_points=points
    )


def _encoder(
    path: str | Path,
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    ids: Mapping[str, np.ndarray],
    width: int,
) -> Encoder | None:
    if name not in config:
        if any(stem.partition(".")[0] == name for stem in (*tensors, *ids)):
            raise ValueError(f"{path}: it has arrays of its {name}, and no config of it: copy the model again")
        return None
    try:
        names = {key.removeprefix(f"{name}."): column for key, column in ids.items() if key.startswith(f"{name}.")}
        features = FeatureMap.restore(config[name]["features"], tensors.get(f"{name}.features", {}), names)
        return Encoder.restore(config[name], tensors.get(name, {}), features, width)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its {name} cannot be used ({error}): copy the model again") from None


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

"""A fit of two towers, from interactions and features to a Recommender.

Rows are numbered here by what is known of them, not by their ids (initial.py), and numbered back at the end: renaming
users and items changes nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from eckart.core.csr import column_counts, take_rows
from eckart.core.kernels import kernels, resolve_threads
from eckart.core.processes import process_group
from eckart.data.feature_map import FeatureMap
from eckart.data.interactions import Interactions
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.eigenbasis import eigenbasis, spectrum
from eckart.recommend.encoder import Encoder
from eckart.recommend.implicit import require_not_negative
from eckart.recommend.initial import colours
from eckart.recommend.recommender import Recommender
from eckart.recommend.solver import ItemSide, popularity_of, require_fit
from eckart.recommend.towers.distributed import led
from eckart.recommend.towers.net import IdTable, Net, Tower, learned, mlp_layers, states
from eckart.recommend.towers.parts import MLP, Ids, Learned, Part, needs_features
from eckart.recommend.towers.train import Entries, Trainer, drawing_from
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import hold_out, ndcg_on

if TYPE_CHECKING:
    from eckart.data.features import Features
    from eckart.recommend.towers.solver import TwoTower

__all__ = ["fit_towers"]

_SMALL = 1 << 16  # numbers in two tables: a second thread costs more than it brings


class _Side(NamedTuple):
    """The rows of one side, in the order they are trained in."""

    order: np.ndarray  # (rows,) int64, row of the data at each place
    place: np.ndarray  # its inverse
    trained: np.ndarray  # (rows,) bool, by place
    map: FeatureMap | None
    aligned: Features | None  # by row of the data
    features: list[csr_array | None]  # what each part reads, by place


def fit_towers(
    solver: TwoTower,
    data: Interactions,
    validation: Interactions | None,
    user_features: Features | None,
    item_features: Features | None,
    *,
    callback: Callback | None,
    checkpoint: str | Path | None,
    resume: bool,
) -> Recommender:
    """Train: see `TwoTower.fit`."""
    everything = data
    if validation is None and solver.early_stopping:
        data, validation = hold_out(data, solver.seed)
    require_fit(solver.rank, data)
    require_not_negative(data.matrix)
    device = _device(solver.device)
    by_item = data.by_item()
    user_side = _side("user", solver.user, user_features, data.users, data.matrix, by_item)
    item_side = _side("item", solver.item, item_features, data.items, by_item, data.matrix)
    R = take_rows(data.matrix, user_side.order)
    R = csr_array((R.data, item_side.place[R.indices].astype(np.int32), R.indptr), shape=R.shape)
    R.sort_indices()
    normalize = solver.loss in ("softmax", "ccl") if solver.normalize is None else solver.normalize

    before = torch.get_num_threads()
    small = sum(data.matrix.shape) * solver.rank < _SMALL and not needs_features((*solver.user, *solver.item))
    torch.set_num_threads(1 if small else resolve_threads(solver.threads))
    try:
        with process_group(device) as group, drawing_from("cpu", solver.seed, 0):
            net = Net(
                *(
                    Tower(name, parts, solver.rank, side.trained, side.features, normalize)
                    for name, parts, side in (("user", solver.user, user_side), ("item", solver.item, item_side))
                )
            )
            if solver.warm_start:
                _warm_start(net, solver, R)
            trainer = Trainer(solver, net, _entries(solver, R), group, device)
            described = dataclasses.replace(
                solver, user=learned(net.user, solver.user), item=learned(net.item, solver.item)
            )

            def model(state: State, history: list[Record]) -> Recommender:
                W, H = trainer.vectors(state)
                return _model(described, data, everything, (user_side, item_side), net, (W, H), history)

            validate = None if validation is None else ndcg_on(validation, data, lambda s: model(s, []))
            start = trainer.state(0, 0)
            state, history = led(
                *(group, device, start, trainer.step),
                lambda step: run_epochs(
                    *(described, data, validation, start, step, validate),
                    features=[X for side in (user_side, item_side) for X in side.features if X is not None],
                    callback=callback,
                    checkpoint=checkpoint,
                    resume=resume,
                ),
            )
            return dataclasses.replace(model(state, history), seen=everything.matrix)
    finally:
        torch.set_num_threads(before)


def _model(
    solver: TwoTower,
    data: Interactions,
    everything: Interactions,
    sides: tuple[_Side, _Side],
    net: Net,
    vectors: tuple[np.ndarray, np.ndarray],
    history: list[Record],
) -> Recommender:
    """The towers' vectors as a model, in the eigenbasis of the items, where rows are folded in (eigenbasis.py)."""
    threads = resolve_threads(solver.threads)
    W, H = (np.ascontiguousarray(X[side.place]) for X, side in zip(vectors, sides, strict=True))
    Q = eigenbasis(H, threads)
    W, H = (kernels.rotate(X, Q, threads) for X in (W, H))
    encoders: list[Encoder | None] = []
    points: list[np.ndarray | None] = []
    for side, tower, parts, X in zip(sides, (net.user, net.item), (solver.user, solver.item), (W, H), strict=True):
        encoder = _encoder(side, tower, parts, Q)
        encoders.append(encoder)
        points.append(None)
        if encoder is not None:
            assert side.aligned is not None
            points[-1] = encoder.encode(side.aligned)
            unseen = ~side.trained[side.place]
            X[unseen] = points[-1][unseen, :-1]  # to the bit what anybody with such features gets
    bias = (solver.popularity * np.log(np.maximum(column_counts(data.matrix), 1))).astype(np.float32)
    extra = {"spectrum": spectrum(H, solver.unobserved_weight)}
    for name, tower in (("user", net.user), ("item", net.item)):
        extra |= {f"{name}.{key}": array for key, array in states(tower).items()}
    if len(extra) > 1:
        extra["rotation"] = Q
    return Recommender(
        solver=solver,
        users=data.users,
        items=data.items,
        W=W,
        user_bias=np.zeros(len(W), np.float32),
        item_side=ItemSide(H, bias, 0.0, popularity_of(everything.matrix), extra),
        seen=data.matrix,
        history=history,
        user_encoder=encoders[0],
        item_encoder=encoders[1],
        user_points=points[0],
    )


def _encoder(side: _Side, tower: Tower, parts: tuple[Part, ...], Q: np.ndarray) -> Encoder | None:
    """The MLP parts of a tower without torch; none where a module of the user's is part of it, which is code."""
    if side.map is None or any(isinstance(part, Learned) for part in parts):
        return None
    found = []
    for index, part in enumerate(parts):
        if not isinstance(part, MLP):
            continue
        layers = mlp_layers(tower, index)
        first = np.zeros((side.map.width, layers[0][0].shape[1]), np.float32)
        first[slice(None) if part.columns is None else chosen("", part.columns, side.map)] = layers[0][0]
        layers[0] = first, layers[0][1]
        layers[-1] = np.ascontiguousarray(layers[-1][0] @ Q), layers[-1][1] @ Q
        found.append(tuple(layers))
    return Encoder(side.map, tuple(found), normalize=tower.normalize)


def _device(name: str) -> str:
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device is {name!r}, which torch cannot use ({error}): leave it at 'auto'") from None
        return name
    if not torch.cuda.is_available():
        return "cpu"
    import os

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _side(
    name: str,
    parts: tuple[Part, ...],
    features: Features | None,
    ids: Vocabulary,
    matrix: csr_array,
    transpose: csr_array,
) -> _Side:
    order = np.argsort(colours(matrix, transpose), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    trained = np.diff(matrix.indptr) > 0
    if features is None and needs_features(parts):
        raise ValueError(f"{name} has a part that reads features, and there are none: give {name}_features to fit")
    if features is None:
        return _Side(order, place, trained[order], None, None, [None] * len(parts))
    if not needs_features(parts):
        raise ValueError(
            f"{name}_features are given, and no part of {name} reads them: add MLP() to {name}, or leave out"
        )
    aligned = features.aligned(ids)
    fitted = FeatureMap.fit(aligned.take(trained))
    X = take_rows(fitted.matrix(aligned), order)
    return _Side(order, place, trained[order], fitted, aligned, [_columns(name, part, fitted, X) for part in parts])


def _columns(name: str, part: Any, fitted: FeatureMap, X: csr_array) -> csr_array | None:
    if isinstance(part, Ids):
        return None
    if part.columns is None:
        return X
    return csr_array(X[:, chosen(name, part.columns, fitted)])


def chosen(name: str, columns: tuple[str, ...], fitted: FeatureMap) -> np.ndarray:
    """Columns of X that a part with these features reads, the intercept with them, ascending."""
    blocks = fitted.blocks
    for column in columns:
        if column not in blocks:
            raise ValueError(f"a part of {name} reads {column!r}, and the features are {', '.join(blocks)}")
    return np.unique(np.concatenate([*(np.arange(*blocks[column]) for column in columns), [fitted.width - 1]]))


def _entries(solver: TwoTower, R: csr_array) -> Entries:
    n, m = R.shape
    counts, lengths = column_counts(R), np.diff(R.indptr)

    def penalty(frequency: np.ndarray, others: int) -> np.ndarray:
        return solver.reg * (frequency + solver.unobserved_weight * others) ** solver.exponent

    if solver.loss == "squared":
        weight = solver.alpha * R.data
    else:
        weight = counts[R.indices].astype(np.float64) ** -solver.propensity
        weight /= weight.mean()
    return Entries(
        indptr=R.indptr.astype(np.int64),
        items=R.indices.astype(np.int64),
        weight=weight.astype(np.float32),
        counts=counts,
        reg_user=penalty(lengths, m).astype(np.float32),
        reg_entry=(penalty(counts, n) / np.maximum(counts, 1)).astype(np.float32),
    )


def _warm_start(net: Net, solver: TwoTower, R: csr_array) -> None:
    """Put factors of `ImplicitALS` into the free vectors, to a mean norm of 1 where vectors have unit length."""
    users, items = (Vocabulary.of(np.arange(size)) for size in R.shape)
    model = solver.rows_of().fit(Interactions(R, users, items, rated=False))
    for tower, factors in ((net.user, model.W), (net.item, model.H)):
        for part in tower.parts:
            if isinstance(part, IdTable):
                norm = float(np.linalg.norm(factors, axis=1).mean()) if tower.normalize else 1.0
                part.weight.data.copy_(torch.from_numpy(factors / np.float32(norm or 1.0)))

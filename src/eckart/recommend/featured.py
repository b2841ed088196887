"""Factors from features: a row is drawn to a linear map of its features, and what is left of it is free.

The penalties of ALS, l_i |h_i|^2, become

    sum_i l_i |h_i - M'x_i|^2 + feature_reg mean(l) |M|^2,

and so for users: h_i is M'x_i, what its features say, plus a free residual that its entries pay for. A row without
entries has none: it is M'x_i, on its first day. It is the relational prior of Agarwal and Chen (2009, "Regression-based
latent factor models") and the side information of Macau (Simm et al. 2017), both halves solved as they stand: M is a
ridge regression of all rows (ridge.py), rows are the solves of ALS with that point as their prior.

Where ratings are predicted, biases are regressed, too: T = (H, c) has k + 1 columns, and so has M.

Symbols: X (m x p) encoded features, x_i; M (p x k or k + 1). See docs/notation.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import csr
from eckart.data.feature_map import FeatureMap
from eckart.data.features import Features
from eckart.data.vocabulary import Vocabulary
from eckart.recommend.encoder import Encoder
from eckart.recommend.ridge import improved_ridge

if TYPE_CHECKING:
    from eckart.recommend.recommender import Recommender

__all__ = ["Side", "feature_side", "improved_map", "map_penalty", "with_maps", "without_bias"]

# Steps an epoch: X'X of words is worse conditioned than histories are, and M is what cold rows are made of.
_STEPS = 8


class Side(NamedTuple):
    """Features of the rows of one side, and how strongly they are believed."""

    features: FeatureMap
    X: csr_array  # (m, p)
    Xt: csr_array
    row_reg: np.ndarray  # (m,) float32, l_i
    reg: float  # feature_reg mean(l)
    threads: int


def feature_side(
    features: Features | None, ids: Vocabulary, row_reg: np.ndarray, feature_reg: float, threads: int
) -> Side | None:
    """Encode the features of `ids`; None where there are none."""
    if features is None:
        return None
    there = features.aligned(ids)
    to_matrix = FeatureMap.fit(there)
    X = to_matrix.matrix(there)
    reg = feature_reg * max(float(row_reg.mean(dtype=np.float64)), float(np.finfo(np.float32).tiny))
    return Side(to_matrix, X, csr_array(X.T.tocsr()), row_reg, reg, threads)


def improved_map(side: Side, T: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Improve M: min_M sum_i l_i |t_i - M'x_i|^2 + reg |M|^2."""
    return improved_ridge(side.X, side.Xt, T, M, side.row_reg, side.reg, _STEPS, side.threads)


def map_penalty(side: Side, M: np.ndarray) -> float:
    """Give reg |M|^2."""
    return side.reg * float(np.sum(M.astype(np.float64) ** 2))


def with_maps(
    model: Recommender, user_side: Side | None, item_side: Side | None, maps: Mapping[str, np.ndarray]
) -> Recommender:
    """Give a model its maps, "user_map" and "item_map", as encoders of features, and each user's point.

    Biases are among what a map gives where it has a column more than the model has factors.
    """
    width = model.W.shape[1]

    def encoder(side: Side, M: np.ndarray) -> Encoder:
        layer = np.ascontiguousarray(M), np.zeros(M.shape[1], np.float32)
        return Encoder(side.features, ((layer,),), with_bias=M.shape[1] > width)

    if item_side is not None:
        model = dataclasses.replace(model, item_encoder=encoder(item_side, maps["item_map"]))
    if user_side is None:
        return model
    M = maps["user_map"]
    points = np.zeros((len(model.W), width + 1), np.float32)  # bit for bit what `Encoder.encode` gives
    points[:, : M.shape[1]] = user_side.X @ M
    return dataclasses.replace(model, user_encoder=encoder(user_side, M), user_points=points)


def without_bias(matrix: csr_array, bias: np.ndarray) -> csr_array:
    """Matrix whose values have their row's bias taken off."""
    values = matrix.data - np.repeat(bias, np.diff(matrix.indptr))
    return csr(values, matrix.indices, matrix.indptr, matrix.shape)  # type: ignore[arg-type]

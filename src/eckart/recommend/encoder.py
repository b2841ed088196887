"""Features as vectors: F(x) = sum over parts of  relu(relu(x A_1 + a_1) A_2 + a_2) ... A_q + a_q.

One part without hidden layers is a linear map, the closed form of feature-aware ALS; a trained tower's parts have
hidden layers. Whatever fitted it, an encoder is weights, and computing a vector takes NumPy alone.

Symbols: X (n x p) the encoded features, A (p x d) weights, a (d) offsets. See docs/notation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eckart.data.feature_map import FeatureMap
from eckart.data.features import Features

__all__ = ["Encoder", "Layer"]

Layer = tuple[np.ndarray, np.ndarray]  # weights (p, d) and offsets (d,), float32
_ROWS = 4096  # encoded at a time: hidden layers of 1,000 take 16 MB


@dataclass(frozen=True, eq=False)
class Encoder:
    """A map from features to factors, and to a bias where there is one.

    Parameters
    ----------
    features : FeatureMap
        From features to the p columns of X.
    parts : tuple of tuples of (weights, offsets)
        Layers of each part, with a ReLU between them; the first takes p numbers, the last gives k, or k + 1 with a
        bias.
    normalize : bool
        Whether factors are brought to unit length.
    with_bias : bool
        Whether the last number is a bias.
    """

    features: FeatureMap
    parts: tuple[tuple[Layer, ...], ...]
    normalize: bool = False
    with_bias: bool = False

    @property
    def width(self) -> int:
        """Number of factors, k."""
        return self.parts[0][-1][0].shape[1] - self.with_bias

    def encode(self, features: Features) -> np.ndarray:
        """Factors of each row, and its bias: (n, k + 1) float32, the last column 0 where there is no bias.

        Parameters
        ----------
        features : Features of n rows
            With the columns that the encoder was fitted to; what is missing counts as nothing known.

        Raises
        ------
        ValueError
            A column is not there, or of another kind or width than in training.
        """
        X = self.features.matrix(features)
        out = np.zeros((len(features), self.width + 1), np.float32)
        for begin in range(0, len(features), _ROWS):
            rows = slice(begin, begin + _ROWS)
            for layers in self.parts:
                z: Any = X[rows]
                for depth, (weight, offset) in enumerate(layers):
                    z = (np.maximum(z, 0) if depth else z) @ weight + offset
                out[rows, : z.shape[1]] += z
        if self.normalize:
            norms = np.linalg.norm(out[:, : self.width], axis=1, keepdims=True)
            out[:, : self.width] /= np.where(norms > 0, norms, 1)
        return out

    def encode_missing(self, rows: int) -> np.ndarray:
        """What `encode` gives for rows of which nothing is known."""
        return self.encode(self.features.unknown(rows))

    def config(self) -> dict[str, Any]:
        """Everything that is no array, as JSON values."""
        return {
            "features": self.features.config(),
            "layers": [len(layers) for layers in self.parts],
            "normalize": self.normalize,
            "with_bias": self.with_bias,
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights and offsets by part and layer: '0.1.weight' is of the first part's second layer."""
        return {
            f"{p}.{q}.{name}": array
            for p, layers in enumerate(self.parts)
            for q, layer in enumerate(layers)
            for name, array in zip(("weight", "offset"), layer, strict=True)
        }

    @classmethod
    def restore(cls, config: Any, tensors: Mapping[str, np.ndarray], features: FeatureMap, width: int) -> Encoder:
        """Make an encoder again of what `config` and `tensors` gave, and believe nothing of it.

        Raises
        ------
        ValueError
            Something is missing, too much, of another shape or type, or not finite.
        """
        advice = "copy the model again, or fit it anew"
        if (
            not isinstance(config, dict)
            or set(config) != {"features", "layers", "normalize", "with_bias"}
            or not (isinstance(config["normalize"], bool) and isinstance(config["with_bias"], bool))
            or not isinstance(config["layers"], list)
            or not config["layers"]
            or not all(type(n) is int and 1 <= n <= 64 for n in config["layers"])
            or len(config["layers"]) > 64
        ):
            raise ValueError(f"an encoder's config is damaged: {advice}")
        left, parts, ends = dict(tensors), [], width + config["with_bias"]
        for p, count in enumerate(config["layers"]):
            layers, rows = [], features.width
            for q in range(count):
                weight, offset = left.pop(f"{p}.{q}.weight", None), left.pop(f"{p}.{q}.offset", None)
                for array, dimensions in ((weight, 2), (offset, 1)):
                    if array is None or array.dtype != np.float32 or array.ndim != dimensions:
                        raise ValueError(f"layer {q} of an encoder's part {p} is missing or no float32: {advice}")
                    if not np.isfinite(array).all():
                        raise ValueError(f"layer {q} of an encoder's part {p} holds NaN or infinity: {advice}")
                assert weight is not None
                assert offset is not None
                columns = ends if q == count - 1 else weight.shape[1]
                if weight.shape != (rows, columns) or offset.shape != (columns,):
                    raise ValueError(f"layer {q} of an encoder's part {p} has a wrong shape: {advice}")
                layers.append((weight, offset))
                rows = columns
            parts.append(tuple(layers))
        if left:
            raise ValueError(f"an encoder has {len(left)} arrays that no layer takes: {advice}")
        return cls(features, tuple(parts), config["normalize"], config["with_bias"])

"""Which layer keeps which rank: a plan, made from the decomposed layers alone.

Layer l at rank k costs k (m + n - k) numbers in the pivoted form and m for its order, or (m + n) k as factors; or it
stays as it is, for m n. What it loses is half the sum of its cut squares (calibrate.py), times a weight where one was
measured. core/budget.py chooses; no layer ever becomes larger.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eckart.core.budget import allocate
from eckart.core.lowrank import factor_numbers, pivoted_numbers
from eckart.nn.calibrate import Layer

__all__ = ["LayerPlan", "RankPlan", "check_keep", "plan_ranks"]


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a plan."""

    shape: tuple[int, int]
    rank: int | None  # None: it stays as it is
    numbers: int  # that it then takes, its bias not counted
    loss: float  # predicted

    @property
    def dense(self) -> int:
        """Numbers of the layer as it is."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class RankPlan:
    """Ranks of layers, by name.

    Parameters
    ----------
    layers : dict of str to LayerPlan
    pivoted : bool
        The form they are to be stored in.
    """

    layers: dict[str, LayerPlan]
    pivoted: bool = True

    @property
    def keep(self) -> float:
        """Share of the layers' numbers that stays."""
        return sum(x.numbers for x in self.layers.values()) / sum(x.dense for x in self.layers.values())

    @property
    def loss(self) -> float:
        """Predicted rise of the loss: in nats a token, for a language model calibrated with gradients."""
        return sum(x.loss for x in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain values."""
        layers = {name: asdict(layer) for name, layer in self.layers.items()}
        return {"pivoted": self.pivoted, "keep": self.keep, "loss": self.loss, "layers": layers}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, to be read, edited and passed back. Only the ranks count when it is read."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", "ascii")

    @classmethod
    def load(cls, path: str | os.PathLike[str], layers: Mapping[str, Layer]) -> RankPlan:
        """Read a plan that was saved, for the layers of a network.

        Raises
        ------
        ValueError
            No plan, a layer that the network does not have or one that is missing, or a rank out of range.
        """
        try:
            facts = json.loads(Path(path).read_bytes())
            pivoted, ranks = facts["pivoted"], {name: layer["rank"] for name, layer in facts["layers"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is no plan of ranks") from None
        if not isinstance(pivoted, bool):
            raise ValueError(f"{path}: pivoted is {pivoted!r}, expected true or false")
        for name in (*ranks, *layers):
            if name not in ranks or name not in layers:
                raise ValueError(f"{path}: {name} is in {'the plan' if name in ranks else 'the network'} only")
        for name, rank in ranks.items():
            most = len(layers[name].squares)
            if rank is not None and not (type(rank) is int and 0 <= rank <= most):
                raise ValueError(f"{path}: rank of {name} is {rank!r}, expected null (as it is) or 0 to {most}")
        return cls({name: _planned(layers[name], ranks[name], pivoted) for name in layers}, pivoted)


def plan_ranks(
    layers: Mapping[str, Layer],
    keep: float,
    *,
    weights: Mapping[str, float] | None = None,
    pivoted: bool = True,
    multiple: int = 1,
    least: int = 1,
) -> RankPlan:
    """Choose ranks so that a share of the numbers stays and the predicted loss is least.

    Parameters
    ----------
    layers : mapping of str to Layer
        Of a `Decomposition`.
    keep : float
        Share of the numbers of these layers that may stay, above 0 and at most 1.
    weights : mapping of str to float, optional
        Factor on each layer's predicted loss.
    pivoted : bool
        Form to store them in.
    multiple, least : int
        Ranks are multiples of the first, at least the second.

    Returns
    -------
    RankPlan

    Raises
    ------
    ValueError
        An argument out of range, or a budget below what the least ranks take.
    """
    check_keep(keep)
    if multiple < 1 or least < 0:
        raise ValueError(f"multiple is {multiple} and least {least}, expected at least 1 and 0")
    ranks: list[list[int | None]] = []
    for layer in layers.values():
        all_ranks = range(-(-least // multiple) * multiple, len(layer.squares) + 1, multiple)
        m, n = layer.shape
        ranks.append([*(k for k in all_ranks if _numbers(layer, k, pivoted) < m * n), None])
    costs = [np.array([_numbers(x, k, pivoted) for k in ks]) for x, ks in zip(layers.values(), ranks, strict=True)]
    losses = []
    for (name, layer), ks in zip(layers.items(), ranks, strict=True):
        every = layer.losses * (1.0 if weights is None else weights[name])
        losses.append(np.array([0.0 if k is None else every[k] for k in ks]))
    whole = sum(m * n for m, n in (layer.shape for layer in layers.values()))
    try:
        chosen = allocate(costs, losses, keep * whole)
    except ValueError:
        smallest = sum(int(c.min()) for c in costs) / whole
        raise ValueError(f"keep is {keep:g}, and the least ranks take {smallest:.3g} of the numbers already") from None
    picked = [ks[i] for ks, i in zip(ranks, chosen, strict=True)]
    plans = {n: _planned(layers[n], k, pivoted) for n, k in zip(layers, picked, strict=True)}
    return RankPlan(plans, pivoted)


def check_keep(keep: float) -> None:
    """Refuse a share that no plan has: at once, where a calibration would come first."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected a share above 0, at most 1")


def _numbers(layer: Layer, rank: int | None, pivoted: bool) -> int:
    m, n = layer.shape
    if rank is None:
        return m * n
    return pivoted_numbers(m, n, rank) + m if pivoted else factor_numbers(m, n, rank)


def _planned(layer: Layer, rank: int | None, pivoted: bool) -> LayerPlan:
    loss = 0.0 if rank is None else float(layer.losses[rank])
    return LayerPlan(layer.shape, rank, _numbers(layer, rank, pivoted), loss)

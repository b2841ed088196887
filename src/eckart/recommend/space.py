"""Where the tuner looks: a box of settings for each solver, and points spread evenly in it.

A setting is an axis of the unit cube, linear or logarithmic between two ends. Points come from the additive
recurrence  u_t = frac(s + t a),  a_j = g^-j with g the root of g^(d+1) = g + 1: any stretch of it fills the cube
more evenly than independent draws do (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").

A row with n entries is penalised by reg n^exponent, so good values of the two lie along a narrow valley across the
cube. Where both are searched, the axis of reg is that of reg N^(exponent - 1) instead, N a typical row's entries: what
its entries pay each. A box around the best then keeps the penalty of a typical row while it tries other exponents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import column_counts

__all__ = [
    "SHARED",
    "SPACES",
    "WHOLE",
    "Range",
    "checked_space",
    "evenly_spread",
    "from_unit",
    "to_unit",
    "typical_length",
]


class Range(NamedTuple):
    """Values of one setting that the tuner may try: low to high, both included."""

    low: float
    high: float
    log: bool = True  # spread evenly over the orders of magnitude; needs low > 0
    whole: bool = False  # integers only


_RANK = Range(8, 128, whole=True)
# Solver -> setting -> range, in one place. A setting that only rescales another is left out: alpha of ImplicitALS
# times a constant is unobserved_weight and reg divided by it.
SPACES: dict[str, dict[str, Range]] = {
    "als": {
        "rank": _RANK,
        "reg": Range(0.02, 2.0),
        "exponent": Range(0.4, 1.2, log=False),
        "implicit_reg": Range(10, 500),
    },
    "gibbs": {"rank": Range(8, 64, whole=True)},
    "implicit-als": {
        "rank": Range(16, 256, whole=True),
        "reg": Range(1e-4, 0.1),
        "unobserved_weight": Range(0.01, 1.0),
        "exponent": Range(0.0, 1.0, log=False),
    },
    "sgd": {"rank": _RANK, "reg": Range(0.005, 0.5), "step": Range(0.01, 0.3)},
    "svd": {"rank": Range(2, 1024, whole=True)},
    "two-tower": {"rank": _RANK, "temperature": Range(0.03, 0.5), "step": Range(0.001, 0.05)},
}
# What an epoch does depends on how many there will be (a burn-in that is a share of them, steps that fall to 0 with the
# last): fitted in one piece.
WHOLE = {"gibbs", "two-tower"}
SHARED = {"rank": _RANK, "reg": Range(1e-3, 1.0)}  # of a solver without a line above


def checked_space(space: Mapping[str, Any], fields: Mapping[str, str], largest_rank: int) -> dict[str, Range]:
    """Make Ranges of `space`, within what the solver's fields take and the matrix allows; ValueError says what not.

    Parameters
    ----------
    space : mapping of setting to (low, high), (low, high, log) or Range
    fields : mapping of setting to type
        Of the solver.
    largest_rank : int
        min(users, items): rank ranges are cut there.

    Returns
    -------
    dict of setting to Range
    """
    checked = {}
    for name, given in space.items():
        if name not in fields:
            raise ValueError(f"space has {name!r}, which is no setting of the solver: it has {', '.join(fields)}")
        if fields[name] not in ("int", "float") or name in ("epochs", "seed", "early_stopping"):
            raise ValueError(f"space has {name!r}, which cannot be searched: leave it out, or set it on the solver")
        if not isinstance(given, (tuple, list)) or not 2 <= len(given) <= 4:
            raise ValueError(f"the range of {name} is {given!r}, expected (low, high), (low, high, log) or None")
        one = Range(*given)
        one = one._replace(whole=one.whole or fields[name] == "int")
        if one.whole and math.isfinite(one.low) and math.isfinite(one.high):
            one = one._replace(low=math.ceil(one.low), high=math.floor(one.high))
        if name == "rank":
            one = one._replace(low=min(one.low, largest_rank), high=min(one.high, largest_rank))
        if not (math.isfinite(one.low) and math.isfinite(one.high) and one.low <= one.high):
            raise ValueError(f"the range of {name} is {one.low} to {one.high}: give finite numbers, the smaller first")
        if one.log and one.low <= 0:
            raise ValueError(f"the range of {name} starts at {one.low}: give more than 0, or (low, high, False)")
        checked[name] = one
    return checked


def evenly_spread(first: int, count: int, shift: np.ndarray) -> np.ndarray:
    """Points `first`, ..., `first + count - 1` of the recurrence that starts at `shift` (d,): (count, d) in [0, 1).

    Examples
    --------
    >>> evenly_spread(0, 4, np.zeros(1)).ravel().round(3).tolist()
    [0.0, 0.618, 0.236, 0.854]
    """
    g = 2.0
    for _ in range(50):  # a fixed point that draws near by a factor below 1/2 a step
        g = (1 + g) ** (1 / (len(shift) + 1))
    step = g ** -np.arange(1.0, len(shift) + 1)
    return (shift + np.arange(first, first + count)[:, None] * step) % 1


def typical_length(matrix: csr_array) -> float:
    """Entries of a typical row of either side: the geometric mean over all that are not empty."""
    lengths = np.concatenate([np.diff(matrix.indptr), column_counts(matrix)])
    return float(np.exp(np.mean(np.log(lengths[lengths > 0]))))


def from_unit(point: np.ndarray, space: Mapping[str, Range], typical: float = 1.0) -> dict[str, float | int]:
    """Settings at a point (d,) of the unit cube, one axis per setting in the order of `space`."""
    settings: dict[str, float | int] = {}
    values = {
        name: axis.low * (axis.high / axis.low) ** u if axis.log else axis.low + u * (axis.high - axis.low)
        for u, (name, axis) in zip(point.tolist(), space.items(), strict=True)
    }
    if {"reg", "exponent"} <= values.keys():
        values["reg"] *= typical ** (1 - values["exponent"])
    for name, axis in space.items():
        value = values[name]
        # Three digits are more than any of them matters, and can be read and typed again.
        value = min(max(float(f"{value:.3g}"), axis.low), axis.high)
        settings[name] = round(value) if axis.whole else value
    return settings


def to_unit(settings: Mapping[str, float], space: Mapping[str, Range], typical: float = 1.0) -> np.ndarray:
    """Point of the unit cube nearest to these settings; the inverse of `from_unit` but for its rounding."""
    point = []
    for name, axis in space.items():
        value = settings[name]
        if name == "reg" and "exponent" in space:
            value *= typical ** (settings["exponent"] - 1)
        value = min(max(value, axis.low), axis.high)
        if axis.low == axis.high:
            point.append(0.5)
        elif axis.log:
            point.append(math.log(value / axis.low) / math.log(axis.high / axis.low))
        else:
            point.append((value - axis.low) / (axis.high - axis.low))
    return np.array(point)

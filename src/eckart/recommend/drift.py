"""Biases that drift in time: a step function for each user and each item, fitted to what a model leaves over.

    min  sum over observed (u, i, t) of (e_uit - d_u(t) - f_i(t))^2 + reg (sum of the squares of all steps),

where e is the model's error. Each row's time is cut into bins of about equally many of its own entries, so that
busy hours are resolved and the unit does not matter. A step is a shrunk mean; steps of items and of users are solved
in turn, users last, so that a new user's steps come from the same equations (Koren 2009, "Collaborative filtering
with temporal dynamics", has binned item biases and user biases by the day, fitted with the factors).

Before its first entry a row is in its first bin, after its last in the last, which is also what "now" means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Drift", "Steps", "check_bins", "drift_at", "fit_drift", "fit_steps", "steps_at"]

_SWEEPS = 5  # over items and users; on MovieLens-100K the objective moves by less than 1e-4 of itself after the third


class Steps(NamedTuple):
    """Step functions of n rows, of as many bins each."""

    edges: np.ndarray  # (n, max(bins, 1) - 1) int64, ascending in a row: bin j begins at edge j - 1
    heights: np.ndarray  # (n, bins) float32; no bins: no drift


class Drift(NamedTuple):
    """What a model adds to its biases at a time."""

    users: Steps
    items: Steps
    reg: float


def check_bins(user_bins: int, item_bins: int, reg: float) -> None:
    """Raise TypeError or ValueError unless the numbers of bins are 0 to 1000 and `reg` is above 0."""
    for name, bins in (("user_time_bins", user_bins), ("item_time_bins", item_bins)):
        if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)):
            raise TypeError(f"{name} is {bins!r}, expected an integer")
        if not 0 <= bins <= 1000:
            raise ValueError(f"{name} is {bins}, expected 0 to 1000")
    if not reg > 0:
        raise ValueError(f"time_reg is {reg}, expected a number above 0")


def fit_drift(
    user_rows: np.ndarray,
    item_rows: np.ndarray,
    times: np.ndarray,
    error: np.ndarray,
    shape: tuple[int, int],
    user_bins: int,
    item_bins: int,
    reg: float,
) -> Drift:
    """Fit both sides to the errors of a model.

    Parameters
    ----------
    user_rows, item_rows : ndarray of shape (nnz,), int
    times : ndarray of shape (nnz,), int64
    error : ndarray of shape (nnz,), float64
        Rating less what the model without time says.
    shape : (n, m)
        Numbers of users and items.
    user_bins, item_bins : int >= 0
        0: that side has no drift.
    reg : float > 0

    Returns
    -------
    Drift
    """
    n, m = shape
    users = fit_steps(user_rows, times, 0 * error, n, user_bins, reg)
    items = fit_steps(item_rows, times, error, m, item_bins, reg)
    for _ in range(_SWEEPS if item_bins else 1):
        items = fit_steps(item_rows, times, error - steps_at(users, user_rows, times), m, item_bins, reg)
        users = fit_steps(user_rows, times, error - steps_at(items, item_rows, times), n, user_bins, reg)
    return Drift(users, items, float(reg))


def fit_steps(rows: np.ndarray, times: np.ndarray, error: np.ndarray, count: int, bins: int, reg: float) -> Steps:
    """Step functions of `count` rows: the mean error of each bin, shrunk as if `reg` entries of error 0 were there."""
    edges = _edges(rows, times, count, max(bins, 1))
    if not bins:
        return Steps(edges, np.zeros((count, 0), np.float32))
    cell = rows.astype(np.int64) * bins + _bin(edges, rows, times)
    total = np.bincount(cell, error, minlength=count * bins)
    heights = total / (np.bincount(cell, minlength=count * bins) + reg)
    return Steps(edges, heights.reshape(count, bins).astype(np.float32))


def steps_at(steps: Steps, rows: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Height of each row's step at its time, float32; None: the last; row -1 is nobody, 0."""
    if not steps.heights.size:
        return np.zeros(len(rows), np.float32)
    place = -1 if times is None else _bin(steps.edges, rows, times)
    return np.where(rows >= 0, steps.heights[rows, place], np.float32(0))


def drift_at(drift: Drift, user_rows: np.ndarray, item_rows: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Sum of the user's and the item's step, float32."""
    return steps_at(drift.users, user_rows, times) + steps_at(drift.items, item_rows, times)


def _edges(rows: np.ndarray, times: np.ndarray, count: int, bins: int) -> np.ndarray:
    """Times of the entries at j/bins of each row's entries, (count, bins - 1)."""
    if not len(rows):
        return np.zeros((count, bins - 1), np.int64)
    ordered = times[np.lexsort((times, rows))]
    entries = np.bincount(rows, minlength=count)
    first = np.cumsum(entries) - entries
    place = first[:, None] + entries[:, None] * np.arange(1, bins) // bins
    return ordered[np.minimum(place, len(rows) - 1)] * (entries > 0)[:, None]


def _bin(edges: np.ndarray, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Bin of each entry: how many of its row's edges are at or before its time."""
    place = np.zeros(len(rows), np.int64)
    for j in range(edges.shape[1]):  # a pass per edge: entries x edges would not fit for millions
        place += edges[rows, j] <= times
    return place

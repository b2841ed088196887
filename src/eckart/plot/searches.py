"""Pictures of a search for settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eckart.plot.axes import BLUE, ORANGE, SERIES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["best_so_far", "trials"]


def trials(
    setting: str,
    values: Sequence[float],
    results: Sequence[float],
    rungs: Sequence[int],
    metric: str,
    smaller_is_better: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the validation result of tuning trials against one of their settings.

    Parameters
    ----------
    setting : str
        Its name, for the axis.
    values : sequence of float, at least one
        The setting in each trial; on a logarithmic scale where they span a factor of more than 5.
    results : sequence of float
        Validation value of each trial. The worst fifth may lie outside the frame; triangles at its edge stand for
        them, or a few wild trials would press all others onto a line.
    rungs : sequence of int
        How far each trial came; one colour each.
    metric : str
    smaller_is_better : bool
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or new_axes(5, 4)
    x, y, rung = np.asarray(values, float), np.asarray(results, float), np.asarray(rungs)
    best = y.argmin() if smaller_is_better else y.argmax()
    far = float(np.quantile(y, 0.8 if smaller_is_better else 0.2))
    margin = 0.08 * abs(far - y[best]) or 0.01 * abs(y[best]) or 0.01
    edges = (y[best] - margin, far + margin) if smaller_is_better else (far - margin, y[best] + margin)
    outside = (y < edges[0]) | (y > edges[1])
    marker = "^" if smaller_is_better else "v"
    for one, colour in zip(np.unique(rung), ("#999999", BLUE, ORANGE, *SERIES[3:]), strict=False):
        inside = (rung == one) & ~outside
        ax.scatter(x[inside], y[inside], s=22, color=colour, alpha=0.85, label=f"rung {one}", zorder=2 + int(one))
        beyond = (rung == one) & outside
        ax.scatter(x[beyond], np.full(np.count_nonzero(beyond), far), s=22, marker=marker, color=colour, alpha=0.5)
    ax.scatter(x[best], y[best], s=110, facecolors="none", edgecolors="black", label="chosen", zorder=9)
    ax.set_ylim(*edges)
    if x.min() > 0 and x.max() > 5 * x.min():
        ax.set_xscale("log")
    ax.set_xlabel(setting)
    ax.set_ylabel(f"validation {metric}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8)
    return ax


def best_so_far(
    seconds: Sequence[float],
    results: Sequence[float],
    metric: str,
    smaller_is_better: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the best validation value known after each second of a search, and the trials as dots.

    Parameters
    ----------
    seconds : sequence of float, at least one
        When each trial had its best epoch, in any order.
    results : sequence of float
        Validation value of each trial there.
    metric : str
    smaller_is_better : bool
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or new_axes(7, 4)
    order = np.argsort(seconds, kind="stable")
    x, y = np.asarray(seconds, float)[order], np.asarray(results, float)[order]
    best = np.minimum.accumulate(y) if smaller_is_better else np.maximum.accumulate(y)
    far = float(np.quantile(y, 0.8 if smaller_is_better else 0.2))
    margin = 0.08 * abs(far - best[-1]) or 0.01 * abs(best[-1]) or 0.01
    ax.scatter(x, y, s=14, color="#999999", label="a trial")
    ax.step(np.append(x, x[-1] * 1.02), np.append(best, best[-1]), where="post", color=BLUE, label="best so far")
    ax.set_ylim(*((best[-1] - margin, far + margin) if smaller_is_better else (far - margin, best[-1] + margin)))
    ax.set_xlabel("seconds")
    ax.set_ylabel(f"validation {metric}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return ax

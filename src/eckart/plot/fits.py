"""Pictures of a recommender: how it was fitted, how far off it is for whom, where its items lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.plot.axes import BLUE, ORANGE, SERIES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

__all__ = ["calibration", "convergence", "error_by_activity", "item_map"]

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # where a label may go,
_DISTANCES = (5, 12, 20, 30, 42, 56, 72)  # and how far, in points; beyond the first with a line


def convergence(history: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw the objective of every epoch and, on a second scale, the validation value where there is one.

    Parameters
    ----------
    history : sequence of mappings
        ``model.history``: ``epoch``, ``objective`` and at most one ``validation_...`` each.
    ax : Axes, optional

    Returns
    -------
    Axes
        That of the objective.

    Raises
    ------
    ValueError
        No epochs.
    """
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("the history is empty: fit at least one epoch")
    ax = ax or new_axes(7, 4)
    epochs = [record["epoch"] for record in history]
    ax.plot(epochs, [record["objective"] for record in history], color=BLUE, marker="o", markersize=4)
    ax.set_xlabel("epoch")
    ax.set_ylabel("objective (squared error + penalty)", color=BLUE)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    validated = [name for name in history[-1] if name.startswith("validation_")]
    if validated:
        name = validated[0]
        other = ax.twinx()
        other.plot(epochs, [record[name] for record in history], color=ORANGE, marker="s", markersize=4, ls="--")
        label = name.removeprefix("validation_").upper()
        other.set_ylabel(f"validation {label}" + (" (stars)" if label == "RMSE" else ""), color=ORANGE)
        other.spines[["top", "left"]].set_visible(False)
    return ax


def error_by_activity(
    groups: Sequence[str],
    errors: Mapping[str, Sequence[float]],
    entries: Sequence[int],
    ax: Axes | None = None,
) -> Axes:
    """Draw the RMSE of models on users with few and with many ratings.

    Parameters
    ----------
    groups : sequence of str
        Names of the groups of users, for example "20-33", the least active first.
    errors : mapping of model name to sequence of float
        RMSE in each group.
    entries : sequence of int
        Test ratings in each group, written under its name.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or new_axes(7, 4)
    places = np.arange(len(groups))
    for (name, values), colour in zip(errors.items(), SERIES, strict=False):
        ax.plot(places, values, color=colour, marker="o", label=name)
    ax.set_xticks(places, [f"{name}\n(n = {n:,})" for name, n in zip(groups, entries, strict=True)])
    ax.set_xlabel("training ratings of the user (n: test ratings)")
    ax.set_ylabel("RMSE (stars)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return ax


def calibration(levels: Sequence[float], observed: Sequence[float], ax: Axes | None = None) -> Axes:
    """Draw how many held-out ratings lie in their intervals against how many should.

    Parameters
    ----------
    levels : sequence of float
        Nominal levels of the intervals, 0 to 1.
    observed : sequence of float
        Share of ratings in them, as ``eckart.recommend.spread.coverage`` gives it.
    ax : Axes, optional

    Returns
    -------
    Axes
        Its first line is the diagonal: intervals that hold what they say.
    """
    ax = ax or new_axes(4.5, 4.5)
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, label="exact")
    ax.plot(levels, observed, color=BLUE, marker="o", label="held-out ratings")
    ax.set_xlabel("level of the interval")
    ax.set_ylabel("share of ratings inside")
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def item_map(xy: np.ndarray, labels: Sequence[str], shares: tuple[float, float], ax: Axes | None = None) -> Axes:
    """Draw items as labelled points in a plane.

    Parameters
    ----------
    xy : ndarray of shape (m, 2)
    labels : sequence of str
        Placed in this order, so give those that matter most first. A '$' is a '$'.
    shares : (float, float)
        Share of the variance along each axis, 0 to 1, for the axis labels.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or new_axes(12, 9)
    ax.scatter(xy[:, 0], xy[:, 1], s=14, color=BLUE, zorder=3)
    ax.margins(0.12, 0.06)
    for name, share, axis in zip(("first", "second"), shares, (ax.xaxis, ax.yaxis), strict=True):
        axis.set_label_text(f"{name} principal component ({100 * share:.0f} % of the variance)")
        axis.set_ticks([])  # the scale of a factor has no meaning, only who is near whom
    ax.spines[["top", "right"]].set_visible(False)
    _place_labels(ax, xy, labels)
    return ax


def _place_labels(ax: Axes, xy: np.ndarray, labels: Sequence[str]) -> None:
    """Write each label where it covers the least of the points and of the labels before it."""
    ax.figure.canvas.figure.draw_without_rendering()  # or the axes do not yet have their size
    points = ax.transData.transform(xy)
    frame = ax.get_window_extent()
    taken = [np.r_[p - 5, p + 5] for p in points]
    for place, label in zip(xy, labels, strict=True):
        text = ax.annotate(
            label, place, (0, 0), textcoords="offset points", fontsize=8, parse_math=False, annotation_clip=False
        )
        text.set_in_layout(False)  # or the axes would shrink for it, and every label be somewhere else
        least = np.inf
        chosen: tuple[tuple[float, float], tuple[int, int], np.ndarray] | None = None
        for distance in _DISTANCES:
            if least <= 2 * distance:
                break  # free, and nearer than all that follow
            for dx, dy in _DIRECTIONS:
                at = (dx * distance, dy * distance)
                _align(text, at, (dx, dy))
                box = np.array(text.get_window_extent().padded(2).extents)
                beyond = max(frame.x0 - box[0], box[2] - frame.x1, frame.y0 - box[1], box[3] - frame.y1, 0)
                cost = sum(_overlap(box, other) for other in taken) + 50 * beyond + 2 * distance
                if cost < least:
                    least, chosen = cost, (at, (dx, dy), box)
        if chosen is None:
            continue
        at, direction, box = chosen
        _align(text, at, direction)
        taken.append(box)
        if max(map(abs, at)) > _DISTANCES[0]:
            line = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
            ax.annotate("", place, at, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _align(text: Annotation, at: tuple[float, float], direction: tuple[int, int]) -> None:
    dx, dy = direction
    text.set_position(at)
    text.set_horizontalalignment(("right", "center", "left")[dx + 1])
    text.set_verticalalignment(("top", "center", "bottom")[dy + 1])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two boxes (x0, y0, x1, y1) share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return float(width * height) if width > 0 and height > 0 else 0.0

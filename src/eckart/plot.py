"""Pictures of a fit, each a matplotlib Axes made from plain arrays.

matplotlib is imported when a picture is drawn (extra ``[plot]``). Without ``ax`` a function makes its own
Figure, never pyplot's: no global state, no window, nothing to close. ``ax.figure.savefig(...)`` saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

__all__ = [
    "best_so_far",
    "budgets",
    "calibration",
    "comparison",
    "convergence",
    "error_by_activity",
    "item_map",
    "layer_losses",
    "spectra",
    "trials",
]

_BLUE, _ORANGE = "#0072b2", "#d55e00"  # of Okabe and Ito: told apart by the colour-blind, and in grey
_SERIES = (_BLUE, _ORANGE, "#777777", "#009e73", "#cc79a7")
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # where a label may go,
_DISTANCES = (5, 12, 20, 30, 42, 56, 72)  # and how far, in points; beyond the first with a line


def budgets(table: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw what a compression is predicted to lose, by budget.

    Parameters
    ----------
    table : sequence of mappings
        ``keep`` and ``loss`` of each budget, as those of an ``eckart.nn.plan.RankPlan``.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or _new_axes(7, 4)
    rows = sorted(table, key=lambda row: row["keep"])
    least = min((row["loss"] for row in rows if row["loss"] > 0), default=1e-6)
    ax.plot([row["keep"] for row in rows], [row["loss"] for row in rows], color=_BLUE, marker="o")
    ax.set_yscale("symlog", linthresh=least)  # all kept loses 0
    ax.set_xlabel("share of the numbers kept")
    ax.set_ylabel("predicted rise of the loss")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def layer_losses(losses: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Draw what each layer of a plan is predicted to lose, a line a kind of layer.

    Parameters
    ----------
    losses : mapping of str to float
        By name, in the order of the network; what stands after the last dot is the kind.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or _new_axes(7, 4)
    for place, kind in enumerate(dict.fromkeys(name.rpartition(".")[2] for name in losses)):
        of_kind = [loss for name, loss in losses.items() if name.rpartition(".")[2] == kind]
        shade, marker = _SERIES[place % len(_SERIES)], "os^Dvx*"[place // len(_SERIES) % 7]
        ax.plot(range(len(of_kind)), of_kind, color=shade, marker=marker, markersize=4, linewidth=1, label=kind)
    ax.set_xlabel("place in the network, from the input on")
    ax.set_ylabel("predicted rise of the loss")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=7, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1)
    return ax


def spectra(losses: Mapping[str, np.ndarray], ax: Axes | None = None) -> Axes:
    """Draw what is left of each layer's predicted loss at every rank: how far it is from being of low rank.

    Parameters
    ----------
    losses : mapping of str to ndarray of shape (r + 1,)
        By name, at the ranks 0, ..., r; what stands after the last dot is the kind, which has a colour.
    ax : Axes, optional

    Returns
    -------
    Axes
        A line for each layer.
    """
    ax = ax or _new_axes(7, 4)
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in losses))
    labelled: set[str] = set()
    for name, loss in losses.items():
        kind = name.rpartition(".")[2]
        place = kinds.index(kind)
        style = ("-", "--", ":")[place // len(_SERIES) % 3]
        label = f"_{name}" if kind in labelled else kind  # (an underscore keeps it out of the legend)
        labelled.add(kind)
        share = np.asarray(loss, float) / (loss[0] or 1.0)
        ranks = np.linspace(0, 1, len(share))
        ax.plot(ranks, share, color=_SERIES[place % len(_SERIES)], linestyle=style, linewidth=0.6, label=label)
    ax.set_yscale("log")
    ax.set_ylim(1e-4, 1.2)
    ax.set_xlabel("share of the full rank")
    ax.set_ylabel("share of the predicted loss left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=7, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1)
    return ax


def comparison(rows: Sequence[Mapping[str, Any]], figure: str, ax: Axes | None = None) -> Axes:
    """Draw what each method of storing a network's layers loses, by the bits it takes.

    Parameters
    ----------
    rows : sequence of mappings
        ``method``, ``bits`` and the figure each, as ``eckart.nn.compare.compare_model`` gives them; the first is the
        network as it is.
    figure : str
        Which one; smaller is better.
    ax : Axes, optional

    Returns
    -------
    Axes
        The first line is the network as it is.
    """
    ax = ax or _new_axes(7, 5)
    ax.axhline(rows[0][figure], color="#777777", linewidth=0.8, label=rows[0]["method"])
    for place, method in enumerate(dict.fromkeys(row["method"] for row in rows[1:])):
        points = sorted((row["bits"], row[figure]) for row in rows[1:] if row["method"] == method)
        shade, marker = _SERIES[place % len(_SERIES)], "os^Dvx*"[place % 7]
        ax.plot(*zip(*points, strict=True), color=shade, marker=marker, markersize=5, linewidth=1, label=method)
    ax.set_yscale("log")  # what is lost runs over powers of ten
    ax.set_xlabel("bits a weight, everything counted")
    ax.set_ylabel(f"perplexity, {figure}")
    ax.spines[["top", "right"]].set_visible(False)
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
    ax = ax or _new_axes(4.5, 4.5)
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, label="exact")
    ax.plot(levels, observed, color=_BLUE, marker="o", label="held-out ratings")
    ax.set_xlabel("level of the interval")
    ax.set_ylabel("share of ratings inside")
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


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
    ax = ax or _new_axes(7, 4)
    epochs = [record["epoch"] for record in history]
    ax.plot(epochs, [record["objective"] for record in history], color=_BLUE, marker="o", markersize=4)
    ax.set_xlabel("epoch")
    ax.set_ylabel("objective (squared error + penalty)", color=_BLUE)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    validated = [name for name in history[-1] if name.startswith("validation_")]
    if validated:
        name = validated[0]
        other = ax.twinx()
        other.plot(epochs, [record[name] for record in history], color=_ORANGE, marker="s", markersize=4, ls="--")
        label = name.removeprefix("validation_").upper()
        other.set_ylabel(f"validation {label}" + (" (stars)" if label == "RMSE" else ""), color=_ORANGE)
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
    ax = ax or _new_axes(7, 4)
    places = np.arange(len(groups))
    for (name, values), colour in zip(errors.items(), _SERIES, strict=False):
        ax.plot(places, values, color=colour, marker="o", label=name)
    ax.set_xticks(places, [f"{name}\n(n = {n:,})" for name, n in zip(groups, entries, strict=True)])
    ax.set_xlabel("training ratings of the user (n: test ratings)")
    ax.set_ylabel("RMSE (stars)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
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
    ax = ax or _new_axes(12, 9)
    ax.scatter(xy[:, 0], xy[:, 1], s=14, color=_BLUE, zorder=3)
    ax.margins(0.12, 0.06)
    for name, share, axis in zip(("first", "second"), shares, (ax.xaxis, ax.yaxis), strict=True):
        axis.set_label_text(f"{name} principal component ({100 * share:.0f} % of the variance)")
        axis.set_ticks([])  # the scale of a factor has no meaning, only who is near whom
    ax.spines[["top", "right"]].set_visible(False)
    _place_labels(ax, xy, labels)
    return ax


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
    ax = ax or _new_axes(5, 4)
    x, y, rung = np.asarray(values, float), np.asarray(results, float), np.asarray(rungs)
    best = y.argmin() if smaller_is_better else y.argmax()
    far = float(np.quantile(y, 0.8 if smaller_is_better else 0.2))
    margin = 0.08 * abs(far - y[best]) or 0.01 * abs(y[best]) or 0.01
    edges = (y[best] - margin, far + margin) if smaller_is_better else (far - margin, y[best] + margin)
    outside = (y < edges[0]) | (y > edges[1])
    marker = "^" if smaller_is_better else "v"
    for one, colour in zip(np.unique(rung), ("#999999", _BLUE, _ORANGE, *_SERIES[3:]), strict=False):
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
    ax = ax or _new_axes(7, 4)
    order = np.argsort(seconds, kind="stable")
    x, y = np.asarray(seconds, float)[order], np.asarray(results, float)[order]
    best = np.minimum.accumulate(y) if smaller_is_better else np.maximum.accumulate(y)
    far = float(np.quantile(y, 0.8 if smaller_is_better else 0.2))
    margin = 0.08 * abs(far - best[-1]) or 0.01 * abs(best[-1]) or 0.01
    ax.scatter(x, y, s=14, color="#999999", label="a trial")
    ax.step(np.append(x, x[-1] * 1.02), np.append(best, best[-1]), where="post", color=_BLUE, label="best so far")
    ax.set_ylim(*((best[-1] - margin, far + margin) if smaller_is_better else (far - margin, best[-1] + margin)))
    ax.set_xlabel("seconds")
    ax.set_ylabel(f"validation {metric}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return ax


def _new_axes(width: float, height: float) -> Axes:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained").add_subplot()


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

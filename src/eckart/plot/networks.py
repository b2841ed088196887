"""Pictures of a network made smaller or tuned: what it loses, layer by layer, beside what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.plot.axes import BLUE, ORANGE, SERIES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["budgets", "comparison", "frontier", "layer_losses", "spectra", "training"]


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
    ax = ax or new_axes(7, 4)
    rows = sorted(table, key=lambda row: row["keep"])
    least = min((row["loss"] for row in rows if row["loss"] > 0), default=1e-6)
    ax.plot([row["keep"] for row in rows], [row["loss"] for row in rows], color=BLUE, marker="o")
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
    ax = ax or new_axes(7, 4)
    for place, kind in enumerate(dict.fromkeys(name.rpartition(".")[2] for name in losses)):
        of_kind = [loss for name, loss in losses.items() if name.rpartition(".")[2] == kind]
        shade, marker = SERIES[place % len(SERIES)], "os^Dvx*"[place // len(SERIES) % 7]
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
    ax = ax or new_axes(7, 4)
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in losses))
    labelled: set[str] = set()
    for name, loss in losses.items():
        kind = name.rpartition(".")[2]
        place = kinds.index(kind)
        style = ("-", "--", ":")[place // len(SERIES) % 3]
        label = f"_{name}" if kind in labelled else kind  # (an underscore keeps it out of the legend)
        labelled.add(kind)
        share = np.asarray(loss, float) / (loss[0] or 1.0)
        ranks = np.linspace(0, 1, len(share))
        ax.plot(ranks, share, color=SERIES[place % len(SERIES)], linestyle=style, linewidth=0.6, label=label)
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
    ax = ax or new_axes(7, 5)
    ax.axhline(rows[0][figure], color="#777777", linewidth=0.8, label=rows[0]["method"])
    for place, method in enumerate(dict.fromkeys(row["method"] for row in rows[1:])):
        points = sorted((row["bits"], row[figure]) for row in rows[1:] if row["method"] == method)
        shade, marker = SERIES[place % len(SERIES)], "os^Dvx*"[place % 7]
        ax.plot(*zip(*points, strict=True), color=shade, marker=marker, markersize=5, linewidth=1, label=method)
    ax.set_yscale("log")  # what is lost runs over powers of ten
    ax.set_xlabel("bits a weight, everything counted")
    ax.set_ylabel(f"perplexity, {figure}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def training(losses: Sequence[float], validated: Sequence[tuple[int, float]] = (), ax: Axes | None = None) -> Axes:
    """Draw the losses of a training run, and of what was held out; a ring is around what was kept.

    Parameters
    ----------
    losses : sequence of float
        Of every step.
    validated : sequence of (int, float)
        Steps done, and the loss on what was held out then.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    ax = ax or new_axes(7, 4)
    ax.plot(range(1, len(losses) + 1), losses, color="#bbbbbb", linewidth=0.8, label="steps")
    if validated:
        steps, values = zip(*validated, strict=True)
        ax.plot(steps, values, color=BLUE, marker="o", markersize=4, label="held out")
        best = min(validated, key=lambda x: x[1])
        ax.plot(*best, color=ORANGE, marker="o", markersize=11, fillstyle="none", linestyle="", label="kept")
    ax.set_xlabel("steps")
    ax.set_ylabel("loss (nats a token)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def frontier(rows: Sequence[Mapping[str, Any]], figure: str, ax: Axes | None = None) -> Axes:
    """Draw what was learned against what was forgotten, a line a method, a point a learning rate.

    Parameters
    ----------
    rows : sequence of mappings
        Those of ``eckart.nn.adapters.frontier.trade``; one of the method "base" is drawn as a star.
    figure : str
        "accuracy" or "loss": what tells how much was learned.
    ax : Axes, optional

    Returns
    -------
    Axes
        Better is up and to the left.
    """
    ax = ax or new_axes(7, 4.5)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "base"))
    for place, method in enumerate(methods):
        of = sorted((row for row in rows if row["method"] == method), key=lambda row: row["lr"])
        color, marker = SERIES[place % len(SERIES)], "osD^v<>"[place % 7]
        ax.plot([x["rise"] for x in of], [x[figure] for x in of], color=color, marker=marker, label=method)
        for x in of:
            where = {"textcoords": "offset points", "fontsize": 7, "color": color}
            ax.annotate(f"{x['lr']:g}", (x["rise"], x[figure]), (4, (-9, 5, -17, 13)[place % 4]), **where)
    for x in (row for row in rows if row["method"] == "base"):
        ax.plot(0, x[figure], color="black", marker="*", markersize=10, linestyle="", label="before")
    ax.set_xscale("symlog", linthresh=0.01)  # what forgets too much would hide the rest
    if figure == "loss":
        ax.invert_yaxis()
    ax.set_xlabel("forgotten: rise of the loss on text that the base knew (nats a token)")
    ax.set_ylabel("learned: accuracy" if figure == "accuracy" else "learned: loss of the task (nats a token)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax

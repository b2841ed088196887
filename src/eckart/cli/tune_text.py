"""The report of ``eckart tune``: what was tried, in Markdown with two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.cli.demo_text import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eckart.recommend.tune import Tuning

__all__ = ["write_report"]

_STOPPED = {
    "trials": "all the trials that were asked for were made",
    "time": "the time was spent",
    "converged": "the box around the best had become too small to matter",
    "interrupted": "it was interrupted",
}


def write_report(tuning: Tuning, folder: Path, command: str) -> None:
    """Write report.md, settings.png and progress.png into `folder`; `command` is what fits the chosen settings."""
    from eckart import plot

    best = tuning.ranked()
    trials = tuning.trials
    columns = [name for name in trials.column_names if name not in ("at", "rung")]
    rows = [tuple(row.values()) for row in best.select(columns).to_pylist()]
    epochs = sum(trials["epochs"].to_pylist())
    text = f"""\
# Tuning {type(tuning.solver).__name__}

    {command}

Its validation {tuning.metric} is {tuning.value:.4f}, the best of {trials.num_rows} trials ({epochs:,} epochs); the
search ended because {_STOPPED[tuning.stopped]}. That number chose the settings, so it flatters them.
{_on_test(tuning)}

![value against seconds](progress.png)

![value against every setting](settings.png)

## Every trial, the best first

`value` is that of `best_epoch` on the first split; `final` is the mean over all splits, for the best few, and decides
between them. A trial that was *dropped* did worse than others after as many epochs; one that is
*done* reached the last rung.

{markdown_table(columns, rows)}
"""
    smaller = tuning.smaller_is_better
    valued = [row for row in trials.to_pylist() if row["value"] is not None]
    ax = plot.best_so_far([r["at"] for r in valued], [r["value"] for r in valued], tuning.metric, smaller)
    _figure(ax.figure).savefig(folder / "progress.png")
    _settings(tuning).savefig(folder / "settings.png")
    (folder / "report.md").write_text(text, encoding="utf-8")


def _on_test(tuning: Tuning) -> str:
    if tuning.test is None:
        return (
            "Nothing was held out beside the validation part: measure the model on ratings that are not in this file."
        )
    name = tuning.metric if tuning.metric in tuning.test else "rmse" if "rmse" in tuning.test else "ndcg@10"
    low, high = tuning.test.intervals[name]
    return (
        f"On the test part, held out before the search and looked at once, {name} is "
        f"{tuning.test[name]:.4f} (95 % interval {low:.4f} to {high:.4f})."
    )


def _settings(tuning: Tuning) -> Figure:
    from matplotlib.figure import Figure

    from eckart import plot

    valued = [row for row in tuning.trials.to_pylist() if row["value"] is not None]
    names = tuning.searched
    figure = Figure(figsize=(3.6 * len(names), 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for name, ax in zip(names, axes, strict=True):
        column = {key: [row[key] for row in valued] for key in (name, "value", "rung")}
        plot.trials(name, column[name], column["value"], column["rung"], tuning.metric, tuning.smaller_is_better, ax)
        if ax is not axes[0]:
            ax.set_ylabel("")
            ax.get_legend().remove()
    return figure


def _figure(figure: object) -> Figure:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    return figure

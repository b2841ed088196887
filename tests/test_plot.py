"""The pictures hold what they were given, and leave nothing behind."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from eckart import plot

matplotlib = pytest.importorskip("matplotlib", reason="the pictures need matplotlib: pip install 'eckart[plot]'")

HISTORY = [{"epoch": e, "objective": 10.0 / e, "validation_rmse": 0.9 + 0.1 / e} for e in range(1, 6)]


def test_convergence_draws_both_curves():
    ax = plot.convergence(HISTORY)
    (line,) = ax.get_lines()
    assert line.get_ydata().tolist() == [10.0, 5.0, 10 / 3, 2.5, 2.0]
    other = next(a for a in ax.figure.axes if a is not ax)
    assert other.get_lines()[0].get_ydata().tolist() == [record["validation_rmse"] for record in HISTORY]
    assert "RMSE" in other.get_ylabel()


def test_convergence_without_validation_has_one_scale():
    ax = plot.convergence([{"epoch": 1, "objective": 3.0}])
    assert ax.figure.axes == [ax]
    with pytest.raises(ValueError, match="empty"):
        plot.convergence([])


def test_error_by_activity_names_groups_and_models():
    ax = plot.error_by_activity(["1-9", "10-99"], {"ALS": [0.9, 0.8], "biases": [0.95, 0.9]}, [30, 1000])
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[0.9, 0.8], [0.95, 0.9]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ALS", "biases"]
    assert ax.get_xticklabels()[1].get_text() == "10-99\n(n = 1,000)"


def test_labels_of_a_map_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(40, 2))
    ax = plot.item_map(xy, [f"a film called {i}" for i in range(40)], (0.5, 0.25))
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) == 40
    covered = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not covered
    frame = ax.figure.bbox
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)


def test_trials_shows_each_and_marks_the_chosen():
    values, results = [8, 16, 32, 64, 128], [0.9, 0.85, 0.84, 3.0, 0.86]
    ax = plot.trials("rank", values, results, [0, 1, 2, 0, 1], "rmse")
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    *_, chosen = points.tolist()
    assert chosen == [32, 0.84]
    shown = {tuple(p) for p in points.tolist()}
    assert {(8, 0.9), (16, 0.85), (128, 0.86)} <= shown
    low, high = ax.get_ylim()
    assert all(low <= y <= high for x, y in shown), "a wild one stands at the edge"
    assert high < 3
    assert ax.get_xscale() == "log"
    assert plot.trials("x", [1, 2], [0.1, 0.2], [0, 0], "ndcg@10", False).collections[-1].get_offsets()[0, 0] == 2


@pytest.mark.parametrize("smaller, curve", [(True, [0.9, 0.9, 0.8]), (False, [0.9, 0.95, 0.95])])
def test_best_so_far_only_gets_better(smaller, curve):
    ax = plot.best_so_far([3.0, 1.0, 2.0], [0.8, 0.9, 0.95], "m", smaller)
    (line,) = ax.get_lines()
    assert line.get_ydata().tolist()[:3] == curve
    assert line.get_xdata().tolist()[:3] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("label", ["$x^2", "a $5 film for $6", "\\alpha", "東京"])
def test_a_label_is_text_and_not_mathematics(label, tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font without the glyph
        ax = plot.item_map(np.eye(2), [label, "other"], (0.5, 0.5))
        ax.figure.savefig(tmp_path / "map.png")
    assert label in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot.convergence(HISTORY, ax),
        lambda ax: plot.error_by_activity(["all"], {"ALS": [0.9]}, [5], ax),
        lambda ax: plot.trials("reg", [0.1, 0.2], [0.9, 0.8], [0, 1], "rmse", ax=ax),
        lambda ax: plot.best_so_far([1.0], [0.9], "rmse", ax=ax),
        lambda ax: plot.item_map(np.eye(3)[:, :2], "abc", (0.5, 0.5), ax),
    ],
)
def test_a_picture_goes_where_it_is_told(draw, tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot()
    assert draw(ax) is ax
    figure.savefig(tmp_path / "picture.png")
    alone = draw(None)
    assert alone.figure is not figure
    alone.figure.savefig(tmp_path / "alone.png")


def test_pyplot_is_never_loaded():
    import subprocess

    code = (
        "import sys; from eckart import plot; assert 'matplotlib' not in sys.modules\n"
        "plot.convergence([{'epoch': 1, 'objective': 1.0}]).figure.savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_calibration_draws_the_diagonal_and_what_was_observed():
    ax = plot.calibration([0.5, 0.9], [0.52, 0.88])
    diagonal, observed = ax.get_lines()
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist()
    assert np.asarray(observed.get_xdata()).tolist() == [0.5, 0.9]
    assert np.asarray(observed.get_ydata()).tolist() == [0.52, 0.88]


def test_budgets_are_drawn_in_order_and_all_kept_loses_nothing():
    ax = plot.budgets([{"keep": 1.0, "loss": 0.0}, {"keep": 0.5, "loss": 2.0}, {"keep": 0.8, "loss": 0.1}])
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == [0.5, 0.8, 1.0]
    assert line.get_ydata().tolist() == [2.0, 0.1, 0.0]


def test_a_line_is_a_kind_of_layer():
    ax = plot.layer_losses({"0.q": 0.1, "0.k": 0.2, "1.q": 0.3, "1.k": 0.4})
    assert [(x.get_label(), x.get_ydata().tolist()) for x in ax.get_lines()] == [("q", [0.1, 0.3]), ("k", [0.2, 0.4])]


def test_a_line_is_a_method_by_bits():
    rows = [("as it is", 16.0, 9.0), ("low rank", 8.0, 40.0), ("gptq", 4.3, 12.0), ("low rank", 12.8, 11.0)]
    ax = plot.comparison([{"method": a, "bits": b, "text": c} for a, b, c in rows], "text")
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}
    assert lines["as it is"][1] == [9.0, 9.0]
    assert lines["low rank"] == ([8.0, 12.8], [40.0, 11.0])
    assert lines["gptq"] == ([4.3], [12.0])


def test_a_spectrum_is_a_line_that_starts_at_all_of_it():
    ax = plot.spectra({"0.q": np.array([4.0, 1.0, 0.0]), "1.q": np.array([2.0, 0.0]), "0.k": np.zeros(2)})
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[1.0, 0.25, 0.0], [1.0, 0.0], [0.0, 0.0]]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["q", "k"]

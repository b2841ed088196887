"""What all pictures share: their colours, and where they are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "ORANGE", "SERIES", "new_axes"]

BLUE, ORANGE = "#0072b2", "#d55e00"  # of Okabe and Ito: told apart by the colour-blind, and in grey
SERIES = (BLUE, ORANGE, "#777777", "#009e73", "#cc79a7")


def new_axes(width: float, height: float) -> Axes:
    """Make axes on a Figure of their own, of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained").add_subplot()

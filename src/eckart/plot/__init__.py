"""Pictures of a fit, each a matplotlib Axes made from plain arrays.

matplotlib is imported when a picture is drawn (extra ``[plot]``). Without ``ax`` a function makes its own
Figure, never pyplot's: no global state, no window, nothing to close. ``ax.figure.savefig(...)`` saves it.
"""

from __future__ import annotations

from eckart.plot.fits import calibration, convergence, error_by_activity, item_map
from eckart.plot.networks import budgets, comparison, frontier, layer_losses, spectra, training
from eckart.plot.searches import best_so_far, trials

__all__ = [
    "best_so_far",
    "budgets",
    "calibration",
    "comparison",
    "convergence",
    "error_by_activity",
    "frontier",
    "item_map",
    "layer_losses",
    "spectra",
    "training",
    "trials",
]

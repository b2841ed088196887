"""How the rows of a half-sweep are solved: exactly, or improved by a few steps from where they stand.

Exact rows cost n k^2 (or n^2 k, where that is less), a step of conjugate gradients n k. Steps go on from the last
epoch, so two of them lower the objective about as far as an exact epoch does. The kernels know what each row takes by
each way (``row_cost``, fitted by ``benchmarks/row_solve.py``), and never improve a row they could solve in less time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eckart.core.kernels import kernels

__all__ = ["EXACT", "METHODS", "RowMethod", "require_solved", "row_method"]


class RowMethod(NamedTuple):
    """A way to solve rows."""

    name: str
    steps: int  # of conjugate gradients, sweeps over the blocks; 1 for exact


EXACT = RowMethod("exact", 1)
METHODS = {"exact": EXACT, "cg": RowMethod("cg", 2), "block": RowMethod("block", 1)}
# Exact epochs need no good start, and leave users at their optimum: they may cost three times as much.
_WORTH = 3.0


def row_method(solver: Any, *orders: csr_array) -> RowMethod:
    """Choose how ``solver.solver`` says rows are solved; "auto" compares what an epoch over both `orders` takes."""
    if solver.solver != "auto":
        return METHODS[solver.solver]

    def nanoseconds(method: RowMethod) -> float:
        return sum(
            kernels.row_cost(R.indptr.astype(np.int64, copy=False), solver.rank, method.name, method.steps)
            for R in orders
        )

    quickest = min((METHODS["cg"], METHODS["block"]), key=nanoseconds)
    return EXACT if nanoseconds(EXACT) <= _WORTH * nanoseconds(quickest) else quickest


def require_solved(failed: int, reg: np.ndarray) -> None:
    """Raise FloatingPointError when a kernel reports a row (>= 0) that it could not solve."""
    if failed >= 0 and not np.isfinite(reg[failed]):
        raise FloatingPointError(f"row {failed}: its penalty is {reg[failed]}: lower reg or exponent")
    if failed >= 0:
        raise FloatingPointError(
            f"row {failed}: its system is not positive definite in float32 (penalty {reg[failed]:.3g}): "
            "raise reg, lower rank, or scale the ratings down"
        )

"""What a solver is: a frozen dataclass of hyper-parameters that turns interactions into a Recommender.

A solver holds no state and computes nothing itself: ``fit`` and the methods below call pure functions on
arrays. The fitted model keeps its solver, and asks it for what only the solver's equations can tell: a new
user's factors, and which past entries carry a score.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import column_counts

if TYPE_CHECKING:
    from eckart.data.interactions import Interactions
    from eckart.recommend.recommender import Recommender

__all__ = [
    "SOLVERS",
    "ItemSide",
    "IterativeSolver",
    "Solver",
    "check_hyperparameters",
    "named_solver",
    "popularity_of",
    "require_features_taken",
    "require_fit",
]

SOLVERS = {  # name -> module, class
    "als": ("als", "ALS"),
    "implicit-als": ("implicit", "ImplicitALS"),
    "svd": ("svd", "SVD"),
    "sgd": ("sgd", "SGD"),
    "gibbs": ("gibbs", "Gibbs"),
    "two-tower": ("towers.solver", "TwoTower"),
}


class ItemSide(NamedTuple):
    """What a fitted model knows of its m items: all that is needed to fold a user in."""

    H: np.ndarray  # (m, k) float32, factors
    bias: np.ndarray  # (m,) float32
    mean: float  # of all ratings
    popularity: np.ndarray  # (m,) float32, share of the training users who have the item
    extra: Mapping[str, np.ndarray] = {}  # float32, what else the solver's equations need of them
    cold: np.ndarray | None = None  # (m,) bool, which were added after training, by their features; None: none

    @property
    def trained(self) -> int:
        """Number of items that were there in training."""
        return len(self.H) if self.cold is None else int(np.count_nonzero(~self.cold))


def popularity_of(matrix: csr_array) -> np.ndarray:
    """Share of the users (rows) who have each item, (m,) float32."""
    n = matrix.shape[0]
    return (column_counts(matrix) / max(n, 1)).astype(np.float32)


class Solver(Protocol):
    """The contract between a solver and everything else."""

    @property
    def predicts_ratings(self) -> bool:
        """Whether scores are on the scale of the ratings (else they only rank)."""
        ...

    # Read-only, as the fields of a frozen dataclass are.
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int | None: ...  # noqa: D102

    @property
    def width(self) -> int:
        """Columns of a fitted model's W and H: the rank, for most."""
        ...

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays in a fitted model's ``ItemSide.extra``."""
        ...

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        callback: Callable[[dict[str, Any]], None] | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Fit to the observed entries."""
        ...

    def solve_users(self, matrix: csr_array, items: ItemSide) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) and biases (n,) of the rows of `matrix`, the items being given: fold-in."""
        ...

    def contributions(
        self, columns: np.ndarray, values: np.ndarray, target: int, items: ItemSide
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these entries: (baseline, a share per entry)."""
        ...


class IterativeSolver(Solver, Protocol):
    """A solver that goes over the data several times: what `training.run_epochs` needs of it."""

    @property
    def epochs(self) -> int: ...  # noqa: D102


def named_solver(name: str, hyperparameters: dict[str, Any]) -> Solver:
    """Build the solver called `name` ("als", "implicit-als"), as the command line and model directories name it.

    Raises
    ------
    ValueError
        An unknown name or hyper-parameter, or a value out of range.
    """
    if name not in SOLVERS:
        raise ValueError(f"no solver is called {name!r}: choose one of {', '.join(SOLVERS)}")
    module, class_name = SOLVERS[name]
    solver = getattr(importlib.import_module(f"eckart.recommend.{module}"), class_name)
    known = [field.name for field in dataclasses.fields(solver)]
    for key in hyperparameters:
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}: it has {', '.join(known)}")
    return solver(**hyperparameters)


def solver_name(solver: Solver) -> str:
    """Give the name under which `named_solver` builds this solver."""
    return next(name for name, (_, cls) in SOLVERS.items() if cls == type(solver).__name__)


def check_hyperparameters(solver: Any) -> None:
    """Check the fields there are, and make them Python numbers; TypeError or ValueError names the field."""
    fields = {field.name: field for field in dataclasses.fields(solver)}
    for name, least in (("rank", 1), ("epochs", 1), ("seed", 0), ("early_stopping", 0), ("samples", 1)):
        if name not in fields:
            continue
        value = getattr(solver, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} is {value!r}, expected an integer")
        if not least <= value < 2**31:
            raise ValueError(f"{name} is {value}, expected {least} to {2**31 - 1}")
        object.__setattr__(solver, name, int(value))  # NumPy's integers are no JSON
    for field in fields.values():
        value = getattr(solver, field.name)
        if field.type not in ("float", float):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
            raise TypeError(f"{field.name} is {value!r}, expected a number")
        above = field.name in ("reg", "feature_reg")
        if not (math.isfinite(value) and value >= 0) or (above and value == 0):
            raise ValueError(f"{field.name} is {value}, expected a number {'above' if above else 'of at least'} 0")
        object.__setattr__(solver, field.name, float(value))
    method = getattr(solver, "solver", "auto")
    if method not in ("auto", "exact", "cg", "block"):
        raise ValueError(f"solver is {method!r}, expected 'auto', 'exact', 'cg' or 'block'")
    threads = solver.threads
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, (int, np.integer))):
        raise TypeError(f"threads is {threads!r}, expected an integer or None")
    if threads is not None and not 1 <= threads <= 4096:
        raise ValueError(f"threads is {threads}, expected 1 to 4096, or None for the cores of this process")


def require_features_taken(solver: Solver) -> None:
    """Raise ValueError when this solver learns from no features."""
    if "item_features" not in inspect.signature(solver.fit).parameters:
        name = type(solver).__name__
        raise ValueError(
            f"{name} learns from no features: choose als, implicit-als or two-tower, or leave features out"
        )


def require_fit(rank: int, data: Interactions) -> None:
    """Raise ValueError when there is nothing to fit or `rank` is more than the matrix has."""
    if not data.nnz:
        raise ValueError("there are no interactions to fit")
    least = min(data.matrix.shape)
    if rank > least:
        raise ValueError(f"rank {rank} is larger than min(users, items) = {least}: choose at most {least}")

"""Alternating least squares for ratings: each half-sweep solves every row, given the other side.

    min  sum over observed (u, i) of (r_ui - mean - b_u - c_i - w_u . h_i)^2
         + sum_u l_u (|w_u|^2 + b_u^2) + sum_i l_i (|h_i|^2 + c_i^2),       l_u = reg n_u^exponent

A user's factors and bias are the solution of one ridge system, given the items, and the other way round (Zhou et
al. 2008; the biases are solved with the factors, not before them). Items go first and users last, so every epoch
ends with users that are optimal for the items: folding in a user's own history gives its row back.

With an `implicit_reg`, rows are drawn to where their histories point, not to 0 (implied.py); with time bins, biases
drift (drift.py).

Symbols: n_u number of ratings of user u; W (n x k), H (m x k) the factors. See docs/notation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from eckart.core.csr import kernel_arrays
from eckart.core.kernels import kernels, resolve_threads
from eckart.data.features import Features
from eckart.data.interactions import Interactions
from eckart.recommend.drift import check_bins
from eckart.recommend.featured import (
    feature_side,
    improved_map,
    map_penalty,
    with_maps,
    without_bias,
)
from eckart.recommend.implied import implied_points, link_matrix, regressed
from eckart.recommend.initial import initial_factors
from eckart.recommend.recommender import Recommender
from eckart.recommend.rows import EXACT, RowMethod, require_solved, row_method
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import hold_out, rmse_on

__all__ = ["ALS"]


@dataclass(frozen=True)
class ALS:
    """Alternating least squares for explicit ratings.

    Parameters
    ----------
    rank : int
        Number of factors, k.
    reg : float > 0
        Strength of the L2 penalty.
    epochs : int
        Sweeps over items and users.
    seed : int
        Of the starting factors.
    threads : int, optional
        None: the cores this process may use. The result does not depend on it.
    exponent : float >= 0
        A row with n ratings is penalised by ``reg * n**exponent``: 1 weighs every rating alike, 0 every row.
    early_stopping : int
        Stop after so many epochs without a better RMSE on the validation ratings (a random tenth of the training
        ratings where none are given) and keep the best epoch; 0: never.
    solver : {"auto", "exact", "cg", "block"}
        How rows are solved: to the optimum, or improved by two steps of conjugate gradients or a sweep over blocks
        of 64 factors, which is quicker at large ranks. "auto" takes exact rows unless they cost three times as much.
        Users are solved exactly at the end in any case.
    implicit_reg : float >= 0
        Draws each row to where a regression on which entries it has says it should be, not to 0, with this penalty
        on the regression; 0: no regression. MovieLens is well served by 30 to 100, with an `exponent` of 0.6 to 0.7.
        See ``eckart.recommend.implied``.
    user_time_bins, item_time_bins : int >= 0
        Steps in which each user's and each item's bias drifts in time, fitted to what the factors leave over;
        0: no drift. Validation during the fit is without it. See `Recommender.with_drift`.
    time_reg : float > 0
        How many ratings it takes for a step to be half of what they say.
    feature_reg : float > 0
        With features, the penalty of the map from them to factors, in units of a row's mean penalty: how many rows it
        takes to believe a feature.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, seed=0)
    >>> model = ek.ALS(rank=8, epochs=5).fit(data)
    >>> model.W.shape, model.H.shape, len(model.history)
    ((200, 8), (100, 8), 5)
    """

    rank: int = 64
    reg: float = 0.07
    epochs: int = 15
    seed: int = 0
    threads: int | None = None
    exponent: float = 1.0
    early_stopping: int = 0
    solver: str = "auto"
    implicit_reg: float = 0.0
    user_time_bins: int = 0
    item_time_bins: int = 0
    time_reg: float = 10.0
    feature_reg: float = 1.0

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        check_bins(self.user_time_bins, self.item_time_bins, self.time_reg)

    @property
    def predicts_ratings(self) -> bool:
        """True: scores are on the scale of the ratings."""
        return True

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: the regression of users, with an `implicit_reg`."""
        return {"implicit": (items, self.rank)} if self.implicit_reg else {}

    def fit(
        self,
        data: Interactions,
        validation: Interactions | None = None,
        *,
        user_features: Features | None = None,
        item_features: Features | None = None,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Recommender:
        """Fit to the observed ratings.

        Parameters
        ----------
        data : Interactions
            Ratings; positive-only data are refused.
        validation : Interactions, optional
            Their RMSE is recorded after every epoch as ``validation_rmse``; ids unknown to `data` are left out.
        user_features, item_features : Features, optional
            What is known of users and items, see ``eckart.recommend.featured``; ids without features are as good as
            any, others than those of `data` are left out.
        callback : callable, optional
            Called after every epoch with its record, ``{"epoch": 1, "objective": ..., ...}``.
        checkpoint : path, optional
            Directory that keeps the state after the last finished epoch.
        resume : bool
            Go on from the checkpoint, bit for bit.

        Returns
        -------
        Recommender

        Raises
        ------
        ValueError
            Positive-only data, no data, a rank larger than the matrix, a checkpoint of another run, time bins and no
            times, features of none of the ids, or of images that are not encoded.
        FloatingPointError
            A system that is not positive definite in float32, or an objective that is not finite.
        """
        if not data.rated:
            raise ValueError("the data have no ratings, only pairs: use ImplicitALS (--solver implicit-als)")
        if (self.user_time_bins or self.item_time_bins) and data.times is None:
            raise ValueError("time bins are asked for, and the ratings have no timestamps: leave the bins at 0")
        everything = data
        if validation is None and self.early_stopping:
            data, validation = hold_out(data, self.seed)
        require_fit(self.rank, data)
        threads = resolve_threads(self.threads)
        R = data.matrix
        by_item = data.by_item()
        mean = float(R.data.mean(dtype=np.float64))
        method = row_method(self, R, by_item)
        reg_users, reg_items = self._row_reg(R), self._row_reg(by_item)
        regs = {"users": reg_users, "items": reg_items}
        sides = {
            "users": feature_side(user_features, data.users, reg_users, self.feature_reg, threads),
            "items": feature_side(item_features, data.items, reg_items, self.feature_reg, threads),
        }

        def drawn(
            state: State, names: tuple[str, str, str], matrix: csr_array, X: np.ndarray, bias: np.ndarray
        ) -> tuple[State, np.ndarray | None, np.ndarray | None]:
            """Regressions of a side improved, and the points and the biases that they draw its rows to."""
            side_name, link, to_map = names
            reg, side = regs[side_name], sides[side_name]
            new, of_link = {}, None
            if self.implicit_reg:
                T = X if side is None else X - (side.X @ state[to_map])[:, :-1]
                new[link], of_link = regressed(matrix, T, state[link], reg, self.implicit_reg)
            if side is None:
                return new, of_link, None
            T = np.column_stack([X if of_link is None else X - of_link, bias])
            new[to_map] = improved_map(side, T, state[to_map])
            of_features = side.X @ new[to_map]
            to = of_features[:, :-1] if of_link is None else of_link + of_features[:, :-1]
            return new, np.ascontiguousarray(to), np.ascontiguousarray(of_features[:, -1])

        def step(state: State) -> tuple[State, Record]:
            W, user_bias, H, item_bias = (state[name] for name in ("W", "user_bias", "H", "item_bias"))
            new, to, to_bias = drawn(state, ("items", "D", "item_map"), by_item, H, item_bias)
            start = H, item_bias
            H, item_bias, _ = half_sweep(by_item, W, user_bias, mean, reg_items, threads, method, start, to, to_bias)
            free = (item_bias if to_bias is None else item_bias - to_bias)[:, None]
            penalty = _penalty(reg_items, H if to is None else H - to, free)
            more, to, to_bias = drawn(state, ("users", "B", "user_map"), R, W, user_bias)
            new |= more
            start = W, user_bias
            W, user_bias, objective = half_sweep(R, H, item_bias, mean, reg_users, threads, method, start, to, to_bias)
            penalty += self.implicit_reg * sum(_square(new[name]) for name in ("B", "D") if name in new)
            for name, side in (("user_map", sides["users"]), ("item_map", sides["items"])):
                penalty += 0.0 if side is None else map_penalty(side, new[name])
            new |= {"W": W, "H": H, "user_bias": user_bias, "item_bias": item_bias}
            return new, {"objective": objective + penalty}

        def scores(state: State, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            W, user_bias, H, item_bias = (state[name] for name in ("W", "user_bias", "H", "item_bias"))
            return kernels.pair_scores(W, H, user_bias, item_bias, mean, rows, columns, threads)

        validate = None if validation is None else rmse_on(validation, data, scores)
        n, m = R.shape
        start = {
            "W": initial_factors(R, by_item, self.rank, self.seed),
            "H": np.zeros((m, self.rank), np.float32),
            "user_bias": np.zeros(n, np.float32),
            "item_bias": np.zeros(m, np.float32),
        }
        if self.implicit_reg:
            start |= {"B": np.zeros_like(start["H"]), "D": np.zeros_like(start["W"])}
        for name, side in (("user_map", sides["users"]), ("item_map", sides["items"])):
            if side is not None:
                start[name] = np.zeros((side.features.width, self.rank + 1), np.float32)
        state, history = run_epochs(
            self,
            data,
            validation,
            start,
            step,
            validate,
            features=[side.X for side in sides.values() if side is not None],
            callback=callback,
            checkpoint=checkpoint,
            resume=resume,
        )
        user_side, item_side = sides["users"], sides["items"]
        if item_side is not None:  # of the last items: what new ones are made of
            T = state["H"] if not self.implicit_reg else state["H"] - link_matrix(by_item) @ state["D"]
            T = np.column_stack([T, state["item_bias"]])
            state["item_map"] = improved_map(item_side, T, state["item_map"])
        extra = {"implicit": state["B"]} if self.implicit_reg else {}
        model = Recommender(
            solver=self,
            users=data.users,
            items=data.items,
            W=state["W"],
            user_bias=state["user_bias"],
            item_side=ItemSide(state["H"], state["item_bias"], mean, popularity_of(R), extra),
            seen=R,
            history=history,
        )
        model = with_maps(model, user_side, item_side, state)
        # Users are solved exactly at the end, whatever the epochs did: a row is then its history folded in.
        model = model if data is everything and method == EXACT else model.with_all(everything, user_features)
        if not (self.user_time_bins or self.item_time_bins):
            return model
        return model.with_drift(everything, self.user_time_bins, self.item_time_bins, self.time_reg)

    def solve_users(
        self, matrix: csr_array, items: ItemSide, points: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) and biases (n,) of users with the ratings in `matrix` (n, m): one user half-sweep.

        `points` (n, k + 1): what an encoder says of them, and of their biases.
        """
        reg, threads = self._row_reg(matrix), resolve_threads(self.threads)
        to, to_bias = implied_points(matrix, items.extra["implicit"]) if self.implicit_reg else None, None
        if points is not None:
            of_features, to_bias = np.ascontiguousarray(points[:, :-1]), np.ascontiguousarray(points[:, -1])
            to = of_features if to is None else to + of_features
        W, bias, _ = half_sweep(matrix, items.H, items.bias, items.mean, reg, threads, prior=to, prior_bias=to_bias)
        return W, bias

    def contributions(
        self,
        columns: np.ndarray,
        values: np.ndarray,
        target: int,
        items: ItemSide,
        point: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these ratings.

        With z = (h, 1) and A = sum_t z_t z_t' + l_u I, the user's row is q + A^-1 sum_t (v_t - z_t'q) z_t with q = (p,
        beta) what an encoder says of the user, 0 without one. So the score for the target is mean + c + z_target'q +
        sum_t (v_t - z_t'q) (z_target' A^-1 z_t): one share per rating.
        With an `implicit_reg`, the right side has l_u p_u, too, p_u = n_u^-1/2 sum_t B_t: a rating's share is also of
        its having been given.

        Returns
        -------
        baseline : float
            mean + c_target + z_target'q, what a newcomer with such features would be told.
        shares : ndarray of shape (n_u,), float64
            They add up to the score less the baseline.
        """
        Z = np.column_stack([items.H[columns], np.ones(len(columns))]).astype(np.float64)
        v = values.astype(np.float64) - items.mean - items.bias[columns]
        z = np.append(items.H[target], 1).astype(np.float64)
        q = np.zeros(len(z)) if point is None else point.astype(np.float64)
        reg = self.reg * float(len(columns)) ** self.exponent
        direction = np.linalg.solve(Z.T @ Z + reg * np.eye(len(z)), z)
        shares = (v - Z @ q) * (Z @ direction)
        if self.implicit_reg and len(columns):
            B = items.extra["implicit"][columns].astype(np.float64)
            shares += reg / np.sqrt(len(columns)) * (B @ direction[:-1])
        return items.mean + float(items.bias[target]) + float(z @ q), shares

    def _row_reg(self, matrix: csr_array) -> np.ndarray:
        with np.errstate(over="ignore"):  # an infinite penalty is reported with the row that fails
            return (self.reg * np.diff(matrix.indptr).astype(np.float64) ** self.exponent).astype(np.float32)


def _penalty(reg: np.ndarray, *factors: np.ndarray) -> float:
    """Sum over rows of reg |x|^2, of each array of factors."""
    return float(sum(reg @ np.sum(X.astype(np.float64) ** 2, axis=1) for X in factors))


def _square(X: np.ndarray) -> float:
    return float(np.sum(X.astype(np.float64) ** 2))


def half_sweep(
    matrix: csr_array,
    Y: np.ndarray,
    column_bias: np.ndarray,
    mean: float,
    reg: np.ndarray,
    threads: int,
    method: RowMethod = EXACT,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    prior: np.ndarray | None = None,
    prior_bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Solve every row of `matrix` (n, m) for its factors and bias, the columns' being given.

    Parameters
    ----------
    matrix : csr_array of shape (n, m), float32
    Y : ndarray of shape (m, k), float32
    column_bias : ndarray of shape (m,), float32
    mean : float
    reg : ndarray of shape (n,), float32
        Penalty of each row.
    threads : int
    method : RowMethod
        How rows are solved.
    start : (ndarray of shape (n, k), ndarray of shape (n,)), optional
        Factors and biases where the iterative methods start; 0 when not given.
    prior : ndarray of shape (n, k), float32, optional
        The point that each row's penalty draws it to; 0 when not given.
    prior_bias : ndarray of shape (n,), float32, optional
        The same for its bias: taken off the ratings, and put back on the result.

    Returns
    -------
    X : ndarray of shape (n, k), float32
    row_bias : ndarray of shape (n,), float32
    objective : float
        The squared error and the rows' own penalty, at X and row_bias.

    Raises
    ------
    FloatingPointError
        A system that is not positive definite in float32.
    """
    if prior_bias is not None:
        matrix = without_bias(matrix, prior_bias)
        start = None if start is None else (start[0], start[1] - prior_bias)
    X, row_bias, objective, failed = kernels.explicit_rows(
        *kernel_arrays(matrix),
        Y,
        column_bias,
        mean,
        reg,
        threads,
        method=method.name,
        steps=method.steps,
        start=None if method == EXACT or start is None else start[0],
        start_bias=None if method == EXACT or start is None else start[1],
        prior=prior,
    )
    require_solved(failed, reg)
    return X, row_bias if prior_bias is None else row_bias + prior_bias, float(objective.sum())

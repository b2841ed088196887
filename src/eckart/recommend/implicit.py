"""Alternating least squares for positive-only data: every cell counts, observed or not.

    min  sum over observed (u, i) of  alpha r_ui (1 - w_u . h_i)^2
         + unobserved_weight * sum over all (u, i) of (w_u . h_i)^2
         + sum_u l_u |w_u|^2 + sum_i l_i |h_i|^2,
    l_u = reg (n_u + unobserved_weight * m)^exponent,     l_i = reg (n_i + unobserved_weight * n)^exponent

The sum over all cells costs nothing: it is  w_u' (H'H) w_u  (Hu, Koren, Volinsky 2008), and in the eigenbasis of H'H
it is a diagonal (eigenbasis.py): both sides are rotated there before each half-sweep. With features, rows are drawn to
where those point and not to 0 (featured.py). The frequency-scaled penalty is
what makes the method competitive (Rendle, Krichene, Zhang, Koren 2021).

Symbols: n_u entries of user u; n users, m items; W (n x k), H (m x k). See docs/notation.md.
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
from eckart.recommend.eigenbasis import eigenbasis, spectrum
from eckart.recommend.featured import Side, feature_side, improved_map, map_penalty, with_maps
from eckart.recommend.initial import initial_factors
from eckart.recommend.recommender import Recommender
from eckart.recommend.rows import EXACT, RowMethod, require_solved, row_method
from eckart.recommend.solver import ItemSide, check_hyperparameters, popularity_of, require_fit
from eckart.recommend.training import Callback, Record, State, run_epochs
from eckart.recommend.validation import hold_out, ndcg_on

__all__ = ["ImplicitALS"]


@dataclass(frozen=True)
class ImplicitALS:
    """Exact implicit alternating least squares over all cells of the matrix.

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
    alpha : float
        Weight of an observed entry, times its value (1 for positive-only data; a count or a rating otherwise,
        which must not be negative).
    unobserved_weight : float
        Weight of each of the users x items cells, pulled to 0.
    exponent : float
        Power of the frequency in a row's penalty: 1 weighs entries alike, 0 rows.
    early_stopping : int
        Stop after so many epochs without a better NDCG@10 on the validation entries (a random tenth of the
        training entries where none are given) and keep the best epoch; 0: never.
    solver : {"auto", "exact", "cg", "block"}
        How rows are solved: to the optimum, or improved by two steps of conjugate gradients or a sweep over blocks
        of 64 factors, which is quicker at large ranks. "auto" takes exact rows unless they cost three times as much.
        Users are solved exactly at the end in any case.
    feature_reg : float > 0
        With features, the penalty of the map from them to factors, in units of a row's mean penalty: how many rows it
        takes to believe a feature.

    Examples
    --------
    >>> import eckart as ek
    >>> data = ek.synthetic(users=200, items=100, entries=4000, rated=False, seed=0)
    >>> model = ek.ImplicitALS(rank=8, epochs=5).fit(data)
    >>> history = [record["objective"] for record in model.history]
    >>> history == sorted(history, reverse=True)
    True
    """

    rank: int = 64
    reg: float = 0.003
    epochs: int = 15
    seed: int = 0
    threads: int | None = None
    alpha: float = 1.0
    unobserved_weight: float = 0.1
    exponent: float = 1.0
    early_stopping: int = 0
    solver: str = "auto"
    feature_reg: float = 1.0

    def __post_init__(self) -> None:
        check_hyperparameters(self)

    @property
    def predicts_ratings(self) -> bool:
        """False: scores only rank."""
        return False

    @property
    def width(self) -> int:
        """Columns of W and H: the rank."""
        return self.rank

    def extra_shapes(self, items: int) -> dict[str, tuple[int, ...]]:
        """Arrays a model keeps beside factors and biases: the weighted spectrum of the item factors."""
        return {"spectrum": (self.rank,)}

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
        """Fit to the observed entries and, weakly, to 0 everywhere.

        Parameters
        ----------
        data : Interactions
            Positive-only data, counts or ratings; none may be negative.
        validation : Interactions, optional
            Their NDCG@10 is recorded after every epoch as ``validation_ndcg@10``.
        user_features, item_features : Features, optional
            What is known of users and items, see ``eckart.recommend.featured``; ids without features are as good as
            any, others than those of `data` are left out.
        callback, checkpoint, resume
            As for `ALS.fit`.

        Returns
        -------
        Recommender

        Raises
        ------
        ValueError
            A negative value, no data, a rank larger than the matrix, a checkpoint of another run, features of none of
            the ids, or of images that are not encoded.
        FloatingPointError
            A system that is not positive definite in float32, or an objective that is not finite.
        """
        everything = data
        if validation is None and self.early_stopping:
            data, validation = hold_out(data, self.seed)
        require_fit(self.rank, data)
        threads = resolve_threads(self.threads)
        R = data.matrix
        require_not_negative(R)
        by_item = data.by_item()
        method = row_method(self, R, by_item)
        reg_users, reg_items = self._row_reg(R, R.shape[1]), self._row_reg(by_item, R.shape[0])
        user_side = feature_side(user_features, data.users, reg_users, self.feature_reg, threads)
        item_side = feature_side(item_features, data.items, reg_items, self.feature_reg, threads)
        weight = self.unobserved_weight

        def solved(
            matrix: csr_array, Y: np.ndarray, X: np.ndarray, reg: np.ndarray, side: Side | None, M: np.ndarray | None
        ) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray | None]:
            # X anew, given Y, and M, X's map; all come back in Y's eigenbasis Q.
            Q = eigenbasis(Y, threads)
            points = None
            if side is not None and M is not None:
                M = improved_map(side, X, M) @ Q
                points = side.X @ M
            Y = kernels.rotate(Y, Q, threads)
            start = None if method == EXACT else kernels.rotate(X, Q, threads)
            X, objective = half_sweep(matrix, Y, self.alpha, spectrum(Y, weight), reg, threads, method, start, points)
            return X, Y, objective, Q, M

        def step(state: State) -> tuple[State, Record]:
            maps = {name: state.get(name) for name in ("user_map", "item_map")}
            H, W, _, Q, maps["item_map"] = solved(
                by_item, state["W"], state["H"], reg_items, item_side, maps["item_map"]
            )
            if maps["user_map"] is not None:
                maps["user_map"] = maps["user_map"] @ Q
            W, H, objective, Q, maps["user_map"] = solved(R, H, W, reg_users, user_side, maps["user_map"])
            if user_side is not None and maps["user_map"] is not None:
                objective += map_penalty(user_side, maps["user_map"])
            residual = H.astype(np.float64)
            if item_side is not None and maps["item_map"] is not None:
                maps["item_map"] = maps["item_map"] @ Q
                residual -= item_side.X @ maps["item_map"]
                objective += map_penalty(item_side, maps["item_map"])
            objective += float(reg_items @ np.sum(residual**2, axis=1))
            new = {name: M for name, M in maps.items() if M is not None}
            return {"W": W, "H": H, **new}, {"objective": objective}

        def made(state: State, history: list[Record]) -> Recommender:
            return self._model(state, data, history, user_side, item_side)

        validate = None if validation is None else ndcg_on(validation, data, lambda s: made(s, []))
        start = {
            "W": initial_factors(R, by_item, self.rank, self.seed),
            "H": np.zeros((R.shape[1], self.rank), np.float32),
        }
        for name, side in (("user_map", user_side), ("item_map", item_side)):
            if side is not None:
                start[name] = np.zeros((side.features.width, self.rank), np.float32)
        state, history = run_epochs(
            self,
            data,
            validation,
            start,
            step,
            validate,
            features=[side.X for side in (user_side, item_side) if side is not None],
            callback=callback,
            checkpoint=checkpoint,
            resume=resume,
        )
        if item_side is not None:  # of the last items: what new ones are made of
            state["item_map"] = improved_map(item_side, state["H"], state["item_map"])
        model = made(state, history)
        # Users are solved exactly at the end, whatever the epochs did: a row is then its history folded in.
        return model if data is everything and method == EXACT else model.with_all(everything, user_features)

    def _model(
        self, state: State, data: Interactions, history: list[Record], user_side: Side | None, item_side: Side | None
    ) -> Recommender:
        n, m = data.matrix.shape
        model = Recommender(
            solver=self,
            users=data.users,
            items=data.items,
            W=state["W"],
            user_bias=np.zeros(n, np.float32),
            item_side=ItemSide(
                state["H"],
                np.zeros(m, np.float32),
                0.0,
                popularity_of(data.matrix),
                {"spectrum": spectrum(state["H"], self.unobserved_weight)},
            ),
            seen=data.matrix,
            history=history,
        )
        return with_maps(model, user_side, item_side, state)

    def solve_users(
        self, matrix: csr_array, items: ItemSide, points: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Factors (n, k) of users with the entries in `matrix` (n, m), and their biases, all 0.

        `points` (n, k + 1): what an encoder says of them.
        """
        require_not_negative(matrix)
        reg, threads = self._row_reg(matrix, items.trained), resolve_threads(self.threads)
        to = None if points is None else np.ascontiguousarray(points[:, :-1])
        W, _ = half_sweep(matrix, items.H, self.alpha, items.extra["spectrum"], reg, threads, prior=to)
        if to is not None:  # that somebody has no entries says nothing against the items
            empty = np.diff(matrix.indptr) == 0
            W[empty] = to[empty]
        return W, np.zeros(len(W), np.float32)

    def contributions(
        self,
        columns: np.ndarray,
        values: np.ndarray,
        target: int,
        items: ItemSide,
        point: np.ndarray | None = None,
    ) -> tuple[float, np.ndarray]:
        """Split the score of item `target` for a user with these entries.

        The user's row is A^-1 (l_u p_u + sum_t w_t h_t) with A = a0 H'H + sum_t w_t h_t h_t' + l_u I, so the score is
        l_u p_u' A^-1 h_target, what the features say, and sum_t w_t (h_target' A^-1 h_t): one share per entry (Hu et
        al. 2008, section 5). Without features the baseline is 0.
        """
        Y, w = items.H[columns].astype(np.float64), self.alpha * values.astype(np.float64)
        reg = self.reg * (len(columns) + self.unobserved_weight * items.trained) ** self.exponent
        A = np.diag(items.extra["spectrum"].astype(np.float64) + reg) + (Y.T * w) @ Y
        direction = np.linalg.solve(A, items.H[target].astype(np.float64))
        baseline = 0.0 if point is None else reg * float(point[:-1].astype(np.float64) @ direction)
        return baseline, w * (Y @ direction)

    def _row_reg(self, matrix: csr_array, cells: int) -> np.ndarray:
        frequency = np.diff(matrix.indptr) + self.unobserved_weight * cells
        with np.errstate(over="ignore"):  # an infinite penalty is reported with the row that fails
            return (self.reg * frequency**self.exponent).astype(np.float32)


def half_sweep(
    matrix: csr_array,
    Y: np.ndarray,
    alpha: float,
    spectrum: np.ndarray,
    reg: np.ndarray,
    threads: int,
    method: RowMethod = EXACT,
    start: np.ndarray | None = None,
    prior: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Solve every row of `matrix` (n, m) for its factors, the columns' Y (m, k) being given in their eigenbasis.

    Parameters
    ----------
    matrix : csr_array of shape (n, m), float32
    Y : ndarray of shape (m, k), float32
    alpha : float
    spectrum : ndarray of shape (k,), float32
        Of the term that pulls every cell to 0, see eigenbasis.py.
    reg : ndarray of shape (n,), float32
        Penalty of each row.
    threads : int
    method : RowMethod
        How rows are solved.
    start : ndarray of shape (n, k), float32, optional
        Where the iterative methods start; 0 when not given.
    prior : ndarray of shape (n, k), float32, optional
        The point q that each row's penalty draws it to; 0 when not given. All cells still draw it to 0:
        l |x - q|^2 + x'Sx  is  (x - p)'(S + l)(x - p) + q'(l S / (S + l)) q  with  p = l / (S + l) q.

    Returns
    -------
    X : ndarray of shape (n, k), float32
    objective : float
        The loss over all cells and the rows' own penalty, at X.

    Raises
    ------
    FloatingPointError
        A system that is not positive definite in float32.
    """
    constant = 0.0
    if prior is not None:
        share = reg[:, None] / (reg[:, None] + spectrum)
        constant = float(np.sum(share * spectrum * prior.astype(np.float64) ** 2))
        prior = np.ascontiguousarray(share * prior, dtype=np.float32)
    X, objective, failed = kernels.implicit_rows(
        *kernel_arrays(matrix),
        Y,
        alpha,
        reg,
        threads,
        spectrum=spectrum,
        method=method.name,
        steps=method.steps,
        start=None if method == EXACT else start,
        prior=prior,
    )
    require_solved(failed, reg)
    return X, float(objective.sum()) + constant


def require_not_negative(matrix: csr_array) -> None:
    """Raise ValueError when an entry is negative: a weight cannot be."""
    if matrix.nnz and matrix.data.min() < 0:
        raise ValueError(f"a value is {matrix.data.min():g}, a weight cannot be negative: use ALS for such ratings")
